"""The loop around the core: it owns it, performs its commands, and turns what happens into events.

Everything runs on one event loop's thread. `send` puts an event in the inbox; whoever finds the
inbox idle empties it, so the core is never entered twice and events keep their order.
"""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Protocol, Self

import msgspec

from ..backends.base import Backend
from ..blocks import blocks_of
from ..calls import CallId, Chunk, FinishReason, Request, SessionId, Usage
from ..errors import BackendUnavailable, CallFailed, InvalidInput, TryAgain
from ..trace import NoTrace, Trace
from .core import Core
from .events import (
    Abort,
    BlocksGone,
    CallBegan,
    CallBroke,
    CallEnded,
    CallReady,
    Command,
    Deviated,
    Dispatch,
    DropCall,
    Event,
    PinJudged,
    PrefixKnown,
    PrefixOver,
    Probe,
    ProgramArrived,
    Quit,
    Release,
    Retain,
    SetTimer,
    StartProgram,
    TimerFired,
    Warm,
    WorkerDown,
    WorkerFine,
    WorkerLoad,
    WorkerUp,
)

NO_USAGE = Usage()
ATTEMPT_TIMEOUT_S = 600.0  # longest wait for a server's whole answer to one attempt
LEAVE_S = 2.0  # for giving up pins at the end
LEADER_GROWTH = 8.0  # of the chunks of an answer that is streamed for its first token alone
LOAD_EVERY_S = 1.0  # how often a worker that others may use is asked what it does
log = logging.getLogger(__name__)
Action = Callable[[], Awaitable[None]]


class Answer(msgspec.Struct, frozen=True):
    """What a call came to. `error` is set when there is no answer."""

    text: str = ""
    token_ids: tuple[int, ...] = ()
    usage: Usage = NO_USAGE
    finish: FinishReason = "stop"
    choice_logprobs: tuple[float, ...] | None = None
    logprobs: tuple[float, ...] | None = None
    error: str | None = None


class Submission(Protocol):
    """A call on its way: what to send, for whom, and whom to tell."""

    @property
    def request(self) -> Request: ...
    @property
    def program(self) -> str: ...
    @property
    def step(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def shared_tokens(self) -> int: ...
    @property
    def gang(self) -> int:
        """So many calls of `request.group` enter together, or none of them; 0: it goes alone."""
        ...

    def heard(self, chunk: Chunk) -> None:
        """Takes a piece of a streamed answer, all but the last."""
        ...

    def lost(self) -> None:
        """The attempt came to nothing: should there be another one, the answer begins anew."""
        ...

    def done(self, answer: Answer) -> None:
        """Takes the answer; called exactly once."""
        ...


class PlanHint(msgspec.Struct, frozen=True):
    """What a plan would have of a call, in the words of `CallReady`."""

    leader: str | None = None
    order_key: float | None = None
    worker: str | None = None
    expected_tokens: float | None = None
    remaining_tokens: float | None = None  # known better than foretold
    chain: str | None = None


NO_PLAN = PlanHint()


class Hints(Protocol):
    """What is foretold of a call, in the units of `CallReady`."""

    @property
    def expected_tokens(self) -> float | None: ...
    @property
    def remaining_tokens(self) -> float | None: ...


class Scheduler:
    """Owns a core and performs its commands on `backends` (worker name -> backend).

    Use as an asynchronous context manager; leaving aborts what still runs. `models` says which
    model name each worker serves. An attempt at a remote worker that takes longer than
    `attempt_timeout_s` is broken off, and tried again. `foretell` says how long answers and
    programs will be, for orders that go by it.
    """

    def __init__(
        self,
        core: Core,
        backends: Mapping[str, Backend],
        models: Mapping[str, str],
        trace: Trace | None = None,
        attempt_timeout_s: float | None = ATTEMPT_TIMEOUT_S,
        foretell: "Callable[[Submission], Hints] | None" = None,
    ) -> None:
        self.core = core
        self._foretell = foretell
        self._backends = backends
        self._models = models
        self._write = None if trace is None or isinstance(trace, NoTrace) else trace.write
        self._inbox: deque[Event] = deque()
        self._busy = False
        self._tasks = asyncio.TaskGroup()
        self._calls: dict[str, Submission] = {}
        self._running: dict[str, tuple[asyncio.Task[None], str]] = {}  # call -> task, worker
        self._controls: dict[str, asyncio.Queue[Action | None]] = {}  # worker -> in order
        self._controllers: dict[str, asyncio.Task[None]] = {}
        self._watches: list[asyncio.Task[None]] = []
        self._recoveries: dict[str, asyncio.Task[None]] = {}
        self._reasons: dict[str, str] = {}  # why calls that still run are aborted
        self._faults: dict[str, str] = {}  # what was wrong with a worker last
        self._attempt_timeout_s = attempt_timeout_s
        self._closing = False
        self._starts: dict[str, Callable[[], None]] = {}
        self._prefixes: dict[str, tuple[int, ...]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._perform: dict[type[Command], Callable[..., None]] = {
            StartProgram: self._start_program,
            Dispatch: self._dispatch,
            Abort: self._abort,
            DropCall: self._drop,
            Warm: self._warm,
            Retain: self._retain,
            Release: self._release,
            Quit: self._quit,
            Probe: self._probe,
            PinJudged: self._note,
            Deviated: self._note,
            SetTimer: self._set_timer,
        }

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        await self._tasks.__aenter__()
        for worker, backend in self._backends.items():
            self._start_control(worker)
            if backend.capabilities.remote:
                self._watches.append(self._tasks.create_task(self._watch(worker)))
        pools = Counter(self._models.values())
        for worker, backend in self._backends.items():
            evictions = backend.evictions() if pools[self._models[worker]] > 1 else None
            if evictions is not None:
                self._watches.append(self._tasks.create_task(self._listen(worker, evictions)))
            if backend.failure is None:
                self.send(self._up(worker))
            else:
                self.lose(worker, backend.failure)
        return self

    def _up(self, worker: str) -> WorkerUp:
        able = self._backends[worker].capabilities
        return WorkerUp(
            worker=worker,
            model=self._models[worker],
            max_running=able.max_running,
            kv_tokens=able.kv_tokens,
            page_tokens=able.page_tokens,
            joins=able.joins,
            tiered=able.tiered,
        )

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
        for task, _ in tuple(self._running.values()):
            task.cancel()
        for task in (*self._watches, *self._recoveries.values()):
            task.cancel()
        self._let_go()
        for queue in self._controls.values():
            queue.put_nowait(None)
        if self._controllers:
            _, late = await asyncio.wait(self._controllers.values(), timeout=LEAVE_S)
            for task in late:  # a server that hangs gives up our pins by itself
                task.cancel()
        await self._tasks.__aexit__(kind, error, trace)

    def _let_go(self) -> None:
        """Give up all pins: the workers may outlive this scheduler."""
        for session, state in self.core.sessions.items():
            self._release(Release(session=session, worker=state.worker))
        for name, worker in self.core.workers.items():
            for prefix in sorted(worker.prefixes):
                self._release(Release(session=prefix, worker=name))

    # ---- what others call -----------------------------------------------------------------------

    def arrive(
        self,
        program: str,
        row: int,
        workflow: str,
        start: Callable[[], None],
        tenant: str = "",
        expected_tokens: float | None = None,
    ) -> None:
        """Announce a program; `start` is called when it may run."""
        self._starts[program] = start
        self.send(
            ProgramArrived(
                program=program,
                row=row,
                workflow=workflow,
                tenant=tenant,
                expected_tokens=expected_tokens,
            )
        )

    def forget(self, program: str) -> None:
        """A program has ended, perhaps before it was started."""
        self._starts.pop(program, None)

    def submit(self, call: Submission, plan: PlanHint = NO_PLAN) -> None:
        """Hand over a call whose inputs are ready; `call.done` gets the answer, exactly once.

        `plan` is what a plan would have of it.
        """
        request = call.request
        if self._closing:
            call.done(Answer(finish="abort", error="the run is closing"))
            return
        self._calls[request.call] = call
        chooses = self.core.chooses(call.model)
        hints = self._foretell(call) if self._foretell is not None else None
        expected = hints.expected_tokens if hints else None
        left = plan.remaining_tokens
        if left is None and hints is not None:
            left = hints.remaining_tokens
        self.send(
            CallReady(
                call=request.call,
                program=call.program,
                step=call.step,
                model=call.model,
                prompt_tokens=len(request.token_ids),
                max_tokens=0 if request.choices else request.sampling.max_tokens,
                session=request.session,
                shared_tokens=call.shared_tokens,
                deadline_s=request.deadline_s,
                group=request.group,
                gang=call.gang,
                blocks=blocks_of(request.token_ids) if chooses else (),
                expected_tokens=plan.expected_tokens if expected is None else expected,
                remaining_tokens=left,
                leader=plan.leader,
                order_key=plan.order_key,
                worker=plan.worker,
                chain=plan.chain,
            )
        )

    def submitted(self, call: CallId) -> Submission | None:
        """The call of that name that has no answer yet."""
        return self._calls.get(call)

    def share_prefix(
        self, session: str, model: str, token_ids: tuple[int, ...], worker: str | None = None
    ) -> None:
        """Have a prefix of many calls computed once and kept until `end_prefix`, or the run's end."""
        self._prefixes[session] = token_ids
        tokens = len(token_ids)
        self.send(PrefixKnown(session=session, model=model, tokens=tokens, worker=worker))

    def workers_of(self, model: str) -> list[str]:
        """The workers that serve `model` now."""
        return [name for name, worker in self.core.workers.items() if worker.model == model]

    def end_prefix(self, session: str) -> None:
        """No more calls of a prefix or a group will come."""
        self.send(PrefixOver(session=session))
        self._prefixes.pop(session, None)

    def send(self, event: Event) -> None:
        """Tell the core; what it decides is performed before this returns, unless it is at work."""
        self._inbox.append(event)
        if self._busy:
            return
        self._busy = True
        inbox, handle, write, perform = self._inbox, self.core.handle, self._write, self._perform
        try:
            while inbox:
                event = inbox.popleft()
                now_s = self._loop.time()
                if write is not None:
                    write(now_s, event)
                for command in handle(event, now_s):
                    if write is not None:
                        write(now_s, command)
                    perform[type(command)](command)
        finally:
            self._busy = False

    def lose(self, worker: str, error: str) -> None:
        """A worker is gone: its calls go to another one, wait for its return, or end."""
        returns = self._backends[worker].capabilities.remote
        model = self._models[worker]
        self._faults[worker] = error
        self.send(WorkerDown(worker=worker, error=error, returns=returns, model=model))

    # ---- commands -------------------------------------------------------------------------------

    def _start_program(self, command: StartProgram) -> None:
        start = self._starts.pop(command.program, None)
        if start is not None:  # else it was forgotten meanwhile
            start()

    def _dispatch(self, command: Dispatch) -> None:
        if self._closing:
            return
        call = command.call
        request = self._calls[call].request
        able = self._backends[command.worker].capabilities
        if able.remote:
            deadline_s = self._deadline_s(request)
            replace = msgspec.structs.replace
            request = replace(request, priority=command.priority, deadline_s=deadline_s)
            if self.core.leads(call) and not request.stream and not request.choices:
                request = replace(request, stream=True, chunk_growth=LEADER_GROWTH)
        running = self._run_call(self._calls[call], request, command.worker)
        self._running[call] = (self._tasks.create_task(running), command.worker)

    def _deadline_s(self, request: Request) -> float | None:
        """When an attempt that begins now must have ended."""
        limits = [request.deadline_s] if request.deadline_s is not None else []
        if self._attempt_timeout_s is not None:
            limits.append(self._loop.time() + self._attempt_timeout_s)
        return min(limits, default=None)

    async def _run_call(self, call: Submission, request: Request, worker: str) -> None:
        """Read one call's answer to its end; whatever happens, the core hears of it once."""
        name = request.call
        chunks: list[Chunk] = []
        error: str | None = None
        try:
            await self._read(call, request, worker, chunks)
        except asyncio.CancelledError:  # lost with its worker, or everything ends
            if self._is_mine(name):
                self._closing = True
            raise
        except BackendUnavailable as failure:
            if self._is_mine(name):  # else others were faster to tell
                self.lose(worker, str(failure))
            return
        except TryAgain as failure:
            if self._is_mine(name):
                del self._running[name]
                call.lost()
                self._faults[worker] = str(failure)
                after_s = failure.after_s
                broke = CallBroke(call=name, worker=worker, error=str(failure), after_s=after_s)
                self.send(broke)
            return
        except Exception as failure:
            error = f"{type(failure).__name__}: {failure}"
        if self._is_mine(name):
            del self._running[name]
            self._finish(call, _answer(chunks, error))

    async def _read(
        self, call: Submission, request: Request, worker: str, chunks: list[Chunk]
    ) -> None:
        """Collect one call's answer in `chunks`, and tell the call of it.

        A server that has taken us may still refuse one call's credentials or content: then that
        call has failed. One that refuses us its load too is of no use to any call.
        """
        backend = self._backends[worker]
        try:
            async for chunk in backend.generate(request):
                if chunks and chunks[-1].finish is not None:
                    continue  # said again
                chunks.append(chunk)
                if chunk.finish is None:
                    call.heard(chunk)
                    if self.core.leads(request.call):
                        self.send(CallBegan(call=request.call))
        except InvalidInput as refusal:
            if await _refuses(backend):
                raise BackendUnavailable(str(refusal)) from None
            raise CallFailed(str(refusal)) from None

    def _is_mine(self, call: str) -> bool:
        """Whether this task runs `call`; by now it may run on another worker."""
        running = self._running.get(call)
        return running is not None and running[0] is asyncio.current_task()

    def _finish(self, call: Submission, answer: Answer) -> None:
        del self._calls[call.request.call]
        reason = self._reasons.pop(call.request.call, None)
        if reason and answer.finish == "abort":
            answer = msgspec.structs.replace(answer, error=reason)
        usage = answer.usage
        self.send(
            CallEnded(
                call=call.request.call,
                program=call.program,
                step=call.step,
                finish=answer.finish,
                prompt_tokens=usage.prompt_tokens,
                cached_tokens=usage.cached_tokens,
                output_tokens=usage.output_tokens,
                queue_s=usage.queue_s,
                prefill_s=usage.prefill_s,
                decode_s=usage.decode_s,
                error=answer.error,
            )
        )
        call.done(answer)

    def _drop(self, command: DropCall) -> None:
        self._reasons.pop(command.call, None)
        call = self._calls.pop(command.call, None)
        if call is not None:
            call.done(Answer(finish="abort", error=command.reason))

    def _abort(self, command: Abort) -> None:
        # Not in the worker's queue: an abort must not wait behind a warm-up.
        self._reasons[command.call] = command.reason
        backend = self._backends[command.worker]
        self._tasks.create_task(self._guard(partial(backend.abort, CallId(command.call))))

    def _note(self, command: PinJudged | Deviated) -> None:
        """It is in the trace; there is nothing to do."""

    def _quit(self, command: Quit) -> None:
        """Stop reading from a worker, and if it may come back, wait for that."""
        for call, (task, name) in tuple(self._running.items()):
            if name == command.worker:
                del self._running[call]
                self._calls[call].lost()
                task.cancel()
        if not self._closing:
            self._start_control(command.worker)
        if command.recover:
            self._probe(Probe(worker=command.worker))

    def _probe(self, command: Probe) -> None:
        """Ask a worker again and again until it answers; it gets no calls meanwhile."""
        worker = command.worker
        if worker not in self._recoveries and not self._closing:
            fault = self._faults.get(worker, "")
            log.warning("worker %s is out of use until it answers again: %s", worker, fault)
            self._recoveries[worker] = self._tasks.create_task(self._recover(worker))

    async def _recover(self, worker: str) -> None:
        try:
            await self._backends[worker].recover()
        except Exception as failure:
            error = f"{type(failure).__name__}: {failure}"
            log.warning("worker %s will not come back: %s", worker, error)
            self.send(WorkerDown(worker=worker, error=error, model=self._models[worker]))
        else:
            log.warning("worker %s answers again", worker)
            self._use_again(worker)
        finally:
            self._recoveries.pop(worker, None)

    def _use_again(self, worker: str) -> None:
        """A worker may have calls again; one whose settings have changed has been restarted."""
        up, state = self._up(worker), self.core.workers.get(worker)
        if state is None:
            self.send(up)
        elif (state.max_running, state.kv_tokens, state.page_tokens) == (
            up.max_running,
            up.kv_tokens,
            up.page_tokens,
        ):
            self.send(WorkerFine(worker=worker))
        else:
            self.lose(worker, "it was started again with other settings")
            self.send(up)

    async def _listen(self, worker: str, evictions: AsyncIterator[tuple[int, ...]]) -> None:
        """Tell the core what a worker has evicted."""
        try:
            async for blocks in evictions:
                self.send(BlocksGone(worker=worker, blocks=blocks))
        except Exception:
            log.warning("worker %s tells no more what it evicts", worker, exc_info=True)

    async def _watch(self, worker: str) -> None:
        """Tell the core what a worker does for others, while it does something for us."""
        backend = self._backends[worker]
        while True:
            await asyncio.sleep(LOAD_EVERY_S)
            state = self.core.workers.get(worker)
            if state is None or not state.running:
                continue
            try:
                load = await backend.load()
            except Exception:
                log.debug("worker %s did not tell its load", worker, exc_info=True)
                continue  # the calls that it runs will tell
            report = WorkerLoad(worker=worker, running=load.running, waiting=load.waiting)
            state = self.core.workers.get(worker)
            if state is None:
                continue
            news = load.waiting or load.running > len(state.running)
            if news or state.foreign or state.crowded:
                self.send(report)

    def _warm(self, command: Warm) -> None:
        backend, token_ids = self._backends[command.worker], self._prefixes[command.session]
        self._order(command.worker, partial(backend.warm, SessionId(command.session), token_ids))

    def _retain(self, command: Retain) -> None:
        backend = self._backends[command.worker]
        session, until_s = SessionId(command.session), command.until_s
        self._order(command.worker, partial(backend.retain, session, until_s))

    def _release(self, command: Release) -> None:
        backend = self._backends[command.worker]
        self._order(command.worker, partial(backend.release, SessionId(command.session)))

    def _order(self, worker: str, action: Action) -> None:
        """Have `action` done after the earlier ones of the same worker."""
        self._controls[worker].put_nowait(action)

    def _start_control(self, worker: str) -> None:
        """Begin to do what is ordered; what was ordered of a worker that died dies with it."""
        if worker in self._controllers:
            self._controllers[worker].cancel()
        queue: asyncio.Queue[Action | None] = asyncio.Queue()
        self._controls[worker] = queue
        self._controllers[worker] = self._tasks.create_task(self._control(queue))

    async def _control(self, queue: asyncio.Queue[Action | None]) -> None:
        while (action := await queue.get()) is not None:
            await self._guard(action)

    async def _guard(self, action: Action) -> None:
        """A cache hint that fails costs time, never an answer: it is logged, not raised."""
        try:
            await action()
        except Exception:
            log.warning("a backend refused a retention command", exc_info=True)

    def _set_timer(self, command: SetTimer) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self._closing:
            self._timer = self._loop.call_at(command.due_s, self.send, TimerFired())


async def _refuses(backend: Backend) -> bool:
    """Whether the server of `backend` refuses what we are, whatever it is asked."""
    try:
        await backend.load()
    except InvalidInput:
        return True
    except Exception:
        log.debug("a server that refused a call did not tell its load", exc_info=True)
    return False


def _answer(chunks: list[Chunk], error: str | None) -> Answer:
    """The chunks of one call put together."""
    if error is not None:
        return Answer(finish="error", error=error)
    last = chunks[-1] if chunks else Chunk()
    end = last.finish
    if end is None:
        return Answer(finish="error", error="the backend's answer ended without a finish")
    usage = last.usage or NO_USAGE
    if end in ("error", "abort"):
        reason = last.error or "the backend aborted the call"
        return Answer(finish=end, usage=usage, error=reason)
    if len(chunks) == 1:
        text, token_ids, logprobs = last.text, last.token_ids, last.logprobs
    else:
        text = "".join(chunk.text for chunk in chunks)
        token_ids = tuple(token for chunk in chunks for token in chunk.token_ids)
        logprobs = tuple(p for chunk in chunks for p in chunk.logprobs or ()) or None
    return Answer(text, token_ids, usage, end, last.choice_logprobs, logprobs)
