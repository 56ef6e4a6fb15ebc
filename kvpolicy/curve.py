"""What a distribution of amounts says to one who waits for the end: tails computed once.

Holding KV for a tool is a stopping problem: each second costs, the end pays once. What counts is
not the hazard of this very moment but the best that any horizon offers,

    peak(t) = max over s > t of  P(ends by s | lasts beyond t) / E[time until s or the end]

which is the Gittins index of a job whose length is unknown (Gittins 1979; Aalto, Ayesta and Righter
2009). In the plane of (expected time held, share ended) it is the steepest chord from the point of
now, so the upper hull of the curve answers every query with a short walk.
"""

from bisect import bisect_right
from collections.abc import Sequence

RESOLUTION = 0.1  # an end is not foreseen more exactly than to this share of the time elapsed


class Curve:
    """A distribution given by the shares of amounts up to each of some knots.

    `knots` ascend from 0, and `ended` has the share of amounts that are at most each knot; it
    stays below 1 by `beyond`, the share that outlasts all that was seen.
    """

    __slots__ = ("_ended", "_held", "_knots", "_next", "_rates", "beyond")

    def __init__(self, knots: Sequence[float], ended: Sequence[float], beyond: float) -> None:
        self._knots = knots
        self._ended = ended
        self.beyond = beyond
        self._held = _held(knots, ended)  # mean time up to a knot, or to the end before it
        self._rates, self._next = _hull(self._held, ended)

    @property
    def longest(self) -> float:
        """The longest amount seen; nothing is known beyond it."""
        return self._knots[-1]

    def peak(self, elapsed: float) -> tuple[float, float] | None:
        """The highest rate of ending over any horizon, and the time at which that horizon ends.

        None where nothing seen has lasted as long.
        """
        here = bisect_right(self._knots, elapsed) - 1
        if here >= len(self._knots) - 1:
            return None
        held, ended = self._held_by(elapsed), self._ended[here]
        least = (1.0 - ended) * elapsed * RESOLUTION
        best, best_at = 0.0, here + 1
        at = here + 1
        while at:
            ahead = self._held[at] - held
            rate = (self._ended[at] - ended) / max(ahead, least)
            if rate >= best:
                best, best_at = rate, at
            elif ahead > least:
                break
            at = self._next[at]
        return best, self._knots[best_at]

    def above(self, elapsed: float, rate: float) -> float:
        """Until which time the peak stays above `rate`; `elapsed` where it is not.

        Jumping from vertex to vertex of the hull is enough: between two, the peak is higher than
        at the first. The last answer is the longest amount seen.
        """
        found = self.peak(elapsed)
        if found is None or found[0] <= rate:
            return elapsed
        at = bisect_right(self._knots, found[1]) - 1
        while self._next[at] and self._rates[at] > rate:
            at = self._next[at]
        return self._knots[at]

    def mean_until(self, elapsed: float, horizon: float) -> float:
        """The mean time from `elapsed` to the end, or to `horizon` more where that comes first."""
        until = self._held_by(min(elapsed + horizon, self.longest))
        further = max(0.0, elapsed + horizon - max(elapsed, self.longest)) * self.beyond
        lasting = 1.0 - self._ended[bisect_right(self._knots, elapsed) - 1]
        return (max(0.0, until - self._held_by(min(elapsed, self.longest))) + further) / lasting

    def mean_left(self, elapsed: float) -> float | None:
        """The mean time from `elapsed` to the end among what was seen; None beyond all of it."""
        if elapsed >= self.longest:
            return None
        held = self._held[-1] - self._held_by(elapsed) - (self.longest - elapsed) * self.beyond
        lasting = 1.0 - self._ended[bisect_right(self._knots, elapsed) - 1] - self.beyond
        return max(0.0, held) / lasting

    def _held_by(self, time: float) -> float:
        at = bisect_right(self._knots, time) - 1
        return self._held[at] + (1.0 - self._ended[at]) * (time - self._knots[at])


def _held(knots: Sequence[float], ended: Sequence[float]) -> list[float]:
    held = [0.0]
    for at in range(1, len(knots)):
        held.append(held[-1] + (1.0 - ended[at - 1]) * (knots[at] - knots[at - 1]))
    return held


def _hull(held: Sequence[float], ended: Sequence[float]) -> tuple[list[float], list[int]]:
    """For each knot the steepest chord to a later one: its slope, and the knot (0: there is none)."""
    last = len(held) - 1
    rates, best = [0.0] * (last + 1), [0] * (last + 1)
    for at in range(last - 1, -1, -1):
        x, y = held[at], ended[at]
        to = at + 1
        rate = (ended[to] - y) / (held[to] - x)
        while best[to]:
            further = (ended[best[to]] - y) / (held[best[to]] - x)
            if further < rate:
                break
            to, rate = best[to], further
        rates[at], best[at] = rate, to
    return rates, best
