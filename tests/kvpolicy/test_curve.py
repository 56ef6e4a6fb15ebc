"""The best rate of ending over any horizon, against a search over all horizons."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tenter.kvpolicy.curve import RESOLUTION, Curve

SEEN = st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0, 1.5, 2.0, 7.0, 30.0, 400.0]), min_size=1)


def curve_of(seen: list[float]) -> Curve:
    knots = sorted({0.0, *seen})
    size = len(seen)
    ended = [sum(one <= knot for one in seen) / (size + 1) for knot in knots]
    return Curve(knots, ended, 1 / (size + 1))


def rate(seen: list[float], elapsed: float, until: float) -> float:
    """Ends by `until` per mean time at risk; whatever was seen, one more may last for ever."""
    alive = [one for one in seen if one > elapsed]
    ends = sum(one <= until for one in alive)
    time = sum(min(one, until) - elapsed for one in alive) + (until - elapsed)
    return ends / max(time, (len(alive) + 1) * elapsed * RESOLUTION)


@given(seen=SEEN, elapsed=st.floats(0, 500))
def test_the_peak_is_the_best_of_all_horizons(seen: list[float], elapsed: float) -> None:
    assume(max(seen) > 0)
    found = curve_of(seen).peak(elapsed)
    later = [one for one in seen if one > elapsed]

    if not later:
        assert found is None
    else:
        assert found is not None
        best = max(rate(seen, elapsed, until) for until in later)
        assert found[0] == pytest.approx(best, rel=0.25), "the hull may miss it where ends are near"
        assert found[0] <= best * (1 + 1e-9)
        if elapsed == 0:
            assert found[0] == pytest.approx(best)
        assert found[1] > elapsed


@given(seen=SEEN, elapsed=st.floats(0, 500), one=st.floats(0, 10), other=st.floats(0, 10))
def test_a_higher_rate_is_held_for_no_longer(
    seen: list[float], elapsed: float, one: float, other: float
) -> None:
    assume(max(seen) > 0)
    curve = curve_of(seen)
    low, high = sorted((one, other))

    assert elapsed <= curve.above(elapsed, high) <= curve.above(elapsed, low)


@given(seen=SEEN, threshold=st.floats(0.001, 10))
def test_waiting_ends_where_no_horizon_pays_any_more(seen: list[float], threshold: float) -> None:
    assume(max(seen) > 0)
    curve = curve_of(seen)
    until = curve.above(0.0, threshold)

    after = [one for one in seen if one > until]
    assert all(rate(seen, until, one) <= threshold * (1 + 1e-9) for one in after)


def test_a_lull_does_not_end_a_wait_that_pays_later() -> None:
    # nothing ever ends in the first 2 s, all of it then
    curve = curve_of([2.0] * 99)

    assert curve.peak(0.0) == (pytest.approx(0.99 / 2), 2.0)
    assert curve.above(0.0, 0.4) == 2.0
    assert curve.above(0.0, 0.6) == 0.0


def test_a_heavy_tail_is_given_up_after_its_quick_part() -> None:
    curve = curve_of([1.0] * 90 + [1_000.0] * 9)

    assert curve.above(0.0, 0.1) == 1.0
    assert curve.above(0.0, 0.0001) == 1_000.0
    assert curve.above(1.0, 0.1) == 1.0
