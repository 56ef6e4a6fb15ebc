"""Equal work of several processes once: who is first does it, the others wait for the result.

A claim says who does the work. It holds while its owner gives signs of life, so that whoever waits
takes over where a process has died, hangs or is paused. Work that is shared is pure: what is done
twice after all costs time and nothing else, so a claim needs no fence.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Protocol, TypeVar

from ..clock import now
from ..journal.results import Kept
from .claims import LEASE_S, Claims, ClaimsAway

BEAT_S = LEASE_S / 3
FIRST_LOOK_S, LAST_LOOK_S = 0.02, 0.5  # between looks for somebody else's result
HEARING_LOOK_S = 2.0  # between the last of them where one is told of ends
REST_S = 10.0  # after which claims are asked about again, where they could not be
CLOSE_S = 1.0

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class Finds(Protocol):
    """A result cache, as far as it is looked into."""

    @property
    def works(self) -> bool:
        """Whether what others keep is found."""
        ...

    async def find(self, key: bytes) -> Kept | None: ...


class Flights:
    """The work that this process does for all, and what it waits for of others."""

    def __init__(self, claims: Claims, results: Finds) -> None:
        self._claims = claims
        self._results = results
        self._mine: set[bytes] = set()
        self._over: dict[bytes, bool] = {}  # work that has ended, and whether its result was kept
        self._stirred = asyncio.Event()
        self._rings: dict[bytes, asyncio.Event] = {}  # set where work that is waited for has ended
        self._hears = False  # of ends
        self._stopped = False
        self._beat_s = 0.0  # when the next sign of life is due
        self.paused = False  # what was claimed does not go on
        self._rest_until_s = 0.0

    async def enter(self, key: bytes, unwanted: Callable[[], bool]) -> Kept | None:
        """The result of equal work elsewhere, waited for; None: do it, and `leave` then.

        `unwanted` says that nobody waits any more.
        """
        ring = self._rings.setdefault(key, asyncio.Event())
        try:
            return await self._wait_for(key, unwanted, ring)
        finally:
            self._rings.pop(key, None)

    async def _wait_for(
        self, key: bytes, unwanted: Callable[[], bool], ring: asyncio.Event
    ) -> Kept | None:
        look_s = FIRST_LOOK_S
        while self._able and not unwanted():
            mine = await self._guarded(self._claims.claim(key))
            if mine is None:
                break
            if mine:
                self._mine.add(key)
            else:
                rung = await _is_set(ring, look_s)
                last_s = HEARING_LOOK_S if self._hears else LAST_LOOK_S
                look_s = FIRST_LOOK_S if rung else min(2 * look_s, last_s)
            kept = await self._results.find(key)  # it may have come just before the claim, too
            if kept is not None:
                self.leave(key, kept=True)
            if kept is not None or mine:
                return kept
        return None

    async def try_enter(self, key: bytes) -> bool:
        """Whether nobody else does this work now: then do it, and `leave` it."""
        mine = await self._guarded(self._claims.claim(key)) if self._able else None
        if mine:
            self._mine.add(key)
        return mine is not False

    def leave(self, key: bytes, kept: bool) -> None:
        """Work is over, if it was this process's; `kept`: the cache has its result, or soon will."""
        if key in self._mine:
            self._mine.discard(key)
            self._over[key] = kept
            self._stirred.set()

    async def begin(self) -> None:
        """The first sign of life, before anything is claimed."""
        self._beat_s = now() + BEAT_S
        await self._guarded(self._claims.beat())

    async def keep(self) -> None:
        """Give signs of life until `stop`; others do not wait for a run that is paused."""
        listening = asyncio.ensure_future(self._listen())
        try:
            while not self._stopped:
                await _is_set(self._stirred, self._beat_s - now())
                await self._tell()
                if now() >= self._beat_s:
                    self._beat_s = now() + BEAT_S
                    work = self._claims.rest() if self.paused else self._claims.beat()
                    await self._guarded(work)
        finally:
            listening.cancel()
            await asyncio.wait([listening])

    async def _listen(self) -> None:
        """Hear of the ends of others' work; while nobody can be heard, one looks more often."""
        while not self._stopped:
            try:
                await self._claims.hear(self._begin_hearing, self._heard)
                return
            except ClaimsAway:
                pass
            finally:
                self._hears = False
            await asyncio.sleep(REST_S)

    def _begin_hearing(self) -> None:
        self._hears = True

    def _heard(self, key: bytes) -> None:
        if key in self._rings:
            self._rings[key].set()

    async def _tell(self) -> None:
        """Let others hear what is over, until the next beat; what they cannot hear, later."""
        while self._over and self._able and now() < self._beat_s:
            key, kept = self._over.popitem()
            await self._guarded(self._claims.end(key, kept))
            if not self._able:
                self._over.setdefault(key, kept)
        if self._over and self._able:
            self._stirred.set()

    def stop(self) -> None:
        """Nothing more is to be claimed, nor kept."""
        self._stopped = True
        self._stirred.set()

    async def close(self) -> None:
        """Let others do what this process has not done."""
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await self._guarded(self._claims.rest())

    @property
    def _able(self) -> bool:
        return self._results.works and now() >= self._rest_until_s

    async def _guarded(self, work: Awaitable[_T]) -> _T | None:
        """None where claims cannot be asked about; then this process goes on alone for a while."""
        try:
            return await work
        except ClaimsAway as away:
            if now() >= self._rest_until_s:
                _log.warning("equal work of others is not waited for, for %g s: %s", REST_S, away)
            self._rest_until_s = now() + REST_S
            return None


async def _is_set(event: asyncio.Event, within_s: float) -> bool:
    """Whether it is set within so many seconds; it is cleared then."""
    with suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            await event.wait()
    was = event.is_set()
    event.clear()
    return was
