"""Writers of CSV, JSON Lines and Parquet. A file appears under its name only when it is whole."""

import csv
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any, Protocol

from ..errors import InvalidTable, TenterError
from .base import Kind
from .parquet import ParquetWriter
from .values import clean, fit, json_bytes, text

_BUFFER_BYTES = 1024 * 1024


class RowWriter(Protocol):
    """Puts rows into an open file."""

    def write(self, row: Mapping[str, Any]) -> None: ...
    def close(self) -> None: ...


class _CsvLine:
    """A file to the csv module, which remembers the line that it was given."""

    line = ""

    def write(self, line: str) -> None:
        self.line = line


class CsvWriter:
    """RFC 4180 quoting by the csv module, lines end with a newline.

    None is an empty cell, booleans are true and false, objects and lists are JSON text; a NUL
    is written as \\u0000.
    """

    def __init__(self, file: IO[bytes], kinds: Mapping[str, Kind], delimiter: str = ",") -> None:
        self._file = file
        self._columns = tuple(kinds)
        self._line = _CsvLine()
        # With CRLF the module quotes cells that hold either of them.
        self._csv = csv.writer(self._line, delimiter=delimiter, lineterminator="\r\n")
        self._put(self._columns)

    def write(self, row: Mapping[str, Any]) -> None:
        self._put(text(row[column]) for column in self._columns)

    def _put(self, cells: Iterable[str | None]) -> None:
        self._csv.writerow([cell and clean(cell).replace("\0", "\\u0000") for cell in cells])
        self._file.write(self._line.line[:-2].encode() + b"\n")

    def close(self) -> None:
        return


class JsonlWriter:
    """One object per line, with every column; values keep their JSON types."""

    def __init__(self, file: IO[bytes], columns: Iterable[str]) -> None:
        self._file = file
        self._columns = tuple(columns)

    def write(self, row: Mapping[str, Any]) -> None:
        values = {column: row[column] for column in self._columns}
        self._file.write(json_bytes(values) + b"\n")

    def close(self) -> None:
        return


class TableWriter:
    """Rows for `path`, written to `<path>.partial`; `finish` renames it, durably.

    `kinds` are the columns, in order. `misfit` names the column whose value a typed format
    cannot hold (Parquet: beyond 64 bits). The partial file of another writer is taken away, not
    written over: one that was frozen, and taken over meanwhile, writes on into nothing.
    """

    def __init__(self, path: Path, kinds: Mapping[str, Kind]) -> None:
        self.path = path
        self.partial = path.with_name(path.name + ".partial")
        self.rows = 0
        self.kinds = kinds
        if path.is_dir():
            raise InvalidTable(f"{path}: this is a folder; name a file in it")
        try:
            self.partial.unlink(missing_ok=True)
            self._file = self.partial.open("xb", buffering=_BUFFER_BYTES)
        except OSError as error:
            raise InvalidTable(f"{path}: it cannot be written: {error.strerror or error}") from None
        try:
            self._rows = _row_writer(path, self._file, kinds)
        except BaseException:
            self._file.close()
            self.partial.unlink(missing_ok=True)
            raise

    def misfit(self, row: Mapping[str, Any]) -> tuple[str, str] | None:
        """The first column of `row` whose value its kind cannot hold, and why."""
        if not isinstance(self._rows, ParquetWriter):
            return None
        for column, kind in self.kinds.items():
            try:
                fit(row[column], kind)
            except ValueError as error:
                return column, str(error)
        return None

    def write(self, row: Mapping[str, Any]) -> None:
        try:
            self._rows.write(row)
        except OSError as error:
            raise self._failed(error) from error
        self.rows += 1

    def finish(self) -> Path:
        """Make the file whole and give it its name."""
        try:
            self._rows.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            self.check_ours()
            self._file.close()
            self.partial.replace(self.path)
            sync_folder(self.path)
        except OSError as error:
            raise self._failed(error) from error
        return self.path

    def check_ours(self) -> None:
        """Raise TenterError if somebody else writes, or wrote, the file under its name."""
        try:
            ours = os.path.samestat(os.fstat(self._file.fileno()), self.partial.stat())
        except FileNotFoundError:
            ours = False
        if not ours:
            raise TenterError(
                f"{self.partial}: another process has taken over; nothing was renamed"
            )

    def abandon(self) -> str:
        """Leave the partial file, readable as far as it goes; says so."""
        try:
            if not self._file.closed:
                self._rows.close()
                self._file.close()
        except OSError as error:
            return str(self._failed(error))
        return f"{self.partial} holds the first {self.rows:,} rows"

    def _failed(self, error: OSError) -> TenterError:
        return TenterError(
            f"{self.partial}: it cannot be written: {error.strerror or error}; "
            "mend that and resume the run"
        )


def _row_writer(path: Path, file: IO[bytes], kinds: Mapping[str, Kind]) -> RowWriter:
    match path.suffix.lower():
        case ".csv":
            return CsvWriter(file, kinds)
        case ".tsv":
            return CsvWriter(file, kinds, delimiter="\t")
        case ".jsonl" | ".ndjson":
            return JsonlWriter(file, kinds)
        case ".parquet":
            return ParquetWriter(path, file, kinds)
        case suffix:
            raise InvalidTable(
                f"{path}: {suffix or 'a name without extension'} is no format of a table; "
                "use .csv, .tsv, .jsonl or .parquet"
            )


def sync_folder(path: Path) -> None:
    """Make the name of `path` durable."""
    descriptor = os.open(path.absolute().parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
