"""The disk of the campaign: real files, and each operation that makes them last may go wrong.

An operation is a statement by which SQLite writes, an fsync, or a rename. They are counted in each
life, and what a story says of the n-th happens there. The journal's thread becomes a part of the
loop, for virtual time cannot wait for a thread; what it does is the journal's own code.
"""

import asyncio
import errno
import os
import shutil
import sqlite3
import time
import types
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any
from unittest import mock

from tenter.runtime.journal import file as journal_file
from tenter.runtime.journal import lock
from tenter.runtime.journal import sqlite as journal_sqlite

from .loops import life, life_here

if TYPE_CHECKING:
    from .lives import Life

MEMORY = Path("/dev/shm")  # a folder without a disk under it, on Linux
WRITES = ("BEGIN", "INSERT", "COMMIT", "PRAGMA wal_checkpoint")
ERRORS = {
    "full": (errno.ENOSPC, "SQLITE_FULL"),
    "broken": (errno.EIO, "SQLITE_IOERR_WRITE"),
    "broken after": (errno.EIO, "SQLITE_IOERR_FSYNC"),
    "denied": (errno.EROFS, "SQLITE_READONLY"),
}


def scratch() -> str | None:
    """A folder for files that are written much and kept for a moment; None: the usual one."""
    return str(MEMORY) if os.access(MEMORY, os.W_OK) else None


def operate(name: str, work: Callable[[], Any], sqlite: bool = False) -> Any:
    """Do `work`, an operation of the disk, as the story of the running life wants it."""
    here = life_here()
    kind = here.operation(name) if here is not None else None
    if here is None or kind is None:
        return work()
    if kind in ERRORS:
        if kind == "broken after":
            work()
        raise _error(kind, sqlite)
    if kind.endswith("before"):
        here.die(power=kind.startswith("power"))
    result = work()
    if kind.endswith("after"):
        here.die(power=kind.startswith("power"))
    return result


def _error(kind: str, sqlite: bool) -> Exception:
    number, name = ERRORS[kind]
    if not sqlite:
        return OSError(number, os.strerror(number))
    error = sqlite3.OperationalError(f"{kind}, says the story")
    error.sqlite_errorname = name
    return error


class _Cursor(sqlite3.Cursor):
    def execute(self, sql: str, *given: Any) -> Any:
        if sql.startswith(WRITES):
            return operate(sql[:6], lambda: super(_Cursor, self).execute(sql, *given), True)
        return super().execute(sql, *given)


class Connection(sqlite3.Connection):
    """A connection whose writes are operations of the disk."""

    def cursor(self, *_: Any) -> Any:
        return super().cursor(_Cursor)

    def execute(self, sql: str, *given: Any) -> Any:
        if sql.startswith(WRITES):
            return operate(sql[:6], lambda: super(Connection, self).execute(sql, *given), True)
        return super().execute(sql, *given)

    def executemany(self, sql: str, given: Any) -> Any:
        return operate(sql[:6], lambda: super(Connection, self).executemany(sql, given), True)


class _Jobs:
    """Does what the journal's thread is asked, in its order, after the disk's time."""

    def __init__(self, journal: journal_sqlite.SqliteJournal, here: "Life") -> None:
        self._journal, self._life = journal, here
        self._free_s = 0.0  # when the thread is done with what it has
        self._syncs = False  # at a time to come
        self._closed = False

    def put(self, job: Any) -> None:
        if job is None:
            self._sync_later()
            return
        loop = asyncio.get_running_loop()
        self._free_s = max(self._free_s, loop.time()) + self._life.disk_s()
        loop.call_at(self._free_s, self._do, job)

    def _sync_later(self) -> None:
        if self._journal._sync_asked and not self._syncs:
            self._syncs = True
            loop = asyncio.get_running_loop()
            loop.call_later(journal_sqlite.SYNC_AFTER_S, self._sync)

    def _sync(self) -> None:
        self._syncs = False
        if not self._closed:
            self._journal._sync(self._journal._file)

    def _do(self, job: Any) -> None:
        journal = self._journal
        result, error = journal._attempt(job, journal._file)
        if job.kind == "close":
            self._closed = self._life.closed = True
            journal._let_go()
        self._sync_later()
        journal._finish(job, result, error)


class _AtOnce:
    """A thread that has done its work when it has started."""

    def __init__(self, target: Callable[..., None], args: tuple[Any, ...], **_: Any) -> None:
        self._work = lambda: target(*args)

    def start(self) -> None:
        self._work()


def _work_off(journal: journal_sqlite.SqliteJournal, file: Any) -> None:
    here = life()
    here.opened(journal, file)
    file.set_status = here.noted(file.set_status)
    journal._jobs = _Jobs(journal, here)  # type: ignore[assignment]


_record = journal_sqlite.SqliteJournal.record


def _heard_record(
    journal: Any, entry: Any, then: Callable[[], None] | None = None, sync: bool = False
) -> None:
    _record(journal, entry, life().heard(journal, entry, then, sync), sync)


def _fsync(descriptor: int) -> None:
    operate("fsync", lambda: None)
    here = life_here()
    if here is not None:
        here.fsynced(Path(f"/proc/self/fd/{descriptor}").readlink(), os.fstat(descriptor).st_size)


def _sync_log(descriptor: int) -> None:
    operate("log sync", lambda: None)
    here = life_here()
    if here is not None:
        here.synced(Path(f"/proc/self/fd/{descriptor}").readlink())


@contextmanager
def installed(since_boot_s: Callable[[], float]) -> Generator[None]:
    """The disk of the campaign in the place of the real one."""
    replace, connect = os.replace, sqlite3.connect
    patches = (
        mock.patch.object(os, "fsync", _fsync),
        mock.patch.object(os, "replace", lambda *a: operate("replace", lambda: replace(*a))),
        mock.patch.object(journal_file, "_fsync", _sync_log),
        mock.patch.object(journal_file, "BUSY_S", 0.01),  # whoever has the lock is frozen
        mock.patch.object(sqlite3, "connect", lambda *a, **k: connect(*a, factory=Connection, **k)),
        mock.patch.object(journal_sqlite, "threading", types.SimpleNamespace(Thread=_AtOnce)),
        mock.patch.object(journal_sqlite.SqliteJournal, "_work_off", _work_off),
        mock.patch.object(journal_sqlite.SqliteJournal, "record", _heard_record),
        mock.patch.object(lock, "_since_boot_s", since_boot_s),
        mock.patch.object(time, "sleep", lambda seconds: None),
    )
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in reversed(patches):
            patch.stop()


# ---- what a death leaves -------------------------------------------------------------------------


def copy(folder: Path, to: Path) -> None:
    """The folder as a death of the process leaves it: what was handed to the kernel."""
    shutil.rmtree(to, ignore_errors=True)
    for place, _, names in os.walk(folder):
        target = to / os.path.relpath(place, folder)
        target.mkdir()
        for name in names:
            if not name.endswith("-shm"):  # SQLite makes it anew
                (target / name).write_bytes(Path(place, name).read_bytes())


def lose_power(folder: Path, durable: "Durable", draw: Random) -> None:
    """Of what was not made durable in `folder`, leave what a power cut may leave.

    What came after the last sync of a file may be there, whole or torn, or not.
    """
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.name.endswith("-wal"):
            path.write_bytes(_torn(durable.logs.get(name, b""), path.read_bytes(), draw))
        elif path.name.endswith((".partial", "trace.jsonl")):
            data = path.read_bytes()
            least = min(durable.sizes.get(name, 0), len(data))
            path.write_bytes(data[: draw.randint(least, len(data))])


@dataclass(slots=True)
class Durable:
    """What of a folder no power cut undoes: logs of journals, and so many bytes of other files."""

    folder: Path
    logs: dict[str, bytes] = field(default_factory=dict[str, bytes])
    sizes: dict[str, int] = field(default_factory=dict[str, int])

    def begin(self, folder: Path) -> None:
        """All of `folder`, which takes the place of the other, is durable."""
        paths = [path for path in folder.rglob("*") if path.is_file()]
        names = {str(path.relative_to(folder)): path for path in paths}
        self.logs = {n: path.read_bytes() for n, path in names.items() if n.endswith("-wal")}
        self.sizes = {name: path.stat().st_size for name, path in names.items()}

    def log(self, path: Path) -> None:
        """The log of a journal is durable as it is."""
        self.logs[str(path.relative_to(self.folder))] = path.read_bytes()

    def file(self, path: Path, size: int) -> None:
        """A file is durable as it is."""
        if path.is_relative_to(self.folder):
            self.sizes[str(path.relative_to(self.folder))] = size


def _torn(before: bytes, after: bytes, draw: Random) -> bytes:
    """A log whose part after the last sync was torn; one that began anew was synced by SQLite."""
    if not after.startswith(before):
        return after
    cut = draw.randint(len(before), len(after))
    tail = bytearray(after[len(before) : cut])
    if tail and draw.random() < 0.5:
        tail[draw.randrange(len(tail))] ^= 0xFF
    return before + bytes(tail)
