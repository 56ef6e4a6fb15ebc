"""The SQLite file of a home's result cache: its schema, its statements, what it throws away.

Several runs may use the file at once, so it has no write-ahead log (SQLite's WAL-reset bug needs two
connections) but a rollback journal, whose locks SQLite keeps right between processes. Every result
carries a checksum over its key and value; one that does not match is as good as none.
"""

import sqlite3
import time
import zlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import JournalError
from .results import Bounds, Clock, Holding, Item, Kept, aged, size_of
from .transaction import transaction

RESULTS_VERSION = 1
APPLICATION_ID = 0x546E7472 + 1  # "Tntr", and not a journal
BUSY_S = 5.0
DROPPED_AT_ONCE = 256

_SCHEMA = f"""
CREATE TABLE results (
    key BLOB PRIMARY KEY, value BLOB NOT NULL, prompt_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL, size INTEGER NOT NULL, made_s REAL NOT NULL,
    keep_s REAL, used_s REAL NOT NULL, sum INTEGER NOT NULL);
CREATE INDEX results_used ON results (used_s);
CREATE INDEX results_made ON results (made_s);
CREATE TABLE total (results INTEGER NOT NULL, size INTEGER NOT NULL);
INSERT INTO total VALUES (0, 0);
CREATE TRIGGER added AFTER INSERT ON results BEGIN
    UPDATE total SET results = results + 1, size = size + new.size; END;
CREATE TRIGGER dropped AFTER DELETE ON results BEGIN
    UPDATE total SET results = results - 1, size = size - old.size; END;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {RESULTS_VERSION};
"""
_FIND = """SELECT value, prompt_tokens, output_tokens, keep_s, made_s, sum FROM results
    WHERE key = ?"""
_ADD = "INSERT INTO results VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_DROP = "DELETE FROM results WHERE key = ?"
_DROP_USED_FIRST = """DELETE FROM results WHERE rowid IN
    (SELECT rowid FROM results ORDER BY used_s LIMIT ?)"""


class ResultFile:
    """An open cache file; made if it is not there. Implements `ResultStore`."""

    def __init__(self, path: Path, bounds: Bounds | None = None, clock: Clock = time.time) -> None:
        self.path = path
        self._bounds = bounds or Bounds()
        self._clock = clock
        self._used: set[bytes] = set()  # found since the last `keep`
        with self._reported():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(
                path, isolation_level=None, timeout=BUSY_S, check_same_thread=False
            )
            try:
                self._prepare()
            except BaseException:
                self._db.close()
                raise

    def find(self, keys: Sequence[bytes]) -> dict[bytes, Kept]:
        """Those that are there, undamaged and young enough."""
        now_s = self._clock()
        found: dict[bytes, Kept] = {}
        with self._reported():
            for key in keys:
                row = self._db.execute(_FIND, (key,)).fetchone()
                kept = None if row is None else _kept(key, row, now_s, self._bounds)
                if kept is not None:
                    found[key] = kept
        self._used.update(found)
        return found

    def keep(self, items: Iterable[Item]) -> None:
        """Store results, note which were used, and drop what is too much, in one transaction."""
        now_s = self._clock()
        used, self._used = self._used, set()
        with self._writing():
            self._db.executemany(
                "UPDATE results SET used_s = ? WHERE key = ?", ((now_s, key) for key in used)
            )
            for key, kept in items:
                counts = (kept.prompt_tokens, kept.output_tokens, size_of(kept))
                times = (now_s, kept.left_s, now_s)
                self._db.execute(_DROP, (key,))
                self._db.execute(_ADD, (key, kept.value, *counts, *times, _sum(key, kept.value)))
            self._trim(now_s)

    def clear(self, older_than_s: float | None = None) -> Holding:
        """Drop all results, or those made longer ago than `older_than_s`; what was dropped."""
        before = self.holding()
        with self._writing():
            if older_than_s is None:
                self._db.execute("DELETE FROM results")
            else:
                oldest_s = self._clock() - older_than_s
                self._db.execute("DELETE FROM results WHERE made_s < ?", (oldest_s,))
        with self._reported():
            self._db.execute("VACUUM")
        after = self.holding()
        return Holding(before.results - after.results, before.size - after.size)

    def holding(self) -> Holding:
        with self._reported():
            results, size = self._db.execute("SELECT results, size FROM total").fetchone()
            (oldest_s,) = self._db.execute("SELECT min(made_s) FROM results").fetchone()
        return Holding(results, size, oldest_s)

    def close(self) -> None:
        """Note what was used, and let go of the file."""
        try:
            with suppress(JournalError):
                if self._used:
                    self.keep(())
        finally:
            self._db.close()

    def _prepare(self) -> None:
        for pragma in ("trusted_schema = OFF", "cell_size_check = ON", "synchronous = NORMAL"):
            self._db.execute(f"PRAGMA {pragma}").fetchall()
        with transaction(self._db):
            (tables,) = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if not tables:
                for statement in _statements(_SCHEMA):
                    self._db.execute(statement)
            self._check()
            self._trim(self._clock())

    def _check(self) -> None:
        (application,) = self._db.execute("PRAGMA application_id").fetchone()
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if application != APPLICATION_ID:
            raise JournalError(f"result cache {self.path}: it is no result cache of Tenter")
        if version != RESULTS_VERSION:
            raise JournalError(
                f"result cache {self.path}: it is of another version of Tenter; remove the file"
            )

    def _trim(self, now_s: float) -> None:
        """Drop what is too old, then what was used longest ago, until the rest fits."""
        self._db.execute("DELETE FROM results WHERE made_s <= ?", (now_s - self._bounds.max_age_s,))
        while True:
            (results, size) = self._db.execute("SELECT results, size FROM total").fetchone()
            if size <= self._bounds.max_bytes or not results:
                return
            share = 1 - self._bounds.max_bytes / size
            many = max(1, min(DROPPED_AT_ONCE, round(results * share)))
            self._db.execute(_DROP_USED_FIRST, (many,))

    @contextmanager
    def _writing(self) -> Generator[None]:
        with self._reported(), transaction(self._db):
            yield

    @contextmanager
    def _reported(self) -> Generator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, OverflowError) as error:
            cure = "" if "locked" in str(error) else "; if it is damaged, remove it"
            raise JournalError(f"result cache {self.path}: {error}{cure}") from error


def _statements(script: str) -> Iterator[str]:
    """The statements of a script; those of triggers hold semicolons of their own."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _sum(key: bytes, value: bytes) -> int:
    return zlib.crc32(value, zlib.crc32(key))


def _kept(key: bytes, row: tuple[Any, ...], now_s: float, bounds: Bounds) -> Kept | None:
    """A result from its columns, which may be of any kind where they are damaged; None: no good."""
    value, prompt_tokens, output_tokens, keep_s, made_s, checksum = row
    if not isinstance(value, bytes) or checksum != _sum(key, value):
        return None
    try:
        left_s = None if keep_s is None else float(keep_s)
        kept = Kept(value, int(prompt_tokens), int(output_tokens), left_s)
        return aged(kept, now_s - float(made_s), bounds)
    except (TypeError, ValueError):
        return None
