"""Past-Future's peak, against a simulation of the calls token by token."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenter.kvpolicy.peak import OUTPUTS, Future, outputs_seen, peak_tokens, sample_length

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


def test_lengths_are_drawn_from_longer_answers() -> None:
    outputs = outputs_seen([10, 20, 30, 40]).ordered
    drawn = {sample_length(20, 1_000, outputs, Random(seed)) for seed in range(50)}

    assert drawn == {30, 40}


@pytest.mark.parametrize("produced", [40, 100, 120])
def test_beyond_all_answers_a_call_may_take_all_it_may(produced: int) -> None:
    assert sample_length(produced, 100, outputs_seen([10, 40]).ordered, Random(0)) == 100


def test_no_call_produces_more_than_it_may() -> None:
    assert sample_length(5, 20, outputs_seen([900]).ordered, Random(0)) == 20


def test_the_last_answers_count() -> None:
    outputs = outputs_seen([1_000] * 50 + [10] * OUTPUTS)

    assert set(outputs.ordered) == {10}


@given(calls=CALLS, one=st.tuples(st.integers(0, 300), st.integers(0, 60)), data=st.data())
def test_a_future_has_the_peak_of_its_calls_whatever_came_and_went(
    calls: list[tuple[int, int]], one: tuple[int, int], data: st.DataObject
) -> None:
    future, step = Future(), data.draw(st.integers(0, 1_000))
    for number, (used, left) in enumerate(calls):
        future.add(f"c{number}", step + left, used - step)
        if data.draw(st.booleans()):
            future.peak(step + 1, 5 - step)
    gone = {number for number in range(len(calls)) if data.draw(st.booleans())}
    for number in gone:
        future.remove(f"c{number}", step + calls[number][1])

    stay = [call for number, call in enumerate(calls) if number not in gone]
    used, left = one
    assert future.peak(step + left, used - step) == peak_tokens([*stay, one])
    late = {f"c{n}" for n, (_, left) in enumerate(calls) if n not in gone and left <= 7}
    assert set(future.overdue(step + 7)) == late
