"""What models say in chats, told while they write it."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from ..calls import Chunk
from ..errors import StepFailed
from .raised import failure_of
from .turns import CALL_END, CALL_TAG, PYTHON_TAG


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that a model has written; `chat` names which of a program's chats it belongs to."""

    chat: str
    text: str


OnText = Callable[[Piece], None]


class ListenerFailed(StepFailed):
    """An `on_text` raised: its own program fails, and no other that waits for equal work."""


class Teller:
    """Tells one turn's text while it grows (a `chat_work.Hearer`): all but its calls of tools.

    Where an answer begins anew, what was told is not told again. Where the listener fails, nothing
    more is told, and `failed` hears of it: the turn may be somebody else's too.
    """

    def __init__(self, chat: str, tell: OnText, has_tools: bool) -> None:
        self._chat = chat
        self._tell = tell
        self._has_tools = has_tools
        self._told = 0  # characters
        self._closed = False
        self.failure: ListenerFailed | None = None
        self.failed: Callable[[Exception], None] | None = None
        self.restart()

    def close(self) -> None:
        """Nobody waits for the turn any more: tell nothing more of it."""
        self._closed = True

    def restart(self) -> None:
        """The answer begins anew."""
        self._said = 0  # characters of this attempt, told or not
        self._rest = ""  # what may be the beginning of a call
        self._calling = False  # inside of one
        self._begun = not self._has_tools  # whether the text is known to be more than a bare call

    def heard(self, chunk: Chunk) -> None:
        """Take the next piece."""
        if not self._closed:
            self._take(chunk.text)

    def ended(self, text: str, calls: bool) -> None:
        """The turn has ended, with this `text` in all; does it call tools?"""
        self.restart()
        self._take(text)
        if not self._calling and (self._begun or not calls):
            self._say(self._rest)

    def _take(self, text: str) -> None:
        self._rest += text
        if not self._begun:
            start = self._rest.lstrip()[: len(PYTHON_TAG)]
            if start.startswith("{") or PYTHON_TAG.startswith(start):
                return
            self._begun = True
        while self._calling or CALL_TAG in self._rest:
            tag = CALL_END if self._calling else CALL_TAG
            before, found, after = self._rest.partition(tag)
            if not found:
                self._rest = self._rest[-len(CALL_END) :]
                return
            if not self._calling:
                self._say(before)
            self._rest, self._calling = after, not self._calling
        sure = len(self._rest) - _may_begin(CALL_TAG, self._rest)
        self._say(self._rest[:sure])
        self._rest = self._rest[sure:]

    def _say(self, text: str) -> None:
        new = text[max(0, self._told - self._said) :]
        self._said += len(text)
        if not new or self._closed:
            return
        self._told = self._said
        try:
            self._tell(Piece(self._chat, new))
        except asyncio.CancelledError:
            self._fail("CancelledError")
        except Exception as error:
            self._fail(str(failure_of(error)))

    def _fail(self, why: str) -> None:
        self.failure = ListenerFailed(f"on_text raised {why}")
        self.close()
        if self.failed is not None:
            self.failed(self.failure)


def _may_begin(tag: str, text: str) -> int:
    """How many of the last characters of `text` may be the beginning of `tag`."""
    most = min(len(tag) - 1, len(text))
    return next((n for n in range(most, 0, -1) if tag.startswith(text[-n:])), 0)
