"""Journals that keep nothing on a disk: one for virtual time and tests, one for runs without any."""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping

from ..errors import JournalError
from .base import Entry, RowRecord, RunStatus, StepRecord, check

_Then = Callable[[], None]


class MemoryJournal:
    """Remembers in the process; acknowledges at the end of the loop's turn, as a disk would."""

    def __init__(self) -> None:
        self.on_failure: Callable[[JournalError], None] | None = None
        self.status: RunStatus = "running"
        self.summary: Mapping[str, float] = {}
        self._steps: dict[int, dict[str, StepRecord]] = {}
        self._rows: dict[int, RowRecord] = {}
        self._signatures: dict[bytes, tuple[int, str]] = {}
        self._waiting: list[tuple[Entry, _Then]] = []
        self._closed = False

    def record(
        self, entry: StepRecord | RowRecord, then: _Then | None = None, sync: bool = False
    ) -> None:
        """Keep `entry`; `then` is called in the loop's next turn."""
        check(entry)
        self._check_open()
        if isinstance(entry, StepRecord):
            self._steps.setdefault(entry.row, {})[entry.path] = entry
            if entry.signature is not None:
                self._signatures[entry.signature] = (entry.row, entry.path)
        else:
            self._rows[entry.row] = entry
        if then is None:
            return
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._acknowledge)
        self._waiting.append((entry, then))

    async def steps(self, first_row: int, last_row: int) -> Mapping[tuple[int, str], StepRecord]:
        self._check_open()
        return {
            (row, path): step
            for row in _within(self._steps, first_row, last_row)
            for path, step in sorted(self._steps[row].items())
        }

    async def rows(self, first_row: int, last_row: int) -> Mapping[int, RowRecord]:
        self._check_open()
        return {row: self._rows[row] for row in _within(self._rows, first_row, last_row)}

    async def results(self, signatures: Iterable[bytes]) -> Mapping[bytes, bytes]:
        self._check_open()
        found = {s: self._signatures[s] for s in signatures if s in self._signatures}
        return {s: self._steps[row][path].value for s, (row, path) in found.items()}

    async def set_status(self, status: RunStatus, summary: Mapping[str, float]) -> None:
        self._check_open()
        self.status, self.summary = status, dict(summary)

    async def close(self) -> None:
        self._acknowledge()
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise JournalError("the journal is closed")

    def _acknowledge(self) -> None:
        waiting, self._waiting = self._waiting, []
        for entry, then in waiting:
            try:
                then()
            except Exception as error:  # noqa: BLE001  the other callbacks must be called
                asyncio.get_running_loop().call_exception_handler(
                    {"message": f"after the record of row {entry.row}", "exception": error}
                )


class NoJournal:
    """Keeps nothing: `then` is called at once, within `record`."""

    def __init__(self) -> None:
        self.on_failure: Callable[[JournalError], None] | None = None

    def record(
        self, entry: StepRecord | RowRecord, then: _Then | None = None, sync: bool = False
    ) -> None:
        if then is not None:
            then()

    async def steps(self, first_row: int, last_row: int) -> Mapping[tuple[int, str], StepRecord]:
        return {}

    async def rows(self, first_row: int, last_row: int) -> Mapping[int, RowRecord]:
        return {}

    async def results(self, signatures: Iterable[bytes]) -> Mapping[bytes, bytes]:
        return {}

    async def set_status(self, status: RunStatus, summary: Mapping[str, float]) -> None:
        return

    async def close(self) -> None:
        return


def _within(rows: Mapping[int, object], first_row: int, last_row: int) -> Iterator[int]:
    """The keys of `rows` in first_row..last_row, ascending, by the cheaper of two ways."""
    if last_row - first_row < len(rows):
        return (row for row in range(first_row, last_row + 1) if row in rows)
    return iter(sorted(row for row in rows if first_row <= row <= last_row))
