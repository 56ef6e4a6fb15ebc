"""Past-Future's peak, against a simulation of the calls token by token."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenter.kvpolicy.peak import (
    OUTPUTS,
    Running,
    future_peak_tokens,
    outputs_seen,
    peak_tokens,
    sample_left,
)

CALLS = st.lists(st.tuples(st.integers(0, 300), st.integers(0, 60)), max_size=12)


def simulated(calls: list[tuple[int, int]]) -> int:
    """What is held at the most when each call grows by a token a step and then ends."""
    steps = range(max((left for _, left in calls), default=0) + 1)
    return max(sum(used + step for used, left in calls if step <= left) for step in steps)


@given(calls=CALLS)
def test_the_peak_is_that_of_the_simulation(calls: list[tuple[int, int]]) -> None:
    assert peak_tokens(calls) == simulated(calls)


@given(calls=CALLS, one=st.tuples(st.integers(0, 300), st.integers(0, 60)))
def test_one_more_call_never_lowers_the_peak(
    calls: list[tuple[int, int]], one: tuple[int, int]
) -> None:
    assert peak_tokens([*calls, one]) >= peak_tokens(calls)


def test_by_hand() -> None:
    # all three run to the end of the shortest: 3 * 1 + 60; then two: 2 * 5 + 30; then 9 + 10
    assert peak_tokens([(10, 9), (20, 5), (30, 1)]) == 63
    assert peak_tokens([]) == 0


def test_what_is_left_is_drawn_from_longer_answers() -> None:
    outputs = outputs_seen([10, 20, 30, 40])
    drawn = {
        sample_left(Running(100, 20, 1_000), outputs.ordered, Random(seed)) for seed in range(50)
    }

    assert drawn == {10, 20}


@pytest.mark.parametrize(("produced", "left"), [(40, 60), (100, 0), (120, 0)])
def test_beyond_all_answers_a_call_may_take_all_it_may(produced: int, left: int) -> None:
    outputs = outputs_seen([10, 40])

    assert sample_left(Running(1, produced, 100), outputs.ordered, Random(0)) == left


def test_no_call_produces_more_than_it_may() -> None:
    assert sample_left(Running(1, 5, 20), outputs_seen([900]).ordered, Random(0)) == 15


def test_the_last_answers_count() -> None:
    outputs = outputs_seen([1_000] * 50 + [10] * OUTPUTS)

    assert set(outputs.ordered) == {10}


def test_the_worst_future_counts_and_a_seed_decides() -> None:
    calls = [Running(100, 3, 500), Running(50, 0, 500)]
    outputs = outputs_seen(range(1, 200)).ordered
    few = future_peak_tokens(calls, outputs, Random(5), samples=1)

    assert future_peak_tokens(calls, outputs, Random(5), samples=1) == few
    assert future_peak_tokens(calls, outputs, Random(5), samples=20) > few
