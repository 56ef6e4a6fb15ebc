"""The scheduler's core: a synchronous state machine, an event in, commands out, no I/O.

It knows programs where an engine knows requests: it orders calls by their program, admits them
by slots, KV capacity and limits, places them on workers, and keeps a program's KV while its tool
runs. The live runtime, the simulator and the tests drive the same core; a trace replays into it.
This file has the events, programs and tools; the rest is in

    attempts.py  calls, from ready to their end; the state's parts
    upkeep.py    workers that come, fail and return; what time brings
    tenants.py   whose programs are live, and who starts next
    waiting.py   the lines of calls (line.py, fair.py), and which goes where
    quota.py, working_set.py  the accounts of limits.py
    groups.py    prefix groups of a plan: leaders and followers
    fleet.py     workers; outages.py  models that have none
    sessions.py, pins.py  sessions and pins
    timers.py    what is due when
"""

from collections.abc import Callable
from random import Random
from typing import Any

from ...kvpolicy import Hold, Policy, named
from .attempts import DRAINED, NO_LIMITS, PATIENCE_S
from .events import (
    BlocksGone,
    BlocksHeld,
    CallBegan,
    CallBroke,
    CallEnded,
    CallReady,
    CancelCall,
    CancelProgram,
    Change,
    Command,
    Continue,
    Drain,
    Event,
    Pause,
    PrefixKnown,
    PrefixOver,
    ProgramArrived,
    ProgramEnded,
    SessionEnded,
    SetTimer,
    StartProgram,
    TimerFired,
    ToolEnded,
    ToolProgress,
    ToolStarted,
    WorkerDown,
    WorkerFine,
    WorkerLoad,
    WorkerShare,
    WorkerUp,
)
from .limits import Limits
from .outages import NO_WORKER
from .policies import Key, Order, ordered, program_fcfs
from .state import CallState, ProgramState, SessionState
from .upkeep import Upkeep

__all__ = ["DRAINED", "NO_WORKER", "Core"]


class Core(Upkeep):
    """State and decisions of one scheduler. Feed it with `handle`; nothing else changes it.

    `order` ranks waiting calls: a name of `policies`, an order, or a key alone. `hold` says how
    long a session is kept while a tool runs, and what that is worth under pressure. `max_programs`
    bounds the programs that are live at once, and `limits` what runs beside each other and per
    minute. `patience_s` says how long calls wait where no worker is left but one may come back.
    `random` draws the futures of `Limits.past_future`; without it they are drawn from the seed 0.
    Raises ValueError for an order that is unknown.
    """

    def __init__(
        self,
        order: str | Order | Key = program_fcfs,
        hold: Hold | Policy | None = None,
        max_programs: int = 1024,
        patience_s: float = PATIENCE_S,
        limits: Limits = NO_LIMITS,
        random: Random | None = None,
    ) -> None:
        super().__init__(order, hold, max_programs, patience_s, limits, random)
        self._handlers: dict[type[Any], Callable[[Any, float, list[Command]], None]] = {
            ProgramArrived: self._program_arrived,
            ProgramEnded: self._program_ended,
            CallReady: self._call_ready,
            CallBegan: self._call_began,
            CallEnded: self._call_ended,
            CallBroke: self._call_broke,
            ToolStarted: self._tool_started,
            ToolProgress: self._tool_progress,
            ToolEnded: self._tool_ended,
            SessionEnded: self._session_ended,
            PrefixKnown: self._prefix_known,
            PrefixOver: self._prefix_over,
            CancelProgram: self._cancel_program,
            CancelCall: self._cancel_call,
            Drain: self._drain,
            Pause: self._pause,
            Continue: self._continue,
            Change: self._change,
            WorkerUp: self._worker_up,
            WorkerDown: self._worker_down,
            WorkerFine: self._worker_fine,
            WorkerLoad: self._worker_load,
            WorkerShare: self._worker_share,
            BlocksHeld: self._blocks_held,
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
        if self._working.on:
            for model in self._working.expire(now_s):
                self._waiting.lift_set(model)
        self._handlers[type(event)](event, now_s, commands)
        if self._held:
            self._changed.clear()  # all are looked at when it goes on
        while self._changed:
            self._waiting.fill(self._changed.pop(), now_s, commands)
        if self._timers.heap:
            at_s = self._timers.alarm()
            if at_s is not None:
                commands.append(SetTimer(due_s=at_s))
        return commands

    def chooses(self, model: str) -> bool:
        """Whether calls of `model` may go to more than one worker, so that their blocks matter."""
        return self._fleet.chooses(model)

    def kv_tokens(self, worker: str) -> int:
        """The KV capacity of a worker; 0 while it is not up."""
        found = self.workers.get(worker)
        return 0 if found is None else found.kv_tokens

    def leads(self, call: str) -> bool:
        """Whether others wait for what this call computes."""
        state = self.calls.get(call)
        return state is not None and self._waiting.groups.computes(state.ready)

    def first_waiting(self, model: str, now_s: float = 0.0) -> CallState | None:
        """The call of `model` whose turn is next, if any waits and no limit holds it back."""
        return self._waiting.first(model, now_s)

    # ---- programs ---------------------------------------------------------------------------

    def _program_arrived(self, event: ProgramArrived, now_s: float, out: list[Command]) -> None:
        program = ProgramState(
            arrival=self._arrivals,
            arrived_s=now_s,
            tenant=event.tenant,
            weight=event.weight if event.weight > 0 else 1.0,
            priority=event.priority,
            deadline_s=event.deadline_s,
            expected_tokens=event.expected_tokens,
        )
        self.programs[event.program] = program
        self._arrivals += 1
        self._tenants.arrive(event.program, program)
        self._start_programs(out)

    def _start_programs(self, out: list[Command]) -> None:
        while self._live < self._max_programs and not self._draining and not self._held:
            name = self._tenants.start()
            if name is None:
                return
            program = self.programs[name]
            program.started = True
            self._tenants.started(program)
            self._live += 1
            out.append(StartProgram(program=name))

    def _program_ended(self, event: ProgramEnded, now_s: float, out: list[Command]) -> None:
        program = self.programs.get(event.program)
        if program is None:
            return
        for call in sorted(program.calls):
            self._stop_call(call, "its program has ended", now_s, out)
        for session in sorted(program.sessions):
            self._end_session(session, out)
        del self.programs[event.program]
        self._waiting.gangs.forget_program(event.program)
        self.kept.program_ended(program)
        self._tenants.over(program)
        if program.started:
            self._live -= 1
            self._start_programs(out)

    def _cancel_call(self, event: CancelCall, now_s: float, out: list[Command]) -> None:
        if event.call in self.calls:
            self._stop_call(event.call, "nobody wants it any more", now_s, out)

    def _cancel_program(self, event: CancelProgram, now_s: float, out: list[Command]) -> None:
        program = self.programs.get(event.program)
        if program is None:
            return
        program.cancelled = True
        for call in sorted(program.calls):
            self._stop_call(call, "its program was cancelled", now_s, out)

    def _drain(self, event: Drain, now_s: float, out: list[Command]) -> None:
        self._draining = True
        for name in [name for name, call in self.calls.items() if call.worker is None]:
            self._stop_call(name, DRAINED, now_s, out)

    # ---- what people ask of a live run --------------------------------------------------------

    def _pause(self, event: Pause, now_s: float, out: list[Command]) -> None:
        self._pausing = self._held = True

    def _continue(self, event: Continue, now_s: float, out: list[Command]) -> None:
        self._pausing = False
        self._go_on(out)

    def _change(self, event: Change, now_s: float, out: list[Command]) -> None:
        if event.max_programs is not None:
            self._max_programs = event.max_programs
        if event.order is not None:
            order = ordered(event.order)
            self._tenants.take_turns(order.fair)
            self._waiting.rank_anew(order, now_s)
        if event.retention is not None:
            self.kept.follow(named(event.retention))
        if event.token_budget is not None:
            self._budget_tokens = event.token_budget
        if event.limits is not None:
            self._limit(Limits.read(event.limits), now_s, out)
        self._go_on(out)

    def _limit(self, limits: Limits, now_s: float, out: list[Command]) -> None:
        """Go on with other limits; what they will never let run is stopped."""
        self._tenants.follow(limits)
        self._waiting.follow(limits, now_s)
        for name in [name for name, call in self.calls.items() if call.worker is None]:
            call = self.calls[name]
            refused = self._waiting.refusal(call.ready, call.tenant)
            if refused is not None:
                self._stop_call(name, refused, now_s, out)

    def _go_on(self, out: list[Command]) -> None:
        """Look at all that waits, if it may go."""
        self._held = self._pausing or self.spent
        self._changed += self._waiting.models
        self._start_programs(out)

    # ---- tools, sessions and prefixes ---------------------------------------------------------

    def _tool_started(self, event: ToolStarted, now_s: float, out: list[Command]) -> None:
        state = self._paused(event)
        if state is not None:
            line = self._waiting.line(self.workers[state.worker].model)
            self._pin_timer(event, self.kept.pause(event, now_s, line, out))

    def _tool_progress(self, event: ToolProgress, now_s: float, out: list[Command]) -> None:
        state = self._paused(event)
        if state is not None:
            model = self.workers[state.worker].model
            line = self._waiting.line(model)
            self._pin_timer(event, self.kept.foretold(event, now_s, line, out))
            self._changed.append(model)

    def _paused(self, event: ToolStarted | ToolProgress) -> SessionState | None:
        """The session that waits for this tool, if one does."""
        state = self.kept.by_name.get(event.session) if event.session else None
        program = self.programs.get(event.program)
        if state is None or program is None or self._in_use(event.session, program):
            return None  # or it does not wait for this tool: its next turn is on its way
        return state

    def _in_use(self, session: str | None, program: ProgramState) -> bool:
        """Whether a call of the session waits or runs."""
        return any(self.calls[name].ready.session == session for name in program.calls)

    def _pin_timer(self, event: ToolStarted | ToolProgress, until_s: float | None) -> None:
        if until_s is not None and event.session is not None:
            self._timers.add(until_s, "pin", event.session, len(self.calls))

    def _tool_ended(self, event: ToolEnded, now_s: float, out: list[Command]) -> None:
        self.kept.tool_ended(event, now_s)

    def _session_ended(self, event: SessionEnded, now_s: float, out: list[Command]) -> None:
        program = self.programs.get(event.program)
        if program is None or event.session not in program.sessions:
            return
        if not self._in_use(event.session, program):
            self._end_session(event.session, out)

    def _end_session(self, session: str, out: list[Command]) -> None:
        state = self.kept.by_name[session]
        if state.retained:
            self._changed.append(self.workers[state.worker].model)
        self.kept.forget(session, out)
        if self._working.on:
            model = self._working.forget(session)
            if model is not None:
                self._waiting.lift_set(model)

    def _prefix_known(self, event: PrefixKnown, now_s: float, out: list[Command]) -> None:
        self.kept.prefixes[event.session] = event
        for worker in self._fleet.of(event.model):
            if event.worker in (None, worker.name):
                self.kept.pin_prefix(event, worker, out)

    def _prefix_over(self, event: PrefixOver, now_s: float, out: list[Command]) -> None:
        self._waiting.group_over(event.session)
        prefix = self.kept.end_prefix(event.session, out)
        if prefix is not None:
            self._changed.append(prefix.model)
