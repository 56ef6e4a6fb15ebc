"""Things that tools keep open between calls, such as a connection: one per event loop.

Each is opened when it is first wanted, in a task of its own (what some libraries open has to be
closed by the task that opened it), and closed by `close_all` when the run ends, or with the loop.
"""

import asyncio
from collections.abc import Callable, Hashable
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any, TypeVar, cast

from anyio.lowlevel import RunVar

T = TypeVar("T")

_open: RunVar[dict[Hashable, "_Kept"]] = RunVar("tenter_tools_open")


class _Kept:
    """One open thing and the task that holds it."""

    def __init__(self, opener: Callable[[], AbstractAsyncContextManager[Any]]) -> None:
        self.ready: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.thing: Any = None  # once it is open
        self._end = asyncio.Event()
        self.task = asyncio.create_task(self._hold(opener))

    async def _hold(self, opener: Callable[[], AbstractAsyncContextManager[Any]]) -> None:
        try:
            async with opener() as thing:
                self.thing = thing
                self.ready.set_result(thing)
                await self._end.wait()
        except Exception as error:  # noqa: BLE001 (whoever wanted it is told)
            if not self.ready.done():
                self.ready.set_exception(error)
        finally:
            if not self.ready.done():
                self.ready.set_exception(ConnectionError("it was closed while it was opened"))
            if not self.ready.cancelled():
                self.ready.exception()  # seen here, should nobody wait any more

    async def close(self) -> None:
        self._end.set()
        if not self.ready.done():
            self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task


async def kept_open(key: Hashable, opener: Callable[[], AbstractAsyncContextManager[T]]) -> T:
    """What `opener` opens, opened once per event loop and `key`; raises what opening raises."""
    things = _open.get(None)
    if things is None:
        things = dict[Hashable, _Kept]()
        _open.set(things)
    kept = things.get(key)
    if kept is None or kept.task.done():
        kept = things[key] = _Kept(opener)
    return cast("T", await asyncio.shield(kept.ready))


async def forget(key: Hashable, thing: Any = None) -> None:
    """Close what is kept under `key`, so that the next call opens it anew; `thing`: only if it is
    still that."""
    things = _open.get(None) or {}
    kept = things.get(key)
    if kept is not None and (thing is None or kept.thing is thing):
        del things[key]
        await kept.close()


async def close_all() -> None:
    """Close everything that tools keep open on this event loop."""
    for key in tuple(_open.get(None) or ()):
        await forget(key)
