"""The backend door: one narrow protocol that SGLang, the embedded engine and the simulator share."""

from collections.abc import AsyncIterator
from types import TracebackType
from typing import Protocol, Self

from ..calls import CallId, Capabilities, Chunk, Load, Request, SessionId, Tokenizer


class Backend(Protocol):
    """Answers generation requests and keeps the KV cache of sessions.

    Use as an asynchronous context manager: entering loads or connects and fills in
    `capabilities` and `tokenizer`; leaving aborts what runs and frees everything.
    """

    capabilities: Capabilities
    tokenizer: Tokenizer
    failure: str | None  # why it cannot be used at present; None: it can

    def generate(self, request: Request) -> AsyncIterator[Chunk]:
        """Answer `request`. The last chunk has `finish` and `usage`.

        Closing the iterator early aborts the call. Raises TryAgain where another attempt may do,
        CallFailed where it cannot, and BackendUnavailable where the backend is gone.
        """
        ...

    async def abort(self, call: CallId) -> None:
        """Stop `call` within one step; its stream ends with finish `abort`. Unknown: no effect."""
        ...

    async def retain(self, session: SessionId, until_s: float | None) -> None:
        """Keep the KV of `session` until `until_s` (`clock.now`; None: until released)."""
        ...

    async def release(self, session: SessionId) -> None:
        """Give the promise of `retain` back, and forget `session`."""
        ...

    async def warm(self, session: SessionId, token_ids: tuple[int, ...]) -> None:
        """Compute the KV of `token_ids` and let `session` name it."""
        ...

    async def load(self) -> Load:
        """What the backend is doing now."""
        ...

    def evictions(self) -> AsyncIterator[tuple[int, ...]] | None:
        """Blocks (`runtime.blocks`) as they are evicted, an empty tuple for all; None: untold."""
        ...

    async def recover(self) -> None:
        """Returns once the backend answers again, however long that takes.

        Raises BackendUnavailable if it never will: it lived in this process, or another model
        answers in its place.
        """
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...
