"""The retention policies by name: one shape, each by its source."""

from dataclasses import replace
from math import e, log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenter.kvpolicy import DEFAULT_POLICY, POLICIES, Durations, Pause, Price, named, tiered

PAUSE = Pause(tool="a", durations=Durations(), tokens=10_000, prefill_s=e)


def test_policies_have_one_shape() -> None:
    assert {name: hold(PAUSE) for name, hold in POLICIES.items()} == {
        "shadow-price": None,
        "continuum": pytest.approx(1.0),
        "fixed": 10.0,
        "never": 0.0,
        "forever": None,
        "min-waste": pytest.approx(e),
        "steps-to-execution": None,
        "clairvoyant": None,
        "clairvoyant-waste": pytest.approx(e),
        "clairvoyant-next": None,
    }
    assert DEFAULT_POLICY in POLICIES


def test_asked_again_a_policy_says_what_is_left() -> None:
    later = replace(PAUSE, elapsed_s=0.75)

    assert POLICIES["continuum"](later) == pytest.approx(0.25)
    assert POLICIES["continuum"](replace(PAUSE, elapsed_s=5.0)) == 0.0
    assert POLICIES["fixed"](replace(PAUSE, elapsed_s=4.0)) == 6.0
    assert POLICIES["fixed"](replace(PAUSE, elapsed_s=40.0)) == 0.0
    assert POLICIES["min-waste"](replace(PAUSE, elapsed_s=e - 1)) == pytest.approx(1.0)


def test_a_rebuild_is_guessed_from_the_tokens() -> None:
    assert replace(PAUSE, prefill_s=None).rebuild_s == 2.0
    assert POLICIES["continuum"](replace(PAUSE, prefill_s=None)) == pytest.approx(log(2.0))


def test_min_waste_counts_the_calls_that_would_wait_for_the_recomputation() -> None:
    # discarding: 2 s * (10k + 30k tokens); preserving 10k tokens costs as much after 8 s
    beside = replace(PAUSE, prefill_s=2.0, running_tokens=30_000)

    assert POLICIES["min-waste"](beside) == pytest.approx(8.0)


def test_min_waste_swaps_where_a_host_tier_makes_that_cheaper() -> None:
    # out and in again: 2 * 0.1 s, during which 40k tokens stand still
    beside = replace(PAUSE, prefill_s=2.0, running_tokens=30_000, reload_s=0.1)

    assert POLICIES["min-waste"](beside) == pytest.approx(0.8)


def test_continuum_weighs_a_reload_where_there_is_a_host_tier() -> None:
    assert POLICIES["continuum"](replace(PAUSE, reload_s=0.1)) == 0.0


def test_under_pressure_each_policy_has_its_own_order() -> None:
    def worth(name: str, **changes: float) -> float:
        return POLICIES[name].decide(replace(PAUSE, **changes)).worth

    assert worth("continuum", arrival=3) > worth("continuum", arrival=4), "the last to arrive goes"
    assert worth("forever", elapsed_s=1) > worth("forever", elapsed_s=9), "the longest idle goes"
    steps = [worth("steps-to-execution", steps=count) for count in (1, 2, 9)]
    assert sorted(steps, reverse=True) == steps, "what is needed last goes"
    assert worth("steps-to-execution") < steps[-1], "what the graph does not know goes before"


def test_a_policy_by_name() -> None:
    assert named("never") is POLICIES["never"]
    assert named("fixed:30")(PAUSE) == 30.0


@pytest.mark.parametrize("name", ["lru", "fixed:", "fixed:x", "fixed:-1", "fixed:nan", "never:3"])
def test_an_unknown_policy_names_the_known(name: str) -> None:
    with pytest.raises(ValueError, match="policy"):
        named(name)


@given(
    name=st.sampled_from(sorted(POLICIES)),
    seen=st.lists(st.floats(0, 1e4), max_size=130),
    tokens=st.integers(0, 200_000),
    elapsed=st.floats(0, 1e4),
    prefill=st.none() | st.floats(0, 100),
    reload=st.none() | st.floats(0, 100),
    eta_s=st.none() | st.floats(0, 1e4),
    price=st.builds(Price, st.floats(0, 1), st.floats(1e-3, 1e6), st.floats(1, 100)),
)
def test_no_policy_ever_answers_below_zero(
    name: str,
    seen: list[float],
    tokens: int,
    elapsed: float,
    prefill: float | None,
    reload: float | None,
    eta_s: float | None,
    price: Price,
) -> None:
    durations = Durations()
    for seconds in seen:
        durations.observe("a", seconds)
    pause = Pause(
        "a",
        durations,
        tokens,
        elapsed,
        eta_s,
        prefill_s=prefill,
        reload_s=reload,
        price=price,
    )

    decision = POLICIES[name].decide(pause)

    assert decision.hold_s is None or decision.hold_s >= 0
    assert decision.again_s is None or decision.again_s >= 0
    assert decision.worth >= 0
    assert POLICIES[name](pause) == decision.hold_s


def test_a_tier_tells_every_policy_what_coming_back_takes() -> None:
    shut = replace(PAUSE, tokens=10_000)
    for name in ("continuum", "min-waste", "shadow-price"):
        policy = tiered(named(name), 100_000.0)
        assert policy.decide(shut) == named(name).decide(replace(shut, reload_s=0.1)), name
    with pytest.raises(ValueError, match="above 0"):
        tiered(named("never"), 0.0)


def test_who_knows_the_time_keeps_what_ends_soon() -> None:
    bound = POLICIES["clairvoyant"]
    dear = replace(PAUSE, price=Price(per_token_s=1e-5))

    assert bound(replace(dear, eta_s=5.0)) == 5.0
    assert bound(replace(dear, eta_s=50.0)) == 0.0
    late = replace(dear, eta_s=5.0, elapsed_s=9.0)  # its tool has ended: the call waits its turn
    assert bound.decide(late).worth > bound.decide(replace(dear, eta_s=5.0)).worth


def test_infercepts_rule_told_the_truth_keeps_what_is_worth_it_and_nothing_else() -> None:
    told = POLICIES["clairvoyant-waste"]

    assert told(replace(PAUSE, eta_s=e - 0.1)) == pytest.approx(e - 0.1)
    assert told(replace(PAUSE, eta_s=e + 0.1)) == 0.0
    assert told(replace(PAUSE, eta_s=2 * e - 0.1, running_tokens=10_000)) != 0.0
    assert told(replace(PAUSE, eta_s=e, elapsed_s=1.0)) == pytest.approx(e - 1)


def test_what_is_needed_last_goes_first() -> None:
    decide = POLICIES["clairvoyant-next"].decide
    soon, late = decide(replace(PAUSE, eta_s=1.0)), decide(replace(PAUSE, eta_s=100.0))

    assert soon.hold_s is None and late.hold_s is None
    assert soon.worth > late.worth
    assert decide(replace(PAUSE, eta_s=100.0, elapsed_s=99.9)).worth > soon.worth
