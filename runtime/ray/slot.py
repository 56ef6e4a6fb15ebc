"""One shard of a run, as the run sees it: a process that has its rows, and the next one when it dies.

The run's journal is the only record. What a process says of a step is recorded here, and it hears
when that is kept; so the rows of a process that has died go to another with all that was recorded.
Whatever a process says after it was given up is heard by nobody.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from ..clock import now
from ..errors import Drained, JournalError, StepFailed
from ..jobs.suspects import Suspects, verdict
from ..journal.base import Journal
from ..run.codec import decode
from ..run.program import Ended
from ..scheduler.core import DRAINED
from ..scheduler.events import ProgramEnded
from ..trace import Record, Trace
from ..trace import decode as decode_trace
from . import messages
from .cluster import ProcessLost
from .failures import ShardFailed, error_of, raised
from .given import Given, GivenRows, steps_of
from .messages import Asked, Beginning, Found, News, Over, Step, Tell
from .placing import Placed, Placing
from .untold import Untold

DEATHS = 6  # in a row, without a row that ends in between, after which a shard is given up;
LAST_ROWS = 4  # as few rows as these are rather failed one by one
Returned = Callable[[Sequence[tuple[int, Given]]], None]
WORKER = "worker"  # the field of records that names one

log = logging.getLogger(__name__)


class Slot:
    """The rows of one shard, and the process that has them.

    `beginning` is what a process begins with; one that takes over begins as a resumed one.
    `trace` hears what the process traces, and `idle` when all rows have begun.
    """

    def __init__(
        self,
        shard: int,
        place: Placing,
        first: Placed,
        beginning: Callable[[bool], Beginning],
        journal: Journal,
        trace: Trace,
        idle: "Callable[[Slot], None]",
    ) -> None:
        self.shard = shard
        self._place = place
        self._placed = first
        self._beginning = beginning
        self._journal = journal
        self._trace = trace
        self._idle = idle
        self._given = GivenRows()
        self._suspects = Suspects()
        self._untold = Untold()
        self._returned: Returned | None = None  # waits for rows that were recalled
        self._changed = asyncio.Event()
        self._deaths = 0
        self._over_rows = 0  # that processes have ended
        self._draining = False

    @property
    def rows(self) -> int:
        """Rows that have not ended."""
        return len(self._given)

    @property
    def left(self) -> tuple[int, ...]:
        """Those rows."""
        return tuple(self._given)

    @property
    def waiting(self) -> int:
        """How many of them have not begun."""
        return self._given.waiting

    @property
    def _few(self) -> bool:
        return 0 < self.rows <= LAST_ROWS

    @property
    def draining(self) -> bool:
        return self._draining

    def hand(self, row: int, given: Given) -> None:
        """Have a row run."""
        self._given.hand(row, given)
        if self._draining:
            self._end(row, None, Drained(DRAINED))
        self._changed.set()

    def drop(self, row: int) -> Ended | None:
        """Forget a row, which ends otherwise."""
        self._suspects.ended(row)
        given = self._given.drop(row)
        return None if given is None else given.ended

    def recall(self, cut: Callable[[Sequence[int]], Sequence[int]], returned: Returned) -> None:
        """Have rows run elsewhere: those that `cut` chooses of the rows that have not begun.

        `returned` is handed those of them that have not begun by then, once.
        """
        rows = [row for row in self._given.not_begun() if self._suspects.of(row) is None]
        if not rows:
            returned([])
            return
        self._returned = returned
        self._untold.ask_back(cut(rows))
        self._changed.set()

    def drain(self) -> None:
        """Let what runs end, and start nothing any more."""
        self._draining = True
        for row in self._given.unsent:
            self._end(row, None, Drained(DRAINED))
        self._changed.set()

    def steer(self, change: Tell) -> None:
        """Go on with the settings that `change` has."""
        self._untold.steer(change)
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
        ran = bool(self._given.begun)
        self._blame()
        if self._deaths >= DEATHS * (self.rows if ran and self._few else 1):
            why = f"{self._deaths} processes in a row were lost, at last: {lost}"
            raise ShardFailed(self.shard, why, self.rows)
        try:
            self._placed = await self._place(self.shard)
        except ProcessLost as error:
            raise ShardFailed(
                self.shard, f"no process takes its place: {error}", self.rows
            ) from None
        self._untold.begin_again()
        self._return(())
        for row, given in self._given.stale():
            steps = await self._journal.steps(row, row)
            given.steps, given.stale = steps_of(steps.values()), False
        self._given.send_again(self._suspects)
        if self._draining:
            self.drain()
        self._changed.set()

    def _blame(self) -> None:
        """Fail the row that the process has died of, once it is known which that is."""
        moved = [row for row, _ in self._given.stale()]
        row = self._suspects.died(self._given.begun, moved, self._over_rows)
        if row is not None:
            found = self._suspects.known[row]
            log.warning("row %d is failed: the processes that run it die", row)
            if self._over_rows > found.since or self._few:
                self._deaths = 0
            error = verdict(found.deaths)
            failed = ProgramEnded(program=f"r{row}", row=row, ok=False, error=error)
            self._trace.write(now(), failed)
            self._end(row, None, StepFailed(error))

    # ---- telling -----------------------------------------------------------------------------------

    async def _telling(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            await self._placed.process.ask("tell", messages.encode(self._news()))
            if self._given.unsent:
                self._changed.set()

    def _news(self) -> Tell:
        rows = self._given.send(self._suspects)
        return self._untold.take(rows, self._draining)

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
        self._given.begin(news.next)
        if news.back is not None:
            self._return(news.back)
        for step in news.steps:
            self._record(step)
        for over in news.over:
            self._over(over)
        for at_s, record in decode_trace(news.trace):
            self._trace.write(at_s + self._placed.shift_s, self._named(record))
        if not self.waiting:
            self._idle(self)

    def _record(self, step: Step) -> None:
        given = self._given.get(step.row)
        if given is not None:
            given.stale = True
        placed = self._placed

        def kept() -> None:
            if placed is self._placed:
                self._untold.keep(step.seq)
                self._changed.set()

        try:
            self._journal.record(step.record(), kept, step.sync)
        except JournalError as error:
            if self._journal.on_failure is not None:  # nobody has been told of it yet
                raise ShardFailed(self.shard, str(error), self.rows) from error

    def _over(self, over: Over) -> None:
        if self._given.get(over.row) is None:
            return
        self._deaths = 0
        self._over_rows += 1
        if over.value is not None:
            self._end(over.row, decode(over.value), None)
        else:
            self._end(over.row, None, error_of(over))

    def _end(self, row: int, value: Any, error: Exception | None) -> None:
        ended = self.drop(row)
        if ended is not None:
            ended(value, error)

    def _return(self, rows: Sequence[int]) -> None:
        """Let go of rows that the process has given back."""
        returned, self._returned = self._returned, None
        if returned is not None:
            dropped = [(row, self._given.drop(row)) for row in rows]
            returned([(row, given) for row, given in dropped if given is not None])

    async def _look_up(self, asked: Asked) -> None:
        try:
            results = dict(await self._journal.results(asked.signatures))
        except JournalError:  # a broken one tells the run; what is damaged is made anew
            results = {}
        self._untold.answer(Found(asked.number, results))
        self._changed.set()

    def _named(self, record: Record) -> Record:
        """The record with its worker told apart from those of other shards."""
        name = getattr(record, WORKER, None)
        if not isinstance(name, str):
            return record
        return msgspec.structs.replace(record, **{WORKER: f"{self.shard}:{name}"})
