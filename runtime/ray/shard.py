"""Rows that come in batches, run on one host: in the order of their prefixes, so many at once."""

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import Drained
from ..jobs.engine import Work
from ..jobs.suspects import Gate, Suspicion, rank
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
    suspicion: Suspicion | None = None


class Shard:
    """Runs rows on `work`, at most `concurrency` side by side.

    With `announce`, which hears of each row that is next, a row begins only after it was `heard`
    of: so whoever listens knows of every row that may have been running when the process died.
    """

    def __init__(
        self, work: Work, concurrency: int, announce: Callable[[int], None] | None = None
    ) -> None:
        self._work = work
        self._concurrency = concurrency
        self._announce = announce
        self._waiting: deque[ShardRow] = deque()
        self._announced: dict[int, ShardRow] = {}
        self._ready: deque[ShardRow] = deque()
        self._live: set[int] = set()
        self._gate = Gate()  # holds what was announced, until it ends
        self._woken = False
        self._draining = False

    def add(self, rows: Sequence[ShardRow]) -> None:
        """Take rows, whose prefix groups are found among themselves."""
        planned = self._work.planned
        if planned is not None and rows:
            numbers, inputs = [row.row for row in rows], [row.inputs for row in rows]
            planned.arrange(numbers, inputs)
            rows = [rows[index] for index in planned.window(numbers, inputs)]
        self._waiting.extend(sorted(rows, key=lambda row: rank(row.suspicion)))
        self._wake()

    def heard(self, rows: Collection[int]) -> None:
        """Let these rows begin, which were announced."""
        found = (self._announced.pop(row, None) for row in rows)
        self._ready.extend(row for row in found if row is not None)
        self._wake()

    def give_back(self, rows: Collection[int]) -> list[int]:
        """Forget those of these rows that were not announced yet; which those are."""
        wanted = set(rows)
        given = [row.row for row in self._waiting if row.row in wanted]
        self._waiting = deque(row for row in self._waiting if row.row not in wanted)
        for row in given:
            self._over(row)
        return given

    def bound(self, concurrency: int) -> None:
        """From now on so many rows run side by side."""
        self._concurrency = concurrency
        self._wake()

    def drain(self) -> None:
        """Let what runs end; what has not begun ends at once, with `Drained`."""
        self._draining = True
        unbegun = [*self._ready, *self._announced.values(), *self._waiting]
        for rows in (self._ready, self._announced, self._waiting):
            rows.clear()
        for row in unbegun:
            self._over(row.row)
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
        ahead = 1 if self._announce is None else 2  # so that nobody waits to be heard of
        while self._waiting and len(self._gate) < ahead * self._concurrency:
            row = self._waiting[0]
            if not self._draining and not self._gate.fits(row.suspicion):
                break
            self._waiting.popleft()
            self._gate.begin(row.row, row.suspicion)
            if self._announce is None:
                self._ready.append(row)
            else:
                self._announced[row.row] = row
                self._announce(row.row)
        while self._ready and len(self._live) < self._concurrency:
            self._arrive(self._ready.popleft())

    def _arrive(self, row: ShardRow) -> None:
        self._live.add(row.row)

        def over(value: Any, error: Exception | None) -> None:
            self._live.discard(row.row)
            self._over(row.row)
            row.ended(value, error)
            self._wake()

        if self._draining:  # it came too late
            over(None, Drained(DRAINED))
        else:
            self._work.programs.arrive(row.row, row.inputs, over, row.recorded)

    def _over(self, row: int) -> None:
        self._gate.ended(row)
        if self._work.planned is not None:
            self._work.planned.ended(row)
