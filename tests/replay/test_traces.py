"""A run's own trace as a workload: what is read back is what ran."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tenter.runtime.blocks import block_end, blocks_of
from tenter.runtime.errors import InvalidInput
from tenter.runtime.replay import shared_tokens, traced
from tenter.runtime.scheduler.events import (
    CallEnded,
    CallReady,
    Dispatch,
    ProgramArrived,
    ProgramEnded,
    RunStarted,
    ToolEnded,
    ToolStarted,
)
from tenter.runtime.trace import TRACE_VERSION, Record, TraceWriter


@dataclass
class Run:
    """Writes what a run would."""

    path: Path

    def __post_init__(self) -> None:
        self.trace = TraceWriter(self.path)
        self.start()

    def start(self, at_s: float = 0.0) -> None:
        self.put(at_s, RunStarted(version=TRACE_VERSION, run="r", workflow="w", rows=None))

    def put(self, at_s: float, *records: Record) -> None:
        for record in records:
            self.trace.write(at_s, record)

    def arrive(self, at_s: float, program: str) -> None:
        self.put(at_s, ProgramArrived(program=program, row=0, workflow="agent"))

    def ready(self, at_s: float, program: str, call: str, prompt: int, **more: Any) -> None:
        what: dict[str, Any] = {"step": "s", "model": "m", "max_tokens": 99, **more}
        record = CallReady(call=call, program=program, prompt_tokens=prompt, **what)
        self.put(at_s, record, Dispatch(call=call, worker="w0", priority=0.0))

    def end(self, at_s: float, program: str, call: str, output: int, finish: Any = "stop") -> None:
        ended = CallEnded(call=call, program=program, step="s", finish=finish, output_tokens=output)
        self.put(at_s, ended)

    def tool(self, at_s: float, program: str, name: str, seconds: float) -> None:
        self.put(at_s - seconds, ToolStarted(program=program, step="t", tool=name))
        ended = ToolEnded(program=program, step="t", tool=name, seconds=seconds, ok=True)
        self.put(at_s, ended)

    def leave(self, at_s: float, program: str) -> None:
        self.put(at_s, ProgramEnded(program=program, row=0, ok=True))

    def read(self) -> Any:
        self.trace.close()
        return traced(self.path)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "trace.jsonl")


def test_an_agents_turns_tools_and_session_come_back(run: Run) -> None:
    run.arrive(1.0, "p")
    run.ready(1.0, "p", "c1", 500, session="s")
    run.end(2.0, "p", "c1", 40)
    run.tool(4.5, "p", "shell", 2.5)
    run.ready(4.75, "p", "c2", 700, session="s")
    run.end(6.0, "p", "c2", 10)
    run.leave(6.0, "p")
    (program,) = run.read()
    first, second = program.turns
    assert (program.arrival_s, program.kind, len(program.stages)) == (1.0, "agent", 2)
    assert (first.prompt_tokens, first.output_tokens) == (500, 40)
    assert first.pause is not None and second.pause is None
    assert (first.pause.seconds, first.pause.tool) == (2.75, "shell")
    assert shared_tokens((*first.prompt, first.answer), second.prompt) == 540


def test_calls_that_were_ready_together_are_one_stage(run: Run) -> None:
    run.arrive(0.0, "p")
    run.ready(0.0, "p", "a", 100)
    run.ready(0.5, "p", "b", 200)
    run.end(1.0, "p", "a", 5)
    run.end(3.0, "p", "b", 5)
    run.ready(3.0, "p", "c", 300)
    run.end(4.0, "p", "c", 5)
    run.leave(4.0, "p")
    (program,) = run.read()
    assert [[turn.prompt_tokens for turn in stage] for stage in program.stages] == [
        [100, 200],
        [300],
    ]
    assert all(turn.pause is None for turn in program.turns)


def test_prompts_share_the_blocks_and_prefixes_that_were_named(run: Run) -> None:
    one, other = [7] * 300, [7] * 200 + [8] * 100
    for name, tokens in (("p", one), ("q", other)):
        run.arrive(0.0, name)
        run.ready(0.0, name, f"{name}1", 300, blocks=blocks_of(tokens))
        run.ready(0.0, name, f"{name}2", 90, shared_tokens=60, group="prefix/s")
        run.end(1.0, name, f"{name}1", 1)
        run.end(1.0, name, f"{name}2", 1)
        run.leave(1.0, name)
    mine, theirs = ([turn.prompt for turn in program.turns] for program in run.read())
    assert shared_tokens(mine[0], theirs[0]) == block_end(200 // 64 - 1) == 192
    assert shared_tokens(mine[1], theirs[1]) == 60


def test_programs_come_in_order_of_arrival_and_failed_calls_not_at_all(run: Run) -> None:
    for at_s, name in enumerate(("slow", "quick", "broken", "open")):
        run.arrive(float(at_s), name)
        run.ready(float(at_s), name, name, 10)
    run.end(5.0, "quick", "quick", 1)
    run.leave(5.0, "quick")
    run.end(6.0, "broken", "broken", 0, "error")
    run.leave(6.0, "broken")
    run.end(7.0, "slow", "slow", 1)
    run.leave(7.0, "slow")
    workload = run.read()
    assert [program.name for program in workload] == ["slow", "quick"] == [p.name for p in workload]


def test_a_resumed_run_goes_on_in_time_whatever_its_clock_shows(run: Run) -> None:
    run.arrive(0.0, "p")
    run.ready(0.0, "p", "c", 10)
    run.end(8.0, "p", "c", 1)
    run.start(at_s=5000.0)
    run.arrive(5002.0, "p")
    run.ready(5002.0, "p", "c", 10)
    run.end(5003.0, "p", "c", 1)
    run.leave(5003.0, "p")
    first, again = run.read()
    assert (first.arrival_s, again.arrival_s) == (0.0, 10.0)


def test_what_is_no_trace_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text("nothing\n")
    with pytest.raises(InvalidInput, match="no trace of a Tenter run"):
        list(traced(tmp_path / "t.jsonl"))
