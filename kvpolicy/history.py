"""What amounts of some kind were in the past: seconds of tools, tokens of answers, turns.

Amounts are kept under keys of one or two words, "shell" or "shell pytest". What is said of a key is
shrunk toward its first word, and that toward the pool of all keys: n amounts of its own count n
against `PRIOR` of the level above, so that a new key starts as a common one and becomes itself. On
public traces the distribution of one tool is often no better than the pooled one (ALGORITHMS.md
cards 1 and 8). Every answer can be conditional on how far it has come already, since what lasts a
minute is not one of the quick ones.
"""

from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from itertools import pairwise
from math import isfinite
from typing import Any, Self

from .curve import Curve
from .window import Window

KEPT = 1_000  # amounts of one key
POOL_KEPT = 4_000  # amounts of all keys together
KEYS = 1_000  # first words remembered, and keys of two; the one not seen for longest is forgotten
PRIOR = 8.0
KNOTS = 24  # of a curve, for each level
APART = 1e-9  # amounts that differ by less than this share are one
STALE = 1 / 16  # of a level's amounts may be newer than a curve
WORD = 40  # characters of a word that tell
_ROUNDING = 1e-9  # what the sum of two amounts may be off by


def key(head: str, text: str = "") -> str:
    """The key of `head` (a tool, a workflow) and of the first word of `text`."""
    words = text.split(maxsplit=1)
    first = "_".join(head.split())
    return f"{first} {words[0][:WORD]}" if words else first


class History:
    """What is known of the amounts under each key. `observe` every one; ask the rest.

    A query costs microseconds: a few bisections of sorted windows. `outlook` computes a curve of
    at most 3 * `KNOTS` + 1 points when a sixteenth of what it rests on is new.
    """

    def __init__(self) -> None:
        self._pool = Window(POOL_KEPT)
        self._heads: OrderedDict[str, Window] = OrderedDict()
        self._keys: OrderedDict[str, Window] = OrderedDict()
        self._curves: dict[str, tuple[Curve, tuple[int, ...]]] = {}

    # ---- learning -------------------------------------------------------------------------------

    def observe(self, key: str, amount: float) -> None:
        """One more amount of `key`."""
        if not isfinite(amount) or amount < 0:
            raise ValueError(f"an amount must be 0 or more, not {amount}")
        head, _, word = key.partition(" ")
        self._pool.add(amount)
        self._level(self._heads, head).add(amount)
        if word:
            self._level(self._keys, key).add(amount)

    def _level(self, level: OrderedDict[str, Window], name: str) -> Window:
        window = level.get(name)
        if window is None:
            if len(level) == KEYS:
                self._curves.pop(level.popitem(last=False)[0], None)
            window = level[name] = Window(KEPT)
        level.move_to_end(name)
        return window

    # ---- what was seen --------------------------------------------------------------------------

    def count(self, key: str | None = None) -> int:
        """How many amounts are kept, of one key or of all."""
        return len(self._own(key))

    def samples(self, key: str | None = None) -> tuple[float, ...]:
        """The amounts kept, ascending."""
        return tuple(self._own(key).ordered)

    def _own(self, key: str | None) -> Window:
        if key is None:
            return self._pool
        return (self._keys if " " in key else self._heads).get(key, _EMPTY)

    def _windows(self, key: str) -> list[Window]:
        """The pool, and what is there of the first word and of the key itself."""
        windows = [self._pool]
        head, _, word = key.partition(" ")
        if (window := self._heads.get(head)) is not None:
            windows.append(window)
        if word and (window := self._keys.get(key)) is not None:
            windows.append(window)
        return windows

    # ---- what to expect -------------------------------------------------------------------------

    def share(self, key: str, amount: float) -> float:
        """The share of amounts of `key` that are at most `amount`; 0 where nothing was seen."""
        return _share(self._windows(key), amount)

    def place(self, key: str, amount: float) -> tuple[float, float]:
        """The shares of amounts of `key` that are below `amount`, and that are at most it."""
        head, _, word = key.partition(" ")
        pool = self._pool.ordered
        if not pool:
            return 0.0, 0.0
        below = bisect_left(pool, amount) / len(pool)
        most = bisect_right(pool, amount) / len(pool)
        window = self._heads.get(head)
        while window is not None:
            own = window.ordered
            size = len(own) + PRIOR
            below = (bisect_left(own, amount) + PRIOR * below) / size
            most = (bisect_right(own, amount) + PRIOR * most) / size
            window, word = (self._keys.get(key), "") if word else (None, "")
        return below, most

    def within(self, key: str, more: float, so_far: float = 0.0) -> float:
        """The probability that what has come to `so_far` ends within `more`.

        Where nothing seen has come as far, nothing is known: 0.
        """
        windows = self._windows(key)
        below = _share(windows, so_far) if so_far > 0 else 0.0
        if below >= 1.0:
            return 0.0
        until = _share(windows, so_far + more + _ROUNDING)
        return max(0.0, until - below) / (1.0 - below)

    def survival(self, key: str, more: float, so_far: float = 0.0) -> float:
        """The probability that what has come to `so_far` goes on for longer than `more`."""
        return 1.0 - self.within(key, more, so_far)

    def quantile(self, key: str, share: float, so_far: float = 0.0) -> float | None:
        """How much more it takes until `share` of those that have come to `so_far` have ended.

        None where nothing is known: nothing was seen, or nothing that came as far.
        """
        if not 0 < share <= 1:
            raise ValueError(f"a share must be above 0 and at most 1, not {share}")
        so_far = max(0.0, so_far)
        windows = self._windows(key)
        below = _share(windows, so_far) if so_far > 0 else 0.0
        if below >= 1.0 or not self._pool.ordered:
            return None
        target = below + (share - 1e-12) * (1.0 - below)
        return max(0.0, _least(windows, target, so_far) - so_far)

    def hazard(self, key: str, horizon: float, so_far: float = 0.0) -> float | None:
        """The rate of ending over the next `horizon`: ends per unit. None where nothing is known."""
        curve = self.outlook(key)
        if curve is None or so_far >= curve.longest:
            return None
        time = curve.mean_until(so_far, horizon)
        return self.within(key, horizon, so_far) / time if time > 0 else 0.0

    def mean_left(self, key: str, so_far: float = 0.0) -> float | None:
        """The mean of what is still to come; None where nothing is known."""
        if so_far <= 0:
            return _mean(self._windows(key))
        curve = self.outlook(key)
        return None if curve is None else curve.mean_left(so_far)

    def outlook(self, key: str) -> Curve | None:
        """The distribution of `key` as a curve to wait by; None where nothing was seen."""
        windows = self._windows(key)
        if not self._pool.ordered or self._pool.ordered[-1] <= 0:
            return None
        head = key.partition(" ")[0]
        name = key if key in self._keys else head if head in self._heads else ""
        found = self._curves.get(name)
        if found is None or _stale(windows, found[1]):
            found = _curve(windows), tuple(window.added for window in windows)
            self._curves[name] = found
        return found[0]

    # ---- as data --------------------------------------------------------------------------------

    def snapshot(self, last: int = KEPT) -> dict[str, Any]:
        """What was learned as plain data for JSON: of each level the `last` amounts, oldest first."""
        return {
            "pool": _last(self._pool, POOL_KEPT if last >= KEPT else last),
            "heads": {name: _last(window, last) for name, window in self._heads.items()},
            "keys": {name: _last(window, last) for name, window in self._keys.items()},
        }

    def merge(self, data: Mapping[str, Any]) -> None:
        """Learn from a snapshot too; its amounts count as older than those already here."""
        pool, heads, keys = _checked(data)
        self._pool = self._pool.merged(pool)
        self._heads = _merged(self._heads, heads)
        self._keys = _merged(self._keys, keys)
        self._curves.clear()

    @classmethod
    def restore(cls, data: Mapping[str, Any]) -> Self:
        """What `snapshot` has written. Raises ValueError for anything else."""
        history = cls()
        history.merge(data)
        return history


_EMPTY = Window(1)


def _share(windows: list[Window], amount: float) -> float:
    """The share of amounts up to `amount`, each level shrunk toward the one before it."""
    pool = windows[0].ordered
    if not pool:
        return 0.0
    share = bisect_right(pool, amount) / len(pool)
    for window in windows[1:]:
        own = window.ordered
        share = (bisect_right(own, amount) + PRIOR * share) / (len(own) + PRIOR)
    return share


def _mean(windows: list[Window]) -> float | None:
    """The mean amount, each level shrunk toward the one before it; None where nothing was seen."""
    pool = windows[0]
    if not pool.ordered:
        return None
    mean = pool.total / len(pool.ordered)
    for window in windows[1:]:
        mean = (window.total + PRIOR * mean) / (len(window.ordered) + PRIOR)
    return max(0.0, mean)


def _least(windows: list[Window], target: float, above: float) -> float:
    """The least amount seen above `above` up to which there is a share of `target`.

    Each level narrows the range in which the next one has to look.
    """
    low, high = (above if above > 0 else -1.0), max(window.ordered[-1] for window in windows)
    for window in windows:
        ordered = window.ordered
        left, right = bisect_right(ordered, low), bisect_left(ordered, high)
        at = bisect_left(ordered, target, left, right, key=lambda amount: _share(windows, amount))
        if at < right:
            high = ordered[at]
        if at > left:
            low = ordered[at - 1]
    return high


def _ranks(size: int) -> Iterator[int]:
    """Of so many ordered amounts those that make a curve: evenly spread, and finer at the end."""
    if size <= KNOTS:
        yield from range(size)
        return
    even = KNOTS * 2 // 3
    yield from (at * (size - 1) // even for at in range(even + 1))
    yield from (size - 1 - 2**power for power in range(KNOTS - even) if 2**power < size)


def _curve(windows: list[Window]) -> Curve:
    chosen = {window.ordered[at] for window in windows for at in _ranks(len(window))}
    knots = _apart(sorted({0.0, *chosen}))
    size = len(windows[0])
    ended = [_share(windows, knot) * size / (size + 1) for knot in knots]
    return Curve(knots, ended, beyond=1 / (size + 1))


def _apart(knots: list[float]) -> list[float]:
    """`knots` without those that differ from the next one by no more than rounding does."""
    pairs = pairwise(knots)
    return [low for low, high in pairs if high - low > APART * high] + knots[-1:]


def _stale(windows: list[Window], added: tuple[int, ...]) -> bool:
    return len(windows) != len(added) or any(
        abs(window.added - then) > STALE * len(window)
        for window, then in zip(windows, added, strict=True)
    )


def _last(window: Window, last: int) -> list[float]:
    recent = list(window.recent)
    return recent[max(0, len(recent) - last) :]


def _merged(own: OrderedDict[str, Window], others: dict[str, list[float]]) -> Any:
    """Both, with the keys of `others` as those not seen for longest."""
    both = OrderedDict((name, Window(KEPT, found)) for name, found in others.items() if found)
    for name, window in own.items():
        both[name] = window.merged(others.get(name, ()))
        both.move_to_end(name)
    while len(both) > KEYS:
        both.popitem(last=False)
    return both


def _checked(
    data: Mapping[str, Any],
) -> tuple[list[float], dict[str, list[float]], dict[str, list[float]]]:
    try:
        pool = [_amount(one) for one in data["pool"]]
        heads, keys = (
            {str(name): [_amount(one) for one in amounts] for name, amounts in data[level].items()}
            for level in ("heads", "keys")
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"this is not a snapshot of a history, which has amounts under pool, heads and keys: "
            f"{error!r}"
        ) from None
    return pool, heads, keys


def _amount(one: Any) -> float:
    amount = float(one)
    if not isfinite(amount) or amount < 0:
        raise ValueError(f"an amount must be 0 or more, not {amount}")
    return amount
