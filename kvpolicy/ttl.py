"""How long to keep a session while its tool runs: policies of one shape, by name.

`hold_s(pause)` returns the seconds from now for which the KV is to be kept; None: until it is
released; 0: not at all.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from math import isfinite, log, sqrt

from .durations import Durations
from .state import Hold, Pause

ENOUGH = 100  # Continuum: with as many samples or fewer, a distribution is not trusted
DEFAULT_FIXED_S = 10.0


def continuum_ttl(
    durations: Durations, tool: str, prefill_s: float, queue_delay_s: float, eta: float
) -> float:
    """Continuum's time to live (2511.02230, section 4): argmax of P(tau, f) * (T * eta + R) - tau.

    Candidates are 0 and the durations seen; of equals the shortest is taken. With at most 100
    samples in all, durations are taken as Exp(1) and eta as 1, which gives ln(T + R); with at most
    100 of the tool, those of all tools are used.
    """
    if durations.count() <= ENOUGH:
        benefit = queue_delay_s + prefill_s
        return log(benefit) if benefit > 1 else 0.0
    benefit = queue_delay_s * eta + prefill_s
    seen = durations.samples(tool if durations.count(tool) > ENOUGH else None)
    best_s, best = 0.0, 0.0
    for index, tau in enumerate(seen):
        if index + 1 < len(seen) and seen[index + 1] == tau:
            continue  # the share counts all durations up to tau, repeats included
        worth = (index + 1) / len(seen) * benefit - tau
        if worth > best:
            best_s, best = tau, worth
    return best_s


def fixed_ttl(seconds: float) -> Hold:
    """Holds every session for the same time, counted from the start of its tool."""
    if not isfinite(seconds) or seconds < 0:
        raise ValueError(f"a time to live must be 0 s or more, not {seconds}")
    return lambda pause: max(0.0, seconds - pause.elapsed_s)


def _continuum(pause: Pause) -> float:
    """Continuum's rule. Asked again while the tool runs, it says what is left of the time."""
    found = continuum_ttl(
        pause.durations, pause.tool, pause.rebuild_s, pause.queue_delay_s, pause.eta
    )
    return max(0.0, found - pause.elapsed_s)


POLICIES: Mapping[str, Hold] = {
    "continuum": _continuum,
    "fixed": fixed_ttl(DEFAULT_FIXED_S),
    "never": lambda pause: 0.0,
    "forever": lambda pause: None,
}


def named(name: str) -> Hold:
    """The policy of that name; "fixed:30" holds for 30 s."""
    head, _, seconds = name.partition(":")
    if head == "fixed" and seconds:
        try:
            return fixed_ttl(float(seconds))
        except ValueError as error:
            raise ValueError(f"policy {name!r}: {error}") from None
    if name not in POLICIES:
        known = ", ".join(POLICIES)
        raise ValueError(f"there is no retention policy {name!r}; known: {known}, fixed:SECONDS")
    return POLICIES[name]


# ---- the terms of Continuum's benefit -----------------------------------------------------------


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
