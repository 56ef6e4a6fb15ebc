"""Equal work once: calls in flight are joined, finished ones are answered from memory.

Consolidation as in Halo (2509.02121) and Helium (2603.16104): a signature covers everything that
determines the answer, and only repeatable work has one.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from ..clock import now

Settled = Callable[[Any, Exception | None], None]


class Sharing:
    """Results by signature, the most recently used `capacity` of them, some only for a time."""

    def __init__(self, capacity: int = 100_000) -> None:
        self._capacity = capacity
        self._results: OrderedDict[bytes, Any] = OrderedDict()
        self._until_s: dict[bytes, float] = {}  # of those that grow old
        self._flights: dict[bytes, list[tuple[Settled, Callable[[], None]]]] = {}

    def known(self, signature: bytes) -> bool:
        """Whether a result is at hand, and not too old."""
        if signature not in self._results:
            return False
        if signature in self._until_s and now() >= self._until_s[signature]:
            del self._results[signature], self._until_s[signature]
            return False
        return True

    def result(self, signature: bytes) -> Any:
        """The result of equal work."""
        self._results.move_to_end(signature)
        return self._results[signature]

    def in_flight(self, signature: bytes) -> bool:
        """Whether somebody is doing equal work."""
        return signature in self._flights

    def begin(self, signature: bytes) -> None:
        """The caller does this work, and will `finish`, `fail` or `give_up`."""
        self._flights[signature] = []

    def join(self, signature: bytes, settled: Settled, retry: Callable[[], None]) -> None:
        """Wait for equal work in flight.

        `retry` is called where the one who did it was cancelled: somebody else must.
        """
        self._flights[signature].append((settled, retry))

    def finish(self, signature: bytes, value: Any, keep_s: float | None = None) -> None:
        """Hand a result to all who wait for it, and keep it, for `keep_s` seconds if given."""
        self._results[signature] = value
        if keep_s is not None:
            self._until_s[signature] = now() + keep_s
        if len(self._results) > self._capacity:
            oldest, _ = self._results.popitem(last=False)
            self._until_s.pop(oldest, None)
        for settled, _ in self._flights.pop(signature, ()):
            settled(value, None)

    def fail(self, signature: bytes, error: Exception) -> None:
        """Equal work fails equally."""
        for settled, _ in self._flights.pop(signature, ()):
            settled(None, error)

    def give_up(self, signature: bytes) -> None:
        """The one who did the work was cancelled: the first who waits takes over."""
        waiting = self._flights.pop(signature, [])
        for _, retry in waiting:
            retry()
