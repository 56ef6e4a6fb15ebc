"""Equal work once: calls in flight are joined, finished ones are answered from memory.

Consolidation as in Halo (2509.02121) and Helium (2603.16104): a signature covers everything that
determines the answer, and only repeatable work has one.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

from ..clock import now

ALL = "#*"
Settled = Callable[[Any, Exception | None], None]


LEAST = 8_192  # results that are kept whether they answer anybody or not
EARNED = 64  # that are kept besides for each time that one has answered


class Sharing:
    """Results by signature, the most recently used `capacity` of them, some only for a time.

    Where few of them answer anybody, as in a table whose rows all differ, fewer are kept.
    """

    def __init__(self, capacity: int = 100_000) -> None:
        self._capacity = capacity
        self._answered = 0
        self._results: OrderedDict[bytes, Any] = OrderedDict()
        self._until_s: dict[bytes, float] = {}  # of those that grow old
        self._flights: dict[bytes, list[tuple[Settled, Callable[[], None]]]] = {}
        self._versions: dict[str, int] = {}  # how often each table was written to

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
        self._answered += 1
        self._results.move_to_end(signature)
        return self._results[signature]

    def in_flight(self, signature: bytes) -> bool:
        """Whether somebody is doing equal work."""
        return signature in self._flights

    def awaited(self, signature: bytes | None) -> bool:
        """Whether anybody else waits for this work in flight."""
        return signature is not None and bool(self._flights.get(signature))

    def begin(self, signature: bytes) -> None:
        """The caller does this work, and will `finish`, `fail` or `give_up`."""
        self._flights[signature] = []

    def join(self, signature: bytes, settled: Settled, retry: Callable[[], None]) -> None:
        """Wait for equal work in flight.

        `retry` is called where the one who did it was cancelled: somebody else must.
        """
        self._answered += 1
        self._flights[signature].append((settled, retry))

    def finish(self, signature: bytes, value: Any, keep_s: float | None = None) -> None:
        """Hand a result to all who wait for it, and keep it, for `keep_s` seconds if given."""
        self._results[signature] = value
        if keep_s is not None:
            self._until_s[signature] = now() + keep_s
        if len(self._results) > min(self._capacity, LEAST + EARNED * self._answered):
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

    # ---- what reads depend on ---------------------------------------------------------------------

    def versions(self, reads: Iterable[str]) -> list[int]:
        """A part of the signature of work that reads these tables: another one after each write.

        A table is "database#name"; "database#*" stands for all of a database.
        """
        tables = sorted(reads)
        whole = [f"{base}{ALL}" for base in sorted({name.rpartition("#")[0] for name in tables})]
        return [self._versions.get(name, 0) for name in (*tables, *whole)]

    def changed(self, writes: Iterable[str]) -> None:
        """These tables are written to; called before and after, for what is read meanwhile may be
        either."""
        for name in writes:
            self._versions[name] = self._versions.get(name, 0) + 1
