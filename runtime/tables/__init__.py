"""Tables in and out: CSV, JSON Lines and Parquet by the extension of the name, as streams."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import cast

from ..errors import InvalidTable
from .base import BadRow, Kind, Row, Table, check_columns
from .output import DeadLetters, OrderedSink, TableOutput
from .parquet import ParquetTable
from .readers import CsvTable, JsonlTable
from .schema import Layout, coerce, layout
from .views import PLAIN, ROWS, Grouped, View
from .writers import TableWriter

__all__ = [
    "BadRow",
    "DeadLetters",
    "Grouped",
    "Kind",
    "Layout",
    "OrderedSink",
    "Row",
    "Table",
    "TableOutput",
    "TableWriter",
    "View",
    "coerce",
    "layout",
    "open_output",
    "open_table",
    "open_writer",
]

_MAGIC = (
    (b"PAR1", "a Parquet file; rename it to .parquet"),
    (b"PK\x03\x04", "an Excel or zip file; export it as CSV"),
    (b"\x1f\x8b", "compressed with gzip; unpack it first (gunzip)"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd; unpack it first (unzstd)"),
    (b"SQLite format 3", "an SQLite database; export a table as CSV"),
)
_UTF16 = ((b"\xff\xfe", "UTF-16LE"), (b"\xfe\xff", "UTF-16BE"))


def open_table(
    path: Path | str,
    columns: Iterable[str] | None = None,
    limit: int | None = None,
    needed: Iterable[str] = (),
    view: View = PLAIN,
) -> Table:
    """The table in a file: its `columns` (default: all), and those `needed` by the reader.

    With a `view` these are the columns and the rows of what is seen. Raises InvalidTable, which
    names the file, the line where there is one, and the cure.
    """
    path = Path(path)
    required = tuple(dict.fromkeys(needed))
    chosen = tuple(dict.fromkeys((*columns, *required))) if columns is not None else None
    if view == PLAIN:
        return _opened(path, chosen, limit, required)
    there = _opened(path, None, None, ())
    check_columns(str(path), there.columns, view.columns)
    seen = view.of(there, chosen, limit)
    check_columns(str(path), seen.columns, required)
    read = required if ROWS in there.columns else tuple(n for n in required if n != ROWS)
    if chosen is not None and (ROWS not in chosen or ROWS in there.columns):
        columns = tuple(dict.fromkeys((*chosen, *view.columns)))
    else:
        columns = None
    return view.of(_opened(path, columns, None, read), chosen, limit)


def _opened(
    path: Path, chosen: tuple[str, ...] | None, limit: int | None, required: tuple[str, ...]
) -> Table:
    suffix = path.suffix.lower()
    _check_file(path, suffix)
    match suffix:
        case ".csv" | ".tsv":
            table: Table = CsvTable(path, chosen, limit, "\t" if suffix == ".tsv" else ",")
        case ".jsonl" | ".ndjson":
            table = JsonlTable(path, chosen, limit, required)
        case ".parquet" | ".pq":
            table = ParquetTable(path, chosen, limit)
        case _:
            raise InvalidTable(f"{path}: {_no_format(suffix)}")
    if not isinstance(table, JsonlTable):
        check_columns(str(path), table.columns, required)
    return table


def _no_format(suffix: str) -> str:
    name = suffix or "a name without extension"
    cure = "; write one object per line as .jsonl" if suffix == ".json" else ""
    return f"{name} is no format of a table{cure}; use .csv, .tsv, .jsonl or .parquet"


def _check_file(path: Path, suffix: str) -> None:
    """Refuse what cannot be a table of its extension, by its first bytes."""
    if "\0" in str(path) or not path.exists():
        raise InvalidTable(f"{path}: there is no such file")
    if not path.is_file():
        raise InvalidTable(f"{path}: this is a folder or a device, not a file")
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise InvalidTable(f"{path}: {error.strerror or error}") from None
    if suffix in (".parquet", ".pq"):
        if head and not head.startswith(b"PAR1"):
            raise InvalidTable(f"{path}: this is no Parquet file; is it CSV or JSON Lines?")
        return
    for magic, what in _MAGIC:
        if head.startswith(magic):
            raise InvalidTable(f"{path}: this is {what}")
    if name := _utf16(head):
        raise InvalidTable(
            f"{path}: this is {name}, not UTF-8; convert it (iconv -f {name} -t UTF-8)"
        )


def _utf16(head: bytes) -> str | None:
    """The name of the encoding, if `head` is UTF-16: by its mark, or by its NULs."""
    for mark, name in _UTF16:
        if head.startswith(mark):
            return name
    half = len(head) // 2
    if half < 8:
        return None
    if head[1::2].count(0) > half * 0.7 and head[::2].count(0) < half * 0.1:
        return "UTF-16LE"
    if head[::2].count(0) > half * 0.7 and head[1::2].count(0) < half * 0.1:
        return "UTF-16BE"
    return None


def open_writer(path: Path | str, columns: Iterable[str] | Mapping[str, Kind]) -> TableWriter:
    """A writer of rows; plain names hold any JSON value (`Kind` "json")."""
    if isinstance(columns, Mapping):
        kinds: dict[str, Kind] = dict(cast("Mapping[str, Kind]", columns))
    else:
        kinds = dict.fromkeys(columns, "json")
    return TableWriter(Path(path), kinds)


def open_output(
    path: Path | str,
    table: Table,
    result_schema: str = "{}",
    keep: Iterable[str] | None = None,
) -> TableOutput:
    """The output of a batch over `table`: columns `keep` (default: all), results, `error`."""
    kept = tuple(table.columns if keep is None else dict.fromkeys(keep))
    check_columns(str(table.path), table.columns, kept)
    if Path(path).resolve() == table.path.resolve():
        raise InvalidTable(f"{path}: the output would replace the input; give it another name")
    return TableOutput(
        Path(path), layout({name: table.kinds[name] for name in kept}, result_schema)
    )
