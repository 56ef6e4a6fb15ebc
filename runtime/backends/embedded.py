"""The embedded engine behind the backend door: live on a thread, or inline on the event loop.

Live, one thread owns the engine: it takes commands between steps and hands what a step brought
forth to the loop with one `call_soon_threadsafe`. Inline, a task on the loop does the same, so
that everything runs on virtual time; a cost model may say how long each step takes.
"""

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

import anyio
import anyio.abc
import anyio.to_thread

from ..calls import CallId, Capabilities, Chunk, Load, Request, Sampling, SessionId, Tokenizer
from ..engine.cache import PAGE_TOKENS
from ..engine.counters import StepReport
from ..engine.fingerprint import fingerprint
from ..errors import BackendUnavailable, CallFailed, InvalidInput

if TYPE_CHECKING:
    from ..engine.engine import Engine, Output
    from ..engine.load import EngineOptions


T = TypeVar("T")


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
        self._driver: _Threaded | _Inline = (
            _Inline(self._receive, step_cost_s) if inline else _Threaded(self._receive)
        )
        self._streams: dict[CallId, _Stream] = {}
        self._warmed = 0

    # -- the door

    async def generate(self, request: Request) -> AsyncIterator[Chunk]:
        """Answer `request`; closing the iterator early aborts the call.

        Raises CallFailed for a request that can never be answered (too long, a broken schema) and
        BackendUnavailable if the engine is not running. If it dies meanwhile, the last chunk has
        finish `error`.
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
                raise BackendUnavailable(chunk.error or "the engine stopped")

    async def load(self) -> Load:
        """What the engine is doing, with its counters."""
        return await self._driver.ask(lambda engine: engine.load())

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
        self._end_all(Chunk(finish="abort"))

    # -- from the engine, on the loop

    def _receive(self, news: "list[Output] | BackendUnavailable") -> None:
        """Hand out a step's chunks; an error ends every call."""
        if isinstance(news, BackendUnavailable):
            self._end_all(Chunk(finish="error", error=str(news)))
            return
        for call, chunk in news:
            if (stream := self._streams.get(call)) is not None:
                stream.put(chunk)

    def _end_all(self, last: Chunk) -> None:
        for stream in self._streams.values():
            stream.put(last)


class _Stream:
    """Chunks on their way to one caller of `generate`."""

    def __init__(self) -> None:
        self.ended = False  # the last chunk has come
        self._chunks: deque[Chunk] = deque()
        self._news = anyio.Event()

    def put(self, chunk: Chunk) -> None:
        if not self.ended:
            self.ended = chunk.finish is not None
            self._chunks.append(chunk)
            self._news.set()

    async def get(self) -> Chunk:
        while not self._chunks:
            self._news = anyio.Event()
            await self._news.wait()
        return self._chunks.popleft()


_Item = tuple[Callable[["Engine"], Any], Any]  # a command, and the future that waits for it
Receive = Callable[["list[Output] | BackendUnavailable"], None]
Make = Callable[[Callable[[], float]], "Engine"]


class _Threaded:
    """Owns the engine on a thread of its own. Its methods are called on the loop."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._inbox: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._asked: set[asyncio.Future[Any]] = set()
        self._failure: BackendUnavailable | None = _NOT_ENTERED
        self._thread: threading.Thread | None = None

    async def start(self, make: Make) -> "Engine":
        """Make the engine on its thread, and begin to serve."""
        self._loop = asyncio.get_running_loop()
        self._inbox = queue.SimpleQueue()
        started: asyncio.Future[Engine] = self._loop.create_future()
        self._thread = threading.Thread(
            target=self._run, args=(make, started), name="tenter-engine", daemon=True
        )
        self._failure = None
        self._thread.start()
        try:
            return await started
        except BaseException:
            self._failure = _NOT_ENTERED
            self._inbox.put(None)
            raise

    async def stop(self) -> None:
        """End the thread, after the step that it is in."""
        self._inbox.put(None)
        if self._thread is not None:
            await anyio.to_thread.run_sync(self._thread.join)
        self._refuse(_CLOSED)

    async def ask(self, command: "Callable[[Engine], T]") -> T:
        """Run `command` between two steps; its result."""
        if self._failure is not None:
            raise self._failure
        future: asyncio.Future[T] = self._loop.create_future()
        self._asked.add(future)
        self._inbox.put((command, future))
        try:
            return await future
        finally:
            self._asked.discard(future)

    def post(self, command: "Callable[[Engine], Any]") -> None:
        """Run `command` between two steps; nobody waits for it."""
        if self._failure is None:
            self._inbox.put((command, None))

    # -- on the thread

    def _run(self, make: Make, started: "asyncio.Future[Engine]") -> None:
        offset_s = self._loop.time() - time.monotonic()
        try:
            engine = make(lambda: time.monotonic() + offset_s)
        except BaseException as error:  # noqa: BLE001 - handed to the caller
            self._tell(_settle, started, None, error)
            return
        self._tell(_settle, started, engine, None)
        try:
            while self._obey(engine):
                if engine.busy and (outputs := engine.step()):
                    self._tell(self._receive, outputs)
        except BaseException as error:  # noqa: BLE001 - every caller is told
            self._tell(self._fail, _crash(error))

    def _obey(self, engine: "Engine") -> bool:
        """Run the commands that wait; without other work, wait for one. False: it is over."""
        with suppress(queue.Empty):
            while True:
                item = self._inbox.get(block=not engine.busy)
                if item is None:
                    return False
                self._perform(engine, *item)
        return True

    def _perform(self, engine: "Engine", command: "Callable[[Engine], Any]", future: Any) -> None:
        try:
            result, error = command(engine), None
        except CallFailed as failed:
            result, error = None, failed
        self._tell(self._answered, future, result, error)

    def _tell(self, function: Callable[..., None], *args: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody listens
            self._loop.call_soon_threadsafe(function, *args)

    # -- on the loop again

    def _answered(self, future: Any, result: Any, error: Exception | None) -> None:
        _pass_on(result, self._receive)
        if future is not None:
            _settle(future, result, error)

    def _fail(self, failure: BackendUnavailable) -> None:
        self._refuse(failure)
        self._receive(failure)

    def _refuse(self, failure: BackendUnavailable) -> None:
        self._failure = failure
        for future in self._asked:
            _settle(future, None, failure)


class _Inline:
    """Owns the engine on the event loop itself: commands run at once, steps in a task."""

    def __init__(self, receive: Receive, step_cost_s: Callable[[StepReport], float] | None) -> None:
        self._receive, self._step_cost_s = receive, step_cost_s
        self._engine: Engine | None = None
        self._failure: BackendUnavailable = _NOT_ENTERED
        self._work = anyio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self, make: Make) -> "Engine":
        loop = asyncio.get_running_loop()
        self._engine = make(loop.time)
        self._work = anyio.Event()
        self._task = loop.create_task(self._serve(self._engine), name="tenter-engine")
        return self._engine

    async def stop(self) -> None:
        self._failure, self._engine = (
            BackendUnavailable("the embedded engine has been closed"),
            None,
        )
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def ask(self, command: "Callable[[Engine], T]") -> T:
        return self._run(command)

    def post(self, command: "Callable[[Engine], Any]") -> None:
        if self._engine is not None:
            self._run(command)

    def _run(self, command: "Callable[[Engine], T]") -> T:
        if self._engine is None:
            raise self._failure
        result = command(self._engine)
        _pass_on(result, self._receive)
        if self._engine.busy:
            self._work.set()
        return result

    async def _serve(self, engine: "Engine") -> None:
        try:
            while True:
                if not engine.busy:
                    self._work = anyio.Event()
                    await self._work.wait()
                outputs = engine.step()
                cost_s = self._step_cost_s(engine.last_step) if self._step_cost_s else 0.0
                await anyio.sleep(cost_s)
                self._receive(outputs)
        except Exception as error:  # noqa: BLE001 - every caller is told
            self._failure, self._engine = _crash(error), None
            self._receive(self._failure)


_CLOSED = BackendUnavailable("the embedded engine has been closed")
_NOT_ENTERED = BackendUnavailable("the embedded backend is used outside of `async with`")


def _options(settings: dict[str, Any]) -> "EngineOptions":
    """The engine's options; torch is first imported here."""
    try:
        from ..engine.load import EngineOptions
    except ModuleNotFoundError as error:
        raise InvalidInput(
            f"the embedded engine needs {error.name}: pip install 'tenter[embedded]'"
        ) from error
    return EngineOptions(**settings)


def _crash(error: BaseException) -> BackendUnavailable:
    failure = BackendUnavailable(f"the embedded engine crashed: {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure


def _pass_on(result: Any, receive: Receive) -> None:
    """An abort's result is the last chunk of a call: hand it out."""
    from ..engine.engine import Output

    if isinstance(result, Output):
        receive([result])


def _settle(future: Any, result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
