"""What makes an engine run: a thread of its own, or a task on the event loop.

Threaded, one thread owns the engine: it takes commands between steps and hands what a step brought
forth to the loop with one `call_soon_threadsafe`. Inline, a task on the loop does the same, so
that everything runs on virtual time; a cost model may say how long each step takes.
"""

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import anyio.to_thread

from ..errors import BackendUnavailable, TenterError
from .counters import StepReport

if TYPE_CHECKING:
    from .engine import Engine, Output

T = TypeVar("T")
_CLOSED = BackendUnavailable("the embedded engine has been closed")
_NOT_ENTERED = BackendUnavailable("the embedded backend is used outside of `async with`")
_Item = tuple[Callable[["Engine"], Any], Any]  # a command, and the future that waits for it
Receive = Callable[["list[Output] | BackendUnavailable"], None]
Make = Callable[[Callable[[], float]], "Engine"]


class Threaded:
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
            raise _again(self._failure)
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
        except TenterError as failed:
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


class Inline:
    """Owns the engine on the event loop itself: commands run at once, steps in a task."""

    def __init__(self, receive: Receive, step_cost_s: Callable[[StepReport], float] | None) -> None:
        self._receive, self._step_cost_s = receive, step_cost_s
        self._engine: Engine | None = None
        self._failure: BackendUnavailable = _NOT_ENTERED
        self._work = anyio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self, make: Make) -> "Engine":
        """Make the engine, and begin to serve."""
        loop = asyncio.get_running_loop()
        self._engine = make(loop.time)
        self._work = anyio.Event()
        self._task = loop.create_task(self._serve(self._engine), name="tenter-engine")
        return self._engine

    async def stop(self) -> None:
        """End the task."""
        self._failure, self._engine = _CLOSED, None
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def ask(self, command: "Callable[[Engine], T]") -> T:
        """Run `command` at once; its result."""
        return self._run(command)

    def post(self, command: "Callable[[Engine], Any]") -> None:
        """Run `command` at once, if there is an engine."""
        if self._engine is not None:
            self._run(command)

    def _run(self, command: "Callable[[Engine], T]") -> T:
        if self._engine is None:
            raise _again(self._failure)
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


def _crash(error: BaseException) -> BackendUnavailable:
    failure = BackendUnavailable(f"the embedded engine crashed: {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure


def _again(failure: BackendUnavailable) -> BackendUnavailable:
    """A fresh copy to raise: one that is raised twice piles up tracebacks."""
    copy = BackendUnavailable(str(failure))
    copy.__cause__ = failure.__cause__
    return copy


def _pass_on(result: Any, receive: Receive) -> None:
    """An abort's result is the last chunk of a call: hand it out."""
    from .engine import Output

    if isinstance(result, Output):
        receive([result])


def _settle(future: Any, result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
