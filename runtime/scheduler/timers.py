"""Times at which something is due in the core; one alarm outside serves them all."""

import heapq
from collections.abc import Callable, Iterator
from typing import Literal

Kind = Literal[
    "deadline",
    "retry",
    "rest",
    "suspect",
    "patience",
    "home",
    "group",
    "pin",
    "weigh",
    "budget",
    "acting",
]
SPARE = 64  # entries that nobody waits for any more, beside a few for each that is alive


class Timers:
    """A heap of (time, kind, name). `alive` tells whether an entry still matters."""

    def __init__(self, alive: Callable[[Kind, str], bool]) -> None:
        self._alive = alive
        self.heap: list[tuple[float, Kind, str]] = []
        self._alarm_s: float | None = None  # what the outside was last asked for

    def __len__(self) -> int:
        return len(self.heap)

    def add(self, at_s: float, kind: Kind, name: str, living: int) -> None:
        """Have `kind` of `name` due at `at_s`. `living` bounds what is kept of dead entries."""
        heapq.heappush(self.heap, (at_s, kind, name))
        if len(self.heap) > SPARE + 4 * living:
            self.heap = [item for item in self.heap if self._alive(item[1], item[2])]
            heapq.heapify(self.heap)

    def due(self, now_s: float) -> Iterator[tuple[Kind, str]]:
        """Take out what is due, in order; the alarm has gone off."""
        self._alarm_s = None
        while self.heap and self.heap[0][0] <= now_s:
            _, kind, name = heapq.heappop(self.heap)
            if self._alive(kind, name):
                yield kind, name

    def alarm(self) -> float | None:
        """When to sound the alarm, if the one that is set comes too late; else None."""
        while self.heap and not self._alive(self.heap[0][1], self.heap[0][2]):
            heapq.heappop(self.heap)
        if not self.heap or (self._alarm_s is not None and self._alarm_s <= self.heap[0][0]):
            return None
        self._alarm_s = self.heap[0][0]
        return self._alarm_s
