"""The servers of the campaign: they answer by a hash of what they are asked, and misbehave as told."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from math import nan
from typing import TYPE_CHECKING
from zlib import crc32

from tenter.runtime.backends.fake import FakeBackend
from tenter.runtime.calls import CallId, Chunk, Request, Usage
from tenter.runtime.errors import BackendUnavailable, CallFailed, TryAgain

if TYPE_CHECKING:
    from .lives import Life

ANSWER_S = 0.2
FOR_S = 3.0  # for which a worker is away
SYLLABLES = ("ka", "lo", "mi", "nu", "ra", "si", "to", "ve")
LIES = (
    "truncated",
    "short",
    "garbage",
    "wrong abort",
    "wrong error",
    "odd scores",
    "bug",
    "refused",
)
BREAKS = ("cut", "lost request", "lost answer", "busy", "gone")


class Worker(FakeBackend):
    """A remote server in the life that opened it. Called a fake."""

    def __init__(self, life: "Life", index: int) -> None:
        story = life.story
        super().__init__(max_running=story.slots)
        self.capabilities = replace(
            self.capabilities,
            remote=True,
            priorities=True,
            resumes="all" if story.streams else "no",
        )
        self._life, self._index = life, index
        self._waits: dict[CallId, asyncio.Future[str]] = {}
        self._dead = False
        self._back: asyncio.Event | None = None  # None: it never comes back

    # ---- the door ---------------------------------------------------------------------------------

    async def generate(self, request: Request) -> AsyncIterator[Chunk]:
        fault = self._life.asked(self._index, request, len(self._waits) + 1)
        kind, amount = (fault.kind, fault.amount) if fault is not None else ("", 0.0)
        if self._dead or kind == "gone":
            raise BackendUnavailable("connection refused")
        if kind == "busy":
            raise TryAgain("too busy", after_s=amount)
        if kind == "refused":
            raise CallFailed("status 400: no")
        wait: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waits[request.call] = wait
        try:
            async for chunk in self._answer(request, wait, kind, amount):
                yield chunk
        finally:
            if self._waits.get(request.call) is wait:
                del self._waits[request.call]

    async def _answer(
        self, request: Request, wait: "asyncio.Future[str]", kind: str, amount: float
    ) -> AsyncIterator[Chunk]:
        if kind.startswith("lost"):
            left_s = (request.deadline_s or 0.0) - asyncio.get_running_loop().time()
            await _pass(wait, max(left_s, 0.0))
            raise TryAgain("no answer in time")
        if kind == "bug":
            raise RuntimeError("a bug of the client's")
        pieces = _pieces(request, kind)
        for place, piece in enumerate(pieces):
            over = await _pass(wait, (amount or ANSWER_S) / len(pieces))
            if over or kind == "wrong abort":
                yield Chunk(finish="abort", usage=Usage(prompt_tokens=len(request.token_ids)))
                return
            if kind in ("cut", "wrong error") and place == len(pieces) - 1:
                if kind == "cut":
                    raise TryAgain("the answer was cut off")
                yield Chunk(finish="error", error="out of memory")
                return
            yield piece
            if kind == "twice" and piece.finish is not None:
                yield piece

    async def abort(self, call: CallId) -> None:
        wait = self._waits.get(call)
        if wait is not None and not wait.done():
            wait.set_result("abort")

    async def recover(self) -> None:
        if self._dead and self._back is None:
            raise BackendUnavailable("another model answers now")
        if self._back is not None:
            await self._back.wait()
        await asyncio.sleep(0.25)

    # ---- what happens to it -----------------------------------------------------------------------

    def die(self, returns: bool) -> None:
        """Its calls end at once; if it returns, then after FOR_S."""
        if self._dead:
            return
        self._dead = True
        if returns:
            self._back = asyncio.Event()
            asyncio.get_running_loop().call_later(FOR_S, self._return)
        for wait in self._waits.values():
            if not wait.done():
                wait.set_exception(BackendUnavailable("connection reset"))

    def _return(self) -> None:
        assert self._back is not None
        self._dead = False
        self._back.set()
        self._back = None


async def _pass(wait: "asyncio.Future[str]", seconds: float) -> bool:
    """Let time pass; True where the call is over before, and BackendUnavailable where its worker is."""
    loop = asyncio.get_running_loop()
    if not wait.done():
        wait.add_done_callback(_taken)
        turn: asyncio.Future[None] = loop.create_future()
        timer = loop.call_later(seconds, _wake, turn)
        wait.add_done_callback(lambda _: _wake(turn))
        try:
            await turn
        finally:
            timer.cancel()
    return wait.done() and wait.result() == "abort"


def _taken(wait: "asyncio.Future[str]") -> None:
    """Its error has been taken, even where nobody waits for it any more."""
    if not wait.cancelled():
        wait.exception()


def _wake(turn: "asyncio.Future[None]") -> None:
    if not turn.done():
        turn.set_result(None)


# ---- what they say --------------------------------------------------------------------------------


def said(request: Request) -> str:
    """The right answer to a request; equal requests have equal answers."""
    prompt = bytes(token for token in request.token_ids if token < 256).decode()
    if request.schema is not None:
        return f'{{"word": "{_words(prompt, 1)}", "size": {crc32(prompt.encode()) % 90}}}'
    if "Pay for " in prompt and "paid" not in prompt and "called so again" not in prompt:
        who = prompt.partition("Pay for ")[2].partition(":")[0]
        return f'<tool_call>{{"name": "pay", "arguments": {{"who": "{who}"}}}}</tool_call>'
    return _words(prompt, 12)[: request.sampling.max_tokens]


def _words(prompt: str, count: int) -> str:
    number = crc32(prompt.encode())
    drawn = [SYLLABLES[(number >> (2 * place)) % len(SYLLABLES)] for place in range(count)]
    return "".join(drawn)


def _pieces(request: Request, kind: str) -> list[Chunk]:
    """The chunks of an answer: one, or three where it is streamed."""
    prompt_tokens = len(request.token_ids)
    if request.choices is not None:
        usage = Usage(prompt_tokens=prompt_tokens)
        scores = _scores(request, kind)
        finish = None if kind == "truncated" else "stop"
        return [Chunk(finish=finish, usage=usage, choice_logprobs=scores)]
    text = "\ud83d \0 <tool_call>{" if kind == "garbage" else said(request)
    tokens = text.encode("utf-8", "replace")
    if kind == "short":
        tokens = tokens[: len(tokens) // 2]
        text = tokens.decode()
    drawn = min(len(request.drawn), len(tokens))
    step = max(1, -(-(len(tokens) - drawn) // 3)) if request.stream else len(tokens)
    ends = list(range(drawn + step, len(tokens), step)) if request.stream else []
    chunks = [
        Chunk(text=tokens[a:b].decode("utf-8", "replace"), token_ids=tuple(tokens[a:b]))
        for a, b in zip([0, *ends], [*ends, len(tokens)], strict=True)
    ]
    if kind == "garbage":
        chunks = [Chunk(text=text, token_ids=tuple(tokens))]
    if kind == "truncated":
        return chunks
    usage = Usage(prompt_tokens=prompt_tokens, output_tokens=len(tokens) - drawn, decode_s=ANSWER_S)
    last = chunks[-1]
    finish = "length" if kind == "short" else "stop"
    ended = Chunk(
        text=last.text,
        token_ids=last.token_ids,
        finish=finish,
        usage=None if kind == "no usage" else usage,
    )
    return [*chunks[:-1], ended]


def _scores(request: Request, kind: str) -> tuple[float, ...] | None:
    assert request.choices is not None
    count = len(request.choices)
    if kind == "odd scores":
        return (nan,) * count if len(request.token_ids) % 2 else (0.0,) * (count - 1)
    if kind == "garbage":
        return None
    chosen = crc32(bytes(token for token in request.token_ids if token < 256)) % count
    return tuple(-0.1 if place == chosen else -3.0 for place in range(count))
