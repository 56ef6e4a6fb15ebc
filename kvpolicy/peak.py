"""How much KV the running calls will hold at the most: Past-Future's estimate (2507.10150).

Calls grow by a token per step and free all they hold at their end. So memory peaks just before some
call ends, and the lengths of late answers say when that may be.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate, count
from operator import add, mul, sub
from random import Random

from .window import Window

OUTPUTS = 200  # late answers that tell of the next ones


def outputs_seen(lengths: Iterable[float] = ()) -> Window:
    """A window of the last 200 output lengths, in tokens."""
    return Window(OUTPUTS, lengths)


def sample_length(produced: float, most: int, ordered: Sequence[float], random: Random) -> float:
    """How many tokens a call produces in all: drawn from the lengths above what it has produced.

    `most` is what it may produce, and counts where no late answer was longer. `ordered` are late
    output lengths, ascending.
    """
    longer = bisect_right(ordered, produced)
    if longer == len(ordered):
        return most
    return min(most, ordered[longer + int(random.random() * (len(ordered) - longer))])


def peak_tokens(calls: Iterable[tuple[float, float]]) -> float:
    """The most KV tokens held at once by calls given as (used, left) tokens.

    Sorted by what is left, descending, the first i calls all still run when the i-th one ends, each
    longer by that call's rest: max over i of left_i * i + the used tokens of the first i.
    """
    by_left = sorted(calls, key=lambda call: call[1], reverse=True)
    used = accumulate(own for own, _ in by_left)
    grown = map(mul, (left for _, left in by_left), count(1))
    return max(map(add, used, grown), default=0)


class Future:
    """How the calls of one worker may go on: when each ends, and what they hold until then.

    Time is counted in steps, of which each adds a token to each call. A call is given as the step
    at which it ends and the tokens that it would have held at step 0. Seen so, what is held at an
    end does not change while time passes, only when calls come and go. So it is summed up then,
    in O(calls), and weighing one more call takes the greatest of the sums.
    """

    __slots__ = ("_ends", "_grown", "_held", "_names", "_used", "_used_by")

    def __init__(self) -> None:
        self._names: list[str] = []  # the call that ends last comes first
        self._ends: list[float] = []  # the same calls' ends, negative and thus ascending
        self._used: list[float] = []
        self._held: list[float] | None = None  # at the end of each; None: not summed up yet
        self._used_by: list[float] = []  # of `_used`, by the first ones together
        self._grown: list[float] = []  # `_held`, if there were a call more, of no tokens at step 0

    def add(self, name: str, end: float, used: float) -> None:
        """One more call runs."""
        place = bisect_left(self._ends, -end)
        self._names.insert(place, name)
        self._ends.insert(place, -end)
        self._used.insert(place, used)
        self._held = None

    def remove(self, name: str, end: float) -> None:
        """A call that was to end at `end` has ended."""
        place = self._names.index(name, bisect_left(self._ends, -end))
        del self._names[place], self._ends[place], self._used[place]
        self._held = None

    def overdue(self, step: float) -> list[str]:
        """The calls that were to end by `step`."""
        return self._names[bisect_left(self._ends, -step) :]

    def peak(self, end: float, used: float) -> float:
        """The most tokens held at once with one more call."""
        held = self._held if self._held is not None else self._sum_up()
        longer = bisect_left(self._ends, -end)
        own = end * (longer + 1) + used + (self._used_by[longer - 1] if longer else 0)
        before = max(held[:longer], default=0)
        return max(own, before, max(self._grown[longer:], default=-used) + used)

    def _sum_up(self) -> list[float]:
        self._used_by = list(accumulate(self._used))
        held = list(map(sub, self._used_by, map(mul, self._ends, count(1))))
        self._grown = list(map(sub, held, self._ends))
        self._held = held
        return held
