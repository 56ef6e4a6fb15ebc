"""The simulated backend: a replica that exists only in time, behind the door of all backends.

Time is the event loop's: on `clock.VirtualLoop` an hour of serving takes a second, and the same
seed gives the same trace. Answers are dummy words unless `answer` says which tokens they are made
of; what is simulated is when they come.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from collections.abc import Sequence as Tokens
from itertools import count
from random import Random
from types import TracebackType
from typing import Self

from ...planner.hardware import (
    MODELS,
    Hardware,
    ModelShape,
    kv_capacity_tokens,
    preset,
)
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
from ..engine.cache import PAGE_TOKENS
from ..engine.state import Sequence
from ..errors import BackendUnavailable, CallFailed, InvalidConfig
from .fake import ByteTokenizer
from .replica import Replica

WORD = 97  # the token that answers are made of

OutputLength = Callable[[Request], int]
Answer = Callable[[Request], Tokens[int]]


class SimulatedBackend:
    """One engine replica that exists only in time.

    `hardware` and `model` name presets of `planner.hardware` (`4xh100`: four GPUs with tensor
    parallelism); `kv_tokens` overrides the capacity that follows from them, and `host_gb` of the
    host's memory hold KV that was evicted. `output_tokens` says how long an answer is: by default
    a draw, from `seed`, between one token and the request's `max_tokens`. With `answer` it is
    those tokens, so that a next turn that quotes them finds their KV.
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
        answer: Answer | None = None,
        host_gb: float = 0.0,
    ) -> None:
        gpus, shape = named_presets(hardware, model)
        capacity = kv_tokens or kv_capacity_tokens(gpus, shape)
        if capacity < PAGE_TOKENS:
            raise InvalidConfig(f"{model} leaves no room for KV on {hardware}; give kv_tokens")
        self.replica = Replica(
            *(gpus, shape, capacity, self._extend),
            max_running=max_running,
            chunk_tokens=chunk_tokens,
            host_tokens=int(host_gb * 1e9 / shape.kv_bytes_per_token),
        )
        self._random = Random(seed)
        self._length = output_tokens or self._draw_length
        self._answer = answer
        self._answers: dict[CallId, Tokens[int]] = {}  # of the calls that run, where not words
        self._arrivals = count()
        self._streams: dict[CallId, tuple[Sequence, asyncio.Queue[Chunk]]] = {}
        self._sessions: dict[SessionId, list[int]] = {}
        self._stirred = asyncio.Event()  # something has changed, or the steps under way are over
        self._over = False
        self._task: asyncio.Task[None] | None = None
        self.tokenizer: Tokenizer = ByteTokenizer()
        self.capabilities = Capabilities(
            name="sim",
            model=model,
            model_fingerprint=f"sim/{hardware}/{model}",
            context_tokens=1 << 20,
            kv_tokens=self.replica.kv_tokens,
            page_tokens=PAGE_TOKENS,
            max_running=max_running,
            retention="pins",
            choices=True,
            priorities=True,
            joins=True,
            tiered=host_gb > 0,
        )

    def _draw_length(self, request: Request) -> int:
        return self._random.randint(1, max(1, request.sampling.max_tokens))

    async def generate(self, request: Request) -> AsyncIterator[Chunk]:
        if request.schema is not None:
            raise CallFailed("the simulated backend makes no JSON; use choices or text")
        sequence = self._sequence(request)
        if not self.replica.fits(sequence.prompt + sequence.max_output):
            raise CallFailed(
                f"a prompt of {sequence.prompt:,} tokens and its answer of {sequence.max_output:,} "
                f"do not fit into the {self.replica.kv_tokens:,} tokens of KV"
            )
        stream: asyncio.Queue[Chunk] = asyncio.Queue()
        self._streams[request.call] = (sequence, stream)
        self.replica.add(sequence, now())
        self._stirred.set()
        try:
            while True:
                chunk = await stream.get()
                yield chunk
                if chunk.finish is not None:
                    return
        finally:
            await self.abort(request.call)

    def _sequence(self, request: Request) -> Sequence:
        most = request.sampling.max_tokens
        if self._answer is not None and request.choices is None:
            answer = self._answer(request)[:most]
            self._answers[request.call] = answer
            length = len(answer)
        else:
            length = min(self._length(request), most)
        return Sequence(request, next(self._arrivals), now(), max(length, 0))

    async def abort(self, call: CallId) -> None:
        if call in self._streams:
            self._finish(self._streams[call][0], "abort")

    async def retain(self, session: SessionId, until_s: float | None) -> None:
        self.replica.retain(session, self._sessions.get(session, []), until_s, now())
        self._stirred.set()

    async def release(self, session: SessionId) -> None:
        self._sessions.pop(session, None)
        self.replica.release(session, now())
        self._stirred.set()

    async def warm(self, session: SessionId, token_ids: tuple[int, ...]) -> None:
        whole = token_ids[: len(token_ids) // PAGE_TOKENS * PAGE_TOKENS]
        if whole:
            name = CallId(f"warm/{session}/{next(self._arrivals)}")
            request = Request(name, whole, choices=((WORD,),), session=session)
            async for _ in self.generate(request):
                pass
        self._sessions[session] = list(whole)

    async def load(self) -> Load:
        replica, cache = self.replica, self.replica.cache
        return Load(
            running=len(replica.batch.running),
            waiting=len(replica.batch.waiting),
            kv_used_tokens=(cache.capacity - cache.free_pages) * PAGE_TOKENS,
            kv_pinned_tokens=cache.pinned_pages * PAGE_TOKENS,
            counters={
                "steps": replica.steps,
                "preemptions": replica.batch.preemptions,
                "loaded_tokens": replica.loaded_tokens,
            },
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
        """Steps while there is work; those in which nothing can change are one sleep."""
        while True:
            streams = any(sequence.request.stream for sequence, _ in self._streams.values())
            self._stirred.clear()
            if self.replica.start(now(), 1 if streams else None) is None:
                await self._stirred.wait()
                continue
            await self._steps_over()
            for sequence in self.replica.end():
                self._finish(sequence, "stop")
            if streams:
                for sequence, _ in self.replica.work:
                    if sequence.request.stream and sequence.request.call in self._streams:
                        self._streams[sequence.request.call][1].put_nowait(sequence.chunk())

    async def _steps_over(self) -> None:
        """Until the steps under way are over; what happens meanwhile makes them fewer."""
        self._over = False
        loop, end_s = asyncio.get_running_loop(), self.replica.end_s
        assert end_s is not None
        alarm = loop.call_at(end_s, self._ring)
        while not self._over:
            await self._stirred.wait()
            self._stirred.clear()
            sooner_s = self.replica.end_s
            if not self._over and sooner_s is not None and sooner_s != end_s:
                alarm.cancel()
                end_s = sooner_s
                alarm = loop.call_at(end_s, self._ring)

    def _ring(self) -> None:
        self._over = True
        self._stirred.set()

    def _extend(self, sequence: Sequence, tokens: int) -> None:
        """The next `tokens` tokens of an answer."""
        answer = self._answers.get(sequence.request.call)
        if answer is None:
            sequence.tokens += [WORD] * tokens
        else:
            sequence.tokens += answer[sequence.outputs : sequence.outputs + tokens]

    def _finish(self, sequence: Sequence, finish: FinishReason) -> None:
        """End a sequence. Its call has used up the pin of its session."""
        request = sequence.request
        _, stream = self._streams.pop(request.call)
        self._answers.pop(request.call, None)
        self.replica.remove(sequence, now())
        self._stirred.set()
        if request.session is not None and finish != "abort":
            self._sessions[request.session] = sequence.tokens[: sequence.sharable]
            self.replica.release(request.session, now())
        if request.choices is not None:
            sequence.scores = [-self._random.random() for _ in request.choices]
        sequence.said = "a" * (sequence.outputs - sequence.handed)
        stream.put_nowait(sequence.last_chunk(finish, now()))


def named_presets(hardware: str, model: str) -> tuple[Hardware, ModelShape]:
    """The hardware and the model of these names. Raises InvalidConfig, which lists the known."""
    if model not in MODELS:
        raise InvalidConfig(f"there is no model {model!r}; there is {', '.join(sorted(MODELS))}")
    try:
        return preset(hardware), MODELS[model]
    except ValueError as error:
        raise InvalidConfig(str(error)) from None
