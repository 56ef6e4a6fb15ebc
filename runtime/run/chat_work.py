"""The parts of a chat: what was said in a turn, the tokens so far, a turn on its way."""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import msgspec

from ..calls import Chunk, Message, Request, ToolSpec
from ..scheduler.loop import Answer


class Said(msgspec.Struct):
    """What the model said in one turn, as the journal keeps it."""

    text: str
    token_ids: tuple[int, ...] = ()


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


class TurnWork:
    """One turn on its way through the scheduler (a `Submission`): never shared with others."""

    shared_tokens = 0
    gang = 0

    def __init__(
        self, request: Request, program: str, step: str, model: str, hearers: Sequence[Hearer]
    ) -> None:
        self.request = request
        self.step = step
        self.program = program
        self.model = model
        self.answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._hearers = hearers

    def heard(self, chunk: Chunk) -> None:
        """The answer grows."""
        for hearer in self._hearers:
            hearer.heard(chunk)

    def lost(self) -> None:
        """The answer begins anew."""
        for hearer in self._hearers:
            hearer.restart()

    def done(self, answer: Answer) -> None:
        """Hand the answer to the program, if it still waits."""
        if not self.answer.done():
            self.answer.set_result(answer)
