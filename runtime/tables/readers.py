"""Streamed readers of CSV and JSON Lines. What is wrong with one row stays with that row."""

import csv
import itertools
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import msgspec

from ..errors import InvalidTable
from .base import (
    MAX_ROW_BYTES,
    BadRow,
    Kind,
    Row,
    check_columns,
    fingerprint,
    limited,
)

_SAMPLE_ROWS = 100  # of JSON Lines, from which the columns are known
_BOM = b"\xef\xbb\xbf"
_CURE = "write one JSON object per line"
_UNPACK = "write one object per line (jq -c '.[]')"


@contextmanager
def _readable(path: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise InvalidTable(f"{path}: {error.strerror or error}") from None


class _Lines:
    """The lines of a text file, of bounded length; `cut` tells that a line was longer."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self.cut = False

    def __iter__(self) -> Iterator[str]:
        while line := self._file.readline(MAX_ROW_BYTES):
            if len(line) == MAX_ROW_BYTES and not line.endswith(("\n", "\r")):
                self.cut = True
                self._skip_line()
            yield line

    def _skip_line(self) -> None:
        while (rest := self._file.readline(MAX_ROW_BYTES)) and not rest.endswith(("\n", "\r")):
            pass


class CsvTable:
    """A CSV file with a header. Values are strings; blank lines are no rows."""

    def __init__(
        self, path: Path, columns: tuple[str, ...] | None, limit: int | None, delimiter: str = ","
    ) -> None:
        self.path = path
        self.rows_total: int | None = None
        self._limit = limit
        self._delimiter = delimiter
        csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW_BYTES))
        self.header = self._read_header()
        check_columns(f"{path}:1", self.header, columns or ())
        self.columns = columns or self.header
        self.kinds: Mapping[str, Kind] = dict.fromkeys(self.columns, "string")

    def __iter__(self) -> Iterator[Row | BadRow]:
        return limited(self._rows(), self._limit)

    def count_rows(self) -> int:
        return sum(1 for _ in self)

    def fingerprint(self) -> str:
        return fingerprint(self.path)

    def _open(self) -> IO[str]:
        # Bytes that are not UTF-8 come as lone surrogates, so that they spoil only their row.
        return self.path.open("r", encoding="utf-8-sig", errors="surrogateescape", newline="")

    def _read_header(self) -> tuple[str, ...]:
        with _readable(self.path), self._open() as file:
            lines = _Lines(file)
            reader = csv.reader(lines, delimiter=self._delimiter, strict=True)
            try:
                header = next((fields for fields in reader if fields), None)
            except csv.Error as error:
                raise InvalidTable(f"{self.path}:1: the header is not CSV: {error}") from None
            if lines.cut:
                raise InvalidTable(f"{self.path}:1: the header is too long; is this a CSV file?")
        return _checked_header(self.path, header)

    def _rows(self) -> Iterator[Row | BadRow]:
        with _readable(self.path), self._open() as file:
            lines = _Lines(file)
            reader = csv.reader(lines, delimiter=self._delimiter, strict=True)
            next((fields for fields in reader if fields), None)
            index = 0
            while True:
                first_line = reader.line_num + 1
                try:
                    fields = next(reader, None)
                    problem = self._problem(fields or [])
                except csv.Error as error:
                    fields, problem = [""], str(error)
                if fields is None:
                    return
                if lines.cut:
                    problem, lines.cut = f"it is longer than {MAX_ROW_BYTES:,} characters", False
                if problem is not None:
                    yield BadRow(index, f"{_place(first_line, reader.line_num)}: {problem}")
                elif fields:
                    yield index, self._selected(fields)
                else:
                    continue
                index += 1

    def _problem(self, fields: list[str]) -> str | None:
        if not fields:
            return None
        if len(fields) != len(self.header):
            return f"{len(fields)} fields where the header has {len(self.header)}"
        text = "\0".join(fields)
        if text.count("\0") >= len(fields):
            return "it holds a NUL byte"
        return None if text.isascii() else _utf8_problem(text)

    def _selected(self, fields: list[str]) -> dict[str, Any]:
        row = dict(zip(self.header, fields, strict=True))
        if self.columns is self.header:
            return row
        return {column: row[column] for column in self.columns}


def _place(first_line: int, last_line: int) -> str:
    return f"line {first_line}" if last_line <= first_line else f"lines {first_line}-{last_line}"


def _utf8_problem(text: str) -> str | None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        byte = ord(text[error.start]) & 0xFF
        return f"it is not UTF-8 (byte 0x{byte:02x}); save the file as UTF-8"
    return None


def _checked_header(path: Path, header: list[str] | None) -> tuple[str, ...]:
    if header is None:
        raise InvalidTable(f"{path}: the file is empty; a table needs a header and rows")
    if problem := _utf8_problem("".join(header)):
        raise InvalidTable(f"{path}:1: the header: {problem}")
    if "\0" in "".join(header):
        raise InvalidTable(f"{path}:1: the header holds a NUL byte; is this a CSV file?")
    seen: dict[str, int] = {}
    for number, name in enumerate(header, start=1):
        if not name.strip():
            raise InvalidTable(f"{path}:1: column {number} has no name; give it one")
        first = seen.setdefault(name, number)
        if first != number:
            raise InvalidTable(
                f"{path}:1: columns {first} and {number} are both named {name!r}; rename one"
            )
    return tuple(header)


class JsonlTable:
    """A file with one JSON object per line; blank lines are no rows.

    The columns are the keys of the first hundred rows. A key that a row lacks is null, except
    that a row without a needed key is a bad row; other keys are left out.
    """

    def __init__(
        self,
        path: Path,
        columns: tuple[str, ...] | None,
        limit: int | None,
        needed: tuple[str, ...] = (),
    ) -> None:
        self.path = path
        self.rows_total: int | None = None
        self._limit = limit
        self._needed = needed
        known = self._sample()
        check_columns(str(path), known, (*(columns or ()), *needed))
        self.columns = columns or known
        self.kinds: Mapping[str, Kind] = dict.fromkeys(self.columns, "json")

    def __iter__(self) -> Iterator[Row | BadRow]:
        for index, (number, line) in enumerate(itertools.islice(self._lines(), self._limit)):
            row = _object(line)
            if isinstance(row, str):
                yield BadRow(index, f"line {number}: {row}")
                continue
            lacks = [name for name in self._needed if name not in row]
            if lacks:
                yield BadRow(index, f"line {number}: it lacks {', '.join(map(repr, lacks))}")
            else:
                yield index, {column: row.get(column) for column in self.columns}

    def count_rows(self) -> int:
        return sum(1 for _ in itertools.islice(self._lines(), self._limit))

    def fingerprint(self) -> str:
        return fingerprint(self.path)

    def _lines(self) -> Iterator[tuple[int, bytes | None]]:
        """The lines that are not blank, numbered from 1; None for one that is too long."""
        with _readable(self.path), self.path.open("rb") as file:
            number = 0
            while line := file.readline(MAX_ROW_BYTES):
                number += 1
                if number == 1:
                    line = line.removeprefix(_BOM)
                if len(line) >= MAX_ROW_BYTES - len(_BOM) and not line.endswith(b"\n"):
                    while (rest := file.readline(MAX_ROW_BYTES)) and not rest.endswith(b"\n"):
                        pass
                    yield number, None
                elif not line.isspace() and line:
                    yield number, line

    def _sample(self) -> tuple[str, ...]:
        columns: dict[str, None] = {}
        problems: list[str] = []
        objects = 0
        for number, line in itertools.islice(self._lines(), _SAMPLE_ROWS):
            row = _object(line)
            if not isinstance(row, str):
                objects += 1
                columns.update(dict.fromkeys(row))
            elif line is not None and line.lstrip().startswith(b"["):
                problems.append(f":{number}: this is a JSON array, not JSON Lines; {_UNPACK}")
            else:
                problems.append(f":{number}: this is not JSON Lines: {row}; {_CURE}")
        if not objects:
            problem = problems[0] if problems else f": the file is empty; {_CURE}"
            raise InvalidTable(f"{self.path}{problem}")
        return tuple(columns)


def _object(line: bytes | None) -> dict[str, Any] | str:
    """The object of a line, or what is wrong with it."""
    if line is None:
        return f"it is longer than {MAX_ROW_BYTES:,} bytes"
    try:
        value = msgspec.json.decode(line)
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        return f"it is not UTF-8 (byte 0x{byte:02x}); save the file as UTF-8"
    except (msgspec.DecodeError, ValueError) as error:
        return f"it is not JSON ({error})"
    except RecursionError:
        return "it is nested too deeply"
    if not isinstance(value, dict):
        return "it is not an object"
    return value  # pyright: ignore[reportUnknownVariableType]
