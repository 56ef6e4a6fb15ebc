"""What memory costs: nothing without a queue, and more the more waits for it."""

from dataclasses import replace
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenter.kvpolicy import Durations, Memory, Pause, clairvoyant, memory_price

FULL = Memory(
    capacity_tokens=100_000,
    running_tokens=60_000,
    pinned_tokens=40_000,
    waiting_tokens=20_000,
    waiting_calls=2,
    running_calls=6,
    freed_tokens_per_s=1_000.0,
)
TOKENS = st.integers(0, 200_000)
MEMORIES = st.builds(
    Memory,
    capacity_tokens=st.integers(1, 200_000),
    running_tokens=TOKENS,
    pinned_tokens=TOKENS,
    waiting_tokens=TOKENS,
    waiting_calls=st.integers(0, 100),
    running_calls=st.integers(0, 100),
    freed_tokens_per_s=st.floats(0, 1e5),
    arriving_tokens_per_s=st.none() | st.floats(0, 1e5),
)


def test_by_hand() -> None:
    price = memory_price(FULL)

    # two calls fall behind; 60k tokens are at work, so each token held idle costs 1/60k of them
    assert price.per_token_s == pytest.approx(2 / 60_000)
    assert price.lasts_s == inf, "as far as is known as much arrives as is freed"
    assert price.slowed == 1 + 6 + 2


def test_it_lasts_until_what_waits_has_entered() -> None:
    assert memory_price(replace(FULL, arriving_tokens_per_s=500.0)).lasts_s == 40.0
    assert memory_price(replace(FULL, arriving_tokens_per_s=1_500.0)).lasts_s == inf


def test_what_fits_costs_nothing() -> None:
    assert memory_price(replace(FULL, pinned_tokens=20_000)).per_token_s == 0.0
    half = memory_price(replace(FULL, pinned_tokens=30_000))
    assert half.per_token_s == pytest.approx(1 / 70_000), "half of what waits has room"


@given(memory=MEMORIES)
def test_without_a_queue_memory_is_free(memory: Memory) -> None:
    for empty in (replace(memory, waiting_tokens=0), replace(memory, waiting_calls=0)):
        assert memory_price(empty).per_token_s == 0.0


@given(memory=MEMORIES, more=st.integers(1, 100_000))
def test_the_price_rises_with_demand_and_falls_with_room(memory: Memory, more: int) -> None:
    price = memory_price(memory).per_token_s
    crowded = replace(
        memory,
        waiting_calls=memory.waiting_calls + 1,
        waiting_tokens=memory.waiting_tokens + more,
    )
    roomy = replace(memory, capacity_tokens=memory.capacity_tokens + more)
    less_pinned = replace(memory, pinned_tokens=memory.pinned_tokens // 2)

    assert 0.0 <= price < inf
    assert memory_price(roomy).per_token_s <= price * (1 + 1e-9)
    assert memory_price(less_pinned).per_token_s <= price * (1 + 1e-9)
    assert memory_price(crowded).per_token_s >= price * (1 - 1e-9)


def test_memory_that_speeds_nothing_up_is_free() -> None:
    assert memory_price(replace(FULL, elasticity=0.0)).per_token_s == 0.0
    half = memory_price(replace(FULL, elasticity=0.5))
    assert half.per_token_s == pytest.approx(0.5 * memory_price(FULL).per_token_s)


def test_a_session_is_kept_while_its_tool_ends_before_prefill_fills_the_memory() -> None:
    """The limit under a long queue, whatever its length: R * W / C seconds, here 20 s."""
    long = replace(FULL, waiting_calls=10**6, waiting_tokens=10**10, pinned_tokens=0)
    price = memory_price(long)
    durations = Durations()
    pause = Pause("tool", durations, tokens=10_000, prefill_s=2.0, price=price)

    assert clairvoyant(replace(pause, eta_s=19.9)).hold_s == 19.9
    assert clairvoyant(replace(pause, eta_s=20.1)).hold_s == 0.0
