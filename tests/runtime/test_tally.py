"""The tally of a trace and its summary."""

import json
import textwrap

from tenter.runtime.report.summary import render, summary
from tenter.runtime.report.tally import (
    MAX_ERRORS,
    MAX_STEPS,
    OTHER,
    ErrorTally,
    Tally,
    error_kind,
)
from tenter.runtime.scheduler.events import (
    CallBroke,
    CallEnded,
    CallReady,
    CallShared,
    Dispatch,
    Drain,
    DropCall,
    ProgramArrived,
    ProgramEnded,
    RunEnded,
    RunStarted,
    StartProgram,
    ToolEnded,
)
from tenter.runtime.trace import Record


def call(step: str, finish: str = "stop", **fields: object) -> CallEnded:
    fields = {"prompt_tokens": 100, "cached_tokens": 80, "output_tokens": 10} | fields
    return CallEnded(call="c", program="p", step=step, finish=finish, **fields)  # type: ignore[arg-type]


def started(**fields: object) -> RunStarted:
    return RunStarted(**({"version": 1, "run": "run_1", "workflow": "triage", "rows": 4} | fields))  # type: ignore[arg-type]


RUN: list[tuple[float, Record]] = [
    (10.0, started()),
    (10.0, ProgramArrived(program="p0", row=0, workflow="triage")),
    (10.0, ProgramArrived(program="p1", row=1, workflow="triage")),
    (10.0, ProgramArrived(program="p2", row=2, workflow="triage")),
    (10.1, StartProgram(program="p0")),
    (10.1, StartProgram(program="p1")),
    (10.2, Dispatch(call="c", worker="w", priority=0.0)),
    (10.9, call("kind", queue_s=0.25, prefill_s=0.125, decode_s=0.5)),
    (11.0, CallShared(program="p1", step="kind", how="joined", prompt_tokens=100, output_tokens=9)),
    (11.0, CallShared(program="p1", step="kind", how="cached")),
    (12.0, ToolEnded(program="p0", step="policy", tool="policy_for", seconds=1.5, ok=True)),
    (13.0, call("reply", decode_s=0.5)),
    (13.5, call("reply", "error", prompt_tokens=0, cached_tokens=0, output_tokens=0, error="E: x")),
    (14.0, ProgramEnded(program="p0", row=0, ok=True)),
    (15.0, ProgramEnded(program="p1", row=1, ok=False, error="CallFailed: no\nanswer")),
    (15.0, Drain()),
]


def tally(*records: tuple[float, Record]) -> Tally:
    made = Tally()
    for at_s, record in records:
        made.add(at_s, record)
    return made


def test_an_empty_tally():
    snapshot = Tally().snapshot()
    assert (snapshot.rows_finished, snapshot.elapsed_s, snapshot.steps) == (0, 0.0, {})
    assert "rows" in render(snapshot)
    assert summary(snapshot)["hit_rate"] == 0.0


def test_a_run():
    snapshot = tally(*RUN).snapshot()
    assert (snapshot.rows_total, snapshot.rows_done, snapshot.rows_failed) == (4, 1, 1)
    assert (snapshot.programs_live, snapshot.programs_waiting, snapshot.calls_running) == (0, 1, 0)
    assert (snapshot.total.calls, snapshot.total.failed, snapshot.total.shared) == (3, 1, 2)
    assert snapshot.shared == {"joined": 1, "cached": 1}
    assert (snapshot.saved_prompt_tokens, snapshot.saved_output_tokens) == (100, 9)
    assert (snapshot.total.prompt_tokens, snapshot.total.cached_tokens) == (200, 160)
    assert snapshot.steps["policy"].tool_s == 1.5
    assert snapshot.errors == {
        "E": ErrorTally(1, "E: x"),
        "CallFailed": ErrorTally(1, "CallFailed: no\nanswer"),
    }
    assert snapshot.elapsed_s == 5.0


def test_a_snapshot_does_not_change():
    made = tally(*RUN[:8])
    before = made.snapshot()
    for at_s, record in RUN[8:]:
        made.write(at_s, record)
    assert before.total.shared == 0
    assert list(before.steps) == ["kind"]


def test_a_resumed_run_counts_its_rows_anew_and_its_costs_on():
    snapshot = tally(
        *RUN,
        (0.0, started(resumed_rows=2)),
        (1.0, call("kind")),
        (2.0, ProgramEnded(program="p2", row=2, ok=True)),
        (2.0, RunEnded(status="done")),
    ).snapshot()
    assert (snapshot.rows_done, snapshot.rows_resumed, snapshot.rows_finished) == (1, 2, 3)
    assert (snapshot.programs_live, snapshot.total.calls, snapshot.elapsed_s) == (0, 4, 7.0)
    assert "3 of 4 done, 0 failed (2 before)" in render(snapshot)


def test_rows_that_failed_before_a_resume_are_not_told_as_done():
    snapshot = tally(
        (0.0, started(resumed_rows=3, resumed_failed=1)),
        (1.0, ProgramEnded(program="p2", row=2, ok=False, error="CallFailed: no answer")),
    ).snapshot()
    assert (snapshot.done_in_all, snapshot.failed_in_all, snapshot.rows_finished) == (2, 2, 4)
    assert "2 of 4 done, 2 failed (3 before)" in render(snapshot)


def ready(name: str) -> CallReady:
    return CallReady(call=name, program="p0", step="kind", model="m", prompt_tokens=9, max_tokens=9)


def test_waits_in_our_own_line_are_told_beside_those_on_the_worker():
    snapshot = tally(
        (0.0, started()),
        (0.0, ready("c")),
        (0.0, ready("dropped")),
        (2.0, Dispatch(call="c", worker="w", priority=0.0)),
        (3.0, CallBroke(call="c", worker="w", error="503")),
        (5.0, Dispatch(call="c", worker="w", priority=0.0)),
        (5.0, DropCall(call="dropped", reason="503")),
        (6.0, call("kind", queue_s=0.5)),
    ).snapshot()
    assert snapshot.steps["kind"].waited_s == 2.0
    assert summary(snapshot)["seconds"]["queue"] == 2.5


def test_attempts_without_an_answer_are_counted_by_what_the_server_said():
    at = "http://127.0.0.1:8000/v1/chat/completions: "
    snapshot = tally(
        (0.0, started()),
        (1.0, CallBroke(call="a", worker="w", error=at + "status 429: slow down, 12 s")),
        (1.0, CallBroke(call="b", worker="w", error=at + "the server stalled: nothing came")),
        (2.0, CallBroke(call="a", worker="w", error=at + "status 429: slow down, 9 s")),
    ).snapshot()
    assert snapshot.broken == {"status 429": 2, "the server stalled": 1}
    assert summary(snapshot)["calls"]["broken_by"] == snapshot.broken
    assert "3 attempts: 2 status 429, 1 the server stalled" in render(snapshot)


def test_an_error_of_a_call_that_fails_its_row_is_told_once():
    bad = "CallFailed: status 401: bad key"
    snapshot = tally(
        (0.0, started()),
        (1.0, call("kind", "error", error=bad)),
        (1.0, ProgramEnded(program="p", row=0, ok=False, error=f"step 'kind': {bad}")),
    ).snapshot()
    assert [error.count for error in snapshot.errors.values()] == [1]


def test_memory_is_bounded():
    made = tally((0.0, started()))
    for n in range(MAX_STEPS + 100):
        made.add(1.0, call(f"step{n}"))
        made.add(1.0, ProgramEnded(program="p", row=n, ok=False, error=f"Kind{n}x: y"))
    snapshot = made.snapshot()
    assert len(snapshot.steps) == MAX_STEPS + 1
    assert snapshot.steps[OTHER].calls == 100
    assert len(snapshot.errors) == MAX_ERRORS + 1
    assert sum(error.count for error in snapshot.errors.values()) == MAX_STEPS + 100


def test_kinds_of_errors():
    assert error_kind("ToolFailed: step 'a': x") == "ToolFailed"
    assert error_kind("step 'kind[3]' took 12 s") == error_kind("step 'x' took 5 s")
    assert error_kind("") == "unknown"


def test_the_summary_is_json():
    figures = json.loads(json.dumps(summary(tally(*RUN).snapshot()), allow_nan=False))
    assert figures["hit_rate"] == 0.8
    assert figures["slowest_step"] == "policy"
    assert figures["seconds"] == {
        "queue": 0.25,
        "prefill": 0.125,
        "decode": 1.0,
        "tools": 1.5,
        "elapsed": 5.0,
    }
    assert figures["rates"] == {
        "rows_per_s": 0.4,
        "output_tokens_per_s": 4.0,
        "prompt_tokens_per_s": 40.0,
    }


def test_the_summary_as_text():
    assert render(tally(*RUN).snapshot()) == textwrap.dedent("""\
        rows          1 of 4 done, 1 failed
        calls         3 made, 2 saved (1 joined, 1 cached)
        tokens        200 in (160 cached, 80.0%), 20 out
        time in       queue 0.2 s, prefill 0.1 s, decode 1.0 s, tools 1.5 s
        speed         0.4 rows/s, 4.0 output tokens/s, 5.0 s in all
        slowest step  policy (1.5 s)
        error x1      E: x
        error x1      CallFailed: no

        step    calls  saved  tools   in  cached  out  seconds
        kind        1      2      0  100     80%   10      0.9
        policy      0      0      1    0      0%    0      1.5
        reply       2      0      0  100     80%   10      0.5""")
