"""The default policy: keep KV while what it is expected to save exceeds the price of its memory.

A session of C tokens is worth keeping while (after ALGORITHMS.md card 1)

    hazard(t | elapsed) * R * lost > price * C

with the hazard taken over the best horizon (`Curve.peak`), since a tool that never ends within its
first second is still worth a second's wait for what comes after it. R is the time until the session
is there again, computed or copied back from the host, whichever is less; it counts once for each
call that the engine keeps waiting meanwhile (`price.py`). `lost` is the share of it that is gone
without a pin: an LRU cache keeps much of what comes back soon. Continuum's other term, T * eta, the
time that a session without KV queues for longer, is left out: while it waits others run in its
place, so in the sum over all calls nothing is lost, and the price has counted them already.
Both sides over C give one number per pin: its worth, in seconds of delay saved per token and second held from now
on. A pin is kept while its worth exceeds the price, so without pressure all are kept, and as the
price rises they go in order of worth.

A tool of which nothing is known, or that has outlasted all that is known, is taken to end at the
rate 1 / elapsed: a time without a scale. It is kept until holding it has cost what its loss would
cost, which is at most twice the best in hindsight (ski rental; Karlin et al. 1988).
"""

from math import inf

from .curve import Curve
from .state import Decision, Pause, Policy

MOMENT_S = 1e-3  # no end is nearer than this
SLACK = 0.25  # of what is left, by which a tool may be late by its own word
UNKNOWN_S = 1.0  # nothing is known: tools take Exp(1 s) at first, as in Continuum (2511.02230)


def benefit_s(pause: Pause) -> float:
    """The delay, over all calls, that holding the session saves if its tool ends now: seconds."""
    return pause.return_s * pause.price.slowed * pause.lost_share


def shadow_price(pause: Pause) -> Decision:
    """Keep while the worth exceeds the price.

    What a tool, or its author, says of its length counts for more than what was learned, until it
    has lasted longer.
    """
    if pause.eta_s is not None and pause.eta_s > pause.elapsed_s:
        return _told(pause, pause.eta_s - pause.elapsed_s, SLACK)
    curve = pause.durations.outlook(pause.tool)
    found = curve.peak(pause.elapsed_s) if curve is not None else None
    if curve is None or found is None:
        return _unknown(pause)
    rate, until_s = found
    mean_s = curve.mean_until(pause.elapsed_s, pause.price.lasts_s) if _passes(pause) else inf
    hold_s: float | None = None
    limit = _limit(pause)
    if limit:
        hold_s = _hold_s(pause, curve, limit)
        if 1 / mean_s > limit:
            hold_s = max(hold_s, pause.price.lasts_s)
    return _decision(pause, hold_s, max(rate, 1 / mean_s), until_s - pause.elapsed_s)


def clairvoyant(pause: Pause) -> Decision:
    """The same rule for one who knows how long the tool takes: `eta_s` is the truth.

    With the true duration it is the bound that other policies are compared with. It is one for
    retention by this rule alone: order and admission decide when the call then goes on.
    """
    if pause.eta_s is None:
        return _unknown(pause)
    return _told(pause, max(pause.eta_s - pause.elapsed_s, MOMENT_S))


def _told(pause: Pause, left_s: float, slack: float = 0.0) -> Decision:
    """A tool that is said to end in `left_s`; kept for a share of `slack` longer, should it be late."""
    rate = 1 / min(left_s, pause.price.lasts_s)
    limit = _limit(pause)
    hold_s = None if not limit else left_s * (1 + slack) if rate > limit else 0.0
    return _decision(pause, hold_s, rate, None)


def _unknown(pause: Pause) -> Decision:
    since_s = max(pause.elapsed_s, UNKNOWN_S)
    rate = 1 / min(since_s, pause.price.lasts_s)
    limit = _limit(pause)
    hold_s = None if not limit else max(0.0, 1 / limit - pause.elapsed_s) if rate > limit else 0.0
    return _decision(pause, hold_s, rate, since_s)


def _hold_s(pause: Pause, curve: Curve, limit: float) -> float:
    """For how long the hazard stays above `limit`; past all that is known it is 1 / elapsed."""
    until_s = curve.above(pause.elapsed_s, limit)
    if until_s >= curve.longest:
        until_s = max(until_s, 1 / limit)
    return until_s - pause.elapsed_s


def _passes(pause: Pause) -> bool:
    """Whether the queue is seen to end, so that holding costs nothing after it."""
    return 0 < pause.price.lasts_s < inf


def _limit(pause: Pause) -> float:
    """The hazard at which keeping costs as much as it saves: ends per second. 0: keep anyway."""
    cost = pause.price.per_token_s * pause.tokens
    benefit = benefit_s(pause)
    if cost <= 0:
        return 0.0
    return cost / benefit if benefit > 0 else inf


def _decision(pause: Pause, hold_s: float | None, rate: float, again_s: float | None) -> Decision:
    if hold_s == 0:
        again_s = None
    elif hold_s is not None and again_s is not None:
        again_s = min(again_s, hold_s)
    worth = rate * benefit_s(pause) / pause.tokens if pause.tokens else inf
    return Decision(hold_s, worth, again_s)


SHADOW_PRICE = Policy(shadow_price)
CLAIRVOYANT = Policy(clairvoyant)
