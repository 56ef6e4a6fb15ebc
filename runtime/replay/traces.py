"""A Tenter trace as a workload, so that a recorded run can be simulated.

A trace has no texts. What two prompts share is taken from the names in it: the blocks that placement
has hashed, the pinned prefix of a step, the session that a call goes on with (docs/replay.md).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count, zip_longest
from pathlib import Path

from .. import trace
from ..blocks import block_end
from ..scheduler.events import (
    CallEnded,
    CallReady,
    ProgramArrived,
    ProgramEnded,
    RunStarted,
    ToolEnded,
)
from .program import Pause, Program, Prompt, Span, Turn, Workload, cut


def traced(path: Path | str) -> Workload:
    """The programs of a run, at the times at which they arrived.

    Calls of a program that were ready before any of them had ended are one stage; what passed
    between the last answer of a stage and the next one is its pause, named after the longest tool
    in it. Calls that failed are left out. Memory holds the programs that live at one time, and a
    number per distinct block. Raises InvalidInput, while iterating, for what is no
    trace.
    """
    path = Path(path)
    return Workload(path.name, lambda: _programs(path))


@dataclass(slots=True)
class _Open:
    """A program that has not ended."""

    name: str
    workflow: str
    arrival_s: float
    stages: list[list["_Call"]] = field(default_factory=list[list["_Call"]])
    tools: list[tuple[float, str]] = field(default_factory=list[tuple[float, str]])
    sessions: dict[str, Prompt] = field(default_factory=dict[str, Prompt])  # their last prompts
    ended: bool = False


@dataclass(slots=True)
class _Call:
    """A call; its stage is closed once one of the stage has ended."""

    prompt: Prompt
    ready_s: float
    tool_before: str = ""  # that took longest since the last answer
    end_s: float | None = None
    output_tokens: int = 0  # 0: it failed, or had nothing to write


def _programs(path: Path) -> Iterator[Program]:
    """In order of arrival: a program that has ended waits for those that came before it."""
    run = _Run()
    for at_s, record in trace.read(path):
        if isinstance(record, RunStarted):
            run.begin(at_s)
        else:
            run.take(at_s, record)
        yield from run.done()
    run.begin(0.0)
    yield from run.done()


@dataclass(slots=True)
class _Run:
    """The fold over a trace. A resumed run goes on where the one before it ended."""

    open: dict[str, _Open] = field(default_factory=dict[str, _Open])
    waiting: list[_Open] = field(default_factory=list[_Open])  # in order of arrival
    calls: dict[str, _Call] = field(default_factory=dict[str, _Call])
    prompts: "_Prompts" = field(default_factory=lambda: _Prompts())
    offset_s: float = 0.0  # from the trace's clock to seconds since the run began
    latest_s: float = 0.0

    def begin(self, at_s: float) -> None:
        """A part of the run begins. What was open in the one before it is over."""
        self.offset_s = self.latest_s - at_s
        for program in self.open.values():
            program.ended = True
        self.open.clear()
        self.calls.clear()

    def take(self, at_s: float, record: trace.Record) -> None:
        now_s = self.latest_s = max(self.latest_s, self.offset_s + at_s)
        match record:
            case ProgramArrived():
                self._leave(record.program)
                self.open[record.program] = _Open(record.program, record.workflow, now_s)
                self.waiting.append(self.open[record.program])
            case CallReady() if program := self.open.get(record.program):
                self.calls[record.call] = self._ready(program, record, now_s)
            case CallEnded() if call := self.calls.pop(record.call, None):
                call.end_s = now_s
                if record.finish in ("stop", "length"):
                    call.output_tokens = max(record.output_tokens, 1)
            case ToolEnded() if program := self.open.get(record.program):
                program.tools.append((record.seconds, record.tool))
            case ProgramEnded():
                self._leave(record.program)
            case _:
                pass

    def _leave(self, program: str) -> None:
        if program in self.open:
            self.open.pop(program).ended = True

    def _ready(self, program: _Open, record: CallReady, now_s: float) -> _Call:
        call = _Call(self.prompts.of(record, program.sessions), now_s)
        stages = program.stages
        if not stages or any(one.end_s is not None for one in stages[-1]):
            stages.append([])
            call.tool_before = max(program.tools, default=(0.0, ""))[1]
            program.tools.clear()
        stages[-1].append(call)
        return call

    def done(self) -> Iterator[Program]:
        """The programs that have ended, and none that arrived before them still runs."""
        ready = 0
        while ready < len(self.waiting) and self.waiting[ready].ended:
            if program := _program(self.waiting[ready]):
                yield program
            ready += 1
        del self.waiting[:ready]


def _program(open_: _Open) -> Program | None:
    stages: list[tuple[Turn, ...]] = []
    kept = [[call for call in stage if call.output_tokens] for stage in open_.stages]
    kept = [stage for stage in kept if stage]
    for stage, after in zip_longest(kept, kept[1:]):
        last = max(stage, key=lambda call: call.end_s or 0.0)
        pause = _pause(last, after[0]) if after else None
        stages.append(
            tuple(Turn(c.prompt, c.output_tokens, pause if c is last else None) for c in stage)
        )
    if not stages:
        return None
    return Program(open_.arrival_s, open_.name, tuple(stages), open_.workflow)


def _pause(last: _Call, after: _Call) -> Pause | None:
    seconds = after.ready_s - (last.end_s or 0.0)
    return Pause(seconds, "tool", after.tool_before) if seconds > 0 else None


@dataclass(slots=True)
class _Prompts:
    """Prompts for calls of which a trace has names and lengths."""

    fresh: Iterator[int] = field(default_factory=count)
    names: dict[str | int, int] = field(default_factory=dict[str | int, int])

    def of(self, record: CallReady, sessions: dict[str, Prompt]) -> Prompt:
        """A session goes on with its last prompt; the first of it begins as its blocks say."""
        tokens = max(record.prompt_tokens, 1)
        before = sessions.get(record.session or "", ())
        more = tokens - sum(map(len, before))
        if before and more > 0:
            last = before[-1]
            prompt = (*before[:-1], Span(last.stream, last.start, last.stop + more))
        else:
            head = cut(self._head(record), tokens - 1)
            prompt = (*head, Span(next(self.fresh), 0, tokens - sum(map(len, head))))
        if record.session is not None:
            sessions[record.session] = prompt
        return prompt

    def _head(self, record: CallReady) -> Prompt:
        """What is shared with others: hashed blocks where there are any, or a step's prefix."""
        if record.blocks:
            starts = (0, *map(block_end, range(len(record.blocks) - 1)))
            return tuple(
                Span(self._named(block), 0, block_end(index) - start)
                for index, (block, start) in enumerate(zip(record.blocks, starts, strict=True))
            )
        if record.shared_tokens and record.group is not None:
            return (Span(self._named(record.group), 0, record.shared_tokens),)
        return ()

    def _named(self, name: str | int) -> int:
        if name not in self.names:
            self.names[name] = next(self.fresh)
        return self.names[name]
