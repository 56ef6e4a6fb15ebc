"""The default journal: one SQLite file, one writer thread, one fsync per group of records.

`record` only appends to a list. At the end of the loop's turn the whole list goes to the thread;
what gathers during a commit makes the next group, so groups grow with the load and an idle
journal commits at once. A group is acknowledged by one call onto the loop.
"""

import asyncio
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal, TypeVar

from ..errors import JournalError
from .base import Entry, Manifest, RowRecord, RunStatus, StepRecord, check
from .file import JournalFile

PENDING_LIMIT = 100_000  # records that wait for the disk

_T = TypeVar("_T")
_Then = Callable[[], None]


@dataclass(frozen=True, slots=True)
class _Job:
    """What the thread is asked: `work` there, then `done(result, error)` on `loop`."""

    kind: Literal["group", "ask", "close"]
    work: Callable[[JournalFile], Any]
    done: Callable[[Any, JournalError | None], None]
    loop: asyncio.AbstractEventLoop


class SqliteJournal:
    """A run's journal in an SQLite file.

    Programs wait for `then` before they go on, so what is pending is bounded by the steps in
    flight; above PENDING_LIMIT records `record` raises. Not for virtual time, which cannot wait
    for a thread (MemoryJournal is).
    """

    def __init__(
        self,
        opened: Callable[[], JournalFile],
        *,
        on_failure: Callable[[JournalError], None] | None = None,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        """Open by calling `opened` on the writer thread; `on_close` is called there at the end."""
        self.on_failure = on_failure
        self._on_close = on_close
        self._pending: list[tuple[Entry, _Then | None]] = []
        self._awake = False  # a flush is scheduled, or a group is with the thread
        self._in_flight = 0  # groups with the thread
        self._failure: JournalError | None = None  # loop side: nothing is acknowledged any more
        self._broken: JournalError | None = None  # thread side: nothing is written any more
        self._closed = False
        self._jobs: SimpleQueue[_Job] = SimpleQueue()
        manifest: Future[Manifest] = Future()
        self._thread = threading.Thread(
            target=self._serve, args=(opened, manifest), name="tenter-journal", daemon=True
        )
        self._thread.start()
        self.manifest = manifest.result()

    @classmethod
    def create(cls, path: Path, manifest: Manifest) -> "SqliteJournal":
        return cls(lambda: JournalFile.create(path, manifest))

    @classmethod
    def open(cls, path: Path) -> "SqliteJournal":
        return cls(lambda: JournalFile.open(path))

    # ---- the loop's side --------------------------------------------------------------------

    def record(self, entry: StepRecord | RowRecord, then: _Then | None = None) -> None:
        """Append `entry`; `then` is called on the loop once it is on the disk."""
        check(entry)
        pending = self._pending
        if self._failure is not None or len(pending) >= PENDING_LIMIT:
            self._refuse()
        pending.append((entry, then))
        if not self._awake:
            self._awake = True
            asyncio.get_running_loop().call_soon(self._flush)

    async def steps(self, first_row: int, last_row: int) -> Mapping[tuple[int, str], StepRecord]:
        return await self._ask(lambda file: file.steps(first_row, last_row))

    async def rows(self, first_row: int, last_row: int) -> Mapping[int, RowRecord]:
        return await self._ask(lambda file: file.rows(first_row, last_row))

    async def results(self, signatures: Iterable[bytes]) -> Mapping[bytes, bytes]:
        wanted = list(dict.fromkeys(signatures))
        return await self._ask(lambda file: file.results(wanted))

    async def set_status(self, status: RunStatus, summary: Mapping[str, float]) -> None:
        await self._ask(lambda file: file.set_status(status, summary))

    async def close(self) -> None:
        """Commit what is pending and let go of the file; a failure already told is not raised."""
        if self._closed:
            return
        told = self._failure
        self._hand_over()
        self._closed = True
        self._failure = told or JournalError("the journal is closed")
        try:
            await self._submit("close", JournalFile.close)
        except JournalError:
            if told is None:
                raise
        if told is None and self._broken is not None:
            raise self._broken

    def _refuse(self) -> None:
        if self._failure is not None:
            raise self._failure
        raise JournalError(f"the disk does not keep up: {PENDING_LIMIT:,} records wait for it")

    async def _ask(self, work: Callable[[JournalFile], _T]) -> _T:
        """The answer of the thread, after everything recorded so far."""
        if self._failure is not None:
            raise self._failure
        self._hand_over()
        return await self._submit("ask", work)

    async def _submit(self, kind: Literal["ask", "close"], work: Callable[[JournalFile], _T]) -> _T:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[_T] = loop.create_future()

        def done(result: _T, error: JournalError | None) -> None:
            if answer.cancelled():
                return
            if error is None:
                answer.set_result(result)
            else:
                answer.set_exception(error)

        self._jobs.put(_Job(kind, work, done, loop))
        return await answer

    def _flush(self) -> None:
        if self._in_flight == 0:
            self._hand_over()
            self._awake = self._in_flight > 0

    def _hand_over(self) -> None:
        if not self._pending:
            return
        group, self._pending = self._pending, []
        self._in_flight += 1

        def work(file: JournalFile) -> None:
            file.append(entry for entry, _ in group)

        def done(_: None, error: JournalError | None) -> None:
            self._in_flight -= 1
            if error is None:
                self._acknowledge(group)
            else:
                self._fail(error)

        self._jobs.put(_Job("group", work, done, asyncio.get_running_loop()))

    def _acknowledge(self, group: list[tuple[Entry, _Then | None]]) -> None:
        self._flush()  # the disk works on while the callbacks run
        for entry, then in group:
            if then is None:
                continue
            try:
                then()
            except Exception as error:  # noqa: BLE001  the other callbacks must be called
                asyncio.get_running_loop().call_exception_handler(
                    {"message": f"after the record of row {entry.row}", "exception": error}
                )

    def _fail(self, error: JournalError) -> None:
        self._pending.clear()
        if self._failure is not None and not self._closed:
            return
        self._failure = error
        if self.on_failure is not None:
            told, self.on_failure = self.on_failure, None
            told(error)

    # ---- the thread's side ------------------------------------------------------------------

    def _serve(self, opened: Callable[[], JournalFile], manifest: Future[Manifest]) -> None:
        try:
            file = opened()
            try:
                about = file.info().manifest
            except BaseException:
                file.close()
                raise
        except BaseException as error:  # noqa: BLE001  whoever opens waits for it
            self._let_go()
            manifest.set_exception(error)
            return
        manifest.set_result(about)
        self._work_off(file)

    def _work_off(self, file: JournalFile) -> None:
        while True:
            job = self._jobs.get()
            result, error = self._attempt(job, file)
            if job.kind == "close":
                self._let_go()
            with suppress(RuntimeError):  # the loop is gone, and with it whoever waited
                job.loop.call_soon_threadsafe(job.done, result, error)
            if job.kind == "close":
                return

    def _attempt(self, job: "_Job", file: JournalFile) -> tuple[Any, JournalError | None]:
        """The job's result, or why there is none. After a failed group no group is tried."""
        if self._broken is not None and job.kind != "close":
            return None, self._broken
        try:
            return job.work(file), None
        except JournalError as caught:
            error = caught
        except BaseException as caught:  # noqa: BLE001  whoever asked waits for it
            error = JournalError(f"journal {file.path}: {caught!r}")
        if job.kind == "group":
            self._broken = error
        return None, error

    def _let_go(self) -> None:
        if self._on_close is not None:
            self._on_close()
