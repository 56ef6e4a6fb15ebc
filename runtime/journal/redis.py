"""A run's journal in Redis: what is recorded gathers, and travels in groups.

`record` only appends to a list. What gathers while a group travels makes the next one, so a record
waits for at most two round trips. While Redis is away programs wait for their records, so what
gathers is bounded by what is in flight; of what nobody waits for, by PENDING_BYTES.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from ..errors import JournalError
from .address import RedisAddress
from .base import Entry, Manifest, RowRecord, RunStatus, StepRecord, Superseded, check
from .redis_format import Argument, Group, Keys
from .redis_link import RedisAway, Server
from .redis_read import read_results, read_rows, read_steps
from .redis_sender import LEASE_S, Held, Sender

PENDING_LIMIT = 100_000  # records that wait for Redis, above which spare ones are left out,
PENDING_BYTES = 64 * 1024 * 1024  # or above so much
GROUP_RECORDS = 1024
GROUP_BYTES = 1024 * 1024  # of a group of more than one record
INDEXED_LIMIT = 100_000  # hashes of records, each of 64 rows or more
MARK_S = 1.0

_T = TypeVar("_T")
_Then = Callable[[], None]


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A record with its callback, or somebody who waits until all before is kept.

    `writes` are others than a record's.
    """

    entry: Entry | None = None
    then: _Then | None = None
    sync: bool = False
    settled: "asyncio.Future[None] | None" = None
    writes: tuple[Argument, ...] = ()


class RedisJournal:
    """A run's journal in Redis, for the process that holds its lease.

    `lost_records` counts what an earlier runner had acknowledged and Redis has lost since: it is
    done again. Not for virtual time, which cannot wait for a server.
    """

    def __init__(
        self,
        address: RedisAddress,
        manifest: Manifest,
        held: Held,
        server: Server,
        *,
        on_failure: Callable[[JournalError], None] | None = None,
        on_mark: Callable[[int], None] | None = None,
    ) -> None:
        """`on_mark` is told about each second how many records Redis has acknowledged in all."""
        self.on_failure = on_failure
        self.manifest = manifest
        self.lost_records = held.lost
        self._server = server
        self._keys = Keys(address.options.prefix, manifest.run)
        self._sender = Sender(address, self._keys, held, server)
        self._on_mark = on_mark
        self._marked = held.records
        self._pending: deque[_Waiting] = deque()
        self._pending_bytes = 0
        self._indexed: set[tuple[str, int]] = set()
        self._writer: asyncio.Task[None] | None = None
        self._heart: asyncio.Task[None] | None = None
        self._failure: JournalError | None = None
        self._closed = False
        with suppress(RuntimeError):  # no loop runs yet: the first record starts the heart
            self._start_heart(asyncio.get_running_loop())

    # ---- the door -----------------------------------------------------------------------------

    def record(
        self, entry: StepRecord | RowRecord, then: _Then | None = None, sync: bool = False
    ) -> None:
        """Append `entry`; `then` is called on the loop once Redis has it (`sync`: on its disk)."""
        size = check(entry)
        if self._failure is not None:
            raise self._failure
        if sync and self._server.keeps == "no":
            raise JournalError(
                f"{self._sender.address.shown}: it keeps nothing safe from a power cut, which a "
                "tool that must not run twice needs; set appendonly yes"
            )
        if isinstance(entry, StepRecord) and entry.spare and self._behind:
            return
        self._pending_bytes += size
        self._enqueue(_Waiting(entry, then, sync))

    @property
    def _behind(self) -> bool:
        return self._pending_bytes >= PENDING_BYTES or len(self._pending) >= PENDING_LIMIT

    async def steps(self, first_row: int, last_row: int) -> Mapping[tuple[int, str], StepRecord]:
        return await self._ask(lambda c: read_steps(c, self._keys, first_row, last_row))

    async def rows(self, first_row: int, last_row: int) -> Mapping[int, RowRecord]:
        return await self._ask(lambda c: read_rows(c, self._keys, first_row, last_row))

    async def results(self, signatures: Iterable[bytes]) -> Mapping[bytes, bytes]:
        wanted = list(dict.fromkeys(signatures))
        return await self._ask(lambda c: read_results(c, self._keys, wanted))

    async def set_status(self, status: RunStatus, summary: Mapping[str, float]) -> None:
        """Durable when it returns, where the server can be asked for that; else within seconds."""
        text = msgspec.json.encode(dict(summary))
        at_once = self._server.keeps == "waitaof"
        await self._settle((4, "HSET", "", "status", status, "summary", text), at_once)

    async def close(self) -> None:
        """Send what is pending and give the lease back; a failure told is not raised."""
        if self._closed:
            return
        told = self._failure
        try:
            if told is None:
                await self._settle()
                await self._sender.release()
        finally:
            self._closed = True
            self._failure = self._failure or JournalError("the journal is closed")
            await self._disconnect(told)

    async def _disconnect(self, failed: JournalError | None) -> None:
        for task in (self._heart, self._writer):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        if failed is not None and not isinstance(failed, Superseded):
            with suppress(RedisAway, JournalError):
                await self._sender.let_go()
        self._mark()
        with suppress(RedisAway, OSError):
            await self._sender.close()

    async def _ask(self, work: Callable[[Any], Awaitable[_T]]) -> _T:
        """The answer of Redis, after everything recorded so far."""
        await self._settle()
        return await self._sender.read(work)

    async def _settle(self, writes: tuple[Argument, ...] = (), sync: bool = False) -> None:
        """Wait until all that was recorded so far is kept, and `writes` after it."""
        if self._failure is not None:
            raise self._failure
        if not writes and self._writer is None:
            return
        settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._enqueue(_Waiting(sync=sync, settled=settled, writes=writes))
        await settled

    # ---- groups -------------------------------------------------------------------------------

    def _enqueue(self, waiting: _Waiting) -> None:
        self._pending.append(waiting)
        if self._writer is None:
            loop = asyncio.get_running_loop()
            self._writer = loop.create_task(self._write())
            self._start_heart(loop)

    async def _write(self) -> None:
        """Send what is pending, group by group, until there is nothing left."""
        while self._pending and self._failure is None:
            group = self._take()
            try:
                await self._commit(group)
            except Exception as error:  # noqa: BLE001  whoever waits must hear of it
                self._fail(_named(error), group)
                break
            self._acknowledge(group)
        self._writer = None

    def _take(self) -> list[_Waiting]:
        group: list[_Waiting] = []
        size = 0
        while self._pending and len(group) < GROUP_RECORDS:
            value = self._pending[0].entry.value if self._pending[0].entry is not None else None
            size += len(value or b"")
            if group and size > GROUP_BYTES:
                break
            group.append(self._pending.popleft())
        return group

    async def _commit(self, group: list[_Waiting]) -> None:
        if len(self._indexed) > INDEXED_LIMIT:
            self._indexed.clear()  # what is indexed twice does no harm
        packed = Group(self._indexed)
        others: list[Argument] = []
        for waiting in group:
            if waiting.entry is not None:
                packed.add(waiting.entry)
            others += waiting.writes
        if packed.records or others:
            sync = any(waiting.sync for waiting in group)
            writes = [*packed.arguments(), *others]
            await self._sender.commit(packed.records, packed.size, writes, sync)
        self._pending_bytes -= packed.size

    def _acknowledge(self, group: list[_Waiting]) -> None:
        for waiting in group:
            if waiting.settled is not None and not waiting.settled.done():
                waiting.settled.set_result(None)
            if waiting.then is None:
                continue
            try:
                waiting.then()
            except Exception as error:  # noqa: BLE001  the other callbacks must be called
                row = waiting.entry.row if waiting.entry is not None else 0
                asyncio.get_running_loop().call_exception_handler(
                    {"message": f"after the record of row {row}", "exception": error}
                )

    def _fail(self, error: JournalError, group: Iterable[_Waiting] = ()) -> None:
        """Nothing is acknowledged any more; whoever waits is told."""
        if self._failure is not None:
            error = self._failure
        self._failure = error
        for waiting in (*group, *self._pending):
            if waiting.settled is not None and not waiting.settled.done():
                waiting.settled.set_exception(error)
        self._pending.clear()
        self._pending_bytes = 0
        if self.on_failure is not None:
            told, self.on_failure = self.on_failure, None
            told(error)

    # ---- signs of life ------------------------------------------------------------------------

    def _start_heart(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._heart is None:
            self._heart = loop.create_task(self._beat())

    async def _beat(self) -> None:
        """Renew the lease, and tell how far Redis has come."""
        elapsed_s = 0.0
        while self._failure is None:
            await asyncio.sleep(MARK_S)
            elapsed_s += MARK_S
            self._mark()
            if elapsed_s < LEASE_S / 4:
                continue
            elapsed_s = 0.0
            try:
                await self._sender.beat()
            except RedisAway:
                continue  # a lease that ran out is still ours, until somebody else claims it
            except Exception as error:  # noqa: BLE001  the run must hear of it
                self._fail(_named(error))

    def _mark(self) -> None:
        if self._on_mark is not None and self._marked != self._sender.records:
            self._marked = self._sender.records
            with suppress(OSError):  # without it, less is known of what Redis may lose
                self._on_mark(self._marked)


def _named(error: Exception) -> JournalError:
    return error if isinstance(error, JournalError) else JournalError(f"journal: {error!r}")
