"""How long tools take: the last durations of each, shrunk toward those of all tools.

A tool that was seen n times counts n against `PRIOR` of the pool, so that a new tool starts as a
common one and becomes itself. On public traces per-tool distributions are often no better than the
pooled one, hence the shrinkage (ALGORITHMS.md cards 1 and 8). All answers can be conditional on
the time that has elapsed already, since a tool that runs for a minute was not a quick one.
"""

from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict, deque
from math import isfinite

KEPT = 1_000  # durations of one tool
POOL_KEPT = 4_000  # durations of all tools together
TOOLS = 1_000  # tools remembered; the one not seen for longest is forgotten
PRIOR = 8.0
_ROUNDING_S = 1e-9  # what the sum of two times may be off by


class _Window:
    """The last durations, in order of time and in order of length."""

    __slots__ = ("ordered", "recent", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.recent: deque[float] = deque()
        self.ordered: list[float] = []

    def add(self, seconds: float) -> None:
        if len(self.recent) == self.size:
            del self.ordered[bisect_left(self.ordered, self.recent.popleft())]
        self.recent.append(seconds)
        insort(self.ordered, seconds)

    def up_to(self, seconds: float) -> int:
        """How many durations are at most `seconds`."""
        return bisect_right(self.ordered, seconds)


class Durations:
    """What is known of the durations of tools. `observe` every one; ask the rest."""

    def __init__(self) -> None:
        self._tools: OrderedDict[str, _Window] = OrderedDict()
        self._pool = _Window(POOL_KEPT)

    def observe(self, tool: str, seconds: float) -> None:
        """A run of `tool` took `seconds`."""
        if not isfinite(seconds) or seconds < 0:
            raise ValueError(f"a duration must be 0 s or more, not {seconds}")
        if tool not in self._tools:
            if len(self._tools) == TOOLS:
                self._tools.popitem(last=False)
            self._tools[tool] = _Window(KEPT)
        self._tools.move_to_end(tool)
        self._tools[tool].add(seconds)
        self._pool.add(seconds)

    def count(self, tool: str | None = None) -> int:
        """How many durations are kept, of one tool or of all."""
        return len(self._window(tool).ordered)

    def samples(self, tool: str | None = None) -> tuple[float, ...]:
        """The durations kept, ascending."""
        return tuple(self._window(tool).ordered)

    def within(self, tool: str, seconds: float, elapsed_s: float = 0.0) -> float:
        """The probability that a run of `tool` that has run for `elapsed_s` ends in `seconds` more.

        Where nothing seen has lasted as long, nothing is known: 0.
        """
        return self._ended_by(tool, elapsed_s + seconds + _ROUNDING_S, elapsed_s)

    def quantile(self, tool: str, share: float, elapsed_s: float = 0.0) -> float | None:
        """The seconds from now in which `share` of such runs end.

        None where nothing is known: no duration was seen, or none as long as `elapsed_s`.
        """
        if not 0 < share <= 1:
            raise ValueError(f"a share must be above 0 and at most 1, not {share}")
        elapsed_s = max(0.0, elapsed_s)
        seen = sorted({*self._window(tool).ordered, *self._pool.ordered})
        left = [value for value in seen if value > elapsed_s or elapsed_s == 0]
        index = bisect_left(
            left, share - 1e-12, key=lambda value: self._ended_by(tool, value, elapsed_s)
        )
        return left[index] - elapsed_s if index < len(left) else None

    def _ended_by(self, tool: str, until_s: float, elapsed_s: float) -> float:
        """The probability that a run that has lasted `elapsed_s` lasts no longer than `until_s`."""
        below = self._cdf(tool, elapsed_s) if elapsed_s > 0 else 0.0
        if below >= 1.0:
            return 0.0
        return max(0.0, self._cdf(tool, until_s) - below) / (1.0 - below)

    def _window(self, tool: str | None) -> _Window:
        return self._pool if tool is None else self._tools.get(tool, _EMPTY)

    def _cdf(self, tool: str, seconds: float) -> float:
        """The share of runs that take at most `seconds`."""
        own, pool = self._window(tool), self._pool
        if not pool.ordered:
            return 0.0
        of_all = pool.up_to(seconds) / len(pool.ordered)
        count = len(own.ordered)
        return (own.up_to(seconds) + PRIOR * of_all) / (count + PRIOR)


_EMPTY = _Window(1)
