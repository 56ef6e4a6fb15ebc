"""Programs, pauses and replicas on one heap of events, around the scheduler's own core.

What the loop of the live runtime does with tasks and timers is done here with a heap: the core
hears the same events in the same order, and the replicas are those of the simulated backend. Times
are virtual seconds. Nothing is random, so equal workloads give equal traces, byte for byte.
"""

import heapq
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Any

from ..engine.state import Sequence
from ..errors import TenterError
from ..replay import Pause, Program, Turn, Workload
from ..scheduler.events import (
    CallReady,
    Dispatch,
    DropCall,
    Event,
    PinJudged,
    ProgramArrived,
    ProgramEnded,
    Release,
    Retain,
    RunEnded,
    RunStarted,
    SetTimer,
    StartProgram,
    TimerFired,
    ToolEnded,
    ToolStarted,
    WorkerUp,
)
from ..trace import TRACE_VERSION, Trace
from .engines import Engines
from .live import Call, Live
from .result import Result
from .setup import Setup
from .text import blocks, sequence_of, write

Progress = Callable[[int], None]
SHOWN = 5  # of those that wait for ever, in an error
MOST_LIVE = 50_000  # programs that are in memory; later ones arrive when earlier ones have ended


class Stalled(TenterError):
    """Programs wait, and nothing will ever happen."""


def simulate(
    workload: Workload,
    setup: Setup,
    trace: Trace | None = None,
    on_progress: Progress | None = None,
) -> Result:
    """Run all programs of `workload` to their ends.

    `trace` takes what a live run's trace has; `on_progress` hears how many programs have ended.
    Raises Stalled where programs wait for what never comes, and InvalidInput for a workload whose
    file is damaged.
    """
    return _Simulation(workload, setup, trace, on_progress).run()


class _Simulation:
    def __init__(
        self, workload: Workload, setup: Setup, trace: Trace | None, on_progress: Progress | None
    ) -> None:
        self._setup = setup
        self._programs = iter(workload)
        self._write = trace.write if trace is not None else None
        self._on_progress = on_progress
        self._core = setup.core()
        self._engines = Engines({f"sim-{i}": setup.replica(write) for i in range(setup.replicas)})
        self._result = Result(setup, workload.name)
        self._now_s = 0.0
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._serial = count()
        self._inbox: deque[Event] = deque()
        self._live: dict[str, Live] = {}
        self._calls: dict[str, Call] = {}
        self._kept: dict[str, list[int]] = {}  # session -> its last prompt and answer
        self._rows = count()
        self._held = False  # whether the next program waits for another one to end
        self._alarm = 0  # the serial of the core's timer
        self._first_s: float | None = None  # the first arrival,
        self._last_s = 0.0  # and the last answer
        self._prefilled = 0  # tokens that first attempts had to compute

    def run(self) -> Result:
        self._note(RunStarted(version=TRACE_VERSION, run="sim", workflow="sim", rows=None))
        for name, replica in self._engines.by_name.items():
            self._tell(
                WorkerUp(
                    worker=name,
                    model=self._setup.model,
                    max_running=self._setup.max_running,
                    kv_tokens=replica.kv_tokens,
                    page_tokens=self._setup.page_tokens,
                    tiered=self._setup.host_gb > 0,
                )
            )
        self._next_arrival()
        events = self._events
        while events:
            at_s, _, act, given = heapq.heappop(events)
            self._now_s = at_s
            act(*given)
            if self._engines.stirred and not (events and events[0][0] == at_s):
                for name, end_s in self._engines.look(at_s):
                    self._at(end_s, self._steps_over, name, end_s)
        if self._live:
            raise Stalled(self._who_waits())
        self._note(RunEnded(status="done"))
        return self._sums()

    def _at(self, at_s: float, act: Callable[..., None], *given: Any) -> int:
        serial = next(self._serial)
        heapq.heappush(self._events, (at_s, serial, act, given))
        return serial

    def _note(self, record: Any) -> None:
        if self._write is not None:
            self._write(self._now_s, record)

    # ---- programs -----------------------------------------------------------------------------

    def _next_arrival(self) -> None:
        self._held = len(self._live) >= MOST_LIVE
        program = None if self._held else next(self._programs, None)
        if program is not None:
            self._at(max(program.arrival_s, self._now_s), self._arrive, program)

    def _arrive(self, program: Program) -> None:
        if self._first_s is None:
            self._first_s = self._now_s
        row = next(self._rows)
        name = program.name if program.name not in self._live else f"{program.name}#{row}"
        chat = self._setup.sessions and all(len(stage) == 1 for stage in program.stages)
        self._live[name] = Live(name, row, program, name if chat else None)
        self._tell(ProgramArrived(program=name, row=row, workflow=program.kind))
        self._next_arrival()

    def _next_stage(self, live: Live) -> None:
        live.stage += 1
        if live.stage == len(live.program.stages) or live.failed:
            self._end_program(live)
            return
        turns = live.program.stages[live.stage]
        live.asked = live.asked[-len(live.program.stages[live.stage - 1]) :]
        live.open = len(turns)
        for index, turn in enumerate(turns):
            self._ready(live, turn, f".{index}" if len(turns) > 1 else "")

    def _end_program(self, live: Live) -> None:
        del self._live[live.name]
        if live.failed:
            self._result.failed += 1
            self._result.why_failed = self._result.why_failed or live.failed
        else:
            self._result.completion_s.append(self._now_s - live.program.arrival_s)
        self._tell(
            ProgramEnded(
                program=live.name, row=live.row, ok=not live.failed, error=live.failed or None
            )
        )
        if live.session is not None:
            self._kept.pop(live.session, None)
        if self._held:
            self._next_arrival()
        if self._on_progress is not None:
            self._on_progress(self._result.programs + self._result.failed)

    # ---- calls --------------------------------------------------------------------------------

    def _ready(self, live: Live, turn: Turn, suffix: str) -> None:
        name = f"{live.name}/{live.stage}{suffix}"
        self._calls[name] = Call(name, live, turn, self._now_s, live.ask(turn))
        self._tell(
            CallReady(
                call=name,
                program=live.name,
                step="turn",
                model=self._setup.model,
                prompt_tokens=turn.prompt_tokens,
                max_tokens=max(self._setup.limit_tokens, turn.output_tokens),
                session=live.session,
                blocks=blocks(turn.prompt) if self._core.chooses(self._setup.model) else (),
            )
        )

    def _dispatch(self, command: Dispatch) -> None:
        call, replica = self._calls[command.call], self._engines.told(command.worker)
        turn = call.turn
        if not replica.fits(turn.prompt_tokens + turn.output_tokens):
            self._tell(call.ended(self._now_s))
            self._fail(
                call, f"{turn.prompt_tokens:,} tokens of prompt do not fit into the KV cache"
            )
            return
        call.worker = command.worker
        call.sequence = sequence_of(
            call.name,
            turn,
            self._setup.page_tokens,
            next(self._serial),
            self._now_s,
            command.priority,
        )
        replica.add(call.sequence, self._now_s)

    def _fail(self, call: Call, why: str) -> None:
        """A program of which a call was refused ends with the stage."""
        del self._calls[call.name]
        call.live.failed = call.live.failed or why
        self._turn_over(call.live)

    def _steps_over(self, worker: str, end_s: float) -> None:
        for sequence in self._engines.over(worker, end_s):
            self._answered(sequence)

    def _answered(self, sequence: Sequence) -> None:
        call = self._calls.pop(sequence.request.call)
        replica, live, turn = self._engines.told(call.worker), call.live, call.turn
        self._last_s = self._now_s
        replica.remove(sequence, self._now_s)
        if live.session is not None:
            self._kept[live.session] = sequence.tokens
            replica.release(live.session, self._now_s)  # the call has used up the pin
        self._prefilled += call.add_to(self._result)
        self._tell(call.ended(self._now_s))
        last = live.stage == len(live.program.stages) - 1
        if turn.pause is None or last:
            self._turn_over(live)
        else:
            self._pause(live, turn.pause)

    def _turn_over(self, live: Live) -> None:
        live.open -= 1
        if live.open == 0:
            self._next_stage(live)

    # ---- pauses -------------------------------------------------------------------------------

    def _pause(self, live: Live, pause: Pause) -> None:
        eta_s = pause.seconds if self._setup.clairvoyant else None
        self._tell(
            ToolStarted(
                program=live.name,
                step="tool",
                tool=pause.tool or pause.kind,
                session=live.session,
                eta_s=eta_s,
                word=pause.word,
            )
        )
        self._at(self._now_s + pause.seconds, self._pause_over, live, pause)

    def _pause_over(self, live: Live, pause: Pause) -> None:
        self._tell(
            ToolEnded(
                program=live.name,
                step="tool",
                tool=pause.tool or pause.kind,
                seconds=pause.seconds,
                ok=True,
                session=live.session,
                word=pause.word,
            )
        )
        self._turn_over(live)

    # ---- the core -----------------------------------------------------------------------------

    def _tell(self, event: Event) -> None:
        """Tell the core, and perform what it decides, one event after another."""
        self._inbox.append(event)
        if len(self._inbox) > 1:
            return
        while self._inbox:
            event = self._inbox[0]
            self._note(event)
            for command in self._core.handle(event, self._now_s):
                self._note(command)
                self._perform(command)
            self._inbox.popleft()

    def _perform(self, command: Any) -> None:
        match command:
            case StartProgram():
                self._next_stage(self._live[command.program])
            case Dispatch():
                self._dispatch(command)
            case DropCall():
                if command.call in self._calls:
                    self._fail(self._calls[command.call], command.reason)
            case Retain():
                replica = self._engines.told(command.worker)
                tokens = self._kept.get(command.session, [])
                replica.retain(command.session, tokens, command.until_s, self._now_s)
            case Release():
                self._engines.told(command.worker).release(command.session, self._now_s)
            case PinJudged():
                self._result.pins += 1
                self._result.pins_held += command.held
            case SetTimer():
                self._alarm = next(self._serial)
                at_s = max(command.due_s, self._now_s)
                heapq.heappush(self._events, (at_s, self._alarm, self._ring, (self._alarm,)))
            case _:
                raise NotImplementedError(f"the simulator does not know {command!r}")

    def _ring(self, alarm: int) -> None:
        if alarm == self._alarm:
            self._tell(TimerFired())

    # ---- the end ------------------------------------------------------------------------------

    def _sums(self) -> Result:
        result = self._result
        result.span_s = self._last_s - (self._first_s or 0.0)
        self._engines.add_to(result)
        result.recomputed_tokens += max(0, result.computed_tokens - self._prefilled)
        return result

    def _who_waits(self) -> str:
        """Who waits for what."""
        waiting = [call for call in self._calls.values() if not call.worker]
        running = [call for call in self._calls.values() if call.worker]
        unstarted = [live.name for live in self._live.values() if live.stage < 0]
        return (
            f"virtual time stands still at {self._now_s:,.1f} s with {len(self._live):,} live "
            f"programs: {_some(unstarted)} wait to be admitted; "
            f"{_some([call.name for call in waiting])} wait for a worker; "
            f"{_some([call.name for call in running])} wait in an engine; {self._engines}"
        )


def _some(names: list[str]) -> str:
    """The first few names, and how many more."""
    if not names:
        return "none"
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
