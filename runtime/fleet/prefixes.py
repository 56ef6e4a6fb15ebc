"""Which worker holds which prefix, told among processes, for each one's own map (`Residency`).

What a call of ours has computed is published; what others have published becomes an event of the
scheduler. It is advice: workers evict unseen, so entries grow old, a worker has no more of them
than fit into it, and the cached tokens of finished calls correct each process's map as ever.
"""

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from ..blocks import FINE_TOKENS, block_end
from ..clock import now
from ..scheduler.events import BlocksHeld, CallEnded, CallReady, Dispatch, DropCall, Event
from ..trace import Record
from .ledger import LedgerAway

AGE_S = 600.0  # after which an entry is no longer believed
AGAIN_S = AGE_S / 4  # before which nothing is published again
EXCHANGE_S = 1.0
PIECE = 1024  # entries that are told at once
WAITING = 8 * PIECE  # to be published; beyond, the oldest are forgotten

Sized = tuple[int, int]  # a block of a prompt, and its own tokens

_log = logging.getLogger(__name__)


class Directory(Protocol):
    """Blocks by the place of their worker."""

    async def exchange(
        self, place: str, since: int, most: int, blocks: Sequence[Sized]
    ) -> tuple[int, list[Sized]]:
        """Publish `blocks`, and read up to `PIECE` that were published after `since`.

        Returns what to give as `since` next time. The newest `most` entries are kept. Raises
        LedgerAway.
        """
        ...


class MemoryDirectory:
    """A directory in this process, for tests and virtual time."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._count = 0
        self._held: dict[str, OrderedDict[Sized, tuple[int, float]]] = {}

    async def exchange(
        self, place: str, since: int, most: int, blocks: Sequence[Sized]
    ) -> tuple[int, list[Sized]]:
        held = self._held.setdefault(place, OrderedDict())
        for block in blocks:
            self._count += 1
            held[block] = self._count, self._clock()
            held.move_to_end(block)
        oldest_s = self._clock() - AGE_S
        while held and (len(held) > most or next(iter(held.values()))[1] < oldest_s):
            held.popitem(last=False)
        news = [(number, block) for block, (number, _) in held.items() if number > since]
        return max((number for number, _ in news[:PIECE]), default=since), [
            block for _, block in news[:PIECE]
        ]


class Seen:
    """What calls of this process have computed, and where: a fold over the scheduler's events."""

    def __init__(self) -> None:
        self._calls: dict[str, tuple[tuple[int, ...], str]] = {}  # its blocks, and its worker
        self._told: dict[str, OrderedDict[Sized, float]] = {}  # by worker, and when
        self._news: dict[str, deque[Sized]] = {}

    def write(self, at_s: float, record: Record) -> None:
        """Observe a record of a trace."""
        match record:
            case CallReady():
                if record.blocks:
                    self._calls[record.call] = record.blocks, ""
            case Dispatch():
                if record.call in self._calls:
                    self._calls[record.call] = self._calls[record.call][0], record.worker
            case CallEnded():
                blocks, worker = self._calls.pop(record.call, ((), ""))
                if worker and record.finish in ("stop", "length"):
                    self._add(worker, blocks, at_s)
            case DropCall():
                self._calls.pop(record.call, None)
            case _:
                pass

    def _add(self, worker: str, blocks: tuple[int, ...], at_s: float) -> None:
        told = self._told.setdefault(worker, OrderedDict())
        news = self._news.setdefault(worker, deque(maxlen=WAITING))
        while told and next(iter(told.values())) < at_s - AGAIN_S:
            told.popitem(last=False)
        start = 0
        for index, block in enumerate(blocks):
            end = block_end(index)
            sized = block, end - start
            start = end
            if sized not in told:
                told[sized] = at_s
                news.append(sized)

    def take(self, worker: str) -> list[Sized]:
        """Some of what is to be published of a worker."""
        news = self._news.get(worker, deque[Sized]())
        return [news.popleft() for _ in range(min(PIECE, len(news)))]

    def own(self, worker: str, block: Sized) -> bool:
        """Whether this process has published it lately."""
        return block in self._told.get(worker, ())


class Prefixes:
    """Tells others what this process has computed, and its scheduler what others have."""

    def __init__(
        self,
        seen: Seen,
        places: Mapping[str, str],
        capacity: Callable[[str], int],
        directory: Directory,
        send: Callable[[Event], Any],
    ) -> None:
        self._seen = seen
        self._places = places
        self._capacity = capacity
        self._directory = directory
        self._send = send
        self._since = dict.fromkeys(places, 0)
        self._stopped = False

    async def begin(self) -> None:
        """Learn what is known already."""
        for _ in range(WAITING // PIECE):
            if not await self._exchange():
                return

    async def keep(self) -> None:
        """Exchange news until `stop`."""
        while not self._stopped:
            await asyncio.sleep(EXCHANGE_S)
            await self._exchange()

    def stop(self) -> None:
        """No more news."""
        self._stopped = True

    async def close(self) -> None:
        """What is held stays held."""

    async def _exchange(self) -> bool:
        """Whether there may be more to learn."""
        more = False
        try:
            for worker, place in self._places.items():
                most = self._capacity(worker) // FINE_TOKENS
                if not most:  # it is not up
                    continue
                found = await self._directory.exchange(
                    place, self._since[worker], most, self._seen.take(worker)
                )
                self._since[worker], blocks = found
                more = more or len(blocks) == PIECE
                news = tuple(each for each in blocks if not self._seen.own(worker, each))
                if news:
                    self._send(BlocksHeld(worker=worker, blocks=news))
        except LedgerAway:
            _log.debug("at %g s: prefixes were not exchanged", now(), exc_info=True)
        return more
