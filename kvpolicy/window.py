"""The last amounts of one kind, in order of arrival and in order of size."""

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterable


class Window:
    """At most `size` amounts; a new one pushes the oldest out. `ordered` is ascending."""

    __slots__ = ("added", "ordered", "recent", "size", "total")

    def __init__(self, size: int, amounts: Iterable[float] = ()) -> None:
        self.size = size
        self.recent: deque[float] = deque(amounts, maxlen=size)
        self.ordered: list[float] = sorted(self.recent)
        self.added = len(self.ordered)  # amounts ever added
        self.total = sum(self.ordered)

    def __len__(self) -> int:
        return len(self.ordered)

    def add(self, amount: float) -> None:
        ordered, recent = self.ordered, self.recent
        if len(recent) == self.size:
            oldest = recent[0]
            del ordered[bisect_left(ordered, oldest)]
            self.total -= oldest
        recent.append(amount)
        insort(ordered, amount)
        self.total += amount
        self.added += 1

    def up_to(self, amount: float) -> int:
        """How many amounts are at most `amount`."""
        return bisect_right(self.ordered, amount)

    def merged(self, others: Iterable[float]) -> "Window":
        """A window with the newest of both; where both are full, half of it from each."""
        older = list(others)
        own = min(len(self.recent), max(self.size // 2, self.size - len(older)))
        room = self.size - own
        kept = older[max(0, len(older) - room) :] if room else []
        return Window(self.size, [*kept, *list(self.recent)[len(self.recent) - own :]])
