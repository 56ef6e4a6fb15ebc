"""One shard of a run, as the run sees it: a process that has its rows, and the next one when it dies.

The run's journal is the only record. What a process says of a step is recorded here, and it hears
when that is kept; so the rows of a process that has died go to another with all that was recorded.
Whatever a process says after it was given up is heard by nobody.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from ..errors import (
    Drained,
    JournalError,
)
from ..journal.base import Journal, StepRecord
from ..run.codec import decode
from ..run.program import Ended
from ..scheduler.core import DRAINED
from ..trace import Record, Trace
from ..trace import decode as decode_trace
from . import messages
from .cluster import Process, ProcessLost
from .failures import ShardFailed, error_of, raised
from .messages import (
    MAX_BYTES,
    Asked,
    Beginning,
    Found,
    Handed,
    Hello,
    News,
    Over,
    Step,
    Tell,
)

DEATHS = 3  # in a row, without a row that ends in between, after which a shard is given up
PLACING_S = 300.0  # for a process to be there, with its models
WORKER = "worker"  # the field of records that names one

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Given:
    """A row that a shard has, until it ends."""

    inputs: bytes
    ended: Ended
    steps: tuple[Step, ...] = ()
    stale: bool = False  # the journal has more of its steps than these


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """A process whose models answer; `shift_s` takes times of its clock to those of ours."""

    process: Process
    hello: Hello
    shift_s: float

    @property
    def host(self) -> str:
        return self.hello.host


class Placing(Protocol):
    """Makes processes for shards."""

    async def __call__(self, shard: int) -> Placed:
        """A process whose models answer. Raises TenterError."""
        ...


class Slot:
    """The rows of one shard, and the process that has them.

    `beginning` is what a process begins with; one that takes over begins as a resumed one.
    `trace` hears what the process traces.
    """

    def __init__(
        self,
        shard: int,
        place: Placing,
        first: Placed,
        beginning: Callable[[bool], Beginning],
        journal: Journal,
        trace: Trace,
    ) -> None:
        self.shard = shard
        self._place = place
        self._placed = first
        self._beginning = beginning
        self._journal = journal
        self._trace = trace
        self._given: dict[int, Given] = {}
        self._unsent: dict[int, None] = {}  # in order
        self._changed = asyncio.Event()
        self._set = Tell()  # the settings that were changed since the run began
        self._set_told = True
        self._found: list[Found] = []
        self._kept = 0
        self._deaths = 0
        self._draining = False

    @property
    def rows(self) -> int:
        """Rows that have not ended."""
        return len(self._given)

    @property
    def left(self) -> tuple[int, ...]:
        """Those rows."""
        return tuple(self._given)

    def hand(
        self, row: int, inputs: bytes, recorded: Mapping[str, StepRecord], ended: Ended
    ) -> None:
        """Have a row run."""
        steps = tuple(_step(step) for step in recorded.values())
        self._given[row] = Given(inputs, ended, steps)
        self._unsent[row] = None
        self._changed.set()

    def drop(self, row: int) -> Ended | None:
        """Forget a row, which ends otherwise."""
        self._unsent.pop(row, None)
        given = self._given.pop(row, None)
        return None if given is None else given.ended

    def drain(self) -> None:
        """Let what runs end, and start nothing any more."""
        self._draining = True
        for row in tuple(self._unsent):
            self._end(row, None, Drained(DRAINED))
        self._changed.set()

    def steer(self, change: Tell) -> None:
        """Go on with the settings that `change` has."""
        known = self._set
        self._set = Tell(
            paused=known.paused if change.paused is None else change.paused,
            concurrency=change.concurrency or known.concurrency,
            order=change.order or known.order,
            retention=change.retention or known.retention,
        )
        self._set_told = False
        self._changed.set()

    # ---- the life of the shard ---------------------------------------------------------------------

    async def serve(self, give_up: Callable[[Exception], None]) -> None:
        """Have the rows run, by as many processes as it takes, until cancelled.

        `give_up` hears of the error after which nothing can go on.
        """
        resumed = False
        try:
            while True:
                try:
                    await self._begin(resumed)
                    await self._talk()
                except ProcessLost as lost:
                    await self._take_over(lost)
                    resumed = True
        except Exception as error:  # noqa: BLE001  the run ends, and tells of it
            give_up(error)

    async def end(self) -> None:
        """Have the process put its things in order, and hear the last of it."""
        try:
            self._hear(messages.decode_news(await self._placed.process.ask("end")))
        except ProcessLost as lost:
            log.warning("shard %d: %s", self.shard, lost)

    async def _begin(self, resumed: bool) -> None:
        answer = await self._placed.process.ask("begin", messages.encode(self._beginning(resumed)))
        ready = messages.decode_ready(answer)
        if ready.failure is not None:
            raise raised(ready.failure, self.shard, self._placed.host)

    async def _talk(self) -> None:
        """Tell and hear until the process is lost."""
        parts = {asyncio.create_task(self._telling()), asyncio.create_task(self._hearing())}
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_EXCEPTION)
            for part in done:
                part.result()
        finally:
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)

    async def _take_over(self, lost: ProcessLost) -> None:
        """Another process for the rows, with what of them is recorded."""
        self._placed.process.kill()
        self._deaths += 1
        log.warning(
            "shard %d: process %d on %s is lost (%s); another takes its %d rows",
            *(self.shard, self._placed.hello.pid, self._placed.host, lost, self.rows),
        )
        if self._deaths >= DEATHS:
            why = f"{self._deaths} processes in a row were lost, at last: {lost}"
            raise ShardFailed(self.shard, why, self.rows)
        try:
            self._placed = await self._place(self.shard)
        except ProcessLost as error:
            raise ShardFailed(
                self.shard, f"no process takes its place: {error}", self.rows
            ) from None
        self._kept = 0
        self._found.clear()
        for row, given in tuple(self._given.items()):
            if given.stale:
                steps = await self._journal.steps(row, row)
                given.steps = tuple(_step(step) for step in steps.values())
                given.stale = False
        self._unsent = dict.fromkeys(self._given)
        self._set_told = False
        if self._draining:
            self.drain()
        self._changed.set()

    # ---- telling -----------------------------------------------------------------------------------

    async def _telling(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            await self._placed.process.ask("tell", messages.encode(self._news()))
            if self._unsent:
                self._changed.set()

    def _news(self) -> Tell:
        rows: list[Handed] = []
        size = 0
        while self._unsent and size < MAX_BYTES:
            row = next(iter(self._unsent))
            del self._unsent[row]
            given = self._given[row]
            rows.append(Handed(row, given.inputs, given.steps))
            size += len(given.inputs) + sum(len(step.value) for step in given.steps)
        found, self._found = tuple(self._found), []
        told = Tell() if self._set_told else self._set
        self._set_told = True
        return msgspec.structs.replace(
            told, rows=tuple(rows), kept=self._kept, found=found, drain=self._draining
        )

    # ---- hearing -----------------------------------------------------------------------------------

    async def _hearing(self) -> None:
        while True:
            news = messages.decode_news(await self._placed.process.ask("hear"))
            self._hear(news)
            for asked in news.asked:
                await self._look_up(asked)
            if news.failure is not None:
                raise raised(news.failure, self.shard, self._placed.host)

    def _hear(self, news: News) -> None:
        for step in news.steps:
            self._record(step)
        for over in news.over:
            self._over(over)
        for at_s, record in decode_trace(news.trace):
            self._trace.write(at_s + self._placed.shift_s, self._named(record))

    def _record(self, step: Step) -> None:
        given = self._given.get(step.row)
        if given is not None:
            given.stale = True
        placed = self._placed

        def kept() -> None:
            if placed is self._placed:
                self._kept = max(self._kept, step.seq)
                self._changed.set()

        try:
            self._journal.record(step.record(), kept, step.sync)
        except JournalError as error:
            if self._journal.on_failure is not None:  # nobody has been told of it yet
                raise ShardFailed(self.shard, str(error), self.rows) from error

    def _over(self, over: Over) -> None:
        if over.row not in self._given:
            return
        self._deaths = 0
        if over.value is not None:
            self._end(over.row, decode(over.value), None)
        else:
            self._end(over.row, None, error_of(over))

    def _end(self, row: int, value: Any, error: Exception | None) -> None:
        ended = self.drop(row)
        if ended is not None:
            ended(value, error)

    async def _look_up(self, asked: Asked) -> None:
        try:
            results = dict(await self._journal.results(asked.signatures))
        except JournalError:  # a broken one tells the run; what is damaged is made anew
            results = {}
        self._found.append(Found(asked.number, results))
        self._changed.set()

    def _named(self, record: Record) -> Record:
        """The record with its worker told apart from those of other shards."""
        name = getattr(record, WORKER, None)
        if not isinstance(name, str):
            return record
        return msgspec.structs.replace(record, **{WORKER: f"{self.shard}:{name}"})


def _step(record: StepRecord) -> Step:
    return Step(record.row, record.path, record.value, record.signature, record.spare)
