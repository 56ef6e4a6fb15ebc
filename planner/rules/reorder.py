"""Reorder: puts the fields that the author has freed into the order that a cache likes best.

Field order can change an answer, so only the fields that a step names as free move, and the plan
says so. The order comes from statistics (distinct values, lengths, dependencies), and is one for
all rows; `planner.reorder` can do better row by row. GGR, 2403.05821 §4; the objective is tokens, not squared length.
"""

from dataclasses import replace
from math import prod

from ..errors import PlannerError
from ..graph import LLM, Ref
from ..lower import prefix
from ..plan import Context, Plan, PlanStep
from ..reorder.template import Freed, free_fields
from ..stats import ColumnStats, TableStats


def reorder(plan: Plan, context: Context) -> Plan:
    """The plan with the free fields of its prompts in order.

    Without statistics, and for steps whose fields are no columns, it finds nothing. Raises
    `PlannerError` where a field that is said to be free cannot be moved.
    """
    stats = context.stats
    if stats is None or not stats.rows:
        return plan
    notes: list[str] = []
    steps = tuple(_reordered(step, stats, notes) for step in plan.steps)
    if steps == plan.steps:
        return plan
    return replace(plan, steps=steps, notes=(*plan.notes, *notes))


def _reordered(step: PlanStep, stats: TableStats, notes: list[str]) -> PlanStep:
    logical = step.step
    if not isinstance(logical, LLM) or len(logical.free_fields) < 2 or step.scope == "once":
        return step
    try:
        cut = free_fields(logical.prompt, logical.free_fields)
    except PlannerError as error:
        raise PlannerError(f"step {step.id!r}: {error}") from None
    args = dict(logical.args)
    columns: list[str] = []
    for name in cut.names:
        value = args.get(name, Ref(name))
        if not isinstance(value, Ref) or value.path or value.name not in stats.columns:
            return step
        columns.append(value.name)
    before = tuple(range(len(columns)))
    order = best_order(columns, cut, stats)
    if order == before:
        return step
    paid = [expected_tokens(which, columns, cut, stats) for which in (before, order)]
    notes.append(
        f"{step.id}: answers may change: its free fields go {', '.join(cut.names[i] for i in order)}"
        f"; about {paid[0]:.0f} -> {paid[1]:.0f} tokens of them are computed per row"
    )
    moved = replace(logical, prompt=cut.prompt(order))
    return replace(step, step=moved, prefix=prefix(moved))


def best_order(columns: list[str], cut: Freed, stats: TableStats) -> tuple[int, ...]:
    """The free fields in the order with the fewest tokens to compute; ties as the author wrote."""
    best = tuple(range(len(columns)))
    paid = expected_tokens(best, columns, cut, stats)
    improved = True
    while improved:
        improved = False
        for at in range(len(best)):
            for to in range(len(best)):
                rest = best[:at] + best[at + 1 :]
                moved = (*rest[:to], best[at], *rest[to:])
                found = expected_tokens(moved, columns, cut, stats)
                if found < paid * (1 - 1e-9):
                    best, paid, improved = moved, found, True
    return best


def expected_tokens(
    order: tuple[int, ...], columns: list[str], cut: Freed, stats: TableStats
) -> float:
    """The tokens of free fields to compute per row, where equal prefixes are computed once.

    Columns count as independent of each other unless a dependency was found: so many prefixes
    differ as combinations of their values are possible, and no more than there are rows.
    """
    fixed = {(each.left, each.right) for each in stats.dependencies}
    total, seen = 0.0, list[str]()
    prefixes = 1.0
    for index in order:
        column = columns[index]
        label = len(cut.labels[index] + cut.separator) / 4
        total += prefixes * label + (
            (prefixes := _prefixes([*seen, column], stats, fixed)) * _tokens(stats.columns[column])
        )
        seen.append(column)
    return total / stats.rows


def _prefixes(columns: list[str], stats: TableStats, fixed: set[tuple[str, str]]) -> float:
    free = [
        column
        for index, column in enumerate(columns)
        if not any(
            (other, column) in fixed and ((column, other) not in fixed or place < index)
            for place, other in enumerate(columns)
            if other != column
        )
    ]
    return min(stats.rows, prod(max(1, stats.columns[column].distinct) for column in free))


def _tokens(column: ColumnStats) -> float:
    return column.mean_chars / 4 if column.mean_tokens is None else column.mean_tokens
