"""The scheduler's core: a synchronous state machine, an event in, commands out, no I/O.

It knows programs where an engine knows requests: it orders calls by their program, admits them
by slots and KV capacity, places them on workers, and keeps a program's KV while its tool runs.
The live runtime, the simulator and the tests drive the same core; a trace replays into it.
"""

import heapq
from collections import deque
from collections.abc import Callable
from math import inf
from typing import Any

from ...kvpolicy import Hold, Policy
from .events import (
    Abort,
    BlocksGone,
    CallBroke,
    CallEnded,
    CallReady,
    CancelProgram,
    Command,
    Dispatch,
    Drain,
    DropCall,
    Event,
    PrefixKnown,
    Probe,
    ProgramArrived,
    ProgramEnded,
    Quit,
    SetTimer,
    StartProgram,
    TimerFired,
    ToolEnded,
    ToolStarted,
    WorkerDown,
    WorkerFine,
    WorkerLoad,
    WorkerUp,
)
from .fleet import Fleet, need
from .gangs import Gangs
from .policies import Order, program_fcfs
from .retry import BREAKS, MAX_ATTEMPTS, MAX_LOSSES, backoff_s
from .sessions import Sessions
from .state import CallState, CallView, Line, ProgramState, SessionState, WorkerState
from .timers import Kind, Timers

DRAINED = "the run drains"  # the reason why a call was dropped
LATE = "its deadline has passed"
NO_WORKER = "no worker is left"  # begins the reason where nobody can answer any more
PATIENCE_S = 180.0  # for how long calls wait for a worker to come back
SOON_S = 0.05  # a server's own clock for a deadline and ours may differ by so much
LOOK_PAST = 32  # calls that wait for their own worker, while those behind them go first


class Core:
    """State and decisions of one scheduler. Feed it with `handle`; nothing else changes it.

    `order` ranks waiting calls, `hold` says how long a session is kept while a tool runs, and what
    that is worth under pressure,
    `max_programs` bounds the programs that are live at once, and `patience_s` says how long calls
    wait where no worker is left but one may come back.
    """

    def __init__(
        self,
        order: Order = program_fcfs,
        hold: Hold | Policy | None = None,
        max_programs: int = 1024,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._order = order
        self._max_programs = max_programs
        self._patience_s = patience_s
        self.programs: dict[str, ProgramState] = {}
        self.calls: dict[str, CallState] = {}
        self.workers: dict[str, WorkerState] = {}
        self.kept = Sessions(self.workers, self.programs, hold)
        self._fleet = Fleet(self.workers, self.kept)
        self._lines: dict[str, Line] = {}  # model -> its calls that wait
        self._gangs = Gangs()
        self._weighing: set[str] = set()  # models whose pins will be weighed when a timer fires
        self._arrived: deque[str] = deque()  # programs that wait to be started
        self._away: dict[str, tuple[str, int]] = {}  # may come back: their model, their KV tokens
        self._absent: dict[str, tuple[str, float]] = {}  # models without a worker: why, until when
        self._lost: dict[str, str] = {}  # models whose last worker died, and why
        self._timers = Timers(self._matters)
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
            CallBroke: self._call_broke,
            ToolStarted: self._tool_started,
            ToolEnded: self._tool_ended,
            PrefixKnown: self._prefix_known,
            CancelProgram: self._cancel_program,
            Drain: self._drain,
            WorkerUp: self._worker_up,
            WorkerDown: self._worker_down,
            WorkerFine: self._worker_fine,
            WorkerLoad: self._worker_load,
            BlocksGone: self._blocks_gone,
            TimerFired: self._timer_fired,
        }

    @property
    def sessions(self) -> dict[str, SessionState]:
        """Sessions whose KV lies on a worker."""
        return self.kept.by_name

    def handle(self, event: Event, now_s: float) -> list[Command]:
        """Take in one event; returns what is to be done, in order."""
        commands: list[Command] = []
        if self.kept.ends:
            self._changed += self.kept.expire(now_s)
        self._handlers[type(event)](event, now_s, commands)
        while self._changed:
            self._fill(self._changed.pop(), now_s, commands)
        if self._timers.heap:
            at_s = self._timers.alarm()
            if at_s is not None:
                commands.append(SetTimer(due_s=at_s))
        return commands

    def chooses(self, model: str) -> bool:
        """Whether calls of `model` may go to more than one worker, so that their blocks matter."""
        return len(self._fleet.of(model)) > 1

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
            state = self.kept.by_name[session]
            if state.retained:
                self._changed.append(self.workers[state.worker].model)
            self.kept.forget(session, out)
        self._gangs.forget_program(event.program)
        self.kept.program_ended(program)
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
        refused = self._refusal(event)
        if refused is not None:
            out.append(DropCall(call=event.call, reason=refused))
            leader = self._gangs.refuse(event) if event.gang > 1 else None
            if leader is not None:
                self._enqueue(self.calls[leader])
            return
        call = CallState(event, self._sequence, now_s, 0)
        self._sequence += 1
        self.calls[event.call] = call
        program.calls.add(event.call)
        if event.deadline_s is not None:
            self._timers.add(event.deadline_s, "deadline", event.call, len(self.calls))
        if event.gang > 1:
            leader = self._gangs.join(event)
            if leader is None:
                return
            call = self.calls[leader]
        self._enqueue(call)

    def _refusal(self, call: CallReady) -> str | None:
        """Why nobody will ever answer a call; None: somebody may."""
        room = self._room(call.model)
        if room is None:
            return self._lost.get(call.model)
        return _too_large(call, room) if need(call) > room else None

    def _room(self, model: str) -> int | None:
        """The KV capacity of the largest worker of `model`, those included that may come back."""
        away = [kv_tokens for name, kv_tokens in self._away.values() if name == model]
        here = self._fleet.largest(model)
        return max([*away, here or 0]) or None if away else here

    def _enqueue(self, call: CallState) -> None:
        ready = call.ready
        program = self.programs[ready.program]
        view = CallView(
            program_arrival=program.arrival,
            program_attained_tokens=program.attained_tokens,
            sequence=call.sequence,
            prompt_tokens=ready.prompt_tokens,
            max_tokens=ready.max_tokens,
            ready_at_s=call.ready_at_s,
        )
        line = self._line(ready.model)
        if not call.queued:
            call.queued = True
            line.calls += 1
            line.tokens += need(ready)
        heapq.heappush(line.heap, (self._order(view), call.sequence, ready.call))
        self._changed.append(ready.model)

    def _line(self, model: str) -> Line:
        line = self._lines.get(model)
        if line is None:
            line = self._lines[model] = Line()
        return line

    def _leave_line(self, call: CallState) -> None:
        """The call is dispatched, or gone; its place in the heap is passed over."""
        if call.queued:
            call.queued = False
            line = self._lines[call.ready.model]
            line.calls -= 1
            line.tokens -= need(call.ready)

    def _fill(self, model: str, now_s: float, out: list[Command]) -> None:
        """Dispatch waiting calls of `model` in order, while the first one fits somewhere."""
        line = self._lines.get(model)
        if line is None:
            return
        heap = line.heap
        passed: list[tuple[float, int, str]] = []
        while heap and len(passed) <= LOOK_PAST and self._fleet.any_open(model, now_s):
            call = self.first_waiting(model)
            if call is None:
                break
            if self._waits_for_one(call, now_s):
                passed.append(heapq.heappop(heap))
            elif not self._send_first(call, line, now_s, out):
                break
        for item in passed:
            heapq.heappush(heap, item)

    def _send_first(self, call: CallState, line: Line, now_s: float, out: list[Command]) -> bool:
        """Dispatch the call at the head of `line`, with its gang; False if it has to wait."""
        fleet, ready = self._fleet, call.ready
        names = self._gangs.members(ready) if ready.gang else None
        calls = [self.calls[name] for name in names] if names else [call]
        worker = fleet.choose(calls, fleet.of(ready.model), now_s)
        if worker is None:
            worker = fleet.make_room(calls, line, now_s, out)
        if worker is None:
            if names and not fleet.could_take(calls):
                self._gangs.dissolve(ready)
                for other in calls[1:]:
                    self._enqueue(other)
                return True
            reason = self._refusal(ready)
            if reason is not None:
                self._stop_call(ready.call, reason, out)
                return True
            again_s = fleet.weigh_again_s
            if again_s is not None and ready.model not in self._weighing:
                self._weighing.add(ready.model)
                self._timers.add(again_s, "weigh", ready.model, len(self.calls))
            return False
        key, _, _ = heapq.heappop(line.heap)
        if names:
            self._gangs.dissolve(ready)
        for one in calls:
            self._leave_line(one)
            fleet.take(one, worker)
            if one.ready.session is not None:
                self.kept.use(one.ready.session, one, worker, now_s, out)
            out.append(Dispatch(call=one.ready.call, worker=worker.name, priority=key))
        return True

    def _waits_for_one(self, call: CallState, now_s: float) -> bool:
        """Whether a call waits for one worker alone, so that those behind it may go first.

        For a larger one that is away; or for that of its session, though another one has room. For
        that no longer than it would take to compute the session again: whichever turns out dearer,
        at most twice the better choice is paid.
        """
        if self._away and need(call.ready) > (self._fleet.largest(call.ready.model) or 0):
            return self._refusal(call.ready) is None
        if call.ready.session is None or not self.chooses(call.ready.model):
            return False
        rebuild_s = self._fleet.full_home(call, now_s)
        if rebuild_s is None:
            return False
        if not call.home_until_s:
            call.home_until_s = now_s + rebuild_s
            self._timers.add(call.home_until_s, "home", call.ready.call, len(self.calls))
        return now_s < call.home_until_s

    def first_waiting(self, model: str) -> CallState | None:
        """The call of `model` whose turn is next, if any waits."""
        heap = self._line(model).heap
        while heap:
            call = self.calls.get(heap[0][2])
            if call is not None and call.worker is None and not call.resting:
                return call
            heapq.heappop(heap)  # dropped, or dispatched since
        return None

    def _call_ended(self, event: CallEnded, now_s: float, out: list[Command]) -> None:
        call = self.calls.get(event.call)
        if call is None:
            return
        self._fleet.learn(call, event)
        program = self.programs.get(event.program)
        if program is not None:
            program.attained_tokens += (
                event.prompt_tokens - event.cached_tokens + event.output_tokens
            )
            if call.ready.session is not None:
                self.kept.grow(call, event, out)
        self._forget_call(event.call)

    def _call_broke(self, event: CallBroke, now_s: float, out: list[Command]) -> None:
        """Another attempt, after a while; a worker that fails call after call is probed first."""
        call = self.calls.get(event.call)
        worker = self.workers.get(event.worker)
        mine = call is not None and call.worker == event.worker
        if call is not None and mine and now_s + SOON_S >= (call.ready.deadline_s or inf):
            self._fleet.leave(call)  # no fault of the worker's
            self._stop_call(event.call, LATE, out)
            return
        if worker is not None:
            if not event.after_s:
                worker.broken += 1
            else:  # overloaded, and well enough to say so
                worker.rest_until_s = max(worker.rest_until_s, now_s + event.after_s)
                self._timers.add(worker.rest_until_s, "rest", worker.name, len(self.calls))
        if call is not None and mine:
            self._fleet.leave(call)
            self._changed.append(call.ready.model)
            call.breaks += 1
            if call.aborting or call.breaks >= MAX_ATTEMPTS:
                self._stop_call(event.call, event.error, out)
            else:
                call.resting = True
                wait_s = max(event.after_s or 0.0, backoff_s(event.call, call.breaks))
                self._timers.add(now_s + wait_s, "retry", event.call, len(self.calls))
        if worker is not None and worker.broken >= BREAKS and not worker.suspect:
            worker.suspect_until_s = now_s + self._patience_s
            out.append(Probe(worker=worker.name))
            self._timers.add(worker.suspect_until_s, "suspect", worker.name, len(self.calls))

    def _forget_call(self, name: str) -> CallState | None:
        call = self.calls.pop(name, None)
        if call is None:
            return None
        self._leave_line(call)
        program = self.programs.get(call.ready.program)
        if program is not None:
            program.calls.discard(name)
        if call.worker is not None:
            self._fleet.leave(call)
        elif call.ready.gang > 1:
            leader = self._gangs.leave(call.ready)
            if leader is not None and program is not None:
                self._enqueue(self.calls[leader])
        self._changed.append(call.ready.model)
        return call

    def _stop_call(self, name: str, reason: str, out: list[Command]) -> None:
        """Abort a running call (its end will be reported), drop a waiting one."""
        call = self.calls[name]
        if call.worker is None:
            self._forget_call(name)
            out.append(DropCall(call=name, reason=reason))
        elif not call.aborting:
            call.aborting = True
            out.append(Abort(call=name, worker=call.worker, reason=reason))

    # ---- tools and prefixes -------------------------------------------------------------------

    def _tool_started(self, event: ToolStarted, now_s: float, out: list[Command]) -> None:
        state = self.kept.by_name.get(event.session) if event.session else None
        program = self.programs.get(event.program)
        if state is None or program is None or event.session is None:
            return
        if any(self.calls[name].ready.session == event.session for name in program.calls):
            return  # it does not wait for this tool: its next turn is on its way
        line = self._line(self.workers[state.worker].model)
        until_s = self.kept.pause(event, now_s, line, out)
        if until_s is not None:
            self._timers.add(until_s, "pin", event.session, len(self.calls))

    def _tool_ended(self, event: ToolEnded, now_s: float, out: list[Command]) -> None:
        self.kept.tool_ended(event)

    def _prefix_known(self, event: PrefixKnown, now_s: float, out: list[Command]) -> None:
        self.kept.prefixes[event.session] = event
        for worker in self._fleet.of(event.model):
            self.kept.pin_prefix(event, worker, out)

    # ---- workers ------------------------------------------------------------------------------

    def _worker_up(self, event: WorkerUp, now_s: float, out: list[Command]) -> None:
        worker = self._fleet.add(event)
        for gone in (self._lost, self._absent):
            gone.pop(event.model, None)
        self._away.pop(event.worker, None)
        for prefix in self.kept.prefixes.values():
            if prefix.model == event.model:
                self.kept.pin_prefix(prefix, worker, out)
        self._changed.append(event.model)

    def _worker_down(self, event: WorkerDown, now_s: float, out: list[Command]) -> None:
        """Its calls wait again, for another worker or for its return."""
        worker = self._fleet.remove(event.worker)
        model, kv_tokens = self._away.pop(event.worker, (event.model, 0))
        if worker is not None:
            model, kv_tokens = worker.model, worker.kv_tokens
        if not model:
            return
        if worker is not None or event.returns:
            out.append(Quit(worker=event.worker, recover=event.returns))
        if event.returns:
            self._away[event.worker] = (model, kv_tokens)
        if worker is not None:
            self.kept.lost(event.worker)
            self._take_back(worker, f"worker {event.worker} died: {event.error}", out)
        if self._fleet.of(model):
            return
        reason = f"{NO_WORKER}: worker {event.worker} died: {event.error}"
        if all(name != model for name, _ in self._away.values()):
            self._give_up(model, reason, out)
        elif model not in self._absent:
            until_s = now_s + self._patience_s
            self._absent[model] = (reason, until_s)
            self._timers.add(until_s, "patience", model, len(self.calls))

    def _take_back(self, worker: WorkerState, reason: str, out: list[Command]) -> None:
        """The calls of a dead worker become ready again, unless they outlived too many."""
        for name in sorted(worker.running, key=lambda name: self.calls[name].sequence):
            call = self.calls[name]
            self._fleet.leave(call)
            call.losses += 1
            if call.aborting or call.losses >= MAX_LOSSES:
                self._stop_call(name, reason, out)
            else:
                self._enqueue(call)

    def _give_up(self, model: str, reason: str, out: list[Command]) -> None:
        """Nobody will answer calls of `model` any more."""
        self._absent.pop(model, None)
        self._lost[model] = reason
        for name in [name for name, call in self.calls.items() if call.ready.model == model]:
            if name in self.calls:
                self._stop_call(name, reason, out)

    def _worker_fine(self, event: WorkerFine, now_s: float, out: list[Command]) -> None:
        worker = self.workers.get(event.worker)
        if worker is not None:
            worker.suspect_until_s, worker.broken = None, 0
            self._changed.append(worker.model)

    def _worker_load(self, event: WorkerLoad, now_s: float, out: list[Command]) -> None:
        worker = self._fleet.report(event)
        if worker is not None:
            self._changed.append(worker.model)

    def _blocks_gone(self, event: BlocksGone, now_s: float, out: list[Command]) -> None:
        worker = self.workers.get(event.worker)
        if worker is not None and event.blocks:
            worker.holds.drop(event.blocks)
        elif worker is not None:
            worker.holds.clear()

    # ---- time ---------------------------------------------------------------------------------

    def _matters(self, kind: Kind, name: str) -> bool:
        """Whether a timer still stands for something."""
        if kind in ("rest", "suspect"):
            return name in self.workers
        if kind == "patience":
            return name in self._absent
        if kind == "pin":
            state = self.kept.by_name.get(name)
            return state is not None and state.retained
        if kind == "weigh":
            return True
        return name in self.calls

    def _timer_fired(self, event: TimerFired, now_s: float, out: list[Command]) -> None:
        for kind, name in self._timers.due(now_s):
            match kind:
                case "deadline":
                    self._stop_call(name, LATE, out)
                case "retry":
                    call = self.calls[name]
                    if call.resting:
                        call.resting = False
                        self._enqueue(call)
                case "home":
                    self._changed.append(self.calls[name].ready.model)
                case "pin":
                    pass  # `handle` has counted it out before the event
                case "weigh":
                    self._weighing.discard(name)
                    self._changed.append(name)
                case "rest":
                    self._changed.append(self.workers[name].model)
                case "suspect":
                    worker = self.workers[name]
                    if worker.suspect_until_s is not None and worker.suspect_until_s <= now_s:
                        error = f"call after call came to nothing for {self._patience_s:g} s"
                        down = WorkerDown(worker=name, error=error, returns=True)
                        self._worker_down(down, now_s, out)
                case "patience":
                    reason, until_s = self._absent[name]
                    if until_s <= now_s:  # else it was back meanwhile
                        self._give_up(name, reason, out)

    # ---- for tests ----------------------------------------------------------------------------

    def check(self) -> None:
        """Raise AssertionError where the state contradicts itself."""
        for name, call in self.calls.items():
            program = self.programs.get(call.ready.program)
            assert call.aborting if program is None else name in program.calls, name
        assert not self.workers.keys() & self._away.keys()
        self._fleet.check(self.calls)
        for model, line in self._lines.items():
            mine = [c for c in self.calls.values() if c.ready.model == model and c.queued]
            assert line.calls == len(mine), model
            assert line.tokens == sum(need(c.ready) for c in mine), model
            assert all(c.worker is None for c in mine), model
        self.kept.check()
        live = sum(1 for program in self.programs.values() if program.started)
        assert live == self._live <= self._max_programs or self._max_programs == 0


def _too_large(call: CallReady, room: int) -> str:
    return (
        f"it needs {call.prompt_tokens} prompt tokens plus {call.max_tokens} for the answer, more "
        f"than the {room} KV tokens of the largest worker"
    )
