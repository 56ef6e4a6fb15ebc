"""How far the mean of bounded losses may lie above what was measured: exact at any sample size."""

import math
from collections.abc import Sequence

_GRID = 400


def upper_bound(
    losses: Sequence[float], delta: float, low: float = -1.0, high: float = 1.0
) -> float:
    """With probability 1 - delta the mean of the losses' distribution lies below this.

    By betting (Waudby-Smith and Ramdas, 2010.09686, section 4): wealth that bets against a mean m
    grows if m is too large; m is ruled out once its wealth reaches 1 / delta. `losses` must be
    independent and lie in [low, high]; their order matters, so hand them over shuffled.
    """
    if not 0.0 < delta < 1.0:
        raise ValueError(f"delta is {delta}; it must lie between 0 and 1")
    if not low < high:
        raise ValueError(f"low {low} must be below high {high}")
    if any(not low <= loss <= high for loss in losses):
        raise ValueError(f"a loss lies outside [{low}, {high}]")
    scaled = [(loss - low) / (high - low) for loss in losses]
    bets = _bets(scaled, delta)
    below, above = 0, _GRID
    while below < above:  # the lowest mean that is ruled out; wealth rises with the mean
        middle = (below + above) // 2
        if _ruled_out(scaled, bets, middle / _GRID, delta):
            above = middle
        else:
            below = middle + 1
    return low + _refined(scaled, bets, below, delta) * (high - low)


def problems_needed(budget: float, delta: float, low: float = -1.0, high: float = 1.0) -> int:
    """How many problems without any loss it takes to vouch for a loss below `budget`."""
    if budget <= 0:
        raise ValueError(f"budget is {budget}; it must be above 0")
    few, many = 1, 2
    while upper_bound([0.0] * many, delta, low, high) > budget:
        few, many = many, many * 2
        if many > 1 << 20:
            return many
    while few < many:
        middle = (few + many) // 2
        if upper_bound([0.0] * middle, delta, low, high) <= budget:
            many = middle
        else:
            few = middle + 1
    return many


def _bets(scaled: Sequence[float], delta: float) -> list[float]:
    """The predictable plug-in bets: larger where the losses so far vary less."""
    mean, square, bets = 0.5, 0.25, list[float]()
    total, n = 0.5, len(scaled)
    for at, value in enumerate(scaled, 1):
        variance = square / at
        bets.append(math.sqrt(2 * math.log(1 / delta) / (max(variance, 1e-12) * max(1, n))))
        total += value
        mean = total / (at + 1)
        square += (value - mean) ** 2
    return bets


def _ruled_out(scaled: Sequence[float], bets: Sequence[float], mean: float, delta: float) -> bool:
    if mean >= 1.0:
        return True
    most = 0.75 / (1.0 - mean)
    wealth, wanted = 0.0, math.log(1 / delta)
    for value, bet in zip(scaled, bets, strict=True):
        wealth += math.log1p(-min(bet, most) * (value - mean))
        if wealth >= wanted:
            return True
    return False


def _refined(scaled: Sequence[float], bets: Sequence[float], at: int, delta: float) -> float:
    """The bound within its cell of the grid, to a hundredth of the cell."""
    low, high = max(0, at - 1) / _GRID, at / _GRID
    for _ in range(7):
        middle = (low + high) / 2
        if _ruled_out(scaled, bets, middle, delta):
            high = middle
        else:
            low = middle
    return high
