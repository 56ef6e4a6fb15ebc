"""Continuum's time to live by hand, its traps, and its terms."""

from math import e

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenter.kvpolicy import Durations, QueueDelay, continuum_ttl, turns_eta


def taught(**tools: list[float]) -> Durations:
    durations = Durations()
    for tool, seen in tools.items():
        for seconds in seen:
            durations.observe(tool, seconds)
    return durations


# ---- Continuum's rule ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prefill_s", "queue_delay_s", "expected"),
    [(0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (e, 0.0, 1.0), (1.0, e - 1, 1.0)],
)
def test_a_cold_start_takes_the_logarithm_of_the_benefit(
    prefill_s: float, queue_delay_s: float, expected: float
) -> None:
    # eta is taken as 1, whatever is handed in
    found = continuum_ttl(Durations(), "a", prefill_s, queue_delay_s, eta=0.0)

    assert found == pytest.approx(expected)


def test_the_cold_start_ends_above_a_hundred_samples() -> None:
    assert continuum_ttl(taught(a=[2.0] * 100), "a", e, 0.0, 1.0) == pytest.approx(1.0)
    assert continuum_ttl(taught(a=[2.0] * 101), "a", e, 0.0, 1.0) == 2.0


def test_a_tool_with_a_hundred_samples_uses_the_pool() -> None:
    few = taught(a=[2.0] * 100, b=[1.0] * 300)
    enough = taught(a=[2.0] * 101, b=[1.0] * 300)

    # pool: P(1) = .75, worth .75 * 3 - 1 = 1.25; P(2) = 1, worth 3 - 2 = 1
    assert continuum_ttl(few, "a", 3.0, 0.0, 1.0) == 1.0
    assert continuum_ttl(enough, "a", 3.0, 0.0, 1.0) == 2.0


@pytest.mark.parametrize(
    ("benefit", "expected"),
    [
        (1.0, 0.0),  # P(1) = .5: worth -.5; P(9) = 1: worth -8
        (2.0, 0.0),  # worth 0 at 1 s: no better than letting go
        (2.1, 1.0),
        (16.0, 1.0),  # 8 - 1 = 7 = 16 - 9: of equals the shortest
        (16.1, 9.0),
    ],
)
def test_the_best_time_by_hand(benefit: float, expected: float) -> None:
    durations = taught(a=[1.0] * 100 + [9.0] * 100)

    assert continuum_ttl(durations, "a", benefit, 0.0, 1.0) == expected


def test_queueing_counts_as_much_as_age_tells() -> None:
    durations = taught(a=[1.0] * 101)

    assert continuum_ttl(durations, "a", 0.5, 10.0, eta=0.0) == 0.0
    assert continuum_ttl(durations, "a", 0.5, 10.0, eta=0.06) == 1.0


def test_a_tool_that_takes_no_time_needs_no_hold() -> None:
    assert continuum_ttl(taught(a=[0.0] * 101), "a", 9.0, 0.0, 1.0) == 0.0


@given(
    seen=st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 7.0, 30.0]), min_size=101, max_size=300),
    benefit=st.floats(0, 100),
)
@settings(deadline=None, max_examples=50)
def test_no_candidate_is_better(seen: list[float], benefit: float) -> None:
    def worth(tau: float) -> float:
        return sum(one <= tau for one in seen) / len(seen) * benefit - tau

    found = continuum_ttl(taught(a=seen), "a", benefit, 0.0, 1.0)

    assert worth(found) >= max(worth(tau) for tau in {0.0, *seen}) - 1e-9


# ---- its terms ----------------------------------------------------------------------------------


def test_the_queue_delay_starts_at_zero_and_slides() -> None:
    delay = QueueDelay(last=2)
    assert delay.mean_s == 0.0
    for seconds in (100.0, 1.0, 3.0):
        delay.add(seconds)

    assert delay.mean_s == 2.0


def test_eta_is_one_where_all_programs_are_as_long() -> None:
    assert turns_eta([7, 7, 7]) == pytest.approx(1.0)


def test_eta_is_near_zero_where_age_tells_nothing() -> None:
    geometric = [turns for turns in range(1, 13) for _ in range(2 ** (12 - turns))]

    assert turns_eta(geometric) < 0.1


@pytest.mark.parametrize("turns", [[], [1], [1, 1, 1]])
def test_eta_is_one_where_there_is_too_little(turns: list[int]) -> None:
    assert turns_eta(turns) == 1.0


def test_eta_is_never_negative() -> None:
    assert turns_eta([1] * 200 + [3] * 50 + [40]) == 0.0
    assert 0.0 <= turns_eta([1, 1, 1, 1, 2, 30]) <= 1.0
