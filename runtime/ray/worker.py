"""A shard's process: it opens the models, runs the rows it is handed, and tells what it has done."""

import asyncio
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from ...planner.optimize import optimize
from ...planner.plan import Context, Plan
from ...planner.stats import TableStats
from ..clock import now
from ..errors import InvalidInput, RunMismatch
from ..jobs.engine import Begin, LocalWork, open_work
from ..jobs.spec import MapSpec, fields_of
from ..jobs.work import RowWork, concurrency_of
from ..journal.base import Journal, StepRecord
from ..journal.memory import NoJournal
from ..journal.store import Store
from ..predict import Learned
from ..run.codec import encode as encode_value
from ..run.local import model_fingerprint, open_backends
from ..run.rows import tell
from ..scheduler.events import Change
from ..trace import Record
from ..trace import encode as encode_record
from . import messages
from .failures import failure_of, kind_of
from .journal import RemoteJournal
from .messages import Beginning, Failure, Handed, Hello, News, Opening, Over, Ready
from .shard import Shard, ShardRow
from .shares import leases, share_evenly, split_limits

IDLE_S = 0.5  # after which somebody who asks hears that there is nothing new


class Worker:
    """What Ray runs for each shard. Each method takes a message as bytes, and answers with one."""

    def __init__(self) -> None:
        self._news = asyncio.Event()
        self._over: list[Over] = []
        self._next: list[int] = []
        self._told: tuple[int, ...] = ()  # of them, those that whoever asks will have heard of
        self._back: tuple[int, ...] | None = None
        self._trace = bytearray()
        self._failure: Failure | None = None
        self._journal = RemoteJournal(self._news.set)
        self._journaled = True
        self._shards = 1
        self._shard: Shard | None = None
        self._work: LocalWork | None = None
        self._main: asyncio.Task[None] | None = None
        self._hello: asyncio.Future[Hello] = _future()
        self._beginning: asyncio.Future[Beginning] = _future()
        self._ready: asyncio.Future[Ready] = _future()
        self._stop = asyncio.Event()

    async def open(self, message: bytes) -> bytes:
        """Open the models of the workflow that an `Opening` names."""
        self._main = asyncio.create_task(self._live(messages.decode_opening(message)))
        return messages.encode(await self._hello)

    async def begin(self, message: bytes) -> bytes:
        """Have the programs of a run ready."""
        self._beginning.set_result(messages.decode_beginning(message))
        return messages.encode(await self._ready)

    async def tell(self, message: bytes) -> bytes:
        """Hear what is new."""
        told, shard = messages.decode_tell(message), self._shard
        self._journal.kept(told.kept)
        for found in told.found:
            self._journal.found(found)
        if shard is None or self._work is None:
            return b""
        host = self._work.host
        if told.paused is not None:
            (host.pause if told.paused else host.go_on)()
        if told.concurrency or told.order or told.retention:
            host.change(
                Change(max_programs=told.concurrency, order=told.order, retention=told.retention)
            )
        if told.concurrency:
            shard.bound(told.concurrency)
        if told.back:
            self._back = (*(self._back or ()), *shard.give_back(told.back))
            self._news.set()
        shard.add([self._row(handed) for handed in told.rows])
        if told.drain:
            shard.drain()
        return b""

    async def hear(self) -> bytes:
        """What is new here, at once or soon. Who asks again has heard the answer before."""
        if self._shard is not None:
            self._shard.heard(self._told)
        self._told = ()
        if not (self._news.is_set() or self._journal.has_news):
            with suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), IDLE_S)
        return messages.encode(self._take())

    async def end(self) -> bytes:
        """Put everything in order; the last news."""
        await self._finish()
        return messages.encode(self._take())

    async def close(self) -> bytes:
        """Stop whatever runs."""
        await self._finish()
        return b""

    # ---- the life of a shard -----------------------------------------------------------------------

    async def _live(self, opening: Opening) -> None:
        try:
            rows = _row_work(opening)
            self._journaled, self._shards = rows.spec.journal, opening.shards
            async with open_backends(rows.models) as backends:
                models = model_fingerprint(backends)
                able = concurrency_of(backends)
                host = socket.gethostname()
                shared = any(each[0].capabilities.place for each in backends.values())
                self._hello.set_result(Hello(models, able, shared, host, os.getpid(), now()))
                beginning = await self._begun()
                if beginning is None:
                    return
                begin = self._begin(rows, beginning, models)
                async with open_work(rows, backends, begin) as work:
                    self._work = work
                    if not leases(rows.spec.home):
                        share_evenly(work.host, self._shards)
                    self._shard = Shard(work, beginning.concurrency, self._announce)
                    self._ready.set_result(Ready())
                    await self._stop.wait()
                    self._journal.let_go()
                    self._shard.abort()
        except Exception as error:  # noqa: BLE001  whoever waits hears of it
            self._failure = failure_of(error)
        finally:
            self._shard = self._work = None
            failure = self._failure or Failure("the shard has been closed")
            if not self._hello.done():
                self._hello.set_result(Hello(host=socket.gethostname(), failure=failure))
            if not self._ready.done():
                self._ready.set_result(Ready(failure))
            self._news.set()

    async def _begun(self) -> Beginning | None:
        """What the run begins with; None if it does not."""
        stop = asyncio.create_task(self._stop.wait())
        await asyncio.wait({self._beginning, stop}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        return self._beginning.result() if self._beginning.done() else None

    def _begin(self, rows: RowWork, told: Beginning, models: str) -> Begin:
        journal: Journal = self._journal if self._journaled else NoJournal()
        fingerprint = f"{rows.workflow.fingerprint}/{models}"
        scheduling = rows.scheduling()
        return Begin(
            run=told.run,
            plan=_plan(rows, told),
            journal=journal,
            trace=self,
            learned=Learned.load(Store(rows.spec.home).place, rows.workflow.name, fingerprint),
            scheduling=replace(scheduling, limits=split_limits(scheduling.limits, self._shards)),
            concurrency=told.concurrency,
            pins=told.pins,
            resumed=told.resumed,
            seed=told.seed,
        )

    async def _finish(self) -> None:
        self._stop.set()
        if self._main is not None:
            await asyncio.wait({self._main})

    # ---- rows and news -----------------------------------------------------------------------------

    def write(self, at_s: float, record: Record) -> None:
        """Take a record of the trace."""
        self._trace += encode_record(at_s, record)

    def _row(self, handed: Handed) -> ShardRow:
        def ended(value: Any, error: Exception | None) -> None:
            self._over.append(_over(handed.row, value, error))
            self._news.set()

        steps: Mapping[str, StepRecord] = {step.path: step.record() for step in handed.steps}
        inputs = messages.unpack_inputs(handed.inputs)
        return ShardRow(handed.row, inputs, ended, steps, handed.suspicion)

    def _announce(self, row: int) -> None:
        self._next.append(row)
        self._news.set()

    def _take(self) -> News:
        self._news.clear()
        steps, asked = self._journal.take()
        if self._journal.has_news:
            self._news.set()
            over: list[Over] = []  # they come behind all records
        else:
            over, self._over = self._over, []
        trace, self._trace = bytes(self._trace), bytearray()
        self._told, self._next = tuple(self._next), []
        back, self._back = self._back, None
        return News(self._told, back, steps, tuple(over), asked, trace, self._failure)


# ---- pieces ------------------------------------------------------------------------------------


def _future() -> "asyncio.Future[Any]":
    return asyncio.get_running_loop().create_future()


def _row_work(opening: Opening) -> RowWork:
    """The workflow as it is on this machine. Raises InvalidInput where it is not the run's."""
    spec = MapSpec(**fields_of(opening.spec.decode()))
    try:
        rows = RowWork(spec)
    except InvalidInput as error:
        raise InvalidInput(f"{error}; every machine of the cluster must have it there") from None
    if rows.workflow.fingerprint != opening.workflow_fingerprint:
        raise RunMismatch(
            f"the workflow {spec.workflow} is another one there than where the run was started; "
            "put the same file on every machine of the cluster"
        )
    return rows


def _plan(rows: RowWork, told: Beginning) -> Plan | None:
    """The plan, which all shards make of the same statistics."""
    if rows.workflow.graph is None or told.stats is None:
        return None
    context = Context(
        TableStats.from_json(told.stats),
        frozenset(told.constants),
        consolidate=rows.consolidate,
        without=rows.without,
    )
    return optimize(rows.workflow.graph, context)


def _over(row: int, value: Any, error: Exception | None) -> Over:
    if error is not None:
        return Over(row, None, tell(error), kind_of(error))
    try:
        return Over(row, encode_value(value))
    except (TypeError, ValueError) as problem:  # such as half a surrogate pair
        return Over(row, None, f"the result is not JSON: {problem}")
