"""The scheduler's core: a synchronous state machine, an event in, commands out, no I/O.

It knows programs where an engine knows requests: it orders calls by their program, admits them
by slots and KV capacity, and keeps a program's KV while its tool runs. The live runtime, the
simulator and the tests drive the same core; a trace replays into it.
"""

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from ...kvpolicy.durations import Durations
from ...kvpolicy.state import Hold, Pause
from .admission import may_enter
from .events import (
    Abort,
    CallEnded,
    CallReady,
    CancelProgram,
    Command,
    Dispatch,
    Drain,
    DropCall,
    Event,
    PrefixKnown,
    ProgramArrived,
    ProgramEnded,
    Release,
    Retain,
    SetTimer,
    StartProgram,
    TimerFired,
    ToolEnded,
    ToolStarted,
    Warm,
    WorkerDown,
    WorkerUp,
)
from .policies import Order, program_fcfs
from .state import CallState, CallView, ProgramState, SessionState, WorkerState

PIN_SHARE = 0.5  # of a worker's KV capacity that pins may hold, so that they cannot wedge it
DRAINED = "the run drains"  # the reason why a call was dropped
NO_WORKER = "no worker is left"  # begins the reason where nobody can answer any more
MAX_ATTEMPTS = 3  # of a call whose workers die under it
SPARE_DEADLINES = 64  # of calls that have ended, beside a few for each that has not


class Core:
    """State and decisions of one scheduler. Feed it with `handle`; nothing else changes it.

    `order` ranks waiting calls, `hold` says how long a session is kept while a tool runs, and
    `max_programs` bounds the programs that are live at once.
    """

    def __init__(
        self, order: Order = program_fcfs, hold: Hold | None = None, max_programs: int = 1024
    ) -> None:
        self._order = order
        self._hold = hold
        self._max_programs = max_programs
        self.programs: dict[str, ProgramState] = {}
        self.calls: dict[str, CallState] = {}
        self.workers: dict[str, WorkerState] = {}
        self.sessions: dict[str, SessionState] = {}
        self.durations = Durations()
        self._by_model: dict[str, list[WorkerState]] = {}  # model -> its workers
        self._waiting: dict[str, list[tuple[float, int, str]]] = {}  # model -> heap of calls
        self._arrived: deque[str] = deque()  # programs that wait to be started
        self._prefixes: dict[str, PrefixKnown] = {}
        self._lost: dict[str, str] = {}  # models whose last worker died, and why
        self._pins: list[tuple[float, str]] = []  # heap: when a session's pin is over
        self._deadlines: list[tuple[float, str]] = []
        self._timer_s: float | None = None
        self._live = 0
        self._arrivals = 0
        self._sequence = 0
        self._draining = False
        self._changed: list[str] = []  # models whose queue or workers have changed
        self._handlers: dict[type[Any], Callable[[Any, float, list[Command]], None]] = {
            ProgramArrived: self._program_arrived,
            ProgramEnded: self._program_ended,
            CallReady: self._call_ready,
            CallEnded: self._call_ended,
            ToolStarted: self._tool_started,
            ToolEnded: self._tool_ended,
            PrefixKnown: self._prefix_known,
            CancelProgram: self._cancel_program,
            Drain: self._drain,
            WorkerUp: self._worker_up,
            WorkerDown: self._worker_down,
            TimerFired: self._timer_fired,
        }

    def handle(self, event: Event, now_s: float) -> list[Command]:
        """Take in one event; returns what is to be done, in order."""
        commands: list[Command] = []
        if self._pins:
            self._expire_pins(now_s)
        self._handlers[type(event)](event, now_s, commands)
        while self._changed:
            self._fill(self._changed.pop(), commands)
        return commands

    # ---- programs ---------------------------------------------------------------------------

    def _program_arrived(self, event: ProgramArrived, now_s: float, out: list[Command]) -> None:
        self.programs[event.program] = ProgramState(arrival=self._arrivals)
        self._arrivals += 1
        self._arrived.append(event.program)
        self._start_programs(out)

    def _start_programs(self, out: list[Command]) -> None:
        while self._arrived and self._live < self._max_programs and not self._draining:
            name = self._arrived.popleft()
            program = self.programs.get(name)
            if program is None or program.cancelled:
                continue
            program.started = True
            self._live += 1
            out.append(StartProgram(program=name))

    def _program_ended(self, event: ProgramEnded, now_s: float, out: list[Command]) -> None:
        program = self.programs.pop(event.program, None)
        if program is None:
            return
        for call in sorted(program.calls):
            self._stop_call(call, "its program has ended", out)
        for session in sorted(program.sessions):
            self._forget_session(session, out)
        if program.started:
            self._live -= 1
            self._start_programs(out)

    def _cancel_program(self, event: CancelProgram, now_s: float, out: list[Command]) -> None:
        program = self.programs.get(event.program)
        if program is None:
            return
        program.cancelled = True
        for call in sorted(program.calls):
            self._stop_call(call, "its program was cancelled", out)

    def _drain(self, event: Drain, now_s: float, out: list[Command]) -> None:
        self._draining = True
        for name in [name for name, call in self.calls.items() if call.worker is None]:
            self._stop_call(name, DRAINED, out)

    # ---- calls ------------------------------------------------------------------------------

    def _call_ready(self, event: CallReady, now_s: float, out: list[Command]) -> None:
        program = self.programs.get(event.program)
        if program is None or program.cancelled or self._draining:
            ended = program is None or program.cancelled
            reason = "its program has ended" if ended else DRAINED
            out.append(DropCall(call=event.call, reason=reason))
            return
        demand = event.prompt_tokens - event.shared_tokens + event.max_tokens
        room = self._largest(event.model)
        if room is None and event.model in self._lost:
            out.append(DropCall(call=event.call, reason=self._lost[event.model]))
            return
        if room is not None and demand > room:
            out.append(DropCall(call=event.call, reason=_too_large(event, room)))
            return
        call = CallState(event, self._sequence, now_s, demand)
        self._sequence += 1
        self.calls[event.call] = call
        program.calls.add(event.call)
        if event.deadline_s is not None:
            heapq.heappush(self._deadlines, (event.deadline_s, event.call))
            if len(self._deadlines) > SPARE_DEADLINES + 4 * len(self.calls):
                self._deadlines = [item for item in self._deadlines if item[1] in self.calls]
                heapq.heapify(self._deadlines)
            self._set_timer(out)
        self._enqueue(call, program)

    def _enqueue(self, call: CallState, program: ProgramState) -> None:
        ready = call.ready
        view = CallView(
            program_arrival=program.arrival,
            program_attained_tokens=program.attained_tokens,
            sequence=call.sequence,
            prompt_tokens=ready.prompt_tokens,
            max_tokens=ready.max_tokens,
            ready_at_s=call.ready_at_s,
        )
        heap = self._waiting.setdefault(ready.model, [])
        heapq.heappush(heap, (self._order(view), call.sequence, ready.call))
        self._changed.append(ready.model)

    def _fill(self, model: str, out: list[Command]) -> None:
        """Dispatch waiting calls of `model` in order, while the first one fits somewhere."""
        heap = self._waiting.get(model)
        workers = self._by_model.get(model, ())
        while heap and any(len(worker.running) < worker.max_running for worker in workers):
            call = self.first_waiting(model)
            if call is None:
                return
            worker = self._choose_worker(call, workers) or self._make_room(call, workers, out)
            if worker is None:
                room = self._largest(model)
                if room is None or call.demand_tokens <= room:
                    return
                self._stop_call(call.ready.call, _too_large(call.ready, room), out)
                continue
            key, _, _ = heapq.heappop(heap)
            self._dispatch(call, worker, key, out)

    def first_waiting(self, model: str) -> CallState | None:
        """The call of `model` whose turn is next, if any waits."""
        heap = self._waiting.get(model, [])
        while heap:
            call = self.calls.get(heap[0][2])
            if call is not None and call.worker is None:
                return call
            heapq.heappop(heap)  # dropped, or dispatched since
        return None

    def _dispatch(
        self, call: CallState, worker: WorkerState, key: float, out: list[Command]
    ) -> None:
        call.worker = worker.name
        call.attempts += 1
        worker.running.add(call.ready.call)
        worker.kv_reserved += call.demand_tokens
        if call.ready.session is not None:
            self._use_session(call.ready.session, call, worker, out)
        out.append(Dispatch(call=call.ready.call, worker=worker.name, priority=key))

    def _choose_worker(self, call: CallState, workers: Sequence[WorkerState]) -> WorkerState | None:
        """The session's worker if it has room, else the least loaded one that has."""
        session = self.sessions.get(call.ready.session) if call.ready.session else None
        best: WorkerState | None = None
        for worker in workers:
            running = len(worker.running)
            room = worker.kv_tokens - worker.kv_pinned
            at_home = session is not None and session.worker == worker.name
            if at_home and session is not None and session.retained:
                room += session.tokens
            demand = call.demand_tokens
            if not may_enter(running, worker.max_running, worker.kv_reserved, room, demand):
                continue
            if at_home:
                return worker
            if best is None or running < len(best.running):
                best = worker
        return best

    def _make_room(
        self, call: CallState, workers: Sequence[WorkerState], out: list[Command]
    ) -> WorkerState | None:
        """Give up pins on an idle worker that nothing but pins keeps from taking `call`.

        The program that arrived last loses its pin first (Continuum, section 4.3).
        """
        for worker in workers:
            if worker.running or call.demand_tokens > worker.kv_tokens:
                continue
            pinned = [
                (self.programs[state.program].arrival, session)
                for session, state in self.sessions.items()
                if state.retained and state.worker == worker.name
            ]
            for _, session in sorted(pinned, reverse=True):
                self._release(session, out)
                if call.demand_tokens <= worker.kv_tokens - worker.kv_pinned:
                    return worker
            for prefix in sorted(self._prefixes):
                self._unpin_prefix(prefix, worker, out)
                if call.demand_tokens <= worker.kv_tokens - worker.kv_pinned:
                    return worker
        return None

    def _largest(self, model: str) -> int | None:
        """The KV capacity of the largest worker of `model`; None while there is none."""
        workers = self._by_model.get(model)
        return max(worker.kv_tokens for worker in workers) if workers else None

    def _call_ended(self, event: CallEnded, now_s: float, out: list[Command]) -> None:
        call = self.calls.get(event.call)
        if call is None:
            return
        worker = self.workers.get(call.worker) if call.worker is not None else None
        if worker is not None:
            worker.computed_tokens += event.prompt_tokens - event.cached_tokens
            worker.prefill_s += event.prefill_s
        self._forget_call(event.call)
        program = self.programs.get(event.program)
        if program is not None:
            program.attained_tokens += (
                event.prompt_tokens - event.cached_tokens + event.output_tokens
            )
            session = self.sessions.get(call.ready.session) if call.ready.session else None
            if session is not None:
                self._grow_session(session, event.prompt_tokens + event.output_tokens)

    def _forget_call(self, name: str) -> CallState | None:
        call = self.calls.pop(name, None)
        if call is None:
            return None
        program = self.programs.get(call.ready.program)
        if program is not None:
            program.calls.discard(name)
        self._leave_worker(call)
        self._changed.append(call.ready.model)
        return call

    def _leave_worker(self, call: CallState) -> None:
        worker = self.workers.get(call.worker) if call.worker is not None else None
        if worker is not None:
            worker.running.discard(call.ready.call)
            worker.kv_reserved -= call.demand_tokens
        call.worker = None

    def _stop_call(self, name: str, reason: str, out: list[Command]) -> None:
        """Abort a running call (its end will be reported), drop a waiting one."""
        call = self.calls[name]
        if call.worker is None:
            self._forget_call(name)
            out.append(DropCall(call=name, reason=reason))
        elif not call.aborting:
            call.aborting = True
            out.append(Abort(call=name, worker=call.worker))

    # ---- sessions, pins, tools ----------------------------------------------------------------

    def _use_session(
        self, name: str, call: CallState, worker: WorkerState, out: list[Command]
    ) -> None:
        """The call's session now lies on `worker`; its pin is used up by the call itself."""
        state = self.sessions.get(name)
        if state is not None and state.worker != worker.name:
            self._forget_session(name, out)
            state = None
        if state is None:
            self.sessions[name] = SessionState(call.ready.program, worker.name, 0)
            self.programs[call.ready.program].sessions.add(name)
        elif state.retained:
            worker.kv_pinned -= state.tokens
            state.retained = False

    def _grow_session(self, state: SessionState, tokens: int) -> None:
        """The session's context is now of `tokens` tokens; a pin covers what it grew to."""
        worker = self.workers.get(state.worker)
        if worker is not None and state.retained:
            worker.kv_pinned += tokens - state.tokens
        state.tokens = tokens

    def _tool_started(self, event: ToolStarted, now_s: float, out: list[Command]) -> None:
        state = self.sessions.get(event.session) if event.session else None
        if state is None or self._hold is None or event.session is None:
            return
        worker = self.workers[state.worker]
        if state.retained or worker.kv_pinned + state.tokens > PIN_SHARE * worker.kv_tokens:
            return
        hold_s = self._hold(self._pause(event, state, worker))
        if hold_s == 0:
            return
        state.retained = True
        worker.kv_pinned += state.tokens
        state.until_s = until_s = None if hold_s is None else now_s + hold_s
        if until_s is not None:
            heapq.heappush(self._pins, (until_s, event.session))
        out.append(Retain(session=event.session, worker=state.worker, until_s=until_s))

    def _expire_pins(self, now_s: float) -> None:
        """Count no longer what the workers have let go of by themselves."""
        while self._pins and self._pins[0][0] <= now_s:
            until_s, session = heapq.heappop(self._pins)
            state = self.sessions.get(session)
            if state is None or not state.retained or state.until_s != until_s:
                continue  # given up, or renewed, since
            worker = self.workers[state.worker]
            worker.kv_pinned -= state.tokens
            state.retained = False
            self._changed.append(worker.model)

    def _pause(self, event: ToolStarted, state: SessionState, worker: WorkerState) -> Pause:
        return Pause(
            tool=event.tool,
            tokens=state.tokens,
            durations=self.durations,
            eta_s=event.eta_s,
            waiting=len(self._waiting.get(worker.model, ())),
            prefill_s=worker.rebuild_s(state.tokens),
        )

    def _tool_ended(self, event: ToolEnded, now_s: float, out: list[Command]) -> None:
        if event.ok:
            self.durations.observe(event.tool, event.seconds)

    def _release(self, session: str, out: list[Command]) -> None:
        """Give up a pin; the session's KV may be evicted from now on."""
        state = self.sessions[session]
        if state.retained:
            self.workers[state.worker].kv_pinned -= state.tokens
            state.retained = False
        out.append(Release(session=session, worker=state.worker))

    def _forget_session(self, session: str, out: list[Command]) -> None:
        state = self.sessions.get(session)
        if state is None:
            return
        self._release(session, out)
        del self.sessions[session]
        program = self.programs.get(state.program)
        if program is not None:
            program.sessions.discard(session)

    def _prefix_known(self, event: PrefixKnown, now_s: float, out: list[Command]) -> None:
        self._prefixes[event.session] = event
        for worker in self._by_model.get(event.model, ()):
            self._pin_prefix(event, worker, out)

    def _pin_prefix(self, prefix: PrefixKnown, worker: WorkerState, out: list[Command]) -> None:
        if worker.kv_pinned + prefix.tokens > PIN_SHARE * worker.kv_tokens:
            return
        worker.kv_pinned += prefix.tokens
        worker.prefixes.add(prefix.session)
        out.append(Warm(session=prefix.session, worker=worker.name))
        out.append(Retain(session=prefix.session, worker=worker.name, until_s=None))

    def _unpin_prefix(self, session: str, worker: WorkerState, out: list[Command]) -> None:
        if session in worker.prefixes:
            worker.prefixes.remove(session)
            worker.kv_pinned -= self._prefixes[session].tokens
            out.append(Release(session=session, worker=worker.name))

    # ---- workers ------------------------------------------------------------------------------

    def _worker_up(self, event: WorkerUp, now_s: float, out: list[Command]) -> None:
        worker = WorkerState(event.worker, event.model, event.max_running, event.kv_tokens)
        self.workers[event.worker] = worker
        self._by_model.setdefault(event.model, []).append(worker)
        self._lost.pop(event.model, None)
        for prefix in self._prefixes.values():
            if prefix.model == event.model:
                self._pin_prefix(prefix, worker, out)
        self._changed.append(event.model)

    def _worker_down(self, event: WorkerDown, now_s: float, out: list[Command]) -> None:
        """Its calls wait again, on another worker, unless they have been tried too often."""
        worker = self.workers.pop(event.worker, None)
        if worker is None:
            return
        self._by_model[worker.model].remove(worker)
        for session, state in list(self.sessions.items()):
            if state.worker == event.worker:
                del self.sessions[session]
                self.programs[state.program].sessions.discard(session)
        alive = bool(self._by_model[worker.model])
        reason = f"worker {event.worker} died: {event.error}"
        if not alive:
            reason = self._lost[worker.model] = f"{NO_WORKER}: {reason}"
        for name in sorted(worker.running, key=lambda name: self.calls[name].sequence):
            call = self.calls[name]
            call.worker = None
            if not alive or call.aborting or call.attempts >= MAX_ATTEMPTS:
                self._stop_call(name, reason, out)
            else:
                self._enqueue(call, self.programs[call.ready.program])
        if not alive:
            for _, _, name in self._waiting.pop(worker.model, []):
                if name in self.calls:
                    self._stop_call(name, reason, out)

    # ---- deadlines ----------------------------------------------------------------------------

    def _set_timer(self, out: list[Command]) -> None:
        while self._deadlines and self._deadlines[0][1] not in self.calls:
            heapq.heappop(self._deadlines)
        if not self._deadlines:
            return
        first_s = self._deadlines[0][0]
        if self._timer_s is None or first_s < self._timer_s:
            self._timer_s = first_s
            out.append(SetTimer(at_s=first_s))

    def _timer_fired(self, event: TimerFired, now_s: float, out: list[Command]) -> None:
        self._timer_s = None
        while self._deadlines and self._deadlines[0][0] <= now_s:
            _, name = heapq.heappop(self._deadlines)
            if name in self.calls:
                self._stop_call(name, "its deadline has passed", out)
        self._set_timer(out)

    # ---- for tests ----------------------------------------------------------------------------

    def check(self) -> None:
        """Raise AssertionError where the state contradicts itself."""
        running: dict[str, int] = {}
        for name, call in self.calls.items():
            program = self.programs.get(call.ready.program)
            assert call.aborting if program is None else name in program.calls, name
            if call.worker is not None:
                assert name in self.workers[call.worker].running, name
                running[call.worker] = running.get(call.worker, 0) + call.demand_tokens
        for name, worker in self.workers.items():
            assert len(worker.running) <= worker.max_running, name
            assert worker.kv_reserved == running.get(name, 0), name
            assert worker.running <= self.calls.keys(), name
            pinned = sum(
                state.tokens
                for state in self.sessions.values()
                if state.retained and state.worker == name
            )
            prefixes = sum(self._prefixes[session].tokens for session in worker.prefixes)
            assert worker.kv_pinned == pinned + prefixes, name
        for name, session in self.sessions.items():
            assert name in self.programs[session.program].sessions, name
        live = sum(1 for program in self.programs.values() if program.started)
        assert live == self._live <= self._max_programs or self._max_programs == 0


def _too_large(call: CallReady, room: int) -> str:
    return (
        f"it needs {call.prompt_tokens} prompt tokens plus {call.max_tokens} for the answer, more "
        f"than the {room} KV tokens of the largest worker"
    )
