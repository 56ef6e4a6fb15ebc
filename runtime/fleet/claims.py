"""Who does which piece of equal work: claims that hold while their owner gives signs of life."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from secrets import token_hex
from typing import Protocol

from ..errors import JournalError
from ..journal.redis_link import RedisAway
from ..journal.redis_scripts import Script
from .link import Link

LEASE_S = 5.0  # for which an owner counts as alive after each sign of life
LONGEST_S = 600.0  # of a piece of work: after that its claim ends anyway
STORE_S = 2.0  # in which a result that was kept is found
KEPT = "kept"  # whose claim that is meanwhile: it does not end with its owner


class ClaimsAway(Exception):
    """Claims cannot be asked about now; the message says why."""


class Claims(Protocol):
    """Claims on keys, as one process sees them. All methods raise ClaimsAway."""

    async def claim(self, key: bytes) -> bool:
        """Whether the work is this process's now: nobody alive does it."""
        ...

    async def end(self, key: bytes, kept: bool) -> None:
        """The work is over: `kept` says that others will find its result, within `STORE_S`."""
        ...

    async def beat(self) -> None:
        """This process lives, and does what it has claimed."""
        ...

    async def rest(self) -> None:
        """Let others do what this process has claimed, until its next beat."""
        ...

    async def hear(self, begun: Callable[[], None], over: Callable[[bytes], None]) -> None:
        """Call `over` with the key of work that somebody ends, once `begun` was called.

        Goes on until it is cancelled, or cut off (ClaimsAway); returns where nobody tells of ends.
        Some may be missed: whoever waits has to look by himself, too.
        """
        ...


@dataclass(slots=True)
class Book:
    """Claims by key with their owner and end, how long owners count as alive, and who listens."""

    claims: dict[bytes, tuple[str, float]] = field(default_factory=dict[bytes, tuple[str, float]])
    alive: dict[str, float] = field(default_factory=dict[str, float])
    listeners: list[Callable[[bytes], None]] = field(default_factory=list[Callable[[bytes], None]])


class MemoryClaims:
    """Claims in this process, for tests and virtual time; runners that share work share a book."""

    def __init__(self, book: Book, owner: str, clock: Callable[[], float]) -> None:
        self._book = book
        self._owner = owner
        self._clock = clock

    async def claim(self, key: bytes) -> bool:
        owner, until_s = self._book.claims.get(key, ("", 0.0))
        now_s = self._clock()
        if until_s > now_s and (owner == KEPT or self._book.alive.get(owner, 0.0) > now_s):
            return owner == self._owner
        self._book.claims[key] = self._owner, now_s + LONGEST_S
        return True

    async def end(self, key: bytes, kept: bool) -> None:
        owner, _ = self._book.claims.get(key, ("", 0.0))
        if owner == self._owner:
            self._book.claims[key] = KEPT, self._clock() + (STORE_S if kept else 0.0)
            for over in self._book.listeners:
                over(key)

    async def beat(self) -> None:
        self._book.alive[self._owner] = self._clock() + LEASE_S

    async def rest(self) -> None:
        self._book.alive.pop(self._owner, None)

    async def hear(self, begun: Callable[[], None], over: Callable[[bytes], None]) -> None:
        self._book.listeners.append(over)
        try:
            begun()
            await asyncio.Event().wait()
        finally:
            self._book.listeners.remove(over)


# owner, ms that a claim lasts, an owner known to be dead -> whose it is
_CLAIM = Script("""#!lua
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[3] then return owner end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return ARGV[1]
""")
# owner, ms in which the result is found, or 0, channel, key; who may not publish ends it quietly
_END = Script("""#!lua
if redis.call('GET', KEYS[1]) == ARGV[1] then
  if ARGV[2] == '0' then redis.call('DEL', KEYS[1])
  else redis.call('SET', KEYS[1], 'kept', 'PX', ARGV[2]) end
  redis.pcall('PUBLISH', ARGV[3], ARGV[4])
end
return 1
""")
# ms of life; 0: none
_BEAT = Script("""#!lua
if ARGV[1] == '0' then return redis.call('DEL', KEYS[1]) end
redis.call('SET', KEYS[1], 1, 'PX', ARGV[1])
return 1
""")
_LIVES = Script("#!lua\nreturn redis.call('EXISTS', KEYS[1])\n")


class RedisClaims:
    """Claims in Redis.

    <prefix>:claim:KEY     string: the owner, or "kept"; the key in hexadecimal
    <prefix>:alive:OWNER   string, there while the owner lives
    <prefix>:over          channel: keys of claims that end
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._owner = token_hex(8)
        self._channel = f"{link.prefix}:over"

    async def claim(self, key: bytes) -> bool:
        dead = ""
        while True:
            found = await self._run(_CLAIM, f"claim:{key.hex()}", self._owner, _ms(LONGEST_S), dead)
            owner = found.decode()
            if owner == self._owner:
                return True
            if owner == KEPT or await self._run(_LIVES, f"alive:{owner}"):
                return False
            dead = owner

    async def end(self, key: bytes, kept: bool) -> None:
        left_ms = _ms(STORE_S) if kept else 0
        name = key.hex()
        await self._run(_END, f"claim:{name}", self._owner, left_ms, self._channel, name)

    async def beat(self) -> None:
        await self._run(_BEAT, f"alive:{self._owner}", _ms(LEASE_S))

    async def rest(self) -> None:
        await self._run(_BEAT, f"alive:{self._owner}", 0)

    async def hear(self, begun: Callable[[], None], over: Callable[[bytes], None]) -> None:
        def heard(name: bytes) -> None:
            with suppress(ValueError):  # anybody may publish anything
                over(bytes.fromhex(name.decode("ascii")))

        try:
            await self._link.listen(self._channel, begun, heard)
        except (RedisAway, JournalError) as error:
            raise ClaimsAway(str(error)) from error

    async def _run(self, script: Script, name: str, *arguments: str | int) -> bytes:
        try:
            return await self._link.run(script, f"{self._link.prefix}:{name}", *arguments)
        except (RedisAway, JournalError) as error:
            raise ClaimsAway(str(error)) from error


def _ms(seconds: float) -> int:
    return round(1000 * seconds)
