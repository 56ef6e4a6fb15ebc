"""A window of rows cut into shards, each for a process of its own: groups stay whole, and the
expected tokens of all shards are about the same. Pure.

A group that is cut through is computed on both sides (BatchLLM, 2412.03594 §4, keeps it on one).
"""

from array import array
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise, zip_longest
from typing import Any

from .cost import SHARE_OF_MAX_TOKENS
from .plan import CHARS_PER_TOKEN
from .window import Lead, WindowPlan

SLACK = 0.25  # of a shard's tokens, by which a cut may be moved to the edge of a group


def cut_shards(plan: WindowPlan, tokens: Sequence[float], shards: int) -> list[tuple[int, ...]]:
    """The rows of each of `shards` shards, in the plan's order; `tokens` are those of each row.

    A shard is empty where there are fewer rows. Raises ValueError for less than one shard.
    """
    if shards < 1:
        raise ValueError(f"there is nothing to cut into {shards} shards")
    order = plan.order
    sums = [0.0, *accumulate(tokens[row] for row in order)]  # of the rows before each place
    severed = _severed(plan)
    cuts = [0]
    for number in range(1, shards):
        fair = sums[-1] * number / shards
        slack = sums[-1] / shards * SLACK
        first = max(cuts[-1], bisect_left(sums, fair - slack))
        last = bisect_left(sums, fair + slack)
        near = range(first, min(last, len(order)) + 1)
        middle = max(cuts[-1], min(len(order), bisect_left(sums, fair)))
        cuts.append(
            min(near, key=lambda place: (severed[place], abs(sums[place] - fair)), default=middle)
        )
    return [order[first:last] for first, last in pairwise([*cuts, len(order)])]


def in_turns(shards: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The rows of all shards, a row of each in turn, so that all of them are worked on at once."""
    return tuple(row for rows in zip_longest(*shards) for row in rows if row is not None)


def row_tokens(
    plan: WindowPlan, leads: Sequence[Lead], rows: Sequence[Mapping[str, Any]]
) -> "array[float]":
    """The tokens that each row is expected to take: those of its prompts that are known and not
    shared with a row before it in its group, and those of its answers; at least one."""
    output = SHARE_OF_MAX_TOKENS * sum(lead.output_tokens for lead in leads)
    found = array("d")
    for inputs in rows:
        chars = sum(len(text) for lead in leads for text in lead.texts(inputs))
        found.append(1.0 + output + chars / CHARS_PER_TOKEN)
    for group in plan.groups:
        for row in group.rows[1:]:
            found[row] = max(1.0, found[row] - len(group.text) / CHARS_PER_TOKEN)
    return found


def _severed(plan: WindowPlan) -> Sequence[int]:
    """For a cut at each place of the order, the characters of all beginnings that it severs."""
    place = array("q", [0]) * len(plan.order)
    for index, row in enumerate(plan.order):
        place[row] = index
    change = array("q", [0]) * (len(plan.order) + 2)
    for group in plan.groups:
        places = [place[row] for row in group.rows]
        change[min(places) + 1] += len(group.text)
        change[max(places) + 1] -= len(group.text)
    return tuple(accumulate(change))
