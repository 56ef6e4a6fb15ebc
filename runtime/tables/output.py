"""The output of a batch: rows in input order, each exactly once, with their errors beside them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from .schema import Layout
from .values import clean
from .writers import TableWriter, sync_folder

_T = TypeVar("_T")


class OrderedSink(Generic[_T]):
    """Hands on what comes in any order in ascending order of rows, without gaps.

    Holds what came ahead of its turn: as much as the driver lets rows overtake each other.
    """

    def __init__(self, emit: Callable[[int, _T], None], first_row: int = 0) -> None:
        self._emit = emit
        self._held: dict[int, _T] = {}
        self.next_row = first_row

    @property
    def held(self) -> int:
        """How many rows wait for one before them."""
        return len(self._held)

    def put(self, row: int, item: _T) -> None:
        """Take a row's item; raises ValueError for a row that was there before."""
        if row < self.next_row or row in self._held:
            raise ValueError(f"row {row} is there already")
        self._held[row] = item
        while self.next_row in self._held:
            self._emit(self.next_row, self._held.pop(self.next_row))
            self.next_row += 1

    def finish(self) -> None:
        """Raises ValueError if a row is missing before one that came."""
        if self._held:
            raise ValueError(f"row {self.next_row} is missing; {self.held} rows wait for it")


class DeadLetters:
    """`<out>.errors.jsonl`: row, error and input of each failed row; absent if there are none."""

    def __init__(self, out: Path) -> None:
        self.path = out.with_name(out.name + ".errors.jsonl")
        self._writer: TableWriter | None = None

    def write(self, row: int, error: str, inputs: Mapping[str, Any]) -> None:
        if self._writer is None:
            self._writer = TableWriter(
                self.path, {"row": "integer", "error": "string", "input": "json"}
            )
        self._writer.write({"row": row, "error": clean(error), "input": dict(inputs)})

    def finish(self) -> Path | None:
        """The file, under its name; without errors one of an earlier run is removed."""
        if self._writer is not None:
            return self._writer.finish()
        if self.path.exists():
            self.path.unlink()
            sync_folder(self.path)
        return None

    def abandon(self) -> None:
        if self._writer is not None:
            self._writer.abandon()


class TableOutput:
    """Where a batch puts its rows: a table and, if rows failed, its dead letters."""

    def __init__(self, path: Path, layout: Layout) -> None:
        self.layout = layout
        self._writer = TableWriter(path, layout.kinds)
        self._letters = DeadLetters(path)
        self._sink = OrderedSink[tuple[Mapping[str, Any], Any, str | None]](self._emit)

    @property
    def held(self) -> int:
        """How many rows wait for one before them."""
        return self._sink.held

    def done(self, row: int, inputs: Mapping[str, Any], value: Any) -> None:
        """A row's JSON result."""
        self._sink.put(row, (inputs, value, None))

    def failed(self, row: int, inputs: Mapping[str, Any], error: str) -> None:
        """A row without a result; `inputs` is empty where the row could not be read."""
        self._sink.put(row, (inputs, None, error))

    def _emit(self, row: int, item: tuple[Mapping[str, Any], Any, str | None]) -> None:
        inputs, value, error = item
        cells = self.layout.row(inputs, value, error)
        while misfit := self._writer.misfit(cells):
            column, reason = misfit
            problem = f"column {column!r} has no room for its value: {reason}"
            error = f"{error}; {problem}" if error else problem
            cells[column], cells[self.layout.error] = None, error
        self._writer.write(cells)
        if error is not None:
            self._letters.write(row, error, inputs)

    def finish(self) -> tuple[Path, Path | None]:
        """The table and its dead letters, whole and under their names."""
        self._sink.finish()
        self._writer.check_ours()
        letters = self._letters.finish()
        return self._writer.finish(), letters

    def abandon(self) -> str:
        """Leave the partial files; says what they hold."""
        self._letters.abandon()
        return self._writer.abandon()
