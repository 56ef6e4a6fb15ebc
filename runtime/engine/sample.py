"""From logits to tokens: greedy or drawn, per row, so that no row depends on its neighbours."""

from collections.abc import Sequence as Rows
from typing import cast

import torch
from torch import Tensor

from ..calls import Sampling
from .state import Sequence

_UNIFORM_STEPS = 2**24  # draws fit a float32 exactly, and stay below 1


def sample(logits: Tensor, settings: Rows[Sampling], draws: Rows[float]) -> list[int]:
    """One token for each row of logits [rows, vocab], by the row's settings.

    `draws` are uniform from [0, 1), one per row; greedy rows ignore theirs.
    """
    tokens = _likeliest(logits)
    plain: list[int] = []
    limited: list[int] = []
    for row, sampling in enumerate(settings):
        if sampling.temperature > 0:
            cut = sampling.top_k > 0 or sampling.top_p < 1
            (limited if cut else plain).append(row)
    for rows in (plain, limited):  # apart: sorting would change what a plain row's draw means
        if rows:
            chosen = _draw(
                logits[rows].float(), [settings[i] for i in rows], [draws[i] for i in rows]
            )
            for row, token in zip(rows, chosen, strict=True):
                tokens[row] = token
    return tokens


def log_probabilities(logits: Tensor, tokens: list[int]) -> list[float]:
    """Natural log-probability of one token per row, of the model's own distribution."""
    chosen = torch.tensor(tokens, device=logits.device).unsqueeze(1)
    return _floats(logits.float().log_softmax(-1).gather(1, chosen).squeeze(1))


def score(logits: Tensor, scoring: list[tuple[Sequence, int]]) -> None:
    """Add to the scores of each sequence what its choices gain at one position per row.

    `scoring` names the sequence and the position of each row of logits [rows, vocab].
    """
    if not scoring:
        return
    values = logits.float().log_softmax(-1)
    rows, tokens, choices = list[int](), list[int](), list[tuple[Sequence, int]]()
    for row, (sequence, position) in enumerate(scoring):
        if sequence.forks is None:
            continue
        for token, choice in sequence.forks.targets[position]:
            rows.append(row)
            tokens.append(token)
            choices.append((sequence, choice))
    gained = _floats(values[rows, tokens])
    for (sequence, choice), value in zip(choices, gained, strict=True):
        sequence.scores[choice] += value


def _likeliest(logits: Tensor) -> list[int]:
    """The first of the largest logits of each row. NumPy's search is ten times PyTorch's on a CPU."""
    if logits.is_cuda:
        return _integers(logits.argmax(-1))
    return cast("list[int]", logits.float().numpy().argmax(-1).tolist())


def _draw(logits: Tensor, settings: Rows[Sampling], draws: Rows[float]) -> list[int]:
    """Draw by inverting the cumulative distribution: one uniform number per token and row."""

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=logits.device).unsqueeze(1)

    weights = torch.softmax(logits / column([s.temperature for s in settings]), -1)
    order = None
    if settings[0].top_k > 0 or settings[0].top_p < 1:
        weights, order = weights.sort(stable=True, dim=-1, descending=True)
        limits = column([float(s.top_k or weights.shape[1]) for s in settings])
        weights = _nucleus(weights, limits, column([s.top_p for s in settings]))
    summed = weights.cumsum(-1)
    total = summed[:, -1:]
    uniform = column([int(draw * _UNIFORM_STEPS) / _UNIFORM_STEPS for draw in draws])
    point = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    chosen = torch.searchsorted(summed, point, right=True)
    return _integers((chosen if order is None else order.gather(1, chosen)).squeeze(1))


def _nucleus(weights: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Of descending weights keep the first `top_k`, then the fewest that reach `top_p` of those
    (nucleus sampling, 1904.09751, section 3.1); at least one."""
    ranks = torch.arange(weights.shape[1], device=weights.device)
    weights = weights.masked_fill(ranks >= top_k, 0.0)
    before = weights.cumsum(-1) - weights
    beyond = (before >= top_p * weights.sum(-1, keepdim=True)) & (top_p < 1) & (ranks > 0)
    return weights.masked_fill(beyond, 0.0)


def _integers(values: Tensor) -> list[int]:
    return cast("list[int]", values.tolist())  # pyright: ignore[reportUnknownMemberType]


def _floats(values: Tensor) -> list[float]:
    return cast("list[float]", values.tolist())  # pyright: ignore[reportUnknownMemberType]
