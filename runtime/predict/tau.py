"""Kendall's tau-b: how well one order agrees with another, where both may have ties."""

from collections import Counter
from collections.abc import Iterable, Sequence
from math import sqrt


def kendall_tau(expected: Sequence[float], found: Sequence[float]) -> float:
    """tau-b of two rankings of the same things, from -1 to 1; 0 where one of them has no order.

    Knight's method (1966), O(n log n): sorted by the one, the discordant pairs are the exchanges
    that a merge sort by the other takes.
    """
    if len(expected) != len(found):
        raise ValueError(f"two rankings of the same things: {len(expected)} and {len(found)}")
    pairs = sorted(zip(expected, found, strict=True))
    total = _pairs(len(pairs))
    tied_expected = _tied(expected)
    tied_found = _tied(found)
    discordant = _exchanges([one for _, one in pairs])
    concordant = total - tied_expected - tied_found + _tied(pairs) - discordant
    scale = sqrt((total - tied_expected) * (total - tied_found))
    return (concordant - discordant) / scale if scale else 0.0


def tau_error(size: int) -> float:
    """The standard error of tau between `size` things that have nothing to do with each other."""
    return sqrt(2 * (2 * size + 5) / (9 * size * (size - 1))) if size > 1 else 1.0


def _pairs(size: int) -> int:
    return size * (size - 1) // 2


def _tied(values: Iterable[object]) -> int:
    return sum(map(_pairs, Counter(values).values()))


def _exchanges(values: list[float]) -> int:
    """Sort `values` in place; how many pairs of them were in the wrong order."""
    if len(values) < 2:
        return 0
    middle = len(values) // 2
    left, right = values[:middle], values[middle:]
    count = _exchanges(left) + _exchanges(right)
    at = other = 0
    for place in range(len(values)):
        if other == len(right) or (at < len(left) and left[at] <= right[other]):
            values[place] = left[at]
            at += 1
        else:
            values[place] = right[other]
            other += 1
            count += len(left) - at
    return count
