"""Who holds how much of a worker: the account that processes keep together.

A process joins, and is given a token. With it, it tells at each beat what it needs, what it uses
and what it would have; what it is granted never exceeds what others have left. A share that was
made smaller counts as held until its owner has heard of it and its calls have ended, so that shares
are never given out twice. Whoever gives no sign of life for `LEASE_S` holds nothing any more; its
token is refused when it comes back (fencing: M. Kleppmann, How to do distributed locking, 2016),
and it joins anew.

An account that was lost begins empty. For `SETTLE_S` everybody then gets what it says that it had
and no more, so that those who come back first do not take the share of the others.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Protocol

from .shares import LEAST, Amount

LEASE_S = 6.0
SETTLE_S = 2.0


class LedgerAway(Exception):
    """The account cannot be reached now; the message says why."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What a process tells at a beat. `token` is "" where it joins.

    `whole` is the worker as the process may use it; another one may be told to leave less room.
    """

    token: str
    whole: Amount
    need: Amount
    used: Amount
    want: Amount
    had: Amount  # at its last beat


@dataclass(frozen=True, slots=True)
class Answer:
    """What it is told: its token, what it may use from now on, and what each of the others needs.

    `whole` is the worker as those see it who see most of it.
    """

    token: str
    granted: Amount
    whole: Amount
    others: tuple[Amount, ...]


class Ledger(Protocol):
    """The accounts of workers by their place. All methods raise LedgerAway."""

    async def beat(self, place: str, ask: Ask) -> Answer | None:
        """Take part, or go on; None: the token is refused, since its lease has ended."""
        ...

    async def leave(self, place: str, token: str) -> None:
        """Give a share back."""
        ...


@dataclass(slots=True)
class _Member:
    until_s: float
    whole: Amount
    need: Amount
    held: Amount


@dataclass(slots=True)
class _Account:
    born_s: float
    members: dict[str, _Member] = field(default_factory=dict[str, _Member])


class MemoryLedger:
    """A ledger in this process, for tests and virtual time; what the Redis one does, in Python."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._accounts: dict[str, _Account] = {}
        self._claims = count(1)

    async def beat(self, place: str, ask: Ask) -> Answer | None:
        now_s = self._clock()
        account = self._accounts.setdefault(place, _Account(now_s))
        members = {n: each for n, each in account.members.items() if each.until_s > now_s}
        account.members = members
        if ask.token and ask.token not in members:
            return None
        token = ask.token or f"{next(self._claims)}"
        others = [each for name, each in members.items() if name != token]
        young = now_s - account.born_s < SETTLE_S
        whole = Amount(*map(max, zip(ask.whole, *(each.whole for each in others), strict=True)))
        left = (w - sum(held) for w, held in zip(whole, _held(others), strict=True))
        amounts = zip(whole, ask.want, ask.had, left, strict=True)
        granted = Amount(*(_granted(*each, young) for each in amounts))
        held = Amount(*map(max, zip(granted, ask.used, strict=True)))
        members[token] = _Member(now_s + LEASE_S, ask.whole, ask.need, held)
        return Answer(token, granted, whole, tuple(each.need for each in others))

    async def leave(self, place: str, token: str) -> None:
        account = self._accounts.get(place)
        if account is not None:
            account.members.pop(token, None)

    def forget(self) -> None:
        """Lose everything, as a Redis that is restarted empty."""
        self._accounts.clear()

    def held(self, place: str) -> Amount:
        """What is given out of a worker in all."""
        account = self._accounts.get(place)
        return Amount(*map(sum, _held(list(account.members.values()) if account else [])))


def _held(members: list[_Member]) -> tuple[list[int], list[int]]:
    return [each.held.tokens for each in members], [each.held.slots for each in members]


def _granted(whole: int, want: int, had: int, left: int, young: bool) -> int:
    most = min(left, max(had, whole // LEAST)) if young else left
    return max(0, min(want, most))
