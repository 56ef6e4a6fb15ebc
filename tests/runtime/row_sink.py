"""What came of each row of a run, by its number."""

from typing import Any

from tenter.runtime.run.rows import Row


class RowSink:
    """A sink: `values` has each row's answer, or what went wrong."""

    held = 0

    def __init__(self) -> None:
        self.values: dict[int, Any] = {}

    def put(self, row: Row, value: Any, error: str | None) -> None:
        self.values[row.row] = error or value
