"""The SQLite file of one run: its schema, its statements, and the refusal of files that are not it.

Values above `INLINE_BYTES` live once in `blobs`, by content (blake2b-128). Every record carries a
checksum, since SQLite's pages have none; a record that does not match it is never handed out.

A commit goes to the write-ahead log without an fsync (`synchronous = NORMAL`): the kernel has it, so
the death of the process loses nothing. `sync` makes all commits so far durable. It is an fsync of
the log by a descriptor of its own, which is what `synchronous = FULL` does at each commit, so it may
run beside the connection's use. One connection per file, never used by two threads at once
(SQLite's WAL-reset bug needs two connections).

Whoever opens a file to write puts a token of its own into it, and every commit shows that the token
is still there: the commits of one who was taken over are refused.
"""

import hashlib
import os
import secrets
import sqlite3
import zlib
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import msgspec

from ..errors import JournalError
from .base import (
    JOURNAL_VERSION,
    Entry,
    Manifest,
    RowRecord,
    RunInfo,
    RunStatus,
    StepRecord,
    Superseded,
)
from .transaction import transaction

APPLICATION_ID = 0x546E7472  # "Tntr"
INLINE_BYTES = 512
PAGE_BYTES = 4096
BUSY_S = 5.0  # how long to wait for another connection, such as a look of `ls`

_fsync: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)

_SCHEMA = f"""
CREATE TABLE run (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE steps (
    row INTEGER NOT NULL, path TEXT NOT NULL, value BLOB, blob BLOB, signature BLOB,
    sum INTEGER NOT NULL, PRIMARY KEY (row, path)) WITHOUT ROWID;
CREATE INDEX steps_signature ON steps (signature) WHERE signature IS NOT NULL;
CREATE TABLE rows (
    row INTEGER PRIMARY KEY, value BLOB, blob BLOB, error TEXT, sum INTEGER NOT NULL);
CREATE INDEX rows_ok ON rows ((error IS NULL));
CREATE TABLE blobs (id INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, value BLOB NOT NULL);
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {JOURNAL_VERSION};
"""
_ADD_BLOB = "INSERT OR IGNORE INTO blobs (digest, value) VALUES (?, ?)"
_ADD_STEP = "INSERT OR REPLACE INTO steps VALUES (?, ?, ?, ?, ?, ?)"
_ADD_ROW = "INSERT OR REPLACE INTO rows VALUES (?, ?, ?, ?, ?)"
_TOKEN = "SELECT value FROM run WHERE key = 'token'"
_ADD_STEP_IF_OURS = f"INSERT OR REPLACE INTO steps SELECT ?, ?, ?, ?, ?, ? WHERE ({_TOKEN}) = ?"
_ADD_ROW_IF_OURS = f"INSERT OR REPLACE INTO rows SELECT ?, ?, ?, ?, ? WHERE ({_TOKEN}) = ?"
_SET = "INSERT OR REPLACE INTO run VALUES (?, ?)"
ALL_STEPS = """SELECT s.row, s.path, s.value, s.blob, s.signature, s.sum, b.value
    FROM steps s LEFT JOIN blobs b ON b.digest = s.blob"""
_STEPS_OF_ROWS = f"{ALL_STEPS} WHERE s.row BETWEEN ? AND ? ORDER BY s.row, s.path"
_STEP_BY_SIGNATURE = f"{ALL_STEPS} WHERE s.signature = ? ORDER BY s.row, s.path LIMIT 1"
ALL_ROWS = """SELECT r.row, r.value, r.blob, r.error, r.sum, b.value
    FROM rows r LEFT JOIN blobs b ON b.digest = r.blob"""
_ROWS = f"{ALL_ROWS} WHERE r.row BETWEEN ? AND ? ORDER BY r.row"
_COUNT_ROWS = "SELECT (error IS NULL), count(*) FROM rows GROUP BY (error IS NULL)"

_CURES = {
    "SQLITE_FULL": "the disk is full; make room and resume",
    "SQLITE_READONLY": "it cannot be written; check the permissions of the file and its folder",
    "SQLITE_CANTOPEN": "it cannot be opened; check the permissions of the file and its folder",
    "SQLITE_IOERR": "the disk failed; check it, then resume",
    "SQLITE_BUSY": "another process uses it; wait until that has ended",
    "SQLITE_CORRUPT": "the file is damaged; start a new run",
    "SQLITE_NOTADB": "it is no journal of Tenter, or damaged",
}


def _explain(error: BaseException) -> str:
    """What went wrong and what would help, from an SQLite error."""
    name: str = getattr(error, "sqlite_errorname", "")
    for prefix, cure in _CURES.items():
        if name.startswith(prefix):
            return f"{cure} ({error})"
    return str(error) or type(error).__name__


_FAULTS = (sqlite3.Error, OSError, OverflowError, ValueError)


@contextmanager
def reported(path: Path) -> Generator[None]:
    """SQLite's errors as ours, with what would help."""
    try:
        yield
    except _FAULTS as error:
        raise _error(path, error) from error


def _error(path: Path, error: BaseException) -> JournalError:
    return JournalError(f"journal {path}: {_explain(error)}")


def _digest(value: bytes) -> bytes:
    return hashlib.blake2b(value, digest_size=16).digest()


def _sum(row: int, text: str, signature: bytes, stored: bytes) -> int:
    return zlib.crc32(b"%d\0%b\0%b\0%b" % (row, text.encode(), signature, stored))


def _intact(checksum: Any, row: Any, text: Any, signature: Any, stored: Any) -> bool:
    """Whether columns are what was recorded; damaged ones may be of any kind."""
    try:
        return checksum == _sum(row, text, signature, stored)
    except (TypeError, AttributeError):
        return False


class JournalFile:
    """An open journal file. `create`, `open` and `read` make one; `close` checkpoints it."""

    log_pages = 0
    """At least as many pages as the log has that are not in the database (see `checkpoint`)."""
    log_begins = True
    """Whether the next commit may begin the log anew, for which SQLite waits for the disk."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._db = connection
        self._run = connection.cursor().execute  # a cursor for each statement costs 2 us
        self._log: int | None = None
        self._token = secrets.token_hex(8)

    @classmethod
    def create(cls, path: Path, manifest: Manifest) -> Self:
        """A new file; its schema and manifest are there together or not at all."""
        with reported(path):
            path.touch(exist_ok=False)
            return cls._connect(path, lambda file: file._initialise(manifest))

    @classmethod
    def open(cls, path: Path) -> Self:
        """An existing file, recovered from its WAL, checked, ready for more."""

        def prepare(file: "JournalFile") -> None:
            file._check_identity()
            file._tune()
            file._check_pages()
            file._claim()
            file.sync()

        with reported(path):
            return cls._connect(path, prepare)

    @classmethod
    def read(cls, path: Path) -> Self:
        """An existing file for a look beside its writer; never written, never checkpointed."""
        with reported(path):
            return cls._connect(path, JournalFile._check_identity, mode="ro")

    @classmethod
    def _connect(
        cls, path: Path, prepare: "Callable[[JournalFile], None]", mode: str = "rw"
    ) -> Self:
        uri = f"{path.absolute().as_uri()}?mode={mode}"
        # Its users see to it that only one thread at a time uses it.
        connection = sqlite3.connect(
            uri, uri=True, isolation_level=None, timeout=BUSY_S, check_same_thread=False
        )
        file = cls(path, connection)
        try:
            prepare(file)
        except BaseException:
            file._db.close()
            raise
        return file

    def _initialise(self, manifest: Manifest) -> None:
        self._tune()
        text = msgspec.json.encode(manifest).decode()
        with self._transaction(new=True):
            for statement in _SCHEMA.split(";"):
                self._db.execute(statement)
            about = [("manifest", text), ("status", "running"), ("token", self._token)]
            self._db.executemany(_SET, about)
        self.sync()

    def _claim(self) -> None:
        """Make this connection the one that may write. One frozen in a checkpoint is in the way."""
        (busy, _, _) = self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        if busy:
            raise JournalError(f"journal {self.path}: {_CURES['SQLITE_BUSY']}")
        with transaction(self._db):
            self._db.execute(_SET, ("token", self._token))

    def _check_token(self) -> None:
        (token,) = self._db.execute(_TOKEN).fetchone()
        if token != self._token:
            raise Superseded(f"journal {self.path}")

    def _tune(self) -> None:
        for pragma in (
            "journal_mode = WAL",
            "synchronous = NORMAL",  # fsyncs are asked for: `sync`
            "wal_autocheckpoint = 0",  # and so are checkpoints
            "journal_size_limit = 67108864",
            "cache_size = -4096",
            "cell_size_check = ON",
            "trusted_schema = OFF",
        ):
            self._db.execute(f"PRAGMA {pragma}").fetchall()

    def _check_identity(self) -> None:
        (application,) = self._db.execute("PRAGMA application_id").fetchone()
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if application != APPLICATION_ID:
            raise JournalError(f"journal {self.path}: it is no journal of Tenter")
        if version > JOURNAL_VERSION:
            raise JournalError(
                f"journal {self.path}: it was written by a newer Tenter (journal version "
                f"{version}; this one reads up to {JOURNAL_VERSION}); upgrade Tenter"
            )

    def _check_pages(self) -> None:
        (verdict,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise JournalError(
                f"journal {self.path}: the file is damaged; start a new run ({verdict})"
            )

    @contextmanager
    def _transaction(self, new: bool = False) -> Generator[None]:
        with transaction(self._db):
            if not new:
                self._check_token()
            yield

    def append(self, entries: Sequence[Entry]) -> None:
        """Keep all of `entries`, or none of them: the death of the process cannot lose them."""
        try:
            if len(entries) == 1 and self._append_one(entries[0]):
                return
            self._append_all(entries)
        except _FAULTS as error:
            raise _error(self.path, error) from error

    def _append_one(self, entry: Entry) -> bool:
        """Append what a single statement can, which needs no explicit transaction."""
        if entry.value is not None and len(entry.value) > INLINE_BYTES:
            return False
        if isinstance(entry, StepRecord):
            done = self._run(_ADD_STEP_IF_OURS, (*_step_columns(entry, {}), self._token))
        else:
            done = self._run(_ADD_ROW_IF_OURS, (*_row_columns(entry, {}), self._token))
        if done.rowcount != 1:
            raise Superseded(f"journal {self.path}")
        self.log_pages += 2
        self.log_begins = False
        return True

    def _append_all(self, entries: Iterable[Entry]) -> None:
        steps: list[tuple[object, ...]] = []
        rows: list[tuple[object, ...]] = []
        blobs: dict[bytes, bytes] = {}
        for entry in entries:
            if isinstance(entry, StepRecord):
                steps.append(_step_columns(entry, blobs))
            else:
                rows.append(_row_columns(entry, blobs))
        with self._transaction():
            if blobs:
                self._db.executemany(_ADD_BLOB, blobs.items())
            if steps:
                self._db.executemany(_ADD_STEP, steps)
            if rows:
                self._db.executemany(_ADD_ROW, rows)
        self.log_pages += 2 * (len(steps) + len(rows))
        self.log_pages += sum(3 + len(value) // PAGE_BYTES for value in blobs.values())
        self.log_begins = False

    def sync(self) -> None:
        """Make durable what was committed. It may be called beside a use of the connection."""
        try:
            if self._log is None:
                self._log = os.open(f"{os.path.realpath(self.path)}-wal", os.O_RDONLY)
            _fsync(self._log)
        except OSError as error:
            raise _error(self.path, error) from error

    def checkpoint(self) -> None:
        """Copy the log to the database, so that it can begin anew. Durable commits stay so."""
        self.log_pages = 0
        self.log_begins = True
        with reported(self.path):
            self._check_token()
            self._run("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def steps(self, first_row: int, last_row: int) -> dict[tuple[int, str], StepRecord]:
        with reported(self.path):
            found = self._db.execute(_STEPS_OF_ROWS, (first_row, last_row))
            return {(c[0], c[1]): self.as_step(c) for c in found}

    def results(self, signatures: Sequence[bytes]) -> dict[bytes, bytes]:
        with reported(self.path):
            found = (self._db.execute(_STEP_BY_SIGNATURE, (s,)).fetchone() for s in signatures)
            return {c[4]: self.as_step(c).value for c in found if c is not None}

    def rows(self, first_row: int, last_row: int) -> dict[int, RowRecord]:
        with reported(self.path):
            found = self._db.execute(_ROWS, (first_row, last_row))
            return {c[0]: self.as_row(c) for c in found}

    def as_step(self, columns: tuple[Any, ...]) -> StepRecord:
        """A step from its columns. Raises JournalError if it is not what was recorded."""
        row, path, value, blob, signature, checksum, content = columns
        if not _intact(checksum, row, path, signature or b"", blob or value or b""):
            raise self._damaged(row)
        if blob is not None:
            value = self._content(row, blob, content)
        return StepRecord(row, path, value, signature)

    def as_row(self, columns: tuple[Any, ...]) -> RowRecord:
        """A finished row from its columns. Raises JournalError if it is not what was recorded."""
        row, value, blob, error, checksum, content = columns
        if not _intact(checksum, row, error or "", b"", blob or value or b""):
            raise self._damaged(row)
        if blob is not None:
            value = self._content(row, blob, content)
        return RowRecord(row, value, error)

    def _content(self, row: int, digest: bytes, content: Any) -> bytes:
        if not isinstance(content, bytes) or _digest(content) != digest:
            raise self._damaged(row)
        return content

    def _damaged(self, row: int) -> JournalError:
        return JournalError(
            f"journal {self.path}: the record of row {row} is damaged; start a new run"
        )

    def set_status(self, status: RunStatus, summary: Mapping[str, float]) -> None:
        text = msgspec.json.encode(dict(summary)).decode()
        with reported(self.path), self._transaction():
            self._db.executemany(_SET, [("status", status), ("summary", text)])
        self.sync()

    def info(self) -> RunInfo:
        with reported(self.path):
            about = dict(self._db.execute("SELECT key, value FROM run").fetchall())
            counts = dict(self._db.execute(_COUNT_ROWS).fetchall())
            return RunInfo(
                manifest=msgspec.json.decode(about.get("manifest", ""), type=Manifest),
                status=msgspec.json.decode(f'"{about.get("status", "")}"', type=RunStatus),
                rows_done=counts.get(1, 0),
                rows_failed=counts.get(0, 0),
                summary=msgspec.json.decode(about.get("summary", "{}"), type=dict[str, float]),
            )

    def close(self) -> None:
        """Let go of the file; what was committed through it is durable then."""
        log = self._log
        try:
            if log is not None:
                self.sync()
        finally:
            if log is not None:
                os.close(log)
                self._log = None
            with reported(self.path):
                self._db.close()


def _stored(value: bytes, blobs: dict[bytes, bytes]) -> tuple[bytes | None, bytes | None]:
    """The `value` and `blob` columns of a value; a large one is added to `blobs`."""
    if len(value) <= INLINE_BYTES:
        return value, None
    digest = _digest(value)
    blobs[digest] = value
    return None, digest


def _step_columns(step: StepRecord, blobs: dict[bytes, bytes]) -> tuple[object, ...]:
    row, path, value, signature = step.row, step.path, step.value, step.signature
    if len(value) <= INLINE_BYTES:  # the usual case, at a third less
        return row, path, value, None, signature, _sum(row, path, signature or b"", value)
    _, blob = _stored(value, blobs)
    return row, path, None, blob, signature, _sum(row, path, signature or b"", blob or b"")


def _row_columns(row: RowRecord, blobs: dict[bytes, bytes]) -> tuple[object, ...]:
    value, blob = (None, None) if row.value is None else _stored(row.value, blobs)
    error = row.error
    if error is not None:
        error = error.encode("utf-8", "backslashreplace").decode()
    checksum = _sum(row.row, error or "", b"", blob or value or b"")
    return row.row, value, blob, error, checksum
