"""The default policy: keep while the expected saving exceeds the price of memory."""

from dataclasses import replace
from math import inf

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tenter.kvpolicy import Decision, Durations, Pause, Pin, Price, cheapest_first, shadow_price
from tenter.kvpolicy.shadow_price import SLACK


def taught(*seen: float) -> Durations:
    durations = Durations()
    for seconds in seen:
        durations.observe("a", seconds)
    return durations


TWO_S = taught(*[2.0] * 999)  # the best rate of ending is 1 in 2 s
MIXED = taught(*[1.0] * 90, *[100.0] * 10)
PAUSE = Pause("a", TWO_S, tokens=10_000, prefill_s=1.0)


def priced(pause: Pause, per_token_s: float, **rest: float) -> Decision:
    return shadow_price(replace(pause, price=Price(per_token_s, **rest)))


def test_without_pressure_everything_is_kept() -> None:
    for pause in (PAUSE, replace(PAUSE, prefill_s=0.0), replace(PAUSE, elapsed_s=1e6)):
        assert shadow_price(pause).hold_s is None


def test_the_price_decides() -> None:
    # worth 1 s / 2 s / 10k tokens
    assert priced(PAUSE, 0.9 * 0.5e-4).hold_s == pytest.approx(2.0 / 0.9)
    assert priced(PAUSE, 0.9 * 0.5e-4).worth == pytest.approx(0.5e-4, rel=0.01)
    assert priced(PAUSE, 1.1 * 0.5e-4).hold_s == 0.0


def test_a_tool_that_outlasts_its_quick_part_is_given_up_in_time() -> None:
    pause = Pause("a", MIXED, tokens=10_000, prefill_s=1.0)

    assert priced(pause, 1e-5).hold_s == 1.0
    assert priced(pause, 1e-5).again_s == 1.0
    assert priced(replace(pause, elapsed_s=1.0), 1e-5).hold_s == 0.0
    assert priced(pause, 1e-8).hold_s > 99.0  # type: ignore[operator]


def test_a_rebuild_that_slows_others_is_worth_more() -> None:
    alone = priced(PAUSE, 1e-4)
    in_company = priced(PAUSE, 1e-4, slowed=10.0)

    assert alone.hold_s == 0.0
    assert in_company.hold_s >= 2.0  # type: ignore[operator]
    assert in_company.worth == pytest.approx(10 * alone.worth)


def test_a_host_tier_makes_a_session_cheaper_to_lose() -> None:
    assert priced(replace(PAUSE, reload_s=0.1), 0.0).worth == pytest.approx(
        priced(PAUSE, 0.0).worth / 10
    )


def test_a_host_tier_in_company_still_slows_all_by_the_copy() -> None:
    crowd = replace(PAUSE, reload_s=0.1, price=Price(1e-5, slowed=10.0))

    assert shadow_price(crowd).worth == pytest.approx(10 * 0.1 / 2.0 / 10_000, rel=0.01)


def test_what_the_servers_cache_keeps_anyway_is_worth_no_pin() -> None:
    mostly_kept = replace(PAUSE, lost_share=0.25)

    assert priced(mostly_kept, 0.0).worth == pytest.approx(priced(PAUSE, 0.0).worth / 4)
    assert priced(mostly_kept, 0.2 * 0.5e-4).hold_s != 0.0
    assert priced(mostly_kept, 0.3 * 0.5e-4).hold_s == 0.0
    assert priced(replace(PAUSE, lost_share=0.0), 1e-9).hold_s == 0.0


def test_a_place_in_the_queue_is_no_loss_to_all() -> None:
    waits = replace(PAUSE, queue_delay_s=30.0, eta=1.0)

    assert priced(waits, 1e-4) == priced(PAUSE, 1e-4), "while it waits, others run in its place"


def test_a_queue_that_will_soon_be_gone_is_waited_out() -> None:
    slow = Pause("a", taught(*[100.0] * 99), tokens=10_000, prefill_s=1.0)

    assert priced(slow, 1e-5).hold_s == 0.0
    assert priced(slow, 1e-5, lasts_s=5.0).hold_s == 5.0


def test_a_tool_nobody_knows_is_held_to_the_break_even_point() -> None:
    unknown = Pause("new", Durations(), tokens=10_000, prefill_s=1.0)

    # holding costs 0.01 s a second, losing 1 s
    assert priced(unknown, 1e-6).hold_s == pytest.approx(100.0)
    assert priced(replace(unknown, elapsed_s=40.0), 1e-6).hold_s == pytest.approx(60.0)
    assert priced(replace(unknown, elapsed_s=120.0), 1e-6).hold_s == 0.0
    late = replace(PAUSE, elapsed_s=50.0)
    assert priced(late, 1e-6).hold_s == pytest.approx(50.0), "and so is one past all that is known"


def test_a_tool_is_believed_what_it_says_of_itself_until_it_is_late() -> None:
    said = Pause("sleep", TWO_S, tokens=10_000, eta_s=30.0, prefill_s=1.0)

    assert priced(said, 1e-6).hold_s == 30.0 * (1 + SLACK)
    assert priced(said, 1e-5).hold_s == 0.0
    known = replace(said, tool="a")
    assert priced(known, 1e-5).hold_s == 0.0, "its word counts for more than what was seen"
    late = replace(known, eta_s=1.0, elapsed_s=1.5)
    assert priced(late, 1e-5) == priced(replace(late, eta_s=None), 1e-5), "now what was seen counts"


def test_until_asked_again_the_worth_holds() -> None:
    pause = Pause("a", taught(0.5, 1.0, 1.0, 2.0, 3.0, 8.0, 40.0, 41.0), tokens=1_000)
    decision = shadow_price(pause)
    assert decision.again_s is not None

    for part in (0.0, 0.3, 0.6, 0.9):
        then = replace(pause, elapsed_s=part * decision.again_s)
        assert shadow_price(then).worth >= decision.worth * 0.99
    after = replace(pause, elapsed_s=decision.again_s)
    assert shadow_price(after).worth <= decision.worth


@given(
    seen=st.lists(st.floats(0.01, 1e3), min_size=1, max_size=60),
    tokens=st.integers(1, 100_000),
    elapsed=st.floats(0, 2e3),
    one=st.floats(0, 1e-2),
    other=st.floats(0, 1e-2),
    slowed=st.floats(1, 50),
)
@settings(deadline=None)
def test_a_dearer_token_is_never_held_for_longer(
    seen: list[float], tokens: int, elapsed: float, one: float, other: float, slowed: float
) -> None:
    pause = Pause("a", taught(*seen), tokens, elapsed)
    low, high = sorted((one, other))
    long, short = priced(pause, low, slowed=slowed), priced(pause, high, slowed=slowed)

    assert long.hold_s is None or (short.hold_s is not None and short.hold_s <= long.hold_s + 1e-9)
    assert long.worth == short.worth, "the price does not change what a pin is worth"


@given(
    seen=st.lists(st.floats(0.01, 1e3), min_size=1, max_size=60),
    tokens=st.integers(1, 100_000),
    elapsed=st.floats(0, 2e3),
    price=st.floats(1e-9, 1e-2),
)
@settings(deadline=None)
def test_what_is_held_is_worth_its_price_and_what_is_not_is_not(
    seen: list[float], tokens: int, elapsed: float, price: float
) -> None:
    decision = priced(Pause("a", taught(*seen), tokens, elapsed), price)
    assume(abs(decision.worth - price) > 1e-9 * price)

    assert (decision.hold_s != 0) == (decision.worth > price)


def test_pins_of_equal_tools_are_given_up_by_what_their_tokens_save() -> None:
    # recomputing grows with the square of a long context, so a long one is worth more per token
    short = replace(PAUSE, tokens=10_000, prefill_s=1.0)
    long = replace(PAUSE, tokens=20_000, prefill_s=3.0)
    late = replace(short, durations=MIXED, elapsed_s=5.0)
    pins = [
        Pin(name, None, pause.tokens, shadow_price(pause).worth)
        for name, pause in (("long", long), ("late", late), ("short", short))
    ]

    assert [pin.session for pin in cheapest_first(pins)] == ["late", "short", "long"]


def test_nothing_held_costs_nothing() -> None:
    assert shadow_price(replace(PAUSE, tokens=0)).worth == inf
    assert priced(replace(PAUSE, tokens=0), 1.0).hold_s is None
