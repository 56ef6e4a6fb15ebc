"""What the processes of one Redis share beside runs: workers, equal work, and prefixes."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from anyio import CancelScope

from ..journal.address import is_redis, parse_redis
from ..journal.results import Results
from ..journal.store import default_home
from ..scheduler.loop import Scheduler
from .claims import Claims, RedisClaims
from .flights import Flights
from .ledger import Ledger
from .ledger_redis import RedisLedger
from .link import Link
from .membership import Membership
from .prefixes import Directory, Prefixes, Seen
from .prefixes_redis import RedisDirectory

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Peers:
    """The doors to what is shared; `shown` names the place in messages."""

    ledger: Ledger
    claims: Claims
    directory: Directory
    shown: str


Part = Membership | Flights | Prefixes


async def _kept(part: Part) -> None:
    """A part at work; what it fails of ends it, and no run."""
    try:
        await part.keep()
    except Exception:
        log.exception("%s is shared with other processes no more", type(part).__name__)


async def _closed(part: Part) -> None:
    """Let go of what others may have; what fails of that ends by itself."""
    try:
        await part.close()
    except Exception:
        log.exception("%s could not be given back", type(part).__name__)


@asynccontextmanager
async def open_peers(home: Path | str | None = None) -> AsyncGenerator[Peers | None]:
    """What is shared in `home`; None where that is a folder, or says `fleet=off`."""
    home = default_home() if home is None else home
    if not isinstance(home, str) or not is_redis(home):
        yield None
        return
    address = parse_redis(home)
    if address.options.fleet == "off":
        yield None
        return
    link = Link(address)
    try:
        parts = RedisLedger(link), RedisClaims(link), RedisDirectory(link)
        yield Peers(*parts, f"Redis at {address.shown}")
    finally:
        with CancelScope(shield=True):
            await link.close()


@asynccontextmanager
async def together(
    peers: Peers | None,
    scheduler: Scheduler,
    places: Mapping[str, str],
    results: Results | None,
    seen: Seen | None = None,
) -> AsyncGenerator[Flights | None]:
    """Share the workers at `places` (by name), and equal work where there is a result cache.

    `seen` is fed the scheduler's trace, where calls have a choice of workers.
    """
    if peers is None or not (places or results):
        yield None
        return
    flights = None if results is None else Flights(peers.claims, results)
    parts: list[Part] = [] if flights is None else [flights]
    if places:
        parts.append(Membership(scheduler, places, peers.ledger, peers.shown))
    if seen is not None:
        parts.append(
            Prefixes(seen, places, scheduler.core.kv_tokens, peers.directory, scheduler.send)
        )
    begun: list[Part] = []
    tasks: list[asyncio.Task[None]] = []
    try:
        for part in parts:
            begun.append(part)  # what fails in the midst of it is closed, too
            await part.begin()
        tasks += [asyncio.create_task(_kept(part)) for part in parts]
        yield flights
    finally:
        for part in begun:
            part.stop()
        for task in tasks:
            task.cancel()
        with CancelScope(shield=True):
            await asyncio.gather(*tasks, return_exceptions=True)
            for part in begun:
                await _closed(part)
