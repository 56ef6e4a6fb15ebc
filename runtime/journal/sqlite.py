"""The default journal: one SQLite file, small groups committed at once, large ones on a thread.

`record` only appends to a list. At the end of the loop's turn the whole list is committed: a small
group right there, since that costs less than to hand it over (10 us without an fsync), a large one,
or one that must be durable, on the writer thread. What gathers while the thread commits makes the
next group, so groups grow with the load. The thread also does what waits for the disk: fsyncs,
SYNC_AFTER_S after the first commit that needs one, and checkpoints.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Literal, TypeVar

from ..errors import JournalError
from .base import Entry, Manifest, RowRecord, RunStatus, StepRecord, check
from .file import JournalFile

PENDING_LIMIT = 100_000  # records that wait for the disk, above which spare ones are left out,
PENDING_BYTES = 64 * 1024 * 1024  # or above so much
QUICK_RECORDS = 16  # in a group that the loop commits itself
QUICK_BYTES = 16 * 1024
SYNC_AFTER_S = 1.0  # what a power cut may take
CHECKPOINT_PAGES = 10_000  # the log has at most 40 MB then
BEAT_S = 5.0  # between signs of life

_T = TypeVar("_T")
_Then = Callable[[], None]
_Kind = Literal["group", "checkpoint", "ask", "close"]


@dataclass(frozen=True, slots=True)
class _Job:
    """What the thread is asked: `work` there, then `done(result, error)` on `loop`."""

    kind: _Kind
    work: Callable[[JournalFile], Any]
    done: Callable[[Any, JournalError | None], None]
    loop: asyncio.AbstractEventLoop


class SqliteJournal:
    """A run's journal in an SQLite file.

    Programs wait for `then` before they go on, so what is pending is bounded by the steps in
    flight; what nobody waits for is left out above PENDING_LIMIT and PENDING_BYTES. Not for virtual
    time, which cannot wait for a thread (MemoryJournal is).

    Two threads use the file's connection, never at once: the loop's only while `_outstanding` is 0,
    which counts the jobs from before the thread can see them until the loop has their answers. The
    fsync after SYNC_AFTER_S is no job: it does not use the connection.
    """

    def __init__(
        self,
        opened: Callable[[], JournalFile],
        *,
        on_failure: Callable[[JournalError], None] | None = None,
        on_close: Callable[[], None] | None = None,
        on_beat: Callable[[], None] | None = None,
    ) -> None:
        """Open by calling `opened` on the writer thread; `on_close` is called there at the end,
        and `on_beat` at least each BEAT_S meanwhile."""
        self.on_failure = on_failure
        self._on_beat = on_beat
        self._on_close = on_close
        self._pending: list[tuple[Entry, _Then | None]] = []
        self._pending_bytes = 0
        self._pending_sync = False
        self._awake = False  # a flush is scheduled, or a group is with the thread
        self._groups = 0  # with the thread
        self._outstanding = 0  # jobs with the thread, groups among them
        self._checkpoint_asked = False
        self._sync_asked = False  # the thread will sync what was committed; it clears this before
        self._failure: JournalError | None = None  # loop side: nothing is acknowledged any more
        self._broken: JournalError | None = None  # nothing is written any more
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None  # of the last record
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()  # None: look at `_sync_asked`
        ready: Future[tuple[JournalFile, Manifest]] = Future()
        self._thread = threading.Thread(
            target=self._serve, args=(opened, ready), name="tenter-journal", daemon=True
        )
        self._thread.start()
        self._file, self.manifest = ready.result()

    @classmethod
    def create(cls, path: Path, manifest: Manifest) -> "SqliteJournal":
        return cls(lambda: JournalFile.create(path, manifest))

    @classmethod
    def open(cls, path: Path) -> "SqliteJournal":
        return cls(lambda: JournalFile.open(path))

    # ---- the loop's side --------------------------------------------------------------------

    def record(
        self, entry: StepRecord | RowRecord, then: _Then | None = None, sync: bool = False
    ) -> None:
        """Append `entry`; `then` is called on the loop once it is kept (`sync`: is durable)."""
        size = check(entry)
        pending = self._pending
        if self._failure is not None:
            raise self._failure
        if isinstance(entry, StepRecord) and entry.spare and self._behind:
            return
        pending.append((entry, then))
        self._pending_bytes += size
        if sync:
            self._pending_sync = True
        if not self._awake:
            self._wake()

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
        """Make what is pending durable and let go of the file; a failure told is not raised."""
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

    @property
    def _behind(self) -> bool:
        return self._pending_bytes >= PENDING_BYTES or len(self._pending) >= PENDING_LIMIT

    async def _ask(self, work: Callable[[JournalFile], _T]) -> _T:
        """The answer of the thread, after everything recorded so far."""
        if self._failure is not None:
            raise self._failure
        self._hand_over()
        return await self._submit("ask", work)

    async def _submit(self, kind: _Kind, work: Callable[[JournalFile], _T]) -> _T:
        answer: asyncio.Future[_T] = asyncio.get_running_loop().create_future()

        def done(result: _T, error: JournalError | None) -> None:
            if answer.cancelled():
                return
            if error is None:
                answer.set_result(result)
            else:
                answer.set_exception(error)

        self._put(kind, work, done)
        return await answer

    def _put(
        self,
        kind: _Kind,
        work: Callable[[JournalFile], Any],
        done: Callable[[Any, JournalError | None], None],
    ) -> None:
        self._outstanding += 1
        self._jobs.put(_Job(kind, work, done, asyncio.get_running_loop()))

    def _finish(self, job: "_Job", result: Any, error: JournalError | None) -> None:
        """The thread has done `job`."""
        self._outstanding -= 1
        job.done(result, error)

    def _wake(self) -> None:
        """Flush at the end of the loop's turn."""
        self._awake = True
        self._loop = asyncio.get_running_loop()
        self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        if self._groups:
            return  # its acknowledgement goes on with what is pending
        self._awake = False
        if not self._pending:
            return
        if self._outstanding == 0 and self._quick():
            self._commit()
        else:
            self._hand_over()

    def _quick(self) -> bool:
        """Whether what is pending may be committed on the loop's thread."""
        return (
            len(self._pending) <= QUICK_RECORDS
            and self._pending_bytes <= QUICK_BYTES
            and not self._pending_sync
            and not self._file.log_begins
            and self._broken is None
        )

    def _take(self) -> list[tuple[Entry, _Then | None]]:
        group, self._pending = self._pending, []
        self._pending_bytes = 0
        self._pending_sync = False
        return group

    def _commit(self) -> None:
        """Commit what is pending here and now; the thread has nothing to do."""
        group = self._take()
        try:
            self._file.append([entry for entry, _ in group])
        except Exception as error:  # noqa: BLE001  as on the thread
            self._broken = self._named(error)
            self._fail(self._broken)
            return
        if not self._sync_asked:
            self._sync_asked = True
            self._jobs.put(None)
        self._acknowledge(group)

    def _hand_over(self) -> None:
        """Have what is pending committed by the thread."""
        if not self._pending:
            return
        sync = self._pending_sync
        group = self._take()
        self._groups += 1
        self._awake = True

        def work(file: JournalFile) -> None:
            file.append([entry for entry, _ in group])
            if sync:
                file.sync()
            else:
                self._sync_asked = True

        def done(_: None, error: JournalError | None) -> None:
            self._groups -= 1
            if error is not None:
                self._fail(error)
                return
            if self._groups == 0:
                self._go_on()
            self._acknowledge(group)

        self._put("group", work, done)

    def _go_on(self) -> None:
        """The thread has no group any more; its group's callbacks have yet to be called."""
        self._awake = False
        if not self._pending:
            return
        if self._quick():
            self._wake()  # after those callbacks, with what they record
        else:
            self._hand_over()  # the thread works on while they run

    def _acknowledge(self, group: list[tuple[Entry, _Then | None]]) -> None:
        if self._file.log_pages >= CHECKPOINT_PAGES and not self._checkpoint_asked:
            self._checkpoint_asked = True
            self._put("checkpoint", JournalFile.checkpoint, self._checkpointed)
        for entry, then in group:
            if then is None:
                continue
            try:
                then()
            except Exception as error:  # noqa: BLE001  the other callbacks must be called
                asyncio.get_running_loop().call_exception_handler(
                    {"message": f"after the record of row {entry.row}", "exception": error}
                )

    def _checkpointed(self, _: None, error: JournalError | None) -> None:
        self._checkpoint_asked = False
        if error is not None:
            self._fail(error)

    def _fail(self, error: JournalError) -> None:
        self._take()
        if self._failure is not None and not self._closed:
            return
        self._failure = error
        if self.on_failure is not None:
            told, self.on_failure = self.on_failure, None
            told(error)

    # ---- the thread's side ------------------------------------------------------------------

    def _serve(
        self, opened: Callable[[], JournalFile], ready: Future[tuple[JournalFile, Manifest]]
    ) -> None:
        try:
            file = opened()
            try:
                about = file.info().manifest
            except BaseException:
                file.close()
                raise
        except BaseException as error:  # noqa: BLE001  whoever opens waits for it
            self._let_go()
            ready.set_exception(error)
            return
        ready.set_result((file, about))
        self._work_off(file)

    def _work_off(self, file: JournalFile) -> None:
        sync_at: float | None = None
        beat_at = time.monotonic() + BEAT_S
        while True:
            if self._on_beat is not None and time.monotonic() >= beat_at:
                self._on_beat()
                beat_at = time.monotonic() + BEAT_S
            if sync_at is None and self._sync_asked:
                sync_at = time.monotonic() + SYNC_AFTER_S
            elif sync_at is not None and time.monotonic() >= sync_at:
                self._sync(file)
                sync_at = None
            try:
                next_at = beat_at if sync_at is None else min(sync_at, beat_at)
                job = self._jobs.get(timeout=max(0.0, next_at - time.monotonic()))
            except Empty:
                continue
            if job is None:
                continue
            result, error = self._attempt(job, file)
            if job.kind == "close":
                self._let_go()
            with suppress(RuntimeError):  # the loop is gone, and with it whoever waited
                job.loop.call_soon_threadsafe(self._finish, job, result, error)
            if job.kind == "close":
                return

    def _attempt(self, job: "_Job", file: JournalFile) -> tuple[Any, JournalError | None]:
        """The job's result, or why there is none. After a failed group no group is tried."""
        if self._broken is not None and job.kind != "close":
            return None, self._broken
        try:
            return job.work(file), None
        except BaseException as caught:  # noqa: BLE001  whoever asked waits for it
            error = self._named(caught)
        if job.kind in ("group", "checkpoint"):
            self._broken = error
        return None, error

    def _sync(self, file: JournalFile) -> None:
        # Cleared first: what is committed from here on asks again.
        self._sync_asked = False
        if self._broken is not None:
            return
        try:
            file.sync()
        except JournalError as error:
            self._broken = error
            if self._loop is not None:
                with suppress(RuntimeError):  # the loop is gone
                    self._loop.call_soon_threadsafe(self._fail, error)

    def _named(self, error: BaseException) -> JournalError:
        if isinstance(error, JournalError):
            return error
        return JournalError(f"journal {self._file.path}: {error!r}")

    def _let_go(self) -> None:
        if self._on_close is not None:
            self._on_close()
