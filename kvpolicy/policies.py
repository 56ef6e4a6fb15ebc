"""The retention policies by name, all of one shape: a pause in, a decision out.

The default is "shadow-price"; the others are there for comparison over the same pauses. "never"
leaves the KV to the server's own order of eviction (LRU), which is what a stock server does. Those
that begin with "clairvoyant" are for bounds: they take what a tool says of its length for the truth.
"""

from collections.abc import Mapping
from dataclasses import replace
from math import isfinite

from .shadow_price import CLAIRVOYANT, MOMENT_S, SHADOW_PRICE
from .state import Decision, Pause, Policy
from .ttl import continuum_ttl

DEFAULT_POLICY = "shadow-price"
DEFAULT_FIXED_S = 10.0


def never(pause: Pause) -> Decision:
    """No pin at all: least recently used goes first, as on a stock server."""
    return Decision(0.0)


def forever(pause: Pause) -> Decision:
    """Until released; under pressure what has been idle for longest goes first."""
    return Decision(None, _recent(pause))


def fixed_ttl(seconds: float) -> Policy:
    """Holds every session for the same time, counted from the start of its tool."""
    if not isfinite(seconds) or seconds < 0:
        raise ValueError(f"a time to live must be 0 s or more, not {seconds}")
    return Policy(lambda pause: Decision(max(0.0, seconds - pause.elapsed_s), _recent(pause)))


def continuum(pause: Pause) -> Decision:
    """Continuum (2511.02230): its time to live; the program that arrived last loses its pin first.

    Asked again while the tool runs, it says what is left of the time.
    """
    found_s = continuum_ttl(
        pause.durations, pause.tool, pause.return_s, pause.queue_delay_s, pause.eta
    )
    return Decision(max(0.0, found_s - pause.elapsed_s), 1 / (1 + pause.arrival))


def min_waste(pause: Pause) -> Decision:
    """InferCept (2402.01869): whatever wastes the least memory and time, in token-seconds.

    Discarding wastes T_fwd(C) * (C + C_other) in recomputation, swapping 2 * T_swap(C) * (C +
    C_other) in waiting for the copies, preserving T_int * C. The length of the interception is
    estimated by the time that it has taken so far, so KV is kept until that waste reaches the
    lesser of the others.
    """
    if not pause.tokens:
        return Decision(None)
    left_s = max(0.0, _even_s(pause) - pause.elapsed_s)
    return Decision(left_s, left_s)


def _even_s(pause: Pause) -> float:
    """The length of an interception at which preserving wastes as much as the lesser of the others."""
    return_s = pause.rebuild_s
    if pause.reload_s is not None:
        return_s = min(return_s, 2 * pause.reload_s)
    return return_s * (pause.tokens + pause.running_tokens) / pause.tokens


def clairvoyant_waste(pause: Pause) -> Decision:
    """InferCept's rule for one who knows how long the tool takes: `eta_s` is the truth."""
    if pause.eta_s is None or not pause.tokens:
        return min_waste(pause)
    left_s, even_s = max(pause.eta_s - pause.elapsed_s, MOMENT_S), _even_s(pause)
    return Decision(left_s if left_s <= even_s else 0.0, even_s / left_s)


def clairvoyant_next(pause: Pause) -> Decision:
    """Nothing has a time to live; what is needed last goes first (Belady 1966), `eta_s` the truth."""
    if pause.eta_s is None:
        return forever(pause)
    return Decision(None, 1 / max(pause.eta_s - pause.elapsed_s, MOMENT_S))


def steps_to_execution(pause: Pause) -> Decision:
    """KVFlow (2507.07400): what the graph needs last goes first; what it does not know, before.

    Nothing has a time to live; eviction takes place under pressure only.
    """
    return Decision(None, 0.0 if pause.steps is None else 1 / (1 + pause.steps))


def tiered(policy: Policy, tokens_per_s: float) -> Policy:
    """`policy` where lost KV comes back from the host's memory at `tokens_per_s`."""
    if not tokens_per_s > 0:
        raise ValueError(f"a rate must be above 0 tokens/s, not {tokens_per_s}")
    return Policy(lambda pause: policy.decide(replace(pause, reload_s=pause.tokens / tokens_per_s)))


def _recent(pause: Pause) -> float:
    return 1 / (1 + pause.elapsed_s)


POLICIES: Mapping[str, Policy] = {
    DEFAULT_POLICY: SHADOW_PRICE,
    "continuum": Policy(continuum),
    "fixed": fixed_ttl(DEFAULT_FIXED_S),
    "never": Policy(never),
    "forever": Policy(forever),
    "min-waste": Policy(min_waste),
    "steps-to-execution": Policy(steps_to_execution),
    "clairvoyant": CLAIRVOYANT,
    "clairvoyant-waste": Policy(clairvoyant_waste),
    "clairvoyant-next": Policy(clairvoyant_next),
}


def named(name: str) -> Policy:
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
