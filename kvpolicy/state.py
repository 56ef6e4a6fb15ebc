"""The nouns of retention: a pause that is asked about, and the pin that is the answer."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .durations import Durations

PREFILL_TOKENS_PER_S = 5_000.0  # until a worker's own rate is known


@dataclass(frozen=True, slots=True)
class Pause:
    """A session whose program runs a tool: what a policy is asked about.

    `prefill_s`: computing the session's tokens again; None: guessed from their number.
    `queue_delay_s`: what sessions that lost their KV have lately waited in addition. `eta`: how
    much a session's age tells of its end, from 1 (every program has as many turns) to 0 (nothing).
    `eta_s`: how long the tool itself expects to take. `waiting`: calls that wait for this model.
    `durations` is only read.
    """

    tool: str
    durations: Durations
    tokens: int = 0
    elapsed_s: float = 0.0  # for how long the tool has run already
    eta_s: float | None = None
    waiting: int = 0
    prefill_s: float | None = None
    queue_delay_s: float = 0.0
    eta: float = 1.0

    @property
    def rebuild_s(self) -> float:
        """The seconds that it takes to compute the session's KV again."""
        return self.tokens / PREFILL_TOKENS_PER_S if self.prefill_s is None else self.prefill_s


Hold = Callable[[Pause], float | None]
"""A policy: the seconds from now to keep the KV; None: until released; 0: not at all."""


@dataclass(frozen=True, slots=True)
class Pin:
    """The promise to keep a session's KV until a time; None: until it is released."""

    session: str
    until_s: float | None
    tokens: int = 0


def expired(pins: Iterable[Pin], now_s: float) -> tuple[Pin, ...]:
    """All pins whose time is over.

    Continuum's published code removes pins from the list it walks over, and so misses every
    second one (ALGORITHMS.md card 1); this only reads.
    """
    return tuple(pin for pin in pins if pin.until_s is not None and pin.until_s <= now_s)
