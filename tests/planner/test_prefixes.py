"""Prefix groups: every prefix computed once, leaders first, nothing kept longer than needed."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenter.planner.prefixes import Prompts, group_prompts, shards, single_level_groups

tokens = st.lists(st.integers(0, 2), min_size=1, max_size=9)
batches = st.lists(tokens, min_size=1, max_size=14)


def agree(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens that two prompts begin with alike."""
    found = 0
    while found < min(len(one), len(other)) and one[found] == other[found]:
        found += 1
    return found


def computed(prompts: list[list[int]], order: Sequence[int], page: int) -> int:
    """Tokens computed in `order` by a cache of pages that forgets nothing."""
    seen, total = list[list[int]](), 0
    for number in order:
        prompt = prompts[number]
        found = max((agree(prompt, other) for other in seen), default=0)
        total += len(prompt) - min(found, len(prompt) - 1) // page * page
        seen.append(prompt)
    return total


def computed_with_least(prompts: list[list[int]], order: Sequence[int], keep: Sequence[int]) -> int:
    """Tokens computed if only `keep` tokens of the prompt before are still there."""
    before, kept, total = list[int](), 0, 0
    for number, then in zip(order, keep, strict=True):
        prompt = prompts[number]
        total += len(prompt) - min(agree(prompt, before[:kept]), len(prompt) - 1)
        before, kept = prompt, then
    return total


@given(batches, st.sampled_from([1, 2, 4]), st.booleans(), st.randoms())
def test_the_order_computes_every_page_once(batch, page, weighted, draw):
    outputs = [draw.randrange(20) for _ in batch] if weighted else None

    found = group_prompts(Prompts.of_tokens(batch), page, outputs)

    shuffled = list(range(len(batch)))
    draw.shuffle(shuffled)
    assert sorted(found.order) == list(range(len(batch)))
    assert found.computed_tokens == computed(batch, found.order, page)
    assert found.computed_tokens <= computed(batch, shuffled, page)
    assert found.logical_tokens == sum(map(len, batch))


@given(batches, st.randoms())
def test_what_it_lets_go_is_not_needed_again(batch, draw):
    outputs = [draw.randrange(20) for _ in batch]

    found = group_prompts(Prompts.of_tokens(batch), 1, outputs)

    assert computed_with_least(batch, found.order, found.keep_tokens) == found.computed_tokens


@given(batches)
def test_a_leader_comes_before_those_that_wait_for_it(batch):
    found = group_prompts(Prompts.of_tokens(batch), 1)

    for place, leader in enumerate(found.leader):
        assert leader <= place
        assert found.group[leader] == found.group[place]
        assert found.leader[leader] == leader


def test_groups_are_the_prompts_that_share_most():
    batch = [[1, 2, 3, 9], [5], [1, 2, 3, 8], [1, 2, 7]]

    found = group_prompts(Prompts.of_tokens(batch), 1)

    groups = dict(zip(found.order, found.group, strict=True))
    assert groups[0] == groups[2]
    assert len(set(groups.values())) == 3


def test_what_decodes_most_goes_first():
    batch = [[1, 1, 2], [1, 1, 3], [4, 4, 2], [4, 4, 3]]

    found = group_prompts(Prompts.of_tokens(batch), 1, [1, 1, 1, 90])

    assert list(found.order) == [3, 2, 0, 1]
    assert list(found.shared_tokens) == [0, 2, 0, 2]


def test_segments_are_spelled_once():
    document = list(range(1000))
    rows = [(document, [number]) for number in range(100)]

    prompts = Prompts.of_rows(rows)

    assert len(prompts.segments) == 101
    assert group_prompts(prompts, 1).computed_tokens == 1100
    plain = Prompts.of_tokens([[*document, number] for number in range(100)])
    assert group_prompts(plain, 1).computed_tokens == 1100


@given(batches, st.integers(1, 5))
def test_shards_cover_the_order(batch, workers):
    cuts = shards(group_prompts(Prompts.of_tokens(batch), 1), workers)

    assert len(cuts) == workers + 1
    assert list(cuts) == sorted(cuts)
    assert (cuts[0], cuts[-1]) == (0, len(batch))


def test_shards_keep_groups_whole():
    batch = [[document] * 8 + [number] for document in range(4) for number in range(5)]

    found = group_prompts(Prompts.of_tokens(batch), 1)

    assert list(shards(found, 2)) == [0, 10, 20]


@given(batches)
def test_single_level_groups_hold_every_prompt_and_share_what_they_say(batch):
    found = single_level_groups(Prompts.of_tokens(batch))

    assert sorted(n for group in found.groups for n in group) == list(range(len(batch)))
    for group, shared in zip(found.groups, found.shared, strict=True):
        assert all(batch[n][:shared] == batch[group[0]][:shared] for n in group)
    tree = {tuple(prompt[: n + 1]) for prompt in batch for n in range(len(prompt))}
    assert len(tree) <= found.computed_tokens <= sum(map(len, batch))


def test_a_group_moves_up_where_that_saves_tokens():
    few = [[1] * 2 + [2] * 10 + [n] for n in range(3)] + [[1, 1, 3]]

    found = single_level_groups(Prompts.of_tokens(few))

    assert sorted(zip(map(len, found.groups), found.shared, strict=True)) == [(1, 0), (3, 12)]


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="uint32"):
        Prompts.of_tokens([[-1]])
    with pytest.raises(ValueError, match="prompt 1 has 1 segments, not 2"):
        Prompts.of_rows([([1], [2]), ([1],)])
    with pytest.raises(ValueError, match="1 expected outputs for 2 prompts"):
        group_prompts(Prompts.of_tokens([[1], [2]]), 1, [3.0])
    assert list(group_prompts(Prompts.of_tokens([])).order) == []
