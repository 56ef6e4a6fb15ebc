"""The embedded engine behind the backend door: live on a thread, or inline on the event loop."""

import os
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import anyio

from ..calls import CallId, Capabilities, Chunk, Load, Request, Sampling, SessionId, Tokenizer
from ..engine.cache import PAGE_TOKENS
from ..engine.counters import StepReport
from ..engine.drive import Inline, Threaded
from ..engine.fingerprint import fingerprint
from ..errors import BackendUnavailable, CallFailed, InvalidInput

if TYPE_CHECKING:
    from ..engine.engine import Engine, Output
    from ..engine.load import EngineOptions


class EmbeddedBackend:
    """A model in this process. Implements `Backend`; use it as an asynchronous context manager.

    `dtype` float32: answers do not depend on the batch; bfloat16: half the memory, faster.
    `kv_tokens` or `kv_bytes` size the KV cache, `chunk_tokens` bounds the tokens of a step,
    `threads` are PyTorch's. `inline` steps on the event loop instead of on a thread;
    `step_cost_s` then prices each step, and its seconds pass on the loop's clock.
    Entering raises InvalidInput for a model or a setting that cannot be used.
    """

    capabilities: Capabilities
    tokenizer: Tokenizer
    failure: str | None = None

    def __init__(
        self,
        model_path: str | Path,
        *,
        dtype: Literal["float32", "bfloat16"] = "float32",
        device: str = "auto",
        kv_bytes: int | None = None,
        kv_tokens: int | None = None,
        max_running: int = 64,
        chunk_tokens: int | None = None,
        threads: int | None = None,
        inline: bool = False,
        step_cost_s: Callable[[StepReport], float] | None = None,
    ) -> None:
        self.model_path = Path(model_path)
        self._options = {
            "dtype": dtype,
            "device": device,
            "kv_bytes": kv_bytes,
            "kv_tokens": kv_tokens,
            "max_running": max_running,
            "chunk_tokens": chunk_tokens,
            "threads": threads,
        }
        self._dtype, self._max_running = dtype, max_running
        self._driver: Threaded | Inline = (
            Inline(self._receive, step_cost_s) if inline else Threaded(self._receive)
        )
        self._streams: dict[CallId, _Stream] = {}
        self._warmed = 0

    # -- the door

    async def generate(self, request: Request) -> AsyncIterator[Chunk]:
        """Answer `request`; closing the iterator early aborts the call.

        Raises CallFailed for a request that can never be answered (too long, a broken schema) and
        BackendUnavailable if the engine is not running, or dies meanwhile.
        """
        call = request.call
        if call in self._streams:
            raise CallFailed(f"call {call!r} is running already")
        stream = self._streams[call] = _Stream()
        try:
            await self._driver.ask(lambda engine: engine.submit(request))
            while True:
                chunk = await stream.get()
                yield chunk
                if chunk.finish is not None:
                    return
        finally:
            del self._streams[call]
            if not stream.ended:
                self._driver.post(lambda engine: engine.abort(call))

    async def abort(self, call: CallId) -> None:
        """Stop `call`; returns once the engine has. Unknown: no effect."""
        await self._driver.ask(lambda engine: engine.abort(call))

    async def retain(self, session: SessionId, until_s: float | None) -> None:
        """Keep the KV of `session` until `until_s` (`clock.now`; None: until released)."""
        await self._driver.ask(lambda engine: engine.retain(session, until_s))

    async def release(self, session: SessionId) -> None:
        """Give the promise of `retain` back, and forget `session`."""
        await self._driver.ask(lambda engine: engine.release(session))

    async def fork(self, session: SessionId, child: SessionId) -> None:
        """Let `child` name the context of `session`, without copying any KV."""
        await self._driver.ask(lambda engine: engine.fork(session, child))

    async def warm(self, session: SessionId, token_ids: tuple[int, ...]) -> None:
        """Compute the KV of `token_ids` and let `session` name it."""
        self._warmed += 1
        call = CallId(f"warm {self._warmed}: {session}")
        async for chunk in self.generate(
            Request(call, token_ids, Sampling(max_tokens=0), session=session)
        ):
            if chunk.finish == "error":
                raise CallFailed(chunk.error or "the prefix cannot be computed")

    async def load(self) -> Load:
        """What the engine is doing, with its counters."""
        return await self._driver.ask(lambda engine: engine.load())

    def evictions(self) -> None:
        """It is one of a kind: nobody has to know where a prefix lies."""
        return

    async def recover(self) -> None:
        """An engine that has died does not come back."""
        raise BackendUnavailable("the engine has died in this process")

    async def __aenter__(self) -> Self:
        options = _options(self._options)

        def make(clock: Callable[[], float]) -> "Engine":
            from ..engine.load import load_engine

            return load_engine(self.model_path, options, clock)

        engine = await self._driver.start(make)
        self.tokenizer = engine.tokenizer
        self.capabilities = Capabilities(
            name="embedded",
            model=str(self.model_path),
            model_fingerprint=fingerprint(self.model_path, self._dtype),
            context_tokens=engine.model.config.context,
            kv_tokens=engine.kv_tokens,
            page_tokens=PAGE_TOKENS,
            max_running=self._max_running,
            retention="pins",
            schemas=True,
            choices=True,
            logprobs=True,
            resumes="all",
            joins=True,
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with anyio.CancelScope(shield=True):
            await self._driver.stop()
        for stream in self._streams.values():
            stream.put(Chunk(finish="abort"))

    # -- from the engine, on the loop

    def _receive(self, news: "list[Output] | BackendUnavailable") -> None:
        """Hand out a step's chunks; an error ends every call."""
        if isinstance(news, BackendUnavailable):
            for stream in self._streams.values():
                stream.fail(str(news))
            return
        for call, chunk in news:
            if (stream := self._streams.get(call)) is not None:
                stream.put(chunk)


class _Stream:
    """Chunks on their way to one caller of `generate`."""

    def __init__(self) -> None:
        self.ended = False  # the last chunk has come
        self._chunks: deque[Chunk] = deque()
        self._failure: str | None = None  # why there will be no last chunk
        self._news = anyio.Event()

    def put(self, chunk: Chunk) -> None:
        if not self.ended:
            self.ended = chunk.finish is not None
            self._chunks.append(chunk)
            self._news.set()

    def fail(self, failure: str) -> None:
        """The engine has died."""
        if not self.ended:
            self.ended, self._failure = True, failure
            self._news.set()

    async def get(self) -> Chunk:
        while not self._chunks:
            if self._failure is not None:
                raise BackendUnavailable(self._failure)
            self._news = anyio.Event()
            await self._news.wait()
        return self._chunks.popleft()


def _options(settings: dict[str, Any]) -> "EngineOptions":
    """The engine's options; torch is first imported here."""
    if "torch" not in sys.modules:  # its threads then sleep while they wait, not spin
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        from ..engine.load import EngineOptions
    except ModuleNotFoundError as error:
        raise InvalidInput(
            f"the embedded engine needs {error.name}: pip install 'tenter[embedded]'"
        ) from error
    return EngineOptions(**settings)
