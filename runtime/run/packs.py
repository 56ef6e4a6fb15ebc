"""Calls of different rows in one prompt, where a step says `pack` (BatchPrompt, 2309.00384).

Calls that become ready gather until a prompt is full, or until none has come for a moment. Each
row has a record of its own; what the answer has no good item for is asked by itself.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from random import Random
from typing import TYPE_CHECKING

import anyio

from ...planner.graph import LLM, Pack
from ..clock import now
from ..errors import BackendUnavailable, CallFailed, Drained
from ..scheduler.events import CallShared
from ..scheduler.loop import NO_PLAN, Answer, PlanHint
from .asking import check_answer, without_thought
from .pack_text import Ballot, pack_chat, pack_schema, pack_tokens, read_pack
from .work import LLMWork, RowCall

if TYPE_CHECKING:
    from .host import Host

_Key = tuple[int, str | None, str]  # of a step, a system prompt and a tenant: rows of one of each

LINGER_S = 0.1  # after a call, for another that may share its prompt


@dataclass(slots=True)
class Member:
    """One row's call, how it begins by itself, and its votes so far."""

    call: RowCall
    alone: Callable[[], None]
    ballot: Ballot = field(default_factory=Ballot)

    @property
    def system(self) -> str | None:
        """What the model is told first: rows of a pack have one."""
        chat = self.call.chat
        return chat[0].content if len(chat) > 1 else None


@dataclass(slots=True)
class _Open:
    """Calls that gather: when the last of them came."""

    members: list[Member]
    last_s: float


class Packs:
    """The packs of one run."""

    def __init__(self, host: "Host") -> None:
        self._host = host
        self._open: dict[_Key, _Open] = {}
        self._asked = 0  # calls of packs; none has the name of another

    def add(self, member: Member) -> None:
        """Have a call share a prompt with others of its step."""
        if member.call.owner.ended:
            self._host.abandon(member.call.signature)
            return
        key = id(member.call.asking.step), member.system, member.call.owner.tenant
        found = self._open.get(key)
        if found is None:
            found = self._open[key] = _Open([], now())
            self._host.run_task(self._linger(key, found))
        found.members.append(member)
        found.last_s = now()
        if len(found.members) >= _pack(member.call.asking.step).rows:
            self._close(key, found)

    async def _linger(self, key: _Key, found: _Open) -> None:
        while self._open.get(key) is found:
            left_s = found.last_s + LINGER_S - now()
            if left_s <= 0:
                self._close(key, found)
            else:
                await anyio.sleep(left_s)

    def _close(self, key: _Key, found: _Open) -> None:
        del self._open[key]
        self.ask(found.members)

    def ask(self, members: list[Member], number: int = 0) -> None:
        """Ask for vote `number` of each, by itself where there is only one, or where all of them
        do not fit."""
        live = [member for member in members if not member.call.owner.ended]
        for member in members:
            if member.call.owner.ended:
                self._host.abandon(member.call.signature)
        if not number and len(live) == 1:
            live[0].alone()
        elif live:
            try:
                self._ask(live, number)
            except Exception:  # of a tokenizer: that of one row, perhaps, and not of the others
                for member in live:
                    member.alone()

    def _ask(self, live: list[Member], number: int) -> None:
        step = live[0].call.asking.step
        if number:
            Random(f"{self._host.seed}/{step.id}/{live[0].call.path}/{number}").shuffle(live)
        work = PackWork(self, self._host, live, number, self._asked)
        self._asked += 1
        if work.fits or len(live) == 1:
            work.start()
        else:
            self.ask(live[: len(live) // 2], number)
            self.ask(live[len(live) // 2 :], number)


class PackWork(LLMWork):
    """One call for several rows, in the name of the first."""

    def __init__(
        self, packs: Packs, host: "Host", members: list[Member], vote: int, number: int
    ) -> None:
        self._packs, self._members, self._vote = packs, members, vote
        first = members[0]
        step, model = first.call.asking.step, first.call.asking.model
        packed = _packed(step, len(members))
        asking = host.asking(packed)
        texts = [member.call.chat[-1].content for member in members]
        values = [member.call.values for member in members]
        chat = pack_chat(step, texts, values, first.system)
        taken = len(model.tokenizer.chat(chat)) + packed.sampling.max_tokens
        self.fits = taken <= model.capabilities.context_tokens
        path = f"{first.call.path}.pack{number}"
        call = RowCall(first.call.owner, path, asking, chat, {}, None, first.call.done)
        super().__init__(host, call)

    def start(self) -> None:
        """Hand the call to the scheduler; what grows of its answer is not written down."""
        self._submit()

    def _plan(self, call: str) -> PlanHint:
        return NO_PLAN

    def done(self, answer: Answer) -> None:
        """Give each row its answer, or its next vote, or a call of its own."""
        broken = answer.error is not None or answer.finish == "abort"
        if self._call.owner.ended and broken:  # off, with its first row
            self._packs.ask(self._members, self._vote)
            return
        text = without_thought(answer.text)
        try:
            check_answer(answer, self.step)
        except (Drained, BackendUnavailable) as error:
            for member in self._members:
                member.call.owner.note(error)
                self._host.failed(member.call.signature, error, member.call.done)
            return
        except CallFailed:
            text = ""
        step, rows = self._members[0].call.asking.step, len(self._members)
        found = read_pack(text, step, rows)
        for member, said in zip(self._members, found, strict=True):
            if said is None:
                member.ballot.bad = not member.ballot.votes
            else:
                member.ballot.add(*said)
        self._settle(_pack(step).votes)

    def _settle(self, most: int) -> None:
        """Record what is certain, and ask on for the rest."""
        asked_on: list[Member] = []
        for member in self._members:
            if member.call.owner.ended:
                self._host.abandon(member.call.signature)
            elif member.ballot.bad:
                member.alone()
            elif self._vote + 1 == most or member.ballot.settled(most):
                self._record(member)
            else:
                asked_on.append(member)
        self._packs.ask(asked_on, self._vote + 1)

    def _record(self, member: Member) -> None:
        host, call = self._host, member.call
        if member is not self._members[0]:
            host.note(CallShared(program=call.owner.name, step=self.step, how="packed"))
        value = member.ballot.winner()
        # Not for later runs: it may depend on the rows beside it.
        host.record(call.owner, call.path, value, call.signature, call.done, known=True)


def _pack(step: LLM) -> Pack:
    assert step.pack is not None
    return step.pack


@lru_cache(maxsize=1024)
def _packed(step: LLM, rows: int) -> LLM:
    """The call that asks for `rows` items of a step."""
    sampling = replace(step.sampling, max_tokens=pack_tokens(step, rows), stop=())
    schema = pack_schema(step, rows)
    return replace(step, choices=(), schema=schema, sampling=sampling, pack=None)
