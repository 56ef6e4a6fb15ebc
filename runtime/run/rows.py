"""A workflow over a stream of rows: windows, their order, back pressure, and each row's end.

Rows are read a window at a time, sorted within the window so that equal prefixes lie together,
and run with bounded concurrency. Nothing here grows with the number of rows.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, cast

from ..errors import BackendUnavailable, Drained, JournalError, TenterError
from ..journal.base import Entry, Journal, RowRecord, StepRecord
from .codec import decode, encode
from .control import Control, Wish
from .effects import question_of
from .program import NOTHING, Ended
from .tool_failures import is_failure

WINDOW_ROWS = 8_192
WINDOW_CHARS = 16_000_000

Status = Literal["done", "paused", "failed"]


@dataclass(slots=True)
class Row:
    """One row of a table: its place, its cells, and the workflow's inputs made of them.

    `problem` is set where the row cannot be used.
    """

    row: int
    cells: Mapping[str, Any]
    inputs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    problem: str | None = None


class Sink(Protocol):
    """Where finished rows go, in any order, each once."""

    def put(self, row: Row, value: Any, error: str | None) -> None:
        """Take a finished row."""
        ...

    @property
    def held(self) -> int:
        """Finished rows that wait for an earlier one."""
        ...


class RowPrograms(Protocol):
    """Starts the programs of rows, here (`Programs`) or elsewhere."""

    @property
    def takes_all(self) -> bool:
        """Whether it takes every row at once, and bounds by itself how many run."""
        ...

    def arrive(
        self,
        row: int,
        inputs: Mapping[str, Any],
        ended: Ended,
        recorded: Mapping[str, StepRecord] = NOTHING,
    ) -> None:
        """Announce a program for one row; `ended(value, error)` is called once."""
        ...

    def refuse(self, row: int, problem: str) -> None:
        """Note a row that no program can be run for."""
        ...

    def drain(self) -> None:
        """Let what runs end, and start nothing any more."""
        ...

    def cancel(self, name: str) -> None:
        """Stop a program."""
        ...


class RowOrder(Protocol):
    """In which order rows run, a window at a time (`Planned`)."""

    def arrange(self, rows: Sequence[int], inputs: Sequence[Mapping[str, Any]]) -> None:
        """Hear of all rows of the next window, whichever will be run."""
        ...

    def window(self, rows: Sequence[int], inputs: Sequence[Mapping[str, Any]]) -> Sequence[int]:
        """The order of the next window's rows, given by number with their inputs: indices."""
        ...

    def ended(self, row: int) -> None:
        """A row's program has ended."""
        ...


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds a run over rows."""

    concurrency: int = 256
    window_rows: int = WINDOW_ROWS
    window_chars: int = WINDOW_CHARS
    max_errors: int | None = None


class RowRun:
    """Runs `programs` over rows and hands each finished row to `sink`.

    `order` names the inputs that rows of a window are sorted by; with `planned`, that has their
    order. With `resumed`, rows and steps that the journal has are not done again, unless with
    `retry` it has the row as failed.
    """

    def __init__(
        self,
        programs: RowPrograms,
        journal: Journal,
        sink: Sink,
        control: Control,
        order: tuple[str, ...] = (),
        limits: Limits | None = None,
        resumed: bool = False,
        planned: RowOrder | None = None,
        retry: bool = False,
    ) -> None:
        self._programs = programs
        self._journal = journal
        self._sink = sink
        self._control = control
        self._order = order
        self._limits = limits or Limits()
        self._resumed = resumed
        self._planned = planned
        self._retry = retry
        self._changed = asyncio.Event()
        self._live: set[str] = set()
        self._unrecorded = 0
        self._open = 0  # rows read and not yet given to the sink
        self._exhausted = False  # there are no more rows to read
        self._broken: Exception | None = None
        self.failed = 0
        journal.on_failure = self._break

    async def run(self, rows: Iterator[Row]) -> Status:
        """Run every row; returns how it ended. What has started is finished unless aborted."""
        self._control.attach(self._changed.set)
        try:
            while window := self._read(rows):
                await self._feed(deque(await self._prepare(window)))
                if self._stopped:
                    break
                await self._until(lambda: self._has_window or self._idle)
                if not self._has_window:
                    break  # the rows of a whole window wait for approval
            await self._wait_for_rest()
        except asyncio.CancelledError:
            self._break(Drained("the run was cancelled"))  # which is no row's fault
            raise
        finally:
            self._control.detach()
        if self._broken is not None:
            raise self._broken
        if self._too_many_errors:
            return "failed"
        return "done" if self._exhausted and not self._open else "paused"

    @property
    def limits(self) -> Limits:
        """What bounds the run now."""
        return self._limits

    def bound(self, limits: Limits) -> None:
        """From now on other limits bound the run; what has started is not stopped."""
        self._limits = limits
        self._changed.set()

    @property
    def live(self) -> int:
        """Rows that have begun and not ended."""
        return len(self._live)

    @property
    def _has_window(self) -> bool:
        """Whether one more window of rows may be held."""
        return self._open + self._sink.held < self._limits.window_rows

    @property
    def _idle(self) -> bool:
        return not self._live and not self._unrecorded

    # ---- reading ------------------------------------------------------------------------------------

    def _read(self, rows: Iterator[Row]) -> list[Row]:
        """The next window: a bounded number of rows and of characters."""
        window: list[Row] = []
        chars = 0
        if self._stopped:
            return window
        for row in rows:
            window.append(row)
            chars += sum(map(_chars, row.cells.values()))
            if len(window) >= self._limits.window_rows or chars >= self._limits.window_chars:
                break
        else:
            self._exhausted = True
        self._open += len(window)
        return window

    async def _prepare(self, window: list[Row]) -> list[tuple[Row, Mapping[str, StepRecord]]]:
        """The rows of a window that are still to be run, in the plan's order."""
        recorded: dict[int, dict[str, StepRecord]] = {}
        if self._planned is not None:
            whole = [row for row in window if row.problem is None]
            self._planned.arrange([row.row for row in whole], [row.inputs for row in whole])
        if self._resumed:
            first, last = window[0].row, window[-1].row
            finished = await self._journal.rows(first, last)
            anew = {row for row, end in finished.items() if self._retry and end.error is not None}
            for (row, path), step in (await self._journal.steps(first, last)).items():
                if row not in anew or not is_failure(path):
                    recorded.setdefault(row, {})[path] = step
            window = [row for row in window if not self._restore(row, finished.get(row.row))]
        window = [row for row in window if not self._refuse(row)]
        if self._planned is not None:
            rows, inputs = [row.row for row in window], [row.inputs for row in window]
            window = [window[index] for index in self._planned.window(rows, inputs)]
        elif self._order:
            window.sort(key=lambda row: [str(row.inputs.get(name)) for name in self._order])
        return [(row, recorded.get(row.row, NOTHING)) for row in window]

    def _restore(self, row: Row, record: RowRecord | None) -> bool:
        """Hand out a row that an earlier attempt finished."""
        if record is None or (self._retry and record.error is not None):
            return False
        value = decode(record.value) if record.value is not None else None
        self._give(row, value, record.error)
        return True

    def _refuse(self, row: Row) -> bool:
        if row.problem is None:
            return False
        self._programs.refuse(row.row, row.problem)
        self._end(row, None, row.problem)
        return True

    # ---- running ------------------------------------------------------------------------------------

    async def _feed(self, rows: deque[tuple[Row, Mapping[str, StepRecord]]]) -> None:
        """Start every row, no more than `concurrency` at once."""
        while rows and not self._stopped:
            await self._until(self._has_room)
            while rows and self._has_room() and not self._stopped:
                self._start(*rows.popleft())
            await asyncio.sleep(0)

    def _has_room(self) -> bool:
        if self._programs.takes_all:
            return True
        return len(self._live) + self._unrecorded < self._limits.concurrency

    def _start(self, row: Row, recorded: Mapping[str, StepRecord]) -> None:
        name = f"r{row.row}"
        self._live.add(name)

        def ended(value: Any, error: Exception | None) -> None:
            self._live.discard(name)
            if self._planned is not None:
                self._planned.ended(row.row)
            if isinstance(error, BackendUnavailable):
                self._break(error)
            stopping = self._control.wish > Wish.RUN or isinstance(error, Drained)
            if (error is not None and stopping) or self._broken is not None:
                self._changed.set()  # not recorded: it will be taken up again
            else:
                question = question_of(row.row, error, recorded)
                if question is not None:  # for `tenter approve`, before the row is tried again
                    self._record(question)
                self._end(row, value, tell(error) if error is not None else None)

        self._programs.arrive(row.row, row.inputs, ended, recorded)

    def _end(self, row: Row, value: Any, error: str | None) -> None:
        """Record a row's end, then hand it out."""
        data: bytes | None = None
        if error is None:
            try:
                data = encode(value)
            except (TypeError, ValueError) as problem:  # such as half a surrogate pair
                value, error = None, f"the result is not JSON: {problem}"
        self._unrecorded += 1

        def durable() -> None:
            self._unrecorded -= 1
            self._give(row, value, error)

        if not self._record(RowRecord(row.row, data, error), durable):
            self._unrecorded -= 1

    def _record(self, entry: Entry, then: Callable[[], None] | None = None) -> bool:
        """Whether it will be kept; else the run ends."""
        try:
            self._journal.record(entry, then)
        except JournalError as failure:
            self._break(failure)
            return False
        return True

    def _give(self, row: Row, value: Any, error: str | None) -> None:
        self._open -= 1
        self.failed += error is not None
        try:
            self._sink.put(row, value, error)
        except Exception as problem:  # within the journal nobody would hear of it
            self._break(problem)
        self._changed.set()

    # ---- stopping -----------------------------------------------------------------------------------

    @property
    def _too_many_errors(self) -> bool:
        most = self._limits.max_errors
        return most is not None and self.failed > most

    @property
    def _stopped(self) -> bool:
        return self._control.wish > Wish.RUN or self._too_many_errors or self._broken is not None

    def _break(self, error: Exception) -> None:
        """Nothing can be answered, recorded or handed out any more, so nothing may go on."""
        self._broken = self._broken or error
        self._changed.set()

    async def _until(self, ready: Callable[[], bool]) -> None:
        """Wait until `ready()`, or until the run is to stop."""
        while not ready() and not self._stopped:
            self._changed.clear()
            await self._changed.wait()

    async def _wait_for_rest(self) -> None:
        """Wait for what has started: all of it, or, once the run is to stop, what must be."""
        drained = False
        while self._live or (self._unrecorded and self._broken is None):
            self._changed.clear()
            if self._stopped and not drained:
                drained = True
                self._programs.drain()
            if self._control.wish == Wish.ABORT or self._broken is not None:
                for name in sorted(self._live):
                    self._programs.cancel(name)
            if self._live or (self._unrecorded and self._broken is None):
                await self._changed.wait()


def _chars(cell: Any, depth: int = 2) -> int:
    """About how many characters a cell holds: lists of objects are looked into, and no deeper."""
    if isinstance(cell, str):
        return len(cell)
    if not depth or not isinstance(cell, list | dict):
        return 16
    values = cast("dict[str, Any]", cell).values() if isinstance(cell, dict) else ()
    parts = cast("Iterable[Any]", values or cell)
    return 16 + sum(_chars(part, depth - 1) for part in parts)


def tell(error: Exception) -> str:
    """An error as one line, for the error column."""
    if isinstance(error, TenterError):
        return " ".join(str(error).split())
    return " ".join(f"{type(error).__name__}: {error}".split())
