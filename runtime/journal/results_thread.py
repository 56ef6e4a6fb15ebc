"""A result cache in a file or in Redis, looked after by a thread of its own.

What is asked for in the same turn of the event loop is looked up together; what is to be kept
gathers, and is stored about twice a second.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from ..errors import JournalError
from .results import LARGEST_BYTES, Item, Kept, ResultStore

STORE_AFTER_S = 0.5
RETRY_S = 10.0  # after which a store that failed is asked again
STORE_ITEMS = 1_000
WAITING_ITEMS = 100_000  # above, results are not kept: the disk does not keep up

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Asked:
    """Keys that are asked for, and who waits for each on `loop`."""

    loop: asyncio.AbstractEventLoop
    waiting: dict[bytes, "asyncio.Future[Kept | None]"]


class ThreadedResults:
    """Implements `Results`. A failure of the store is a warning; then nothing is found for a while.

    What is to be kept is stored after `store_after_s`. Not for virtual time, which cannot wait for
    a thread (`MemoryResults` is).
    """

    def __init__(self, store: ResultStore, store_after_s: float = STORE_AFTER_S) -> None:
        self._store = store
        self._store_after_s = store_after_s
        self._asked: dict[bytes, asyncio.Future[Kept | None]] = {}
        self._jobs: SimpleQueue[_Asked | Item | None] = SimpleQueue()
        self._away_until_s = 0.0  # by the clock of the thread
        self._warned = False
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="tenter-results", daemon=True)
        self._thread.start()

    @property
    def works(self) -> bool:
        return not self._closed and time.monotonic() >= self._away_until_s

    async def find(self, key: bytes) -> Kept | None:
        if not self.works:
            return None
        future = self._asked.get(key)
        if future is None:
            loop = asyncio.get_running_loop()
            future = loop.create_future()
            if not self._asked:
                loop.call_soon(self._ask, loop)
            self._asked[key] = future
        return await asyncio.shield(future)  # others may wait for the same

    def keep(self, key: bytes, kept: Kept) -> None:
        if not self.works or len(kept.value) > LARGEST_BYTES:
            return
        if self._jobs.qsize() < WAITING_ITEMS:
            self._jobs.put((key, kept))

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._jobs.put(None)
            await asyncio.to_thread(self._thread.join)

    def _ask(self, loop: asyncio.AbstractEventLoop) -> None:
        asked, self._asked = self._asked, {}
        if not self._closed:
            self._jobs.put(_Asked(loop, asked))
            return
        for future in asked.values():
            future.cancel()

    # ---- the thread's side ----------------------------------------------------------------------

    def _serve(self) -> None:
        pending: dict[bytes, Item] = {}
        store_at_s: float | None = None
        while True:
            wait_s = None if store_at_s is None else max(0.0, store_at_s - time.monotonic())
            try:
                job = self._jobs.get(timeout=wait_s)
            except Empty:
                self._flush(pending)
                store_at_s = None
                continue
            if job is None:
                break
            if isinstance(job, _Asked):
                self._answer(job, pending)
            else:
                pending[job[0]] = job
                store_at_s = store_at_s or time.monotonic() + self._store_after_s
            if len(pending) >= STORE_ITEMS:
                self._flush(pending)
                store_at_s = None
        self._flush(pending)
        with suppress(Exception):  # what could be told was told
            self._store.close()

    def _answer(self, asked: _Asked, pending: dict[bytes, Item]) -> None:
        waiting = asked.waiting
        found = {key: pending[key][1] for key in waiting if key in pending}
        rest = [key for key in waiting if key not in found]
        self._guarded(lambda: found.update(self._store.find(rest)))

        def settle() -> None:
            for key, future in waiting.items():
                if not future.done():
                    future.set_result(found.get(key))

        try:
            asked.loop.call_soon_threadsafe(settle)
        except RuntimeError:  # the loop is closed: nobody waits any more
            return

    def _flush(self, pending: dict[bytes, Item]) -> None:
        items = list(pending.values())
        pending.clear()
        if items:
            self._guarded(lambda: self._store.keep(items))

    def _guarded(self, work: Callable[[], None]) -> None:
        if time.monotonic() < self._away_until_s:
            return
        try:
            work()
            self._warned = False
        except Exception as error:  # noqa: BLE001  whoever waits must be told, whatever it was
            self._away_until_s = time.monotonic() + RETRY_S
            told = error if isinstance(error, JournalError) else f"result cache: {error!r}"
            if not self._warned:
                _log.warning("%s; going on without it until it is back", told)
            self._warned = True
