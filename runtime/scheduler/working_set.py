"""The working set: the programs whose contexts share a model's KV capacity (ThunderAgent, 2602.13692).

Too many live programs evict each other's context at every tool call, and all of them compute theirs
again. So the number of live programs is bounded by the KV that their sessions keep resident: the
calls of a program that would exceed it wait, all of them, and where contexts outgrow the capacity,
the program that arrived last and runs nothing is paused as a whole. A session counts in full while
it has a call, and then with its context, for some seconds and for as long as that is pinned: one
whose tool takes longer holds nothing that others should wait for. Calls without a session leave
nothing behind, and do not count. Where no member has a call, anybody may enter, so waiting always
has an end.
"""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf

from .events import CallReady
from .limits import Limits
from .state import CallState, need

LOOK_S = 1.0  # a pinned context is not looked at more often
SPARE = 64  # entries that nobody needs any more, beside two for each member


@dataclass(slots=True)
class _Member:
    arrival: int
    tokens: int = 0
    calls: int = 0  # that have entered and not ended


@dataclass(slots=True)
class _Set:
    """The members of one model. `tokens` is what they keep resident, in sum."""

    members: dict[str, _Member] = field(default_factory=dict[str, _Member])
    tokens: int = 0
    calls: int = 0
    late: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])  # heap, to pause


@dataclass(slots=True)
class _Context:
    """What a session keeps resident between two calls."""

    program: str
    model: str
    tokens: int
    until_s: float = inf


class WorkingSet:
    """Who is in the working set of each model.

    `capacity` tells a model's KV tokens, `tiered` whether evicted ones come back from a tier below,
    `pinned` whether a session's KV is, and `alarm(until_s)` asks for `expire` at that time.
    """

    def __init__(
        self,
        limits: Limits,
        capacity: Callable[[str], int],
        tiered: Callable[[str], bool],
        pinned: Callable[[str], bool],
        alarm: Callable[[float], None],
    ) -> None:
        self._limits = limits
        self._capacity = capacity
        self._tiered = tiered
        self._pinned = pinned
        self._alarm = alarm
        self._sets: dict[str, _Set] = {}
        self._contexts: dict[str, _Context] = {}
        self._ends: list[tuple[float, str]] = []
        self.on = _bounds(limits)

    def follow(self, limits: Limits) -> None:
        """Go on with other limits. Once it keeps accounts, it goes on to."""
        self._limits = limits
        self.on = self.on or _bounds(limits)

    def member(self, program: str, model: str) -> bool:
        """Whether the program's calls may enter as they come."""
        found = self._sets.get(model)
        return found is not None and program in found.members

    def admits(self, calls: Sequence[CallState]) -> bool:
        """Whether the program of `calls` is a member, or may become one."""
        model, program = calls[0].ready.model, calls[0].ready.program
        found = self._sets.get(model)
        if found is None or not found.calls or program in found.members:
            return True
        most = self._limits.of_model(model).max_live
        if most is not None and len(found.members) >= most:
            return False
        tokens = sum(_resident(call.ready) for call in calls)
        return not tokens or found.tokens + tokens <= self._bound(model)

    def wait(self, session: str) -> None:
        """The session's next call waits: its context counts until that is over."""
        kept = self._contexts.get(session)
        if kept is not None:
            kept.until_s = inf

    def enter(self, call: CallState, arrival: int) -> None:
        """The call is dispatched; its program is a member."""
        ready = call.ready
        kept = self._drop_context(ready.session) if ready.session is not None else None
        found = self._sets.setdefault(ready.model, _Set())
        member = found.members.setdefault(ready.program, _Member(arrival))
        call.member = ready.model
        member.calls += 1
        found.calls += 1
        self._add(found, member, _resident(ready))
        if kept is not None and kept.model != ready.model:
            self._settle(kept.model, kept.program)

    def leave(self, call: CallState, context_tokens: int, now_s: float) -> None:
        """The call is over, or was never dispatched; its session keeps so much resident."""
        model, ready = call.member, call.ready
        if not model:
            self._begin(ready.session, now_s)
            return
        call.member = ""
        found = self._sets[model]
        member = found.members[ready.program]
        member.calls -= 1
        found.calls -= 1
        self._add(found, member, -_resident(ready))
        if ready.session is not None and context_tokens:
            self._drop_context(ready.session)
            self._contexts[ready.session] = _Context(ready.program, model, context_tokens)
            self._begin(ready.session, now_s)
            self._add(found, member, context_tokens)
            if not member.calls:
                heapq.heappush(found.late, (-member.arrival, ready.program))
                if len(found.late) > SPARE + 2 * len(found.members):
                    found.late = sorted({one for one in found.late if one[1] in found.members})
        self._settle(model, ready.program)

    def _begin(self, session: str | None, now_s: float) -> None:
        """From now on the context counts for some seconds."""
        kept = self._contexts.get(session) if session is not None else None
        if kept is not None and session is not None:
            self._count(session, kept, now_s + self._limits.acting_s)

    def _count(self, session: str, kept: _Context, until_s: float) -> None:
        kept.until_s = until_s
        heapq.heappush(self._ends, (until_s, session))
        self._alarm(until_s)

    def forget(self, session: str) -> str | None:
        """The session keeps nothing resident any more; the model that has room for it."""
        kept = self._drop_context(session)
        if kept is None:
            return None
        self._settle(kept.model, kept.program)
        return kept.model

    def expire(self, now_s: float) -> list[str]:
        """Sessions whose tools take long count no more, but for pinned ones, which are looked at
        again; the models that have room now."""
        models: list[str] = []
        while self._ends and self._ends[0][0] <= now_s:
            until_s, session = heapq.heappop(self._ends)
            kept = self._contexts.get(session)
            if kept is None or kept.until_s != until_s:
                continue
            if self._pinned(session):
                self._count(session, kept, now_s + max(self._limits.acting_s, LOOK_S))
            else:
                self.forget(session)
                models.append(kept.model)
        return models

    def to_pause(self, model: str) -> str | None:
        """The program to pause, since contexts have outgrown the bound; None: they have not."""
        found = self._sets.get(model)
        if found is None or found.tokens <= self._bound(model):
            return None
        while found.late:
            _, name = heapq.heappop(found.late)
            member = found.members.get(name)
            if member is not None and not member.calls and len(found.members) > 1:
                return name
        return None

    def _bound(self, model: str) -> float:
        share = self._limits.working_set
        if share is None or (share == "auto" and self._tiered(model)):
            return inf
        return self._capacity(model) * (1.0 if share == "auto" else share)

    def _drop_context(self, session: str) -> _Context | None:
        kept = self._contexts.pop(session, None)
        if kept is not None:
            found = self._sets[kept.model]
            self._add(found, found.members[kept.program], -kept.tokens)
        return kept

    def _add(self, found: _Set, member: _Member, tokens: int) -> None:
        member.tokens += tokens
        found.tokens += tokens

    def _settle(self, model: str, program: str) -> None:
        """A program that holds nothing is no member."""
        found = self._sets[model]
        member = found.members.get(program)
        if member is not None and not member.calls and not member.tokens:
            del found.members[program]
            if not found.members:
                del self._sets[model]

    def check(self, calls: dict[str, CallState]) -> None:
        """Raise AssertionError where the state contradicts itself."""
        tokens: dict[tuple[str, str], int] = {}
        for kept in self._contexts.values():
            place = kept.model, kept.program
            tokens[place] = tokens.get(place, 0) + kept.tokens
        for call in calls.values():
            if call.member:
                place = call.member, call.ready.program
                tokens[place] = tokens.get(place, 0) + _resident(call.ready)
        for model, found in self._sets.items():
            assert found.tokens == sum(member.tokens for member in found.members.values()), model
            assert found.calls == sum(member.calls for member in found.members.values()), model
            for program, member in found.members.items():
                assert member.tokens == tokens.pop((model, program), 0), program
                assert member.tokens or member.calls, program
        assert not tokens


def _bounds(limits: Limits) -> bool:
    """Whether anything is to be counted."""
    lives = any(limit.max_live is not None for limit in limits.models.values())
    return limits.working_set is not None or lives


def _resident(call: CallReady) -> int:
    """What the call's session may come to keep."""
    return need(call) if call.session is not None else 0
