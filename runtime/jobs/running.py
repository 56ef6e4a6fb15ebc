"""The rows that a process runs, known also after its death: so that one that kills it is found when
the run is resumed."""

import logging
import os
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
from msgspec import Struct

from ..errors import Drained, StepFailed
from ..journal.base import Journal, StepRecord
from ..run.program import NOTHING, Ended
from ..run.rows import RowOrder, RowPrograms
from ..scheduler.core import DRAINED
from .engine import Work
from .suspects import OUTSIDE, Gate, Suspects, Suspicion, verdict

RUNNING, SUSPECTS = "running", "suspects.json"  # files in a run's folder
PLACE_BYTES = 8  # of a row in the first,
BOOT_BYTES = 16  # behind what tells when the machine was started
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # a UUID

log = logging.getLogger(__name__)


class Held(Struct):
    """What is held against rows, and how many bytes of each row's steps were recorded by then."""

    known: dict[int, Suspicion]
    recorded: dict[int, int]


@asynccontextmanager
async def watched(
    work: Work, journal: Journal, folder: Path, finished: int | None, retry: bool = False
) -> AsyncGenerator["WatchedRows"]:
    """The programs of `work`, with care for rows that may have killed a process before.

    `finished` rows were recorded before; None: the run is new. `retry`: failed rows run again.
    """
    if finished is None:
        suspects = Suspects()
    else:
        suspects = await _suspects(folder, journal, finished, retry)
    running = RunningFile(folder / RUNNING)
    try:
        yield WatchedRows(work, suspects, running)
    finally:
        running.close()


async def _suspects(folder: Path, journal: Journal, finished: int, retry: bool) -> Suspects:
    """The suspects, after the death of the process that was the last one, if it died."""
    held = _read(folder / SUSPECTS)
    rows = left_running(folder / RUNNING)
    known = {
        row: found
        for row, found in held.known.items()
        if not await _settled(journal, row, found, retry)
    }
    suspects = Suspects(known, OUTSIDE)
    if not rows:
        return suspects
    now = {row: await _recorded_bytes(journal, row) for row in rows}
    moved = {row for row, size in now.items() if held.recorded.get(row) != size}
    suspects.died(rows, moved, finished)
    recorded = {row: size for row, size in held.recorded.items() if row in known} | now
    _write(folder / SUSPECTS, Held(suspects.known, recorded))
    return suspects


async def _settled(journal: Journal, row: int, found: Suspicion, retry: bool) -> bool:
    """Whether nothing is held against a row any more: it has ended, and is not tried again, or was
    failed for what is held against it."""
    record = (await journal.rows(row, row)).get(row)
    if record is None:
        return False
    return found.fatal or record.error is None or not retry


async def _recorded_bytes(journal: Journal, row: int) -> int:
    return sum(len(step.value) for step in (await journal.steps(row, row)).values())


def _read(path: Path) -> Held:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Held)
    except (OSError, msgspec.DecodeError):
        return Held({}, {})


def _write(path: Path, held: Held) -> None:
    made = path.with_suffix(".new")
    with suppress(OSError):  # such as a full disk: the next death counts as the first
        made.write_bytes(msgspec.json.encode(held))
        made.replace(path)


class RunningFile:
    """The rows that run, in a file: written at once, so that it outlives the process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None
        self._places: dict[int, int] = {}
        self._free: list[int] = []
        with suppress(OSError):
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.pwrite(self._file, boot(), 0)

    def begin(self, row: int) -> None:
        place = self._places[row] = self._free.pop() if self._free else len(self._places)
        self._write(place, row + 1)

    def ended(self, row: int) -> None:
        place = self._places.pop(row)
        self._free.append(place)
        self._write(place, 0)

    def close(self) -> None:
        """The process goes on, ends by itself, or was asked to: nothing is held against rows."""
        if self._file is not None:
            os.close(self._file)
            with suppress(OSError):
                self._path.unlink()
            self._file = None

    def _write(self, place: int, value: int) -> None:
        if self._file is not None:
            with suppress(OSError):  # a full disk: the journal will tell of it
                data = value.to_bytes(PLACE_BYTES, "little")
                os.pwrite(self._file, data, BOOT_BYTES + place * PLACE_BYTES)


def boot() -> bytes:
    """What tells this start of the machine from others; zeros where nothing does."""
    try:
        return UUID(BOOT_ID.read_text().strip()).bytes
    except (OSError, ValueError):
        return bytes(BOOT_BYTES)


def left_running(path: Path) -> list[int]:
    """The rows that were running when a process died; none where it ended by itself, or with its
    machine."""
    try:
        data = path.read_bytes()
    except OSError:
        return []
    if data[:BOOT_BYTES] != boot():
        return []
    starts = range(BOOT_BYTES, len(data), PLACE_BYTES)
    places = (data[at : at + PLACE_BYTES] for at in starts)
    return [row - 1 for place in places if (row := int.from_bytes(place, "little"))]


@dataclass(frozen=True, slots=True)
class _Waiting:
    row: int
    inputs: Mapping[str, Any]
    ended: Ended
    recorded: Mapping[str, StepRecord]


class WatchedRows:
    """Implements `RowPrograms` and `RowOrder`: what `work` does, but suspects run first, with few
    or none beside them, and a row that has been found to kill its process is failed."""

    takes_all = False

    def __init__(self, work: Work, suspects: Suspects, running: RunningFile) -> None:
        self._programs: RowPrograms = work.programs
        self._planned: RowOrder | None = work.planned
        self._suspects = suspects
        self._running = running
        self._gate = Gate()
        self._waiting: deque[_Waiting] = deque()

    # ---- programs --------------------------------------------------------------------------------

    def arrive(
        self,
        row: int,
        inputs: Mapping[str, Any],
        ended: Ended,
        recorded: Mapping[str, StepRecord] = NOTHING,
    ) -> None:
        """Announce a program for one row."""
        found = self._suspects.of(row)
        if found is not None and found.fatal:
            error = verdict(found.deaths)
            log.warning("row %d is failed: the processes that run it die", row)
            self._programs.refuse(row, error)
            ended(None, StepFailed(error))
            return
        self._waiting.append(_Waiting(row, inputs, ended, recorded))
        self._start()

    def refuse(self, row: int, problem: str) -> None:
        self._programs.refuse(row, problem)

    def drain(self) -> None:
        """Let what runs end, and start nothing any more. Who asked for that may not wait: a process
        that is killed meanwhile was not killed by a row."""
        self._running.close()
        waiting, self._waiting = self._waiting, deque()
        for each in waiting:
            each.ended(None, Drained(DRAINED))
        self._programs.drain()

    def cancel(self, name: str) -> None:
        """Stop a program."""
        for each in self._waiting:
            if name == f"r{each.row}":
                self._waiting.remove(each)
                each.ended(None, StepFailed("the program was cancelled"))
                return
        self._programs.cancel(name)

    def _start(self) -> None:
        while self._waiting:
            suspicion = self._suspects.of(self._waiting[0].row)
            if not self._gate.fits(suspicion):
                return
            self._begin(self._waiting.popleft(), suspicion)

    def _begin(self, each: _Waiting, suspicion: Suspicion | None) -> None:
        def over(value: Any, error: Exception | None) -> None:
            self._gate.ended(each.row)
            self._running.ended(each.row)
            each.ended(value, error)
            self._start()

        self._gate.begin(each.row, suspicion)
        self._running.begin(each.row)
        self._programs.arrive(each.row, each.inputs, over, each.recorded)

    # ---- order -----------------------------------------------------------------------------------

    def arrange(self, rows: Sequence[int], inputs: Sequence[Mapping[str, Any]]) -> None:
        if self._planned is not None:
            self._planned.arrange(rows, inputs)

    def window(self, rows: Sequence[int], inputs: Sequence[Mapping[str, Any]]) -> Sequence[int]:
        """The order of the next window's rows: as planned, but suspects first."""
        planned = self._planned
        order: Iterable[int] = range(len(rows))
        if planned is not None:
            order = planned.window(rows, inputs)
        return sorted(order, key=lambda index: self._suspects.rank(rows[index]))

    def ended(self, row: int) -> None:
        if self._planned is not None:
            self._planned.ended(row)
