"""Windows cut into shards: every row once, groups whole, tokens balanced."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenter.planner.shards import cut_shards, in_turns, row_tokens
from tenter.planner.window import Group, Lead, WindowPlan


def plan_of(sizes: list[int], chars: int = 400) -> WindowPlan:
    """Groups of so many rows, one after the other, whose prompts begin with so many characters."""
    groups: list[Group] = []
    first = 0
    for number, size in enumerate(sizes):
        rows = tuple(range(first, first + size))
        if size > 1:
            groups.append(Group("s", f"{number:0{chars}}", rows, size))
        first += size
    return WindowPlan(tuple(range(first)), tuple(groups))


def test_a_cut_goes_between_groups_rather_than_through_one() -> None:
    plan = plan_of([40, 12, 8, 40])
    shards = cut_shards(plan, [1.0] * 100, 2)

    assert [len(shard) for shard in shards] == [52, 48]


def test_a_group_that_is_most_of_a_window_is_cut_where_it_is_fair() -> None:
    shards = cut_shards(plan_of([90, 10]), [1.0] * 100, 2)

    assert [len(shard) for shard in shards] == [50, 50]


def test_shards_are_balanced_in_tokens_not_in_rows() -> None:
    tokens = [9.0] * 10 + [1.0] * 90
    first, second = cut_shards(WindowPlan(tuple(range(100))), tokens, 2)

    assert len(first) == 10 and len(second) == 90


def test_a_row_takes_its_own_tokens_and_only_the_first_of_a_group_the_shared_ones() -> None:
    lead = Lead("s", ("x" * 400, lambda inputs: inputs["text"]), whole=True, output_tokens=20)
    rows = [{"text": "a" * 200}, {"text": "a" * 200 + "b" * 80}, {"text": "c" * 4}]
    group = Group("s", "x" * 400 + "a" * 200, (1, 0), 2)
    found = row_tokens(WindowPlan((1, 0, 2), (group,)), [lead], rows)

    assert list(found) == [1 + 10 + 150 - 150, 1 + 10 + 170, 1 + 10 + 101]
    assert row_tokens(WindowPlan((0, 1)), [], [{}, {}]).tolist() == [1.0, 1.0]


def test_shards_take_turns_until_each_is_over() -> None:
    assert in_turns([(3, 1, 4), (), (2,)]) == (3, 2, 1, 4)


def test_there_is_at_least_one_shard() -> None:
    with pytest.raises(ValueError, match="into 0 shards"):
        cut_shards(WindowPlan(()), [], 0)
    assert cut_shards(WindowPlan(()), [], 2) == [(), ()]


@given(sizes=st.lists(st.integers(1, 30), max_size=30), shards=st.integers(1, 9))
def test_every_row_is_in_one_shard_and_none_is_much_larger(sizes: list[int], shards: int) -> None:
    plan = plan_of(sizes)
    tokens = [float(1 + (row * 7919) % 10) for row in range(len(plan.order))]
    found = cut_shards(plan, tokens, shards)

    assert len(found) == shards
    assert [row for shard in found for row in shard] == list(plan.order)
    fair = sum(tokens) / shards
    assert all(sum(tokens[row] for row in shard) <= 1.5 * fair + 10 for shard in found)
