"""Parquet in and out: the only place that touches pyarrow, which is loaded when first needed."""

import datetime
import decimal
import importlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from ..errors import InvalidTable
from .base import BadRow, Kind, Row, check_columns, fingerprint, limited
from .values import fit

GROUP_ROWS = 8192  # of the files that are written; fixed, so that equal rows give equal bytes
GROUP_BYTES = 64 * 1024 * 1024  # a group with so much text ends early
_BATCH_ROWS = 1024


def _arrow(path: Path) -> tuple[Any, Any]:
    """The modules pyarrow and pyarrow.parquet; typed Any, since they have no stubs."""
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise InvalidTable(
            f"{path}: Parquet needs pyarrow; pip install tenter[tables] ({error})"
        ) from None


class ParquetTable:
    """A Parquet file, read a row group at a time. What JSON has no type for comes as text."""

    def __init__(self, path: Path, columns: tuple[str, ...] | None, limit: int | None) -> None:
        self.path = path
        self._limit = limit
        self._pa, self._pq = _arrow(path)
        file = self._open()
        with file:
            schema, rows = file.schema_arrow, int(file.metadata.num_rows)
        names: tuple[str, ...] = tuple(schema.names)
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise InvalidTable(f"{path}: several columns are named {twice[0]!r}; rename them")
        check_columns(str(path), names, columns or ())
        self.columns = columns or names
        self.rows_total: int | None = rows if limit is None else min(rows, limit)
        self.kinds: Mapping[str, Kind] = {
            name: self._kind(schema.field(name).type) for name in self.columns
        }

    def __iter__(self) -> Iterator[Row | BadRow]:
        return limited(self._rows(), self._limit)

    def count_rows(self) -> int:
        return self.rows_total or 0

    def fingerprint(self) -> str:
        return fingerprint(self.path)

    def _open(self) -> Any:
        try:
            return self._pq.ParquetFile(self.path)
        except (OSError, self._pa.ArrowException, UnicodeDecodeError) as error:
            raise InvalidTable(
                f"{self.path}: this is no Parquet file, or a damaged one ({_line(error)})"
            ) from None

    def _kind(self, arrow: Any) -> Kind:
        types = self._pa.types
        if types.is_string(arrow) or types.is_large_string(arrow):
            return "string"
        if types.is_boolean(arrow):
            return "boolean"
        if types.is_integer(arrow) and arrow != self._pa.uint64():
            return "integer"
        return "number" if types.is_floating(arrow) else "json"

    def _rows(self) -> Iterator[Row | BadRow]:
        first = 0
        with self._open() as file:
            for group in range(file.num_row_groups):
                end = first + int(file.metadata.row_group(group).num_rows)
                index = first
                try:
                    for row in self._group(file, group, first):
                        yield row
                        index += 1
                except (OSError, ValueError, OverflowError, self._pa.ArrowException) as error:
                    message = f"row group {group} is damaged ({_line(error)})"
                    yield from (BadRow(bad, message) for bad in range(index, end))
                first = end

    def _group(self, file: Any, group: int, first: int) -> Iterator[Row | BadRow]:
        index = first
        batches = file.iter_batches(
            batch_size=_BATCH_ROWS, row_groups=[group], columns=list(self.columns)
        )
        for batch in batches:
            columns = [self._values(batch.column(name), name) for name in self.columns]
            for values in zip(*columns, strict=True):
                bad = next((value for value in values if isinstance(value, _Unreadable)), None)
                if bad is None:
                    yield index, dict(zip(self.columns, values, strict=True))
                else:
                    yield BadRow(index, f"row {index}: {bad.message}")
                index += 1

    def _values(self, column: Any, name: str) -> list[Any]:
        if self._pa.types.is_temporal(column.type):
            column = column.cast(self._pa.string())
        try:
            values: list[Any] = column.to_pylist()
        except (ValueError, OverflowError):
            values = [_one(value, name) for value in column]
        return [plain(value) for value in values] if self.kinds[name] == "json" else values


@dataclass(frozen=True, slots=True)
class _Unreadable:
    """Stands for a value that Python cannot hold."""

    message: str


def _one(value: Any, name: str) -> Any:
    try:
        return value.as_py()
    except (ValueError, OverflowError) as error:
        return _Unreadable(f"column {name!r} cannot be read ({_line(error)})")


def plain(value: Any) -> Any:
    """A value as JSON can hold it."""
    match value:
        case datetime.date() | datetime.time():
            return value.isoformat()
        case decimal.Decimal() | datetime.timedelta():
            return str(value)
        case bytes():
            return value.decode("utf-8", "backslashreplace")
        case list() | tuple():
            return [plain(item) for item in cast("list[Any]", value)]
        case dict():
            items = cast("dict[Any, Any]", value).items()
            return {str(key): plain(item) for key, item in items}
        case _:
            return value


def _line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0][:200]


def arrow_types(pa: Any) -> dict[Kind, Any]:
    """The types of pyarrow (`pa`) that columns of each kind have."""
    return {
        "string": pa.string(),
        "integer": pa.int64(),
        "number": pa.float64(),
        "boolean": pa.bool_(),
        "json": pa.string(),
    }


class ParquetWriter:
    """Writes rows in groups of GROUP_ROWS; columns have the types of their kinds."""

    def __init__(self, path: Path, file: IO[bytes], kinds: Mapping[str, Kind]) -> None:
        self._pa, pq = _arrow(path)
        self._kinds = kinds
        types = arrow_types(self._pa)
        self._schema = self._pa.schema([(name, types[kind]) for name, kind in kinds.items()])
        self._writer = pq.ParquetWriter(file, self._schema)
        self._clear()

    def _clear(self) -> None:
        self._values: dict[str, list[Any]] = {name: [] for name in self._kinds}
        self._rows = self._bytes = 0

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row whose values `fit` has made fit."""
        for name, values in self._values.items():
            value = fit(row[name], self._kinds[name])
            values.append(value)
            if isinstance(value, str):
                self._bytes += len(value)
        self._rows += 1
        if self._rows >= GROUP_ROWS or self._bytes >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            table = self._pa.Table.from_pydict(self._values, schema=self._schema)
            self._writer.write_table(table, row_group_size=GROUP_ROWS)
            self._clear()

    def close(self) -> None:
        self._flush()
        self._writer.close()
