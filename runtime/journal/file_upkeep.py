"""A journal in SQLite looked through, made smaller, and read from end to end."""

from collections.abc import Generator, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import JournalError
from .base import Entry
from .file import ALL_ROWS, ALL_STEPS, JournalFile, reported
from .upkeep import Checked, Compacted, pieces

ROWS_AT_ONCE = 1000

# A step of a row that is done is asked for again only as the answer of equal work, while any is left.
_OF_DONE_ROWS = "EXISTS (SELECT 1 FROM rows r WHERE r.row = steps.row AND r.error IS NULL)"
_UNWANTED = f"signature IS NULL AND {_OF_DONE_ROWS}"
_UNNAMED = """digest NOT IN (SELECT blob FROM steps WHERE blob IS NOT NULL
    UNION SELECT blob FROM rows WHERE blob IS NOT NULL)"""


class UpkeepFile(JournalFile):
    """A journal's file for those who look after it."""

    def all_steps(self) -> Generator[tuple[Any, ...]]:
        """The columns of every step, for `as_step`."""
        with reported(self.path):
            yield from self._db.execute(ALL_STEPS)

    def all_rows(self) -> Generator[tuple[Any, ...]]:
        """The columns of every finished row, for `as_row`."""
        with reported(self.path):
            yield from self._db.execute(ALL_ROWS)

    def row_numbers(self) -> Generator[int]:
        """The rows of which anything is recorded, ascending."""
        with reported(self.path):
            for (row,) in self._db.execute("SELECT row FROM steps UNION SELECT row FROM rows"):
                yield row

    def number(self, query: str) -> int:
        with reported(self.path):
            return self._db.execute(query).fetchone()[0]

    def page_problems(self) -> list[str]:
        """What SQLite finds wrong with the file's pages and indexes."""
        with reported(self.path):
            found = [text for (text,) in self._db.execute("PRAGMA integrity_check(20)")]
            return [] if found == ["ok"] else [f"journal {self.path}: {text}" for text in found]

    def delete(self, table: str, condition: str) -> int:
        """How many rows of a table of ours were deleted."""
        with reported(self.path), self._transaction():
            return self._db.execute(f"DELETE FROM {table} WHERE {condition}").rowcount

    def shrink(self) -> None:
        """Give the room of what was deleted back to the disk."""
        with reported(self.path):
            self._check_token()
            self._db.execute("VACUUM")
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def check_file(path: Path) -> Checked:
    """Read every page, record and blob; also beside the run's owner."""
    found = Checked(size=_size(path))
    try:
        with closing(UpkeepFile.read(path)) as file:
            found.problems += file.page_problems()
            found.damaged = len(found.problems)
            found.count("steps", (partial(file.as_step, c) for c in file.all_steps()))
            found.count("rows", (partial(file.as_row, c) for c in file.all_rows()))
            found.blobs = file.number("SELECT count(*) FROM blobs")
            found.unused_blobs = file.number(f"SELECT count(*) FROM blobs WHERE {_UNNAMED}")
    except JournalError as error:
        found.blame(str(error))
    return found


def compact_file(path: Path) -> Compacted:
    """Throw away what no resume asks for. The caller holds the run's lock."""
    before = _size(path)
    with closing(UpkeepFile.open(path)) as file:
        ended = file.info().status == "done"
        steps = file.delete("steps", _OF_DONE_ROWS if ended else _UNWANTED)
        blobs = file.delete("blobs", _UNNAMED)
        file.shrink()
    return Compacted(steps, blobs, before, _size(path))


def entries_of_file(path: Path) -> Iterator[Entry]:
    """Every record, by row: its steps, then how it ended."""
    with closing(UpkeepFile.read(path)) as file:
        for first, last in pieces(file.row_numbers(), ROWS_AT_ONCE):
            steps, rows = file.steps(first, last), file.rows(first, last)
            by_row: dict[int, list[Entry]] = {}
            for entry in (*steps.values(), *rows.values()):
                by_row.setdefault(entry.row, []).append(entry)
            for row in sorted(by_row):
                yield from by_row[row]


def _size(path: Path) -> int:
    files = (path, path.with_name(f"{path.name}-wal"))
    return sum(file.stat().st_size for file in files if file.exists())
