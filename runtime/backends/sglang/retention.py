"""What every retention is asked, what it may ask of its server, and the tokens of sessions."""

from array import array
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Protocol

from ...calls import Load, SessionId, Usage
from .info import RetentionName

GRACE_S = 2.0  # how long a session stays open after a turn, until somebody decides about it


class Contexts:
    """The tokens of sessions: the prompt and the answer of each one's last turn.

    Holds `limit_tokens` of all sessions together; those used longest ago are forgotten first.
    """

    def __init__(self, limit_tokens: int) -> None:
        self._limit_tokens = limit_tokens
        self._known: dict[SessionId, array[int]] = {}  # the one used last is last
        self.tokens = 0  # of all sessions

    def __len__(self) -> int:
        return len(self._known)

    def remember(self, session: SessionId, token_ids: tuple[int, ...]) -> None:
        """The context of `session` is `token_ids` from now on.

        Numbers that are no token ids make it unknown.
        """
        self.forget(session)
        with suppress(OverflowError):
            self._known[session] = array("I", token_ids)
            self.tokens += len(token_ids)
        while self.tokens > self._limit_tokens:
            self.forget(next(iter(self._known)))

    def forget(self, session: SessionId) -> None:
        """Unknown: no effect."""
        known = self._known.pop(session, None)
        self.tokens -= 0 if known is None else len(known)

    def get(self, session: SessionId) -> tuple[int, ...] | None:
        """The tokens of `session`; None if they are not known."""
        known = self._known.get(session)
        return None if known is None else tuple(known)


class Server(Protocol):
    """What a retention may ask of the server that it works on."""

    contexts: Contexts

    def now(self) -> float:
        """Seconds on the loop's clock."""
        ...

    def spawn(self, work: Coroutine[Any, Any, None]) -> object:
        """Have `work` done beside all else; its errors are logged."""
        ...

    def scope(self, name: str) -> str:
        """A name on the server for `name` here, which no other client has."""
        ...

    async def prefill(self, token_ids: tuple[int, ...], fields: dict[str, Any]) -> Usage:
        """Compute the KV of `token_ids`, with more fields in the request; draws nothing."""
        ...

    async def post(self, path: str, body: object) -> None:
        """Tell the server something that has no answer."""
        ...

    async def load(self) -> Load:
        """What the server is doing."""
        ...


class Retention(Protocol):
    """Keeps the KV of sessions; how well depends on the server.

    Of every turn of a session it hears `begin`, then `fields`, then `end`. A failure costs time
    and never an answer.
    """

    name: RetentionName
    batches: bool  # whether turns of sessions may go in one batch with others

    def begin(self, session: SessionId) -> None:
        """A turn of `session` is about to be sent; what was promised is used up by it."""
        ...

    def fields(self, session: SessionId | None, *, shared: bool = False) -> dict[str, Any]:
        """What a request says beside its prompt; `shared`: many sessions begin with its prompt."""
        ...

    def end(self, session: SessionId, *, whole: bool) -> None:
        """The turn has ended; `whole`: with an answer."""
        ...

    async def retain(self, session: SessionId, until_s: float | None) -> None:
        """Keep the KV of `session` until `until_s` (the loop's clock; None: until released).

        It is about what the last turn has left: a turn that is on its way has used it up.
        """
        ...

    async def release(self, session: SessionId) -> None:
        """Give it back."""
        ...

    async def close(self) -> None:
        """Give everything back."""
        ...
