"""Tables seen differently: a row for each item of a list, a row for each group of rows."""

import sqlite3
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from threading import Lock
from typing import Any, cast

import msgspec

from ..errors import Drained, InvalidTable
from .base import MAX_ROW_BYTES, BadRow, Kind, Row, Table, check_columns, limited
from .values import json_bytes

ROWS = "rows"  # the column with whole rows of a group, unless the table has one of its own
MANY, MAX_UNNESTED_BYTES = 100, 256 * 2**20  # items of a row, and what becomes of it by them
_BATCH = 1_000  # rows that are staged in one go


@dataclass(frozen=True, slots=True)
class View:
    """How a table is seen: first a row for each item in the lists of the column `unnest`, then a
    row for each group of rows that are equal in the columns `group_by`."""

    unnest: str | None = None
    group_by: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it is made with."""
        return (*((self.unnest,) if self.unnest else ()), *self.group_by)

    def of(self, table: Table, wanted: tuple[str, ...] | None, limit: int | None) -> Table:
        """`table` seen so: the columns `wanted` (None: all), and at most `limit` rows."""
        if self.unnest is not None:
            table = Unnested(table, self.unnest, None if self.group_by else limit)
        return Grouped(table, self.group_by, wanted, limit) if self.group_by else table


PLAIN = View()


class Unnested:
    """A row for each item of the lists in `column`, the other cells repeated.

    In CSV a list is JSON text. A row whose list is empty or null gives none; one whose cell is no
    list is a bad row.
    """

    def __init__(self, table: Table, column: str, limit: int | None = None) -> None:
        check_columns(str(table.path), table.columns, (column,))
        self.path = table.path
        self.columns = table.columns
        self.kinds: Mapping[str, Kind] = {**table.kinds, column: "json"}
        self.rows_total: int | None = None
        self._table = table
        self._column = column
        self._limit = limit

    def __iter__(self) -> Iterator[Row | BadRow]:
        return limited(self._rows(), self._limit)

    def count_rows(self) -> int:
        return sum(1 for _ in self)

    def fingerprint(self) -> str:
        return f"{self._table.fingerprint()}/unnest:{self._column}"

    def _rows(self) -> Iterator[Row | BadRow]:
        index = 0
        for item in self._table:
            if isinstance(item, BadRow):
                yield BadRow(index, item.message)
                index += 1
                continue
            row, cells = item
            items = _items(cells[self._column])
            if isinstance(items, str):
                yield BadRow(index, f"row {row}: column {self._column!r}: {items}")
                index += 1
                continue
            if len(items) > MANY and len(items) * len(json_bytes(cells)) > MAX_UNNESTED_BYTES:
                yield BadRow(
                    index,
                    f"row {row}: column {self._column!r}: {len(items):,} items, each beside the whole "
                    "row, are too much; ask for fewer columns, or shorten the row",
                )
                index += 1
                continue
            for value in items:
                yield index, {**cells, self._column: value}
                index += 1


def _items(value: Any) -> list[Any] | str:
    """The items of a cell, or what is wrong with it."""
    if isinstance(value, str):
        if not value.strip():
            return []
        try:
            value = msgspec.json.decode(value)
        except (ValueError, msgspec.DecodeError, RecursionError):
            return f"{_short(value)} is no list; write JSON, as in [1, 2]"
    if value is None:
        return []
    if isinstance(value, list | tuple):
        return list(cast("list[Any]", value))
    return f"{_short(json_bytes(value).decode())} is no list"


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:39] + "…")


class Grouped:
    """A row for each group of rows that are equal in the columns `by`, in order of their first.

    The columns `by` hold what the rows of the group have in common, the others lists of cells in
    the order of the table, and `rows` whole rows as objects. A row that cannot be read is one of its
    own; so is a group of more than 16 MiB. The rows are sorted in a temporary file, so memory holds one
    group at a time; it is made when the table is first read.
    """

    def __init__(
        self,
        table: Table,
        by: tuple[str, ...],
        wanted: tuple[str, ...] | None = None,
        limit: int | None = None,
    ) -> None:
        place = str(table.path)
        check_columns(place, table.columns, by)
        there = dict.fromkeys((*by, *table.columns, ROWS))
        check_columns(place, tuple(there), wanted or ())
        self.path = table.path
        self.columns = tuple(there) if wanted is None else tuple(dict.fromkeys((*by, *wanted)))
        self.kinds: Mapping[str, Kind] = {
            name: table.kinds[name] if name in by else "json" for name in self.columns
        }
        self.rows_total: int | None = None
        self._whole = ROWS in self.columns and ROWS not in table.columns
        self._lists = [n for n in self.columns if n not in by and not (self._whole and n == ROWS)]
        self.source = table
        self._by = by
        self._limit = limit
        self._staged: sqlite3.Connection | None = None
        self._lock = Lock()

    def __iter__(self) -> Iterator[Row | BadRow]:
        return limited(self._groups(), self._limit)

    def count_rows(self) -> int:
        (count,) = self._sorted().execute("SELECT count(*) FROM groups").fetchone()
        return count if self._limit is None else min(count, self._limit)

    def fingerprint(self) -> str:
        return f"{self.source.fingerprint()}/group:{','.join(self._by)}"

    def _groups(self) -> Iterator[Row | BadRow]:
        staged = self._sorted()
        found = staged.execute("SELECT key, problem, size FROM groups ORDER BY first")
        for index, (key, problem, size) in enumerate(found):
            if problem is not None:
                yield BadRow(index, problem)
                continue
            values: list[Any] = msgspec.json.decode(key)
            if size > MAX_ROW_BYTES:
                named = ", ".join(
                    f"{name} {_short(str(value))}"
                    for name, value in zip(self._by, values, strict=True)
                )
                yield BadRow(
                    index,
                    f"the group of {named} holds {size:,} bytes, more than {MAX_ROW_BYTES:,}; "
                    "group by one more column, or ask for fewer columns",
                )
                continue
            members = staged.execute("SELECT cells FROM rows WHERE key = ? ORDER BY id", (key,))
            rows: list[dict[str, Any]] = [msgspec.json.decode(cells) for (cells,) in members]
            cells: dict[str, Any] = dict(zip(self._by, values, strict=True))
            for name in self._lists:
                cells[name] = [row[name] for row in rows]
            if self._whole:
                cells[ROWS] = rows
            yield index, cells

    def sort(self, stopped: Callable[[], bool]) -> None:
        """Sort the rows ahead of their use, in a thread; raises Drained once it is `stopped`."""
        self._sorted(stopped)

    def _sorted(self, stopped: Callable[[], bool] = lambda: False) -> sqlite3.Connection:
        """The rows by group, in a file that ends with the connection."""
        with self._lock:
            if self._staged is None:
                staged = sqlite3.connect("", check_same_thread=False, isolation_level=None)
                try:
                    self._stage(staged, stopped)
                except sqlite3.Error as error:
                    raise InvalidTable(
                        f"{self.path}: its rows cannot be grouped: {error}; they are sorted in a "
                        "temporary file (SQLITE_TMPDIR says where)"
                    ) from None
                self._staged = staged
            return self._staged

    def _stage(self, staged: sqlite3.Connection, stopped: Callable[[], bool]) -> None:
        staged.execute("PRAGMA journal_mode = OFF")
        staged.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, key BLOB, cells BLOB)")
        staged.execute("CREATE TABLE bad (id INTEGER PRIMARY KEY, problem TEXT)")
        items = iter(self.source)
        while batch := list(islice(items, _BATCH)):
            if stopped():
                raise Drained(f"{self.path}: stopped while its rows were sorted; nothing has run")
            good = [self._row(item) for item in batch if not isinstance(item, BadRow)]
            bad = [(item.row, item.message) for item in batch if isinstance(item, BadRow)]
            staged.execute("BEGIN")
            staged.executemany("INSERT INTO rows VALUES (?, ?, ?)", good)
            staged.executemany("INSERT INTO bad VALUES (?, ?)", bad)
            staged.execute("COMMIT")
        staged.execute("CREATE INDEX by_key ON rows (key, id)")
        staged.execute(
            "CREATE TABLE groups AS "
            "SELECT min(id) AS first, key, NULL AS problem, sum(length(cells)) AS size "
            "FROM rows GROUP BY key UNION ALL SELECT id, NULL, problem, 0 FROM bad"
        )
        staged.execute("CREATE INDEX in_order ON groups (first)")

    def _row(self, item: Row) -> tuple[int, bytes, bytes]:
        index, cells = item
        kept = cells if self._whole else {name: cells[name] for name in self._lists}
        key = json_bytes([cells[name] for name in self._by], order="sorted")
        return index, key, json_bytes(kept)
