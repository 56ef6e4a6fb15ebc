"""The tree of a reduce, as the simulator asks it: what fits a prompt is folded, level by level."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

from ...planner.folds import MOST_LEVELS, DoesNotFit, batches
from ...planner.graph import LLM
from ...planner.several import prompt_limit
from ..run.reduce_step import parts

Values = Mapping[str, Any]
Ask = Callable[[LLM, Values, Any], tuple[Any, Any]]
"""Asks a step with its values, no earlier than a moment; its answer, and when that is there."""


def fold(step: LLM, values: Values, at: Any, tokens: Callable[[LLM, Values], int], ask: Ask) -> Any:
    """The last fold and when it is there; all items in one call where they fit, or seem never to.

    `tokens` are those of a prompt. They are bounded where the author has said so
    (`batch_tokens`): the context of the model is not known yet.
    """
    assert step.reduce is not None
    over, limit = step.reduce.over, prompt_limit(step, None)
    given, level = values.get(over), 0
    first, merge = parts(step)
    if not step.reduce.tree or limit is None or not isinstance(given, list):
        return ask(first, values, at)
    items = cast("list[Any]", given)
    if not items or tokens(first, values) <= limit:
        return ask(first, values, at)
    part = first
    while (len(items) > 1 or not level) and level < MOST_LEVELS:
        asked = partial(_with, values, over, items)
        folded, end = list[Any](), at
        try:
            runs = list(batches(len(items), partial(_fits, part, asked, tokens, limit, level > 0)))
        except DoesNotFit:
            return ask(first, values, at)
        for low, high in runs:
            if level and high - low == 1:
                folded.append(items[low])
                continue
            answer, then = ask(part, asked(low, high), at)
            folded.append(answer)
            end = max(end, then)
        items, at, level, part = folded, end, level + 1, merge
    return items[0], at


def _with(values: Values, over: str, items: list[Any], low: int, high: int) -> dict[str, Any]:
    return {**values, over: items[low:high]}


def _fits(
    part: LLM,
    asked: Callable[[int, int], Values],
    tokens: Callable[[LLM, Values], int],
    limit: int,
    passes: bool,
    low: int,
    high: int,
) -> bool:
    """Whether a run of items fits a prompt; a fold that stands alone `passes` as it is."""
    return (passes and high - low == 1) or tokens(part, asked(low, high)) <= limit
