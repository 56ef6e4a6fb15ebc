"""A run's writes on their way to Redis: numbered, fenced, and sent again when an answer is missing.

Redis may be gone, frozen, loading, full or failing over: then a write waits, `patience_s` at most.
A group is sent again under its number, and lands once. What was acknowledged lately is kept for a
while, so that a Redis that comes back without its last second is given it again; one that comes
back with less than that, or without the run, is an error that says so.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from ..errors import JournalError
from .address import RedisAddress
from .base import Superseded
from .owner import read_owner
from .redis_format import Argument, Keys
from .redis_link import (
    RedisAway,
    Server,
    answering,
    close_async,
    connect_async,
    leave_idle,
)
from .redis_scripts import BEAT, COMMIT, RELEASE, Script

LEASE_S = 30.0
AGAIN_S = 10.0  # what was acknowledged in this time can be sent again
AGAIN_BYTES = 24 * 1024 * 1024
EVERYSEC_S = 2.0  # appendfsync everysec: a write waits at most so long for a late fsync
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.02, 1.0
_TOLD_S = 1.0  # an absence that is shorter is not worth a line
_log = logging.getLogger(__name__)

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Held:
    """A claimed run: the token its writes must show, and how far it has come.

    `lost` counts records that an earlier runner had acknowledged and Redis has no more.
    """

    token: str
    seq: int = 0
    records: int = 0
    lost: int = 0


@dataclass(frozen=True, slots=True)
class _Packet:
    """A numbered group, as the commit script takes it."""

    seq: int
    records: int
    size: int
    writes: list[Argument]


class Sender:
    """Sends one run's writes, one group at a time. All its methods may wait for Redis."""

    def __init__(self, address: RedisAddress, keys: Keys, held: Held, server: Server) -> None:
        self.address = address
        self.records = held.records  # that Redis has acknowledged, of all runners
        self._keys = keys
        self._token = held.token
        self._seq = held.seq  # of the last group that was acknowledged
        self._server = server
        self._client: Any = connect_async(address)
        self._turn = asyncio.Lock()
        self._again: deque[tuple[float, _Packet]] = deque()  # with when it was acknowledged
        self._again_bytes = 0
        self._renewed_s = time.monotonic()

    async def commit(self, records: int, size: int, writes: list[Argument], sync: bool) -> None:
        """Have Redis take the group as a whole; with `sync`, have it on its disk too."""
        packet = _Packet(self._seq + 1, records, size, writes)
        async with self._turn:
            await self._patiently(lambda: self._send(packet, sync))
            self._seq = packet.seq
            self.records += records
            self._remember(packet)

    async def beat(self) -> None:
        """Renew the lease, unless a group has done so lately. Raises RedisAway."""
        if time.monotonic() - self._renewed_s < LEASE_S / 4:
            return
        async with self._turn:
            await self._ask(BEAT, self._seq, _ms(LEASE_S))

    async def release(self) -> None:
        """Give the lease back; what Redis has lost by now is sent again before."""
        async with self._turn:
            await self._patiently(lambda: self._ask(RELEASE, self._seq))

    async def let_go(self) -> None:
        """Give the lease back if Redis is there, whatever it has."""
        await self._run(RELEASE, self._token, 0)

    async def read(self, work: Callable[[Any], Awaitable[_T]]) -> _T:
        """The answer to a question that may be asked twice."""

        async def ask() -> _T:
            with answering(self.address):
                return await work(self._client)

        return await self._patiently(ask)

    async def close(self) -> None:
        await close_async(self.address, self._client)

    # ---- one exchange -----------------------------------------------------------------------

    async def _send(self, packet: _Packet, sync: bool) -> None:
        arguments = (packet.seq, _ms(LEASE_S), packet.records, *packet.writes)
        await self._ask(COMMIT, *arguments, sync=sync and self._server.keeps == "waitaof")
        if sync and self._server.keeps == "everysec":
            await asyncio.sleep(EVERYSEC_S)
            await self._fsynced()
            await self._confirm(packet.seq)
            await self._fsynced()  # of what was still in Redis's own buffer

    async def _ask(self, script: Script, *arguments: Argument, sync: bool = False) -> None:
        """Have a script done under our token; what Redis has lost before it is sent again."""
        while True:
            answer = await self._run(script, self._token, *arguments, sync=sync)
            match answer:
                case [b"gap", int(seq)]:
                    await self._send_again(seq)
                case [b"ok"]:
                    self._renewed_s = time.monotonic()
                    return
                case _:
                    raise self._refusal(answer)

    async def _send_again(self, seq: int) -> None:
        """Redis has only the groups up to `seq`: send those that follow."""
        missing = [packet for _, packet in self._again if packet.seq > seq]
        if not missing or missing[0].seq != seq + 1:
            raise JournalError(
                f"{self._where()} has lost {self._seq - seq:,} groups of records that it had "
                "acknowledged, more than can be sent again; resume the run: they are done again"
            )
        for packet in missing:
            arguments = (packet.seq, _ms(LEASE_S), packet.records, *packet.writes)
            answer = await self._run(COMMIT, self._token, *arguments)
            if answer[0] == b"gap":
                raise RedisAway("it has lost records again")
            if answer != [b"ok"]:
                raise self._refusal(answer)

    async def _run(self, script: Script, *arguments: Argument, sync: bool = False) -> Any:
        from redis.exceptions import NoScriptError

        with answering(self.address):
            try:
                return await self._call(
                    ("EVALSHA", script.sha, 1, self._keys.about), arguments, sync
                )
            except NoScriptError:  # Redis was restarted, or is another one
                return await self._call(("EVAL", script.text, 1, self._keys.about), arguments, sync)

    async def _call(self, head: tuple[Argument, ...], arguments: Any, sync: bool) -> Any:
        if not sync:
            return await self._client.execute_command(*head, *arguments)
        wait_ms = _ms(self.address.options.timeout_s / 2)
        pipe = self._client.pipeline(transaction=False)  # WAITAOF waits for its own connection
        pipe.execute_command(*head, *arguments)
        pipe.execute_command("WAITAOF", 1, 0, wait_ms)
        answer, waited = await pipe.execute(raise_on_error=False)
        for each in (answer, waited):
            if isinstance(each, Exception):
                raise each
        if answer == [b"ok"] and waited[0] < 1:
            raise RedisAway(f"its disk is slow: no fsync within {wait_ms} ms")
        return answer

    async def _confirm(self, seq: int) -> None:
        """Raise RedisAway if it has lost the group by a restart."""
        answer = await self._run(BEAT, self._token, seq, _ms(LEASE_S))
        if answer[0] == b"gap":
            raise RedisAway("it was restarted, and has lost what was not on its disk yet")
        if answer != [b"ok"]:
            raise self._refusal(answer)

    async def _fsynced(self) -> None:
        """Wait for the fsync that runs, by a server of `everysec`."""
        while True:
            with answering(self.address):
                info = await self._client.info("persistence")
            if info.get("aof_last_write_status", "ok") != "ok":
                raise RedisAway("it cannot write to its disk")
            if not int(info.get("aof_pending_bio_fsync", 0)):
                return
            await asyncio.sleep(_LONGEST_PAUSE_S / 10)

    # ---- patience ---------------------------------------------------------------------------

    async def _patiently(self, work: Callable[[], Awaitable[_T]]) -> _T:
        """`work`, again and again while Redis is away."""
        patience_s = self.address.options.patience_s
        since_s: float | None = None
        pause_s = _FIRST_PAUSE_S
        told = False
        while True:
            try:
                answer = await work()
                if told:
                    _log.warning("%s answers again; the run goes on", self._where())
                return answer
            except RedisAway as away:
                now_s = time.monotonic()
                since_s = now_s if since_s is None else since_s
                if now_s - since_s + pause_s > patience_s:
                    raise JournalError(
                        f"{self._where()} has been away for {patience_s:g} s: {away}; when it is "
                        "back, resume the run"
                    ) from away
                if now_s - since_s >= _TOLD_S and not told:
                    told = True
                    _log.warning(
                        "%s is away, the run waits for it, up to %g s: %s",
                        self._where(),
                        patience_s,
                        away,
                    )
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            await self._reconnect()

    async def _reconnect(self) -> None:
        """Leave the connections: the name may lead to another server by now."""
        if self.address.kind == "cluster":  # its client may not find back by itself
            await close_async(self.address, self._client)
            self._client = connect_async(self.address)
        else:
            await leave_idle(self.address, self._client)

    def _remember(self, packet: _Packet) -> None:
        now_s = time.monotonic()
        self._again.append((now_s, packet))
        self._again_bytes += packet.size
        while self._again_bytes > AGAIN_BYTES or self._again[0][0] < now_s - AGAIN_S:
            _, old = self._again.popleft()
            self._again_bytes -= old.size
            if not self._again:
                return

    def _refusal(self, answer: Any) -> JournalError:
        match answer:
            case [b"fenced", bytes(text)]:
                return Superseded(f"run {self._keys.run}", read_owner(text))
            case [b"gone"]:
                return JournalError(
                    f"{self._where()} does not have run {self._keys.run} any more: it was "
                    "restarted empty, or emptied; start the run anew"
                )
            case _:
                return JournalError(f"{self._where()} answered {answer!r}, which means nothing")

    def _where(self) -> str:
        return f"Redis at {self.address.shown}"


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
