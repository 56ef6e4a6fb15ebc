"""Things that tools keep open: opened once, closed once, and nobody is left waiting."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import pytest

from tenter.tools.lifetime import close_all, forget, kept_open


@asynccontextmanager
async def thing() -> AsyncGenerator[object]:
    yield object()


async def test_who_waits_for_what_is_closed_meanwhile_is_told() -> None:
    opening = anyio.Event()

    @asynccontextmanager
    async def slow() -> AsyncGenerator[None]:
        opening.set()
        await anyio.sleep_forever()
        yield

    waiting = [asyncio.create_task(kept_open("slow", slow)) for _ in range(2)]
    await opening.wait()
    await close_all()
    for each in waiting:
        with pytest.raises(ConnectionError, match="closed"):
            await each


async def test_only_the_thing_that_failed_is_forgotten() -> None:
    first = await kept_open("k", thing)
    await forget("k", first)
    second = await kept_open("k", thing)
    await forget("k", first)  # a late call of the first fails too
    assert second is not first and await kept_open("k", thing) is second
    await close_all()
