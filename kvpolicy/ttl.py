"""Continuum's time to live (2511.02230) and the terms of its benefit."""

from collections import deque
from collections.abc import Iterable, Sequence
from math import log, sqrt

from .durations import Durations

ENOUGH = 100  # Continuum: with as many samples or fewer, a distribution is not trusted
_BLOCK = 64


def continuum_ttl(
    durations: Durations, tool: str, prefill_s: float, queue_delay_s: float, eta: float
) -> float:
    """Continuum's time to live (section 4): argmax of P(tau, f) * (T * eta + R) - tau.

    Candidates are 0 and the durations seen; of equals the shortest is taken. With at most 100
    samples in all, durations are taken as Exp(1) and eta as 1, which gives ln(T + R); with at most
    100 of the tool, those of all tools are used.
    """
    if durations.count() <= ENOUGH:
        benefit = queue_delay_s + prefill_s
        return log(benefit) if benefit > 1 else 0.0
    benefit = queue_delay_s * eta + prefill_s
    seen = durations.samples(tool if durations.count(tool) > ENOUGH else None)
    return _best(seen, benefit)


def _best(seen: Sequence[float], benefit: float) -> float:
    """The time with the highest worth, which is P(time) * benefit - time; 0 where none is above 0.

    Blocks of times that cannot hold it are passed over: their first is the cheapest, their last
    the most likely. Of equal times the last has the share of all of them.
    """
    each = benefit / len(seen)
    ends = [min(start + _BLOCK, len(seen)) for start in range(0, len(seen), _BLOCK)]
    best_s, best = 0.0, 0.0
    floor = max(end * each - seen[end - 1] for end in ends)
    for start, end in zip(range(0, len(seen), _BLOCK), ends, strict=True):
        bound = end * each - seen[start]
        if bound <= best or bound < floor:
            continue
        for at in range(start, end):
            worth = (at + 1) * each - seen[at]
            if worth > best:
                best_s, best = seen[at], worth
    return best_s


class QueueDelay:
    """T: the mean queueing delay of the last sessions that came back without their KV.

    Starts at 0, as in Continuum.
    """

    def __init__(self, last: int = 100) -> None:
        self._seen: deque[float] = deque(maxlen=last)

    def add(self, seconds: float) -> None:
        self._seen.append(seconds)

    @property
    def mean_s(self) -> float:
        return sum(self._seen) / len(self._seen) if self._seen else 0.0


def turns_eta(turns: Iterable[int]) -> float:
    """eta: -Corr(turns served, turns remaining) over programs with so many turns each.

    1 where all have as many turns, about 0 where a program's age says nothing of its end. 1, as in
    a cold start, where there is too little to tell; never below 0.
    """
    points = [(served, count - served) for count in turns for served in range(1, count + 1)]
    size = len(points)
    if size < 2:
        return 1.0
    mean_x = sum(x for x, _ in points) / size
    mean_y = sum(y for _, y in points) / size
    covariance = sum((x - mean_x) * (y - mean_y) for x, y in points)
    spread = sqrt(sum((x - mean_x) ** 2 for x, _ in points))
    spread *= sqrt(sum((y - mean_y) ** 2 for _, y in points))
    return min(1.0, max(0.0, -covariance / spread)) if spread > 0 else 1.0
