"""Recorded thoughts as tables: CSV files, plain or compressed, whose faults are told by file and line."""

import csv
import gzip
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

_YES, _NO = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no", "")


class Row(NamedTuple):
    """One line of a table; what is missing or no number ends the program, and says where."""

    path: Path
    line: int
    cells: Mapping[str, str]

    def text(self, column: str, default: str | None = None) -> str:
        """What the cell says; `default` where there is no such column."""
        found = self.cells.get(column)
        if found is not None:
            return found
        if default is not None:
            return default
        raise self._fault(f"there is no {column!r}")

    def whole(self, column: str, default: str | None = None) -> int:
        """A whole number that is not negative."""
        text = self.text(column, default).strip() or default or ""
        if text.isdecimal():
            return int(text)
        try:
            number = float(text)
            if number != int(number) or number < 0:
                raise ValueError
        except (ValueError, OverflowError):
            raise self._fault(f"{column} is {text[:40]!r}; it must be a whole number") from None
        return int(number)

    def flag(self, column: str) -> bool:
        """True or False, 1 or 0."""
        text = self.text(column).strip().lower()
        if text not in _YES + _NO:
            raise self._fault(f"{column} is {text[:40]!r}; it must be True or False")
        return text in _YES

    def numbers(self, column: str) -> tuple[float, ...]:
        """Numbers with spaces between them; none where there is no such column."""
        try:
            return tuple(map(float, self.text(column, "").split()))
        except ValueError:
            raise self._fault(f"{column} must be numbers with spaces between them") from None

    def key(self, columns: Sequence[str]) -> tuple[str, ...]:
        """Some cells; one that is missing is empty."""
        cells = self.cells
        return tuple([cells.get(column) or "" for column in columns])

    def _fault(self, why: str) -> SystemExit:
        return SystemExit(f"{self.path}, line {self.line}: {why}")


def path_of(folder: Path, name: str) -> Path | None:
    """The table NAME.csv.gz or NAME.csv in the folder, if there is one."""
    paths = (folder / f"{name}.csv.gz", folder / f"{name}.csv")
    return next((path for path in paths if path.is_file()), None)


def rows(folder: Path, name: str) -> Iterator[Row]:
    """The lines of a table that must be there."""
    path = path_of(folder, name)
    if path is None:
        raise SystemExit(f"there is no {name}.csv.gz in {folder}")
    csv.field_size_limit(1 << 30)
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", newline="") as file:
            lines = csv.DictReader(file)
            for cells in lines:
                yield Row(path, lines.line_num, cells)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise SystemExit(f"{path} cannot be read: {error}") from None
