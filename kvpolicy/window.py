"""The last amounts of one kind, in order of arrival and in order of size."""

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterable


class Window:
    """At most `size` amounts; a new one pushes the oldest out. `ordered` is ascending."""

    __slots__ = ("added", "ordered", "recent", "size")

    def __init__(self, size: int, amounts: Iterable[float] = ()) -> None:
        self.size = size
        self.recent: deque[float] = deque(amounts, maxlen=size)
        self.ordered: list[float] = sorted(self.recent)
        self.added = len(self.ordered)  # amounts ever added

    def __len__(self) -> int:
        return len(self.ordered)

    def add(self, amount: float) -> None:
        if len(self.recent) == self.size:
            del self.ordered[bisect_left(self.ordered, self.recent[0])]
        self.recent.append(amount)
        insort(self.ordered, amount)
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
