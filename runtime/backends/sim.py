"""The simulated backend: the engine's own batching and radix tree, with a roofline for tensors.

Time is the event loop's: on `clock.VirtualLoop` an hour of serving takes a second, and the same
seed gives the same trace. Answers are made of dummy words; what is simulated is when they come.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from itertools import count
from random import Random
from types import TracebackType
from typing import Self, TypeVar

import anyio

from ...planner.hardware import HARDWARE, MODELS, kv_capacity_tokens, step_seconds
from ..calls import (
    CallId,
    Capabilities,
    Chunk,
    FinishReason,
    Load,
    Request,
    SessionId,
    Tokenizer,
)
from ..clock import now
from ..engine.batch import Batch
from ..engine.cache import PAGE_TOKENS, PageCache
from ..engine.state import Sequence
from ..errors import BackendUnavailable, CallFailed, InvalidConfig
from .fake import ByteTokenizer

WORD = 97  # the token that answers are made of

Preset = TypeVar("Preset")
OutputLength = Callable[[Request], int]


class SimulatedBackend:
    """One engine replica that exists only in time.

    `hardware` and `model` name presets of `planner.hardware`; `kv_tokens` overrides the capacity
    that follows from them. `output_tokens` says how long an answer is: by default a draw, from
    `seed`, between one token and the request's `max_tokens`.
    """

    failure: str | None = None

    def __init__(
        self,
        hardware: str = "h100",
        model: str = "llama-3.1-8b",
        kv_tokens: int | None = None,
        max_running: int = 256,
        chunk_tokens: int = 2048,
        seed: int = 0,
        output_tokens: OutputLength | None = None,
    ) -> None:
        self._hardware = _preset(HARDWARE, "hardware", hardware)
        self._model = _preset(MODELS, "model", model)
        capacity = kv_tokens or kv_capacity_tokens(self._hardware, self._model)
        if capacity < PAGE_TOKENS:
            raise InvalidConfig(f"{model} leaves no room for KV on {hardware}; give kv_tokens")
        self.cache = PageCache(capacity // PAGE_TOKENS + 1)
        self._batch = Batch(self.cache, max_running, chunk_tokens)
        self._random = Random(seed)
        self._length = output_tokens or self._draw_length
        self._arrivals = count()
        self._streams: dict[CallId, tuple[Sequence, asyncio.Queue[Chunk]]] = {}
        self._sessions: dict[SessionId, list[int]] = {}
        self._work = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.steps = 0
        self.tokenizer: Tokenizer = ByteTokenizer()
        self.capabilities = Capabilities(
            name="sim",
            model=model,
            model_fingerprint=f"sim/{hardware}/{model}",
            context_tokens=1 << 20,
            kv_tokens=self.cache.capacity * PAGE_TOKENS,
            page_tokens=PAGE_TOKENS,
            max_running=max_running,
            retention="pins",
            choices=True,
        )

    def _draw_length(self, request: Request) -> int:
        return self._random.randint(1, max(1, request.sampling.max_tokens))

    async def generate(self, request: Request) -> AsyncIterator[Chunk]:
        if request.schema is not None:
            raise CallFailed("the simulated backend makes no JSON; use choices or text")
        length = min(self._length(request), request.sampling.max_tokens)
        sequence = Sequence(request, next(self._arrivals), now(), max(length, 0))
        stream: asyncio.Queue[Chunk] = asyncio.Queue()
        self._streams[request.call] = (sequence, stream)
        self._batch.add(sequence)
        self._work.set()
        try:
            while True:
                chunk = await stream.get()
                yield chunk
                if chunk.finish is not None:
                    return
        finally:
            await self.abort(request.call)

    async def abort(self, call: CallId) -> None:
        if call in self._streams:
            self._finish(self._streams[call][0], "abort")

    async def retain(self, session: SessionId, until_s: float | None) -> None:
        tokens = self._sessions.get(session, [])
        pages = self.cache.match(tokens, len(tokens) // PAGE_TOKENS)
        self.cache.pin(session, pages, float("inf") if until_s is None else until_s)

    async def release(self, session: SessionId) -> None:
        self._sessions.pop(session, None)
        self.cache.unpin(session)

    async def warm(self, session: SessionId, token_ids: tuple[int, ...]) -> None:
        whole = token_ids[: len(token_ids) // PAGE_TOKENS * PAGE_TOKENS]
        if whole:
            name = CallId(f"warm/{session}/{next(self._arrivals)}")
            request = Request(name, whole, choices=((WORD,),), session=session)
            async for _ in self.generate(request):
                pass
        self._sessions[session] = list(whole)

    async def load(self) -> Load:
        return Load(
            running=len(self._batch.running),
            waiting=len(self._batch.waiting),
            kv_used_tokens=(self.cache.capacity - self.cache.free_pages) * PAGE_TOKENS,
            kv_pinned_tokens=self.cache.pinned_pages * PAGE_TOKENS,
            counters={"steps": self.steps, "preemptions": self._batch.preemptions},
        )

    def evictions(self) -> None:
        """It is one of a kind: nobody has to know where a prefix lies."""
        return

    async def recover(self) -> None:
        """A simulated replica is gone for good once it is lost."""
        raise BackendUnavailable("the simulated replica is gone")

    async def __aenter__(self) -> Self:
        self._task = asyncio.get_running_loop().create_task(self._serve())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for sequence, _ in list(self._streams.values()):
            self._finish(sequence, "abort")
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    # ---- the engine ---------------------------------------------------------------------------

    async def _serve(self) -> None:
        """One step after another while there is work; a step takes its roofline time."""
        while True:
            work = self._batch.plan() if self._streams else []
            if not work:
                self._work.clear()
                await self._work.wait()
                continue
            started_s = now()
            for sequence, _ in work:
                if sequence.started_s is None:
                    sequence.started_s = started_s
            tokens = sum(count for _, count in work)
            context = sum(sequence.done for sequence, _ in work)
            await anyio.sleep(step_seconds(self._hardware, self._model, tokens, context))
            self.steps += 1
            alive = [item for item in work if item.sequence.state == "running"]
            self._batch.advance(alive)
            for sequence, _ in alive:
                if sequence.done == len(sequence.tokens):
                    self._progress(sequence)

    def _progress(self, sequence: Sequence) -> None:
        """A sequence whose tokens are all computed draws its next one, or ends."""
        if sequence.first_s is None:
            sequence.first_s = now()
            sequence.cached = max(sequence.prompt - sequence.computed, 0)
        if not sequence.draws:
            self._finish(sequence, "stop")
            return
        sequence.tokens.append(WORD)
        if sequence.outputs >= sequence.max_output:
            self._finish(sequence, "stop")
        elif sequence.request.stream:
            self._streams[sequence.request.call][1].put_nowait(sequence.chunk())

    def _finish(self, sequence: Sequence, finish: FinishReason) -> None:
        request = sequence.request
        _, stream = self._streams.pop(request.call)
        self._batch.remove(sequence)
        if request.session is not None and finish != "abort":
            self._sessions[request.session] = sequence.tokens[: sequence.sharable]
        if request.choices is not None:
            sequence.scores = [-self._random.random() for _ in request.choices]
        sequence.said = "a" * (sequence.outputs - sequence.handed)
        stream.put_nowait(sequence.last_chunk(finish, now()))


def _preset(known: Mapping[str, Preset], kind: str, name: str) -> Preset:
    if name not in known:
        raise InvalidConfig(f"there is no {kind} {name!r}; there is {', '.join(sorted(known))}")
    return known[name]
