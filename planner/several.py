"""Estimates of steps that are several calls (agents, samples, reduces) or share one (packs)."""

import json
from dataclasses import replace
from typing import Any, cast

from .folds import expected_calls
from .graph import LLM, Loop, Pack
from .plan import CHARS_PER_TOKEN, Estimate

DEFAULT_CHARS = 200.0  # an input without statistics, a tool's result
DEFAULT_TOKENS = DEFAULT_CHARS / CHARS_PER_TOKEN
LIST_TOKENS = 0.5  # written around each item of a list
AGENT_TURNS = 3  # of an agent that may take more
PACK_TOKENS, ITEM_TOKENS, ANSWER_TOKENS = 40, 5, 12  # what a pack adds: once, per row, per answer

EXPECTED_ROUTED = 0.5  # of the rows of a cascade, those that the small model answers


def of_agent(loop: Loop, total: float, shared: float, output: int, calls: float) -> Estimate:
    """The mean turn of an agent: each begins with all that was said before, which is cached.

    Between two turns comes what a tool says.
    """
    turns = min(loop.max_turns, AGENT_TURNS) if loop.tools else 1
    grown = (turns - 1) / 2 * (output + DEFAULT_TOKENS)
    before = total * (turns - 1) + (output + DEFAULT_TOKENS) * (turns - 1) * (turns - 2) / 2
    return Estimate(round(total + grown), round((shared + before) / turns), output, calls * turns)


def of_reduce(
    whole: Estimate, items: float, item_tokens: float, limit: int | None, tree: bool
) -> Estimate:
    """The mean call of a reduce, where `whole` is the one with all of its list."""
    if limit is None or whole.prompt_tokens <= limit or not tree:
        return replace(whole, folds=(1,))
    fixed = max(0.0, whole.prompt_tokens - items * item_tokens)
    answer = whole.output_tokens + LIST_TOKENS
    folds = expected_calls(items, item_tokens, answer, fixed, limit)
    if not folds:
        return whole
    calls = sum(folds)
    read = items * item_tokens + sum(folds[:-1]) * answer
    return replace(
        whole,
        prompt_tokens=round(fixed + read / calls),
        shared_prefix_tokens=round(min(whole.shared_prefix_tokens, fixed)),
        calls_per_row=whole.calls_per_row * calls,
        folds=folds,
    )


def of_pack(single: Estimate, pack: Pack, rows: int, head: float) -> Estimate:
    """A prompt of `rows` rows: the `head` tokens that all of them begin with stand in it once.

    Every vote is counted; those of items that are sure are not taken.
    """
    each = max(0.0, single.prompt_tokens - head) + ITEM_TOKENS
    return replace(
        single,
        prompt_tokens=round(head + PACK_TOKENS + rows * each),
        shared_prefix_tokens=round(min(single.shared_prefix_tokens, head)),
        output_tokens=rows * (max(single.output_tokens, 1) + ANSWER_TOKENS),
        calls_per_row=single.calls_per_row * pack.votes / rows,
    )


def of_cascade(single: Estimate, routed: float) -> Estimate:
    """The small model is asked of all rows, the large one of those that are left."""
    return replace(single, calls_per_row=single.calls_per_row * (2 - routed))


def samples(step: LLM) -> int:
    """How many answers a step draws."""
    if step.reasoning is None:
        return 1
    settings: Any = json.loads(step.reasoning.settings)
    found = cast("dict[str, Any]", settings).get("n", 1) if isinstance(settings, dict) else 1
    return found if isinstance(found, int) else 1


def prompt_limit(step: LLM, context_tokens: int | None) -> int | None:
    """The longest prompt of a reduce, where that is known."""
    own = step.reduce.batch_tokens if step.reduce is not None else None
    choice = max((len(choice.encode()) + 1 for choice in step.choices), default=0)  # at most
    answer = choice or step.sampling.max_tokens
    limits = [own, None if context_tokens is None else context_tokens - answer]
    return min((limit for limit in limits if limit is not None), default=None)
