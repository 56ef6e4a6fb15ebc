"""The nouns of retention: a pause that is asked about, the decision, and the pin it leads to."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import inf

from .durations import Durations
from .price import FREE, Price

PREFILL_TOKENS_PER_S = 5_000.0  # until a worker's own rate is known


@dataclass(frozen=True, slots=True)
class Pause:
    """A session whose program runs a tool: what a policy is asked about.

    `tool`: its key in `durations`, which are only read. `eta_s`: how long it takes in all, as the
    tool or its author says. `prefill_s`: computing the session's tokens again; None: guessed from
    their number. `reload_s`: loading them back from a host tier; None: there is none. `lost_share`: how much of a
    session that is not pinned is usually gone when it comes back, from 1 (all of it) to 0 (the
    server's own cache has kept it). `queue_delay_s`: what
    sessions that lost their KV have lately waited in addition. `eta`: how much a session's age
    tells of its end, from 1 (every program has as many turns) to 0 (nothing). `price`: of memory on
    the session's worker. `waiting`: calls that wait for this model; `running_tokens`: KV of the
    calls that run beside it. `steps`: how many steps of a known graph come before the session's
    next call. `arrival`: the place of its program in the order of arrival.
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
    price: Price = FREE
    reload_s: float | None = None
    running_tokens: int = 0
    steps: int | None = None
    arrival: int = 0
    lost_share: float = 1.0

    @property
    def rebuild_s(self) -> float:
        """The seconds that it takes to compute the session's KV again."""
        return self.tokens / PREFILL_TOKENS_PER_S if self.prefill_s is None else self.prefill_s

    @property
    def return_s(self) -> float:
        """The seconds until lost KV is there again: R, from the host tier where it has one."""
        return self.rebuild_s if self.reload_s is None else min(self.reload_s, self.rebuild_s)


@dataclass(frozen=True, slots=True)
class Decision:
    """What a policy says of a pause.

    `hold_s`: the seconds from now to keep the KV; None: until released; 0: not at all. `worth`:
    under pressure the pin with the least goes first; only the decisions of one policy compare.
    `again_s`: the seconds from now after which `worth` falls, so that it is to be asked for again;
    None: as long as nothing happens it stays.
    """

    hold_s: float | None
    worth: float = 0.0
    again_s: float | None = None


Hold = Callable[[Pause], float | None]
"""The seconds from now to keep the KV; None: until released; 0: not at all."""


@dataclass(frozen=True, slots=True)
class Policy:
    """A retention policy: a pure function from a pause to a decision. Called, it is a `Hold`."""

    decide: Callable[[Pause], Decision]

    def __call__(self, pause: Pause) -> float | None:
        return self.decide(pause).hold_s


@dataclass(frozen=True, slots=True)
class Pin:
    """The promise to keep a session's KV until a time; None: until it is released."""

    session: str
    until_s: float | None
    tokens: int = 0
    worth: float = 0.0


def expired(pins: Iterable[Pin], now_s: float) -> tuple[Pin, ...]:
    """All pins whose time is over.

    Continuum's published code removes pins from the list it walks over, and so misses every
    second one (ALGORITHMS.md card 1); this only reads.
    """
    return tuple(pin for pin in pins if pin.until_s is not None and pin.until_s <= now_s)


def cheapest_first(pins: Iterable[Pin]) -> list[Pin]:
    """Pins in the order in which they are to be given up; of equals the larger one first."""
    return sorted(pins, key=lambda pin: (pin.worth, -pin.tokens, pin.session))


def to_release(pins: Iterable[Pin], tokens: int, price: float = inf) -> tuple[Pin, ...]:
    """The pins to give up for `tokens` of room, cheapest first; all, where all are too few.

    Pins worth `price` or more are kept. One that the dearer ones after it have made needless is
    kept after all. The price is that of the next token, so what is given up must be no more than
    what the call at the head of the queue lacks: a rise in price that let go of every pin below it
    would make all of those sessions recompute for one call's room.
    """
    chosen: list[Pin] = []
    freed = 0
    for pin in cheapest_first(pins):
        if freed >= tokens or pin.worth >= price:
            break
        chosen.append(pin)
        freed += pin.tokens
    for pin in reversed(chosen.copy()):
        if freed - pin.tokens >= tokens:
            chosen.remove(pin)
            freed -= pin.tokens
    return tuple(chosen)
