"""Virtual time: it jumps, and where nothing can happen it says who waits for what."""

import asyncio
import re
from collections.abc import Awaitable, Callable

import anyio
import pytest

from tenter.runtime.clock import StandsStill, VirtualLoop, now


def virtually(main: Callable[[], Awaitable[float]]) -> float:
    return anyio.run(main, backend_options={"loop_factory": VirtualLoop})


def test_an_hour_is_a_jump() -> None:
    async def main() -> float:
        await anyio.sleep(3600)
        return now()

    assert virtually(main) == 3600


async def take(first: asyncio.Lock, second: asyncio.Lock) -> None:
    async with first:
        await asyncio.sleep(1)
        async with second:
            pass


def test_a_deadlock_names_the_tasks_and_where_each_waits() -> None:
    async def main() -> float:
        one, other = asyncio.Lock(), asyncio.Lock()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(take(one, other), name="left")
            tasks.create_task(take(other, one), name="right")
        return now()

    with pytest.raises(StandsStill) as raised:
        virtually(main)
    told = str(raised.value)
    assert "stands still at 1.000 s" in told and "a deadlock" in told
    for name in ("left", "right"):
        assert re.search(rf"{name} in take \(test_clock.py:\d+\) > [^;]*Lock.acquire", told)


def test_of_many_that_wait_the_first_are_named() -> None:
    async def main() -> float:
        async with asyncio.TaskGroup() as tasks:
            for index in range(30):
                tasks.create_task(asyncio.Event().wait(), name=f"a{index:02}")
        return now()

    with pytest.raises(StandsStill, match="a09 in Event.wait .*; 21 more"):
        virtually(main)


def test_a_wait_for_a_thread_is_told_from_an_endless_one() -> None:
    async def main() -> float:
        await asyncio.get_running_loop().create_future()
        return now()

    with pytest.raises(StandsStill, match="or a thread, .*: .* in .*main"):
        virtually(main)
