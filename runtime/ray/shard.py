"""Rows that come in batches, run on one host: in the order of their prefixes, so many at once."""

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import Drained
from ..jobs.engine import Work
from ..journal.base import StepRecord
from ..run.program import Ended
from ..scheduler.core import DRAINED


@dataclass(frozen=True, slots=True)
class ShardRow:
    """A row with the inputs of its program; `ended(value, error)` is called once."""

    row: int
    inputs: Mapping[str, Any]
    ended: Ended
    recorded: Mapping[str, StepRecord] = field(default_factory=dict[str, StepRecord])


class Shard:
    """Runs rows on `work`, at most `concurrency` side by side."""

    def __init__(self, work: Work, concurrency: int) -> None:
        self._work = work
        self._concurrency = concurrency
        self._waiting: deque[ShardRow] = deque()
        self._live: set[int] = set()
        self._woken = False
        self._draining = False

    def add(self, rows: Sequence[ShardRow]) -> None:
        """Take rows, whose prefix groups are found among themselves."""
        planned = self._work.planned
        if planned is not None and rows:
            numbers, inputs = [row.row for row in rows], [row.inputs for row in rows]
            planned.arrange(numbers, inputs)
            rows = [rows[index] for index in planned.window(numbers, inputs)]
        self._waiting.extend(rows)
        self._wake()

    def bound(self, concurrency: int) -> None:
        """From now on so many rows run side by side."""
        self._concurrency = concurrency
        self._wake()

    def drain(self) -> None:
        """Let what runs end; what has not begun ends at once, with `Drained`."""
        self._draining = True
        waiting, self._waiting = self._waiting, deque()
        for row in waiting:
            row.ended(None, Drained(DRAINED))
        self._work.programs.drain()

    def abort(self) -> None:
        """Stop everything now."""
        self.drain()
        for row in sorted(self._live):
            self._work.programs.cancel(f"r{row}")

    def _wake(self) -> None:
        if not self._woken:
            self._woken = True
            asyncio.get_running_loop().call_soon(self._start)

    def _start(self) -> None:
        self._woken = False
        while self._waiting and len(self._live) < self._concurrency:
            self._arrive(self._waiting.popleft())

    def _arrive(self, row: ShardRow) -> None:
        self._live.add(row.row)

        def over(value: Any, error: Exception | None) -> None:
            self._live.discard(row.row)
            if self._work.planned is not None:
                self._work.planned.ended(row.row)
            row.ended(value, error)
            self._wake()

        if self._draining:  # it came too late
            over(None, Drained(DRAINED))
        else:
            self._work.programs.arrive(row.row, row.inputs, over, row.recorded)
