"""Fake backends for tests and for measuring the runtime's own cost: no model, no KV cache."""

import hashlib
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Self

import anyio

from ..calls import (
    CallId,
    Capabilities,
    Chunk,
    Load,
    Message,
    Request,
    SessionId,
    Tokenizer,
    ToolSpec,
    Usage,
)

Reply = Callable[[str], str]


class ByteTokenizer:
    """A token is a byte of UTF-8; 256 closes a turn. Enough for a fake to count and compare."""

    eos_ids: frozenset[int] = frozenset({256})
    end_of_turn_ids: tuple[int, ...] = (256,)

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8", "replace"))

    def decode(self, token_ids: list[int]) -> str:
        return bytes(token for token in token_ids if token < 256).decode("utf-8", "replace")

    def chat(self, messages: list[Message], tools: tuple[ToolSpec, ...] = ()) -> list[int]:
        if len(messages) == 1 and not tools:
            return self.encode(messages[0].content)
        lines = [f"{message.role}: {message.content}" for message in messages]
        return self.encode("\n".join(lines))

    def follow(self, messages: list[Message], tools: tuple[ToolSpec, ...] = ()) -> list[int] | None:
        lines = [f"\n{message.role}: {message.content}" for message in messages]
        return [*self.end_of_turn_ids, *self.encode("".join(lines))]


class FakeBackend:
    """Answers with `reply(prompt)`, after `latency_s` of the loop's time. Called a fake.

    Of `choices` it picks one by the prompt's hash, so that answers are repeatable. `asked` has
    the prompts of all calls, `retained` the pins in force.
    """

    failure: str | None = None

    def __init__(
        self,
        reply: Reply = lambda prompt: "ok",
        latency_s: float = 0.0,
        max_running: int = 64,
        kv_tokens: int = 1 << 40,
        name: str = "fake",
        remember: bool = False,
    ) -> None:
        self.tokenizer: Tokenizer = ByteTokenizer()
        self.capabilities = Capabilities(
            name=name,
            model="fake",
            model_fingerprint="fake",
            context_tokens=1 << 30,
            kv_tokens=kv_tokens,
            page_tokens=1,
            max_running=max_running,
            retention="pins",
            schemas=True,
            choices=True,
        )
        self._reply = reply
        self._latency_s = latency_s
        self._remember = remember
        self.asked: list[str] = []
        self.retained: dict[SessionId, float | None] = {}
        self.released: list[SessionId] = []
        self.warmed: list[SessionId] = []
        self.running: dict[CallId, anyio.CancelScope] = {}

    async def generate(self, request: Request) -> AsyncIterator[Chunk]:
        prompt = self.tokenizer.decode(list(request.token_ids))
        if self._remember:
            self.asked.append(prompt)
        if self._latency_s:
            with anyio.CancelScope() as scope:
                self.running[request.call] = scope
                try:
                    await anyio.sleep(self._latency_s)
                finally:
                    del self.running[request.call]
            if scope.cancelled_caught:
                yield Chunk(finish="abort", usage=Usage(prompt_tokens=len(request.token_ids)))
                return
        text = self._reply(prompt) if request.choices is None else ""
        yield Chunk(
            text=text,
            finish="stop",
            usage=Usage(
                prompt_tokens=len(request.token_ids),
                output_tokens=len(text),
                decode_s=self._latency_s,
            ),
            choice_logprobs=_pick(prompt, request),
        )

    async def abort(self, call: CallId) -> None:
        if call in self.running:
            self.running[call].cancel()

    async def retain(self, session: SessionId, until_s: float | None) -> None:
        self.retained[session] = until_s

    async def release(self, session: SessionId) -> None:
        self.retained.pop(session, None)
        self.released.append(session)

    async def warm(self, session: SessionId, token_ids: tuple[int, ...]) -> None:
        self.warmed.append(session)

    async def load(self) -> Load:
        return Load(running=len(self.running))

    def evictions(self) -> None:
        """It is one of a kind: nobody has to know where a prefix lies."""
        return

    async def recover(self) -> None:
        """Nothing was lost."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for scope in self.running.values():
            scope.cancel()


def _pick(prompt: str, request: Request) -> tuple[float, ...] | None:
    if request.choices is None:
        return None
    chosen = hashlib.blake2b(prompt.encode(), digest_size=2).digest()[0] % len(request.choices)
    return tuple(-0.1 if place == chosen else -3.0 for place in range(len(request.choices)))
