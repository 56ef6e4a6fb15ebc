"""The book of pins: who holds what until when, and who gives way first. Pure.

All decisions follow from messages and from the order of events, never from a clock of this
process, so that all ranks of a tensor-parallel server, each with a book of its own, agree.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Generic, TypeVar

from .hints import Action, Clock, Deref, Extend, Retain

SHARE = "TENTER_PIN_SHARE"  # of the pool that pins may hold, above 0 and at most 1
DEFAULT_SHARE = 0.8  # pins give way before they block: room is left for what runs
MAX_PINS = 4096
LEAP_S = 3600.0
AGREEING = 8
PATIENCE = 8
MAX_WAITING = 4096  # requests whose wait is counted
GRACE = 1  # the lowest priority: until its client has decided about it

LockT = TypeVar("LockT")


def share(environment: Mapping[str, str]) -> float:
    """The share of the KV pool that pins may hold; raises ValueError on what is none."""
    text = environment.get(SHARE) or str(DEFAULT_SHARE)
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise ValueError(f"{SHARE} must be a number above 0 and at most 1, not {text!r}")
    return value


class LogicalClock:
    """The latest time that a message has told; `now_s` is -inf before the first.

    One client whose clock is wrong must not end everyone's pins: a time that differs by more than
    an hour, either way, counts only once 8 messages in a row have told such times. After a
    quiet night the first messages thus find the clock of the evening; their pins are right
    nonetheless, since an end is reckoned from the message that sets it.
    """

    def __init__(self) -> None:
        self.now_s = -inf
        self._leaps = 0

    def hear(self, now_s: float) -> None:
        """Take note of a message's time."""
        leaps = self.now_s != -inf and abs(now_s - self.now_s) > LEAP_S
        self._leaps = self._leaps + 1 if leaps else 0
        if self._leaps >= AGREEING:
            self.now_s, self._leaps = now_s, 0
        elif not leaps:
            self.now_s = max(self.now_s, now_s)


@dataclass(slots=True)
class Counts:
    """What has become of pins since the start."""

    taken: int = 0
    superseded: int = 0  # by a newer pin of their scope
    expired: int = 0
    dereferenced: int = 0  # released by their client
    released_under_pressure: int = 0  # for an allocation, an admission or a dearer pin
    flushed: int = 0
    refused_budget: int = 0
    refused_malformed: int = 0  # actions


@dataclass(slots=True)
class Pin(Generic[LockT]):
    """A scope's hold on the path from the root of the tree to one node."""

    scope: str
    lock: LockT
    tokens: int  # of the path, shared or not
    priority: int
    until_s: float  # inf: until released
    told_s: float  # when its client sent what was last heard of it
    order: int  # in which it was taken


def worth(pin: Pin[Any]) -> tuple[int, int, float, int]:
    """What losing it costs, least first: priority, tokens to compute again, time left, age.

    Of those of the lowest priority the one that ends first has waited longest for a decision.
    """
    tokens = pin.tokens if pin.priority > GRACE else 0
    return pin.priority, tokens, pin.until_s, pin.order


class PinBook(Generic[LockT]):
    """The pins of one cache, at most one per scope, within a budget of tokens.

    `measure` tells how many tokens locks hold together, those that they share once; `unlock` gives
    one back. A lock that is handed over is the book's, which gives it back in any case.
    """

    def __init__(
        self,
        budget_tokens: int,
        *,
        measure: Callable[[Iterable[LockT]], int],
        unlock: Callable[[LockT], None],
    ) -> None:
        self.budget_tokens = budget_tokens
        self.clock = LogicalClock()
        self.counts = Counts()
        self._measure = measure
        self._unlock = unlock
        self._pins: dict[str, Pin[LockT]] = {}
        self._held_tokens: int | None = 0  # None: to be measured
        self._taken = 0

    def __len__(self) -> int:
        return len(self._pins)

    def __contains__(self, scope: str) -> bool:
        return scope in self._pins

    @property
    def held_tokens(self) -> int:
        """What all pins hold together."""
        if self._held_tokens is None:
            self._held_tokens = self._measure([pin.lock for pin in self._pins.values()])
        return self._held_tokens

    @property
    def undecided(self) -> bool:
        """Whether a pin has the lowest priority."""
        return any(pin.priority <= GRACE for pin in self._pins.values())

    def hear(self, actions: Sequence[Action]) -> None:
        """A message has come: advance the clock, do what it asks at once, drop what has expired.

        In this order, so that a pin can still be extended by the very message whose time is
        behind its end. What a Retain asks is done by `take` when its request finishes. Messages
        may overtake one another: what was sent before a pin's own request does not concern it.
        """
        if actions:
            self.clock.hear(max(action.now_s for action in actions))
        for action in actions:
            match action:
                case Extend():
                    self._extend(action)
                case Deref():
                    if self._concerned(action) is not None:
                        self.release(action.scope)
                case Retain() | Clock():
                    pass
        for pin in [pin for pin in self._pins.values() if pin.until_s <= self.clock.now_s]:
            self.counts.expired += self._drop(pin.scope)

    def take(self, wanted: Retain, lock: LockT) -> bool:
        """Pin what `lock` holds, in place of the scope's older pin, if it fits the budget.

        Its time counts from now if that is later than when its request was sent. Only pins of a
        lower priority give way to it, and those of the lowest; one that does not fit even then is
        refused, and leaves everything as it was, the older pin of its scope too.
        """
        start_s = max(wanted.now_s, self.clock.now_s)
        pin = Pin(
            scope=wanted.scope,
            lock=lock,
            tokens=self._measure([lock]),
            priority=wanted.priority,
            until_s=_end(start_s, wanted.duration_s),
            told_s=wanted.now_s,
            order=self._taken,
        )
        victims = self._in_the_way(pin)
        if victims is None:
            self._unlock(lock)
            self.counts.refused_budget += 1
            return False
        for victim in victims:
            self.counts.released_under_pressure += self._drop(victim.scope)
        self.counts.superseded += self._drop(pin.scope)
        self._pins[pin.scope] = pin
        self._held_tokens = None
        self._taken += 1
        self.counts.taken += 1
        return True

    def release(self, scope: str) -> None:
        """Drop the scope's pin as its client asks."""
        self.counts.dereferenced += self._drop(scope)

    def release_cheapest(self) -> bool:
        """Give up the pin that is worth least; False if there is none."""
        if not self._pins:
            return False
        self.counts.released_under_pressure += self._drop(min(self._pins.values(), key=worth).scope)
        return True

    def flush(self) -> None:
        """The cache is empty, and its locks are gone with it; so the clock has nothing to guard."""
        self.counts.flushed += len(self._pins)
        self.clock = LogicalClock()
        self._pins.clear()
        self._held_tokens = 0

    def _concerned(self, action: Extend | Deref) -> Pin[LockT] | None:
        """The pin that `action` was sent about, if it is held."""
        pin = self._pins.get(action.scope)
        return pin if pin is not None and action.now_s >= pin.told_s else None

    def _extend(self, action: Extend) -> None:
        pin = self._concerned(action)
        if pin is None:
            return
        if action.priority == 0:
            return self.release(action.scope)
        pin.told_s = action.now_s
        pin.until_s = _end(max(action.now_s, self.clock.now_s), action.duration_s)
        pin.priority = pin.priority if action.priority is None else action.priority

    def _in_the_way(self, pin: Pin[LockT]) -> list[Pin[LockT]] | None:
        """Which pins must go, cheapest first, so that `pin` fits; None: it never does."""
        others = sorted((p for p in self._pins.values() if p.scope != pin.scope), key=worth)
        cheaper = sum(p.priority < pin.priority or p.priority <= GRACE for p in others)
        count = bisect_left(
            range(cheaper + 1), True, key=lambda gone: self._fits([pin, *others[gone:]])
        )
        return others[:count] if count <= cheaper else None

    def _fits(self, pins: list[Pin[LockT]]) -> bool:
        if len(pins) > MAX_PINS:
            return False
        if sum(pin.tokens for pin in pins) <= self.budget_tokens:
            return True  # whatever they share
        return self._measure([pin.lock for pin in pins]) <= self.budget_tokens

    def _drop(self, scope: str) -> int:
        """Unlock the scope's pin and forget it; how many that were, 0 or 1."""
        pin = self._pins.pop(scope, None)
        if pin is None:
            return 0
        self._unlock(pin.lock)
        self._held_tokens = None
        return 1


def _end(start_s: float, duration_s: float | None) -> float:
    return inf if duration_s is None else start_s + duration_s


class Admission:
    """Whether pins make room for a request that is not admitted beside them.

    They do at once if waiting cannot help it: if nothing runs, or if it needs more than the pool
    has beside pins; and so do those of the lowest priority, which nobody has promised. Otherwise
    it waits, as it would in a smaller pool, until 8 requests have finished; counted so, since all
    ranks see them finish in the same order. Pins are thus kept while the server turns over, and
    those of a client that has gone, with whom the clock stands still, keep nobody out for long.
    """

    def __init__(self, book: PinBook[Any], pool_tokens: int) -> None:
        self._book = book
        self._pool_tokens = pool_tokens
        self._finished = 0
        self._since: dict[str, int] = {}  # how many had finished when it was first refused

    def finished(self, request: str) -> None:
        """A request has finished, with an answer or without."""
        self._finished += 1
        self._since.pop(request, None)

    def make_room(self, request: str, needed_tokens: int, *, running: bool) -> bool:
        """Release one pin for it, the cheapest, if that is due; it is then to be tried again.

        `needed_tokens`: what it wants free; `running`: whether others run that will finish.
        """
        since = self._since.setdefault(request, self._finished)
        if len(self._since) > MAX_WAITING:  # those that were aborted in the line have no end
            del self._since[next(iter(self._since))]
        beside = self._pool_tokens - self._book.held_tokens
        patient = self._finished - since < PATIENCE
        if running and patient and needed_tokens < beside and not self._book.undecided:
            return False
        return self._book.release_cheapest()
