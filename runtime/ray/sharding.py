"""Which shard each row goes to: a window at a time, by the prefixes of its prompts."""

from collections.abc import Mapping, Sequence
from typing import Any

from ...planner.graph import LLM, Graph
from ...planner.plan import Plan
from ...planner.shards import cut_shards, row_tokens
from ...planner.window import leads, plan_window


class Sharding:
    """The order of rows for `shards` shards; `shard_of` tells whose a row is.

    `graph` is that of a static workflow. With `order`, rows that share a prefix go to one shard;
    without, each shard gets rows that follow one another. A shard has the same place in the order
    of every window, so that what windows have in common stays where it was computed.
    """

    def __init__(
        self, graph: Graph | None, columns: Sequence[str], shards: int, order: bool = True
    ) -> None:
        self._leads = () if graph is None else leads(graph)
        self._columns = columns
        self._shards = shards
        self._order = order
        self._shard_of: dict[int, int] = {}
        self._group_of: dict[int, str] = {}  # the longest text that a row's prompts share

    def arrange(self, rows: Sequence[int], inputs: Sequence[Mapping[str, Any]]) -> None:
        """Free fields are put in order by the shards."""

    def window(self, rows: Sequence[int], inputs: Sequence[Mapping[str, Any]]) -> list[int]:
        """The next window's rows by index, those of a shard one after the other."""
        plan = plan_window(self._leads, inputs, self._columns, reorder=self._order)
        shards = cut_shards(plan, row_tokens(plan, self._leads, inputs), self._shards)
        for number, shard in enumerate(shards):
            self._shard_of.update((rows[index], number) for index in shard)
        for group in sorted(plan.groups, key=lambda group: len(group.text)):
            self._group_of.update((rows[index], group.text) for index in group.rows)
        return list(plan.order)

    def shard_of(self, row: int) -> int:
        """The shard of a row whose window was planned."""
        return self._shard_of[row]

    def second_half(self, rows: Sequence[int]) -> Sequence[int]:
        """Of rows in their order those that another shard may take, cut between two groups if any
        end near the middle."""
        middle, slack = len(rows) // 2, len(rows) // 4
        groups = [self._group_of.get(row) for row in rows]
        near = range(max(1, middle - slack), middle + slack + 1)
        edges = (at for at in near if groups[at] is None or groups[at] != groups[at - 1])
        return rows[min(edges, key=lambda at: abs(at - middle), default=middle) :]

    def ended(self, row: int) -> None:
        """The row is done with."""
        self._shard_of.pop(row, None)
        self._group_of.pop(row, None)


def may_move(plan: Plan) -> bool:
    """Whether a row's prompts are the same in whichever shard it runs: none that are made for many
    rows together, or depend on those before."""
    return not any(
        step.packed
        or step.cascaded
        or (isinstance(step.step, LLM) and len(step.step.free_fields) > 1)
        for step in plan.steps
    )
