"""One step on the device: from planned work to the logits that are wanted."""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from .attention import PagedAttention, Plan
from .cache import PAGE_TOKENS
from .model import Model
from .state import Sequence


class Results(NamedTuple):
    """Logits [rows, vocab]: first one row for each of `drawing`, then one for each of `scoring`."""

    logits: Tensor
    drawing: list[Sequence]  # computed to the end: their next token can be drawn
    scoring: list[tuple[Sequence, int]]  # choices, and the position that the row belongs to


class Executor:
    """Runs the model over the work of a step."""

    def __init__(self, model: Model, attention: PagedAttention) -> None:
        self.model, self.attention = model, attention

    def run(self, plan: Plan) -> Results:
        """Compute `plan`. The KV of its tokens is in the pool afterwards."""
        ids, positions, slots = list[int](), list[int](), list[int]()
        drawing, scoring = list[Sequence](), list[tuple[Sequence, int]]()
        rows, scored = list[int](), list[int]()
        for sequence, count in plan.work:
            done, table = sequence.done, sequence.table
            stop = done + count
            if sequence.draws and stop == len(sequence.tokens):
                rows.append(len(ids) + count - 1)
                drawing.append(sequence)
            elif sequence.forks:
                first = max(done, sequence.prompt - 1)
                scored += range(len(ids) + first - done, len(ids) + count)
                scoring += [(sequence, position) for position in range(first, stop)]
            ids += sequence.tokens[done:stop]
            positions += sequence.positions(done, stop)
            slots += [
                table[i // PAGE_TOKENS] * PAGE_TOKENS + i % PAGE_TOKENS for i in range(done, stop)
            ]
        rows += scored
        every = len(rows) == len(ids) and not scored
        attend = partial(self.attention.attend, plan, self._tensor(slots))
        logits = self.model.forward(
            self._tensor(ids),
            self._tensor(positions),
            attend,
            None if every else self._tensor(rows),
        )
        return Results(logits, drawing, scoring)

    def _tensor(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64).to(self.model.device, non_blocking=True)
