"""How long tools take: shrunk, conditional, bounded."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenter.kvpolicy.durations import KEPT, KEYS, POOL_KEPT, PRIOR, Durations


def taught(**tools: list[float]) -> Durations:
    durations = Durations()
    for tool, seen in tools.items():
        for seconds in seen:
            durations.observe(tool, seconds)
    return durations


def test_nothing_is_known_at_first() -> None:
    assert Durations().quantile("a", 0.5) is None
    assert Durations().within("a", 10.0) == 0.0


def test_a_new_tool_is_a_common_one() -> None:
    durations = taught(a=[1, 2, 3, 4])

    assert durations.within("new", 2.0) == 0.5
    assert durations.quantile("new", 0.5) == 2.0


def test_a_tool_shrinks_toward_the_pool() -> None:
    durations = taught(slow=[10.0] * 8, fast=[1.0] * 24)

    # 8 of its own, none of them within 1 s, against PRIOR = 8 of a pool where 3 in 4 are
    assert PRIOR == 8
    assert durations.within("slow", 1.0) == pytest.approx((0 + 8 * 0.75) / 16)
    assert durations.quantile("slow", 0.375) == 1.0
    assert durations.quantile("slow", 0.4) == 10.0


def test_elapsed_time_rules_out_what_was_shorter() -> None:
    durations = taught(a=[1, 1, 1, 5, 9])

    assert durations.within("a", 4.0, so_far=1.0) == pytest.approx(0.5)
    assert durations.quantile("a", 0.5, so_far=1.0) == 4.0
    assert durations.quantile("a", 1.0, so_far=2.0) == 7.0
    assert durations.quantile("a", 0.5, so_far=9.0) is None
    assert durations.within("a", 100.0, so_far=9.0) == 0.0


def test_memory_is_bounded() -> None:
    durations = taught(a=[100.0] * KEPT)
    for _ in range(KEPT):
        durations.observe("a", 1.0)
    for index in range(POOL_KEPT):
        durations.observe(f"tool{index} word", 2.0)

    assert durations.count("a") == 0, "the tool not seen for longest is forgotten"
    assert durations.count(f"tool{POOL_KEPT - KEYS - 1} word") == 0
    assert durations.count(f"tool{POOL_KEPT - KEYS} word") == 1
    assert durations.count(f"tool{POOL_KEPT - KEYS}") == 1
    assert durations.samples() == (2.0,) * POOL_KEPT


def test_the_last_durations_count() -> None:
    assert taught(a=[100.0] * KEPT + [1.0] * KEPT).samples("a") == (1.0,) * KEPT


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_impossible_durations_are_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="0 or more"):
        Durations().observe("a", seconds)


@pytest.mark.parametrize("share", [0.0, 1.1])
def test_impossible_shares_are_refused(share: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        taught(a=[1]).quantile("a", share)


SECONDS = st.lists(st.floats(0, 100), min_size=1, max_size=30)


@given(own=SECONDS, other=SECONDS, share=st.floats(0.01, 1), elapsed=st.floats(0, 100))
@settings(deadline=None)
def test_a_quantile_is_the_least_time_that_suffices(
    own: list[float], other: list[float], share: float, elapsed: float
) -> None:
    durations = taught(a=own, b=other)
    found = durations.quantile("a", share, elapsed)

    if found is None:
        assert elapsed >= max(own + other)
    else:
        assert durations.within("a", found, elapsed) >= share - 1e-9
        assert found == 0 or durations.within("a", found * 0.99 - 1e-6, elapsed) < share + 1e-9
