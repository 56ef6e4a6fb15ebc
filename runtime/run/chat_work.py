"""The parts of a chat: what was said in a turn, the tokens so far, a turn on its way."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import msgspec

from ...planner.graph import Sampling
from ..calls import CallId, Chunk, Message, Request, SessionId, ToolSpec
from ..clock import now
from ..errors import StepFailed, TenterError
from ..scheduler.loop import Answer
from .asking import Model, add_chat, check_answer, seed_for
from .draft import CHUNK_TOKENS, GROWTH, TOLD_GROWTH
from .owner import Owner
from .sharing import Settled

if TYPE_CHECKING:
    from .host import Host


class Said(msgspec.Struct):
    """What the model said in one turn, as the journal keeps it."""

    text: str
    token_ids: tuple[int, ...] = ()


def read_said(value: Any) -> Said:
    """What was said, of a recorded or shared value; 0.1.0 kept the text alone."""
    if isinstance(value, msgspec.Raw):
        said = msgspec.json.decode(value, type=Said | str)
    else:
        said = msgspec.convert(value, Said | str)
    return Said(said) if isinstance(said, str) else said


class ChatContext(NamedTuple):
    """The tokens of a chat up to its last answer, and the messages they were made of."""

    token_ids: tuple[int, ...]
    said: tuple[Message, ...]
    specs: tuple[ToolSpec, ...]

    def begins(self, messages: list[Message]) -> bool:
        """Whether `messages` go on where this ends."""
        return len(messages) > len(self.said) and tuple(messages[: len(self.said)]) == self.said

    def followed_by(self, rest: list[int], eos_ids: frozenset[int]) -> tuple[int, ...]:
        """With `rest` behind it, which begins with the end of the turn: said once, not twice."""
        if self.token_ids[-1] in eos_ids:
            ends = [place for place, token in enumerate(rest) if token in eos_ids]
            rest = rest[ends[0] + 1 :] if ends else rest
        return (*self.token_ids, *rest)


class Hearer(Protocol):
    """Follows an answer while it is written."""

    def heard(self, chunk: Chunk) -> None:
        """Take its next piece, all but the last."""
        ...

    def restart(self) -> None:
        """It begins anew."""
        ...


@dataclass(frozen=True, slots=True)
class Turn:
    """What a chat asks of its model next; `path` is its place in the program."""

    path: str
    token_ids: tuple[int, ...]
    messages: tuple[Message, ...]
    specs: tuple[ToolSpec, ...]
    sampling: Sampling
    schema: str | None
    session: SessionId

    def key(self, model: Model) -> bytes | None:
        """16 bytes that equal turns have in common; None where an answer is not repeatable."""
        if not self.sampling.deterministic:
            return None
        fingerprint = model.capabilities.model_fingerprint
        asked = ["turn", fingerprint, self.token_ids, self.specs, self.sampling, self.schema]
        digest = blake2b(msgspec.json.encode(asked), digest_size=16)
        add_chat(digest, self.messages)  # what a server is sent that renders chats itself
        return digest.digest()


class TurnWork:
    """One turn on its way through the scheduler (a `Submission`)."""

    shared_tokens = 0
    gang = 0

    def __init__(
        self,
        host: "Host",
        owner: Owner,
        step: str,
        model: Model,
        turn: Turn,
        key: bytes | None,
        done: Settled,
        hearers: Sequence[Hearer] = (),
    ) -> None:
        self._host = host
        self._owner = owner
        self._model = model
        self._turn = turn
        self._key = key
        self._done = done
        self._hearers = list(hearers)
        self.request = Request(CallId(f"{owner.name}/{turn.path}"), turn.token_ids)
        self.step = step

    @property
    def program(self) -> str:
        return self._owner.name

    @property
    def model(self) -> str:
        return self._model.pool

    @property
    def signature(self) -> bytes | None:
        """What equal turns have in common, if they are said once."""
        return self._key

    def start(self) -> None:
        """Hand the turn to the scheduler."""
        host, owner, turn = self._host, self._owner, self._turn
        if owner.ended:
            host.abandon(self._key)
            return
        sampling = turn.sampling
        if sampling.temperature > 0 and sampling.seed is None:
            sampling = replace(sampling, seed=seed_for(host.seed, owner.row, turn.path))
        draft = host.draft(owner, turn.path, self._model, sampling.max_tokens, turn.schema)
        if draft is not None:
            self._hearers.insert(0, draft)
        alone = self._hearers == [draft]
        self.request = Request(
            call=self.request.call,
            token_ids=turn.token_ids,
            sampling=sampling,
            schema=turn.schema,
            session=turn.session,
            deadline_s=now() + host.call_timeout_s if host.call_timeout_s else None,
            stream=bool(self._hearers),
            chunk_tokens=CHUNK_TOKENS if alone else 1,
            chunk_growth=GROWTH if alone else TOLD_GROWTH,
            drawn=draft.drawn if draft is not None else (),
            messages=turn.messages,
            tools=turn.specs,
        )
        owner.session = turn.session
        host.scheduler.submit(self)

    def heard(self, chunk: Chunk) -> None:
        """The answer grows."""
        for hearer in self._hearers:
            hearer.heard(chunk)

    def lost(self) -> None:
        """The answer begins anew."""
        for hearer in self._hearers:
            hearer.restart()

    def done(self, answer: Answer) -> None:
        """Record what was said, and hand it on."""
        host, owner = self._host, self._owner
        if host.was_withdrawn(self.request.call) or owner.ended:
            host.abandon(self._key)
            return
        try:
            check_answer(answer, self._turn.path)
        except TenterError as error:
            owner.note(error)
            host.failed(self._key, error, self._done)
            return
        try:
            said = msgspec.Raw(msgspec.json.encode(Said(answer.text, answer.token_ids)))
        except ValueError as error:  # such as half a surrogate pair
            failure = StepFailed(f"the answer is not JSON: {error}", self._turn.path)
            host.failed(self._key, failure, self._done)
            return
        host.record(owner, self._turn.path, said, self._key, self._done, usage=answer.usage)
