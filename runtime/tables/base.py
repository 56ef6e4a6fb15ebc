"""The nouns of tables: a table, a row that cannot be read, the kind of a column, a fingerprint."""

import difflib
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from ..errors import InvalidTable

Kind = Literal["string", "integer", "number", "boolean", "json"]
"""What a column holds. `json`: anything; in CSV and Parquet its strings stay as they are and other
values are JSON text."""

MAX_ROW_BYTES = 16 * 1024 * 1024  # of one row of text; a longer one is a bad row
_ENDS_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be read; the others can."""

    row: int
    message: str


Row = tuple[int, dict[str, Any]]
"""A row's index, from 0, and its values by column."""


class Table(Protocol):
    """A file of rows, read as a stream. Each iteration begins at the first row.

    Every row of the file is one item, in order, with indices 0, 1, 2, ... and no gaps.
    """

    path: Path
    columns: tuple[str, ...]  # those that were asked for, else all
    kinds: Mapping[str, Kind]
    rows_total: int | None  # None: not known without reading the file (`count_rows`)

    def __iter__(self) -> Iterator[Row | BadRow]: ...

    def count_rows(self) -> int:
        """The number of rows, by reading the whole file if need be: call it in a thread."""
        ...

    def fingerprint(self) -> str:
        """See `fingerprint`."""
        ...


def fingerprint(path: Path) -> str:
    """32 hex digits that change with a file's size, its first or its last MiB; not with its name.

    A change in the middle of a large file that keeps its size goes unnoticed: the price of
    resuming a table of any size at once.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        digest = hashlib.blake2b(b"%d\0" % size, digest_size=16)
        file.seek(0)
        digest.update(file.read(_ENDS_BYTES))
        file.seek(max(0, size - _ENDS_BYTES))
        digest.update(file.read(_ENDS_BYTES))
    return digest.hexdigest()


def check_columns(place: str, columns: tuple[str, ...], wanted: Iterable[str]) -> None:
    """Refuse a table that lacks a column of `wanted`."""
    for name in wanted:
        if name in columns:
            continue
        lower = {column.lower(): column for column in columns}
        close = difflib.get_close_matches(name.lower().strip(), lower, n=1)
        hint = f"did you mean {lower[close[0]]!r}? " if close else ""
        known = ", ".join(map(repr, columns[:20])) + (", …" if len(columns) > 20 else "")
        raise InvalidTable(f"{place}: there is no column {name!r}; {hint}it has {known}")


def limited(rows: Iterator[Row | BadRow], limit: int | None) -> Iterator[Row | BadRow]:
    """At most `limit` items of `rows`."""
    for count, row in enumerate(rows):
        if limit is not None and count >= limit:
            return
        yield row
