"""Which pins are over, and which are given up first."""

from hypothesis import given
from hypothesis import strategies as st

from tenter.kvpolicy import Pin, cheapest_first, expired, to_release

PINS = st.lists(
    st.tuples(st.integers(0, 500), st.sampled_from([0.0, 0.5, 0.5, 2.0, 9.0])), max_size=12
).map(lambda rows: [Pin(f"s{at}", None, *row) for at, row in enumerate(rows)])


def test_every_expired_pin_is_found() -> None:
    # Continuum's code removes from the list it walks over: of three expired pins one stays
    pins = [Pin("a", 1.0), Pin("b", 1.0), Pin("c", 1.0), Pin("d", 9.0), Pin("e", None)]

    assert [pin.session for pin in expired(pins, now_s=1.0)] == ["a", "b", "c"]


@given(pins=PINS, data=st.data())
def test_the_order_of_worth_does_not_depend_on_the_order_asked(
    pins: list[Pin], data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(pins))

    assert cheapest_first(shuffled) == cheapest_first(pins)
    assert [pin.worth for pin in cheapest_first(pins)] == sorted(pin.worth for pin in pins)


def test_the_cheapest_go_first_and_no_more_than_needed() -> None:
    cheap, middle, dear = Pin("a", None, 100, 0.1), Pin("b", None, 50, 0.2), Pin("c", None, 9, 5.0)

    assert to_release([dear, cheap, middle], 60) == (cheap,)
    assert to_release([dear, cheap, middle], 120) == (cheap, middle)
    assert to_release([dear, cheap, middle], 10**6) == (cheap, middle, dear)
    assert to_release([dear, cheap, middle], 0) == ()


def test_a_pin_that_dearer_ones_make_needless_is_kept() -> None:
    small, large = Pin("a", None, 10, 0.1), Pin("b", None, 100, 0.2)

    assert to_release([small, large], 90) == (large,)


def test_pins_worth_their_price_are_kept() -> None:
    cheap, dear = Pin("a", None, 100, 0.1), Pin("b", None, 50, 0.2)

    assert to_release([dear, cheap], 120, price=0.2) == (cheap,)
    assert to_release([dear, cheap], 120, price=0.0) == ()


@given(pins=PINS, tokens=st.integers(0, 3_000))
def test_enough_is_released_and_each_of_it_is_needed(pins: list[Pin], tokens: int) -> None:
    released = to_release(pins, tokens)
    freed = sum(pin.tokens for pin in released)

    assert freed >= min(tokens, sum(pin.tokens for pin in pins))
    if freed >= tokens:
        assert all(freed - pin.tokens < tokens for pin in released)
