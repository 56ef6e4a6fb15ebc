"""What a run took, step by step, beside what was expected of it."""

from dataclasses import replace
from typing import Any

import pytest

from tenter.planner.graph import LLM, Const, Each, Graph, Loop, Ref, ToolCall
from tenter.planner.optimize import optimize
from tenter.planner.plan import Context, Expected
from tenter.planner.prompt import Prompt
from tenter.planner.stats import ColumnStats, TableStats
from tenter.runtime.report.analysis import Analyst, critical_path
from tenter.runtime.report.expected import over, planned
from tenter.runtime.report.explained import analysis_record, analysis_text
from tenter.runtime.scheduler.events import (
    CallEnded,
    CallReady,
    CallShared,
    Dispatch,
    Drifted,
    ProgramEnded,
    Reasoned,
    RunStarted,
    StartProgram,
    StepPlanned,
    ToolEnded,
    WorkerUp,
)

STATS = TableStats(100, {"text": ColumnStats(100, 400.0), "team": ColumnStats(5, 8.0)})


def ask(name: str, prompt: str, **more: Any) -> LLM:
    args = tuple((field, Ref(field)) for field in Prompt(prompt).fields)
    return LLM(id=name, prompt=Prompt(prompt), args=args, **more)


def ended(step: str, **more: Any) -> CallEnded:
    call = more.pop("call", "c")
    return CallEnded(call=call, program="r0", step=step, finish="stop", **more)


def ready(step: str, **more: Any) -> CallReady:
    call = more.pop("call", "c")
    counts = {"prompt_tokens": 100, "max_tokens": 10, **more}
    return CallReady(call=call, program="r0", step=step, model="m", **counts)


def program(analyst: Analyst) -> None:
    """One row: a call that waits 1 s and takes 3, a tool of 2 s beside a call of 1 s, the end."""
    started = RunStarted(version=1, run="run_x", workflow="w", rows=2)
    plan = StepPlanned(
        step="kind", kind="llm", calls_per_row=1.0, prompt_tokens=90, cached_tokens=80
    )
    for at_s, record in (
        (0.0, started),
        (0.0, plan),
        (1.0, StartProgram(program="r0")),
        (1.0, ready("kind", shared_tokens=64)),
        (2.0, Dispatch(call="c", worker="m/0", priority=0.0)),
        (
            5.0,
            ended("kind", prompt_tokens=100, cached_tokens=16, output_tokens=5, queue_s=0.5),
        ),
        (5.0, ready("side", call="d")),
        (6.0, ended("side", call="d")),
        (7.0, ToolEnded(program="r0", step="look", tool="t", seconds=2.0, ok=True)),
        (7.0, CallShared(program="r0", step="late", how="joined")),
        (9.0, CallShared(program="r0", step="known", how="result-cache")),
        (9.0, ProgramEnded(program="r0", row=0, ok=True)),
    ):
        analyst.write(at_s, record)


def test_each_step_has_its_rows_waits_and_share_of_the_path() -> None:
    analyst = Analyst()
    program(analyst)
    found = analyst.analysis()
    steps = {step.step: step for step in found.steps}

    assert list(steps) == ["kind", "side", "look", "late", "known"]
    assert [step.rows for step in found.steps] == [1] * 5
    assert steps["kind"].took.waited_s == 1.0 and steps["kind"].queued_s == 1.5
    assert steps["kind"].promised_tokens == 64
    assert steps["late"].shared == {"joined": 1}
    shares = {name: step.path_share for name, step in steps.items()}
    assert shares == pytest.approx({"kind": 0.5, "side": 0, "look": 0.25, "late": 0.25, "known": 0})
    assert found.between_share == 0
    assert found.tally.rows_done == 1


def test_the_text_and_the_record_say_the_same() -> None:
    analyst = Analyst()
    program(analyst)
    text, record = analysis_text(analyst.analysis()), analysis_record(analyst.analysis())

    assert "run_x of w: 1 of 2 rows" in text
    assert "1 result-cache" in text
    assert "~ expected" in text
    (warning,) = record["warnings"]
    assert "'kind': 16 tokens" in warning and "80 were expected" in warning
    assert f"warning: {warning}" in text
    cache = WorkerUp(worker="m/0", model="m", max_running=8, kv_tokens=1 << 20, page_tokens=128)
    analyst.write(9.0, cache)
    assert "warning" not in analysis_text(analyst.analysis())  # no page is as short
    kind = record["steps"][0]
    assert (kind["cached_tokens"], kind["expected"]["cached_tokens"]) == (16, 80)
    assert kind["seconds"]["queued"] == 1.5
    assert record["steps"][4]["consolidated"] == {"result-cache": 1}
    assert record["steps"][4]["expected"] is None


def test_a_second_start_of_a_run_is_added_and_what_was_cut_off_forgotten() -> None:
    analyst = Analyst()
    program(analyst)
    analyst.write(0.0, StartProgram(program="r1"))
    analyst.write(1.0, RunStarted(version=1, run="run_x", workflow="w", rows=2, resumed_rows=1))
    analyst.write(1.0, ProgramEnded(program="r1", row=1, ok=False, stopped=True))
    program_again = Analyst()
    program(program_again)
    then, now = program_again.analysis(), analyst.analysis()

    assert now.steps == then.steps
    assert now.tally.rows_finished == 1


def test_the_critical_path_goes_back_from_the_end() -> None:
    spans = [(0.0, 4.0, "a"), (0.0, 3.0, "b"), (4.5, 6.0, "c"), (5.0, 9.0, "d"), (6.0, 8.0, "e")]

    assert critical_path(spans, 0.0, 10.0) == {"d": 4.0, "a": 4.0}
    assert critical_path([], 0.0, 10.0) == {}
    assert critical_path([(-5.0, 2.0, "a")], 0.0, 2.0) == {"a": 2.0}


# ---- what is expected --------------------------------------------------------------------------


def test_expectations_are_of_calls_and_tools_over_all_rows() -> None:
    steps = (
        ask("kind", "{{ team }}?", choices=("a", "b")),
        ToolCall(id="look", tool="find", args=(("kind", Ref("kind")),), effect="pure"),
        ask("reply", "{{ look }} {{ text }}"),
    )
    expected = Expected({"reply": 40.0}, {"find": 2.0})
    plan = optimize(
        Graph("g", ("text", "team"), steps, Ref("reply")), Context(STATS, expected=expected)
    )
    kind, look, reply = (over(step, 100) for step in planned(plan))

    assert (kind.calls, kind.away, kind.output_tokens) == (5, 95, 0)
    assert (look.kind, look.calls, look.tool_s) == ("tool", 2, 4.0), "there are two kinds"
    assert (reply.calls, reply.output_tokens) == (100, 4_000)
    assert reply.prefill_s is None
    assert (look.path_share, reply.path_share) == (1.0, 0.0), "nothing else has a known time"


def test_steps_that_run_once_are_one_call() -> None:
    graph = Graph("g", ("text",), (ask("rules", "What are the rules?"),), Ref("rules"))
    (step,) = planned(optimize(graph, Context(STATS)))

    assert (over(step, 100).calls, over(step, 10).calls, over(step, 0).calls) == (1, 1, 0)


def test_each_turn_of_an_agent_is_a_call() -> None:
    agent = ask("act", "Do it: {{ text }}", loop=Loop(tools=("find",), max_turns=10))
    context = Context(STATS, expected=Expected({"act": 30.0}))
    plan = optimize(Graph("g", ("text",), (agent,), Ref("act")), context)
    one = replace(agent, loop=Loop())
    alone = optimize(Graph("g", ("text",), (one,), Ref("act")), context)
    turns, single = (each.steps[0].estimate for each in (plan, alone))

    assert (turns.calls_per_row, single.calls_per_row) == (3, 1)
    assert turns.prompt_tokens == single.prompt_tokens + 30 + 50, (
        "answer and result, once on average"
    )
    assert turns.shared_prefix_tokens > turns.prompt_tokens / 2, "what was said before is cached"


def test_items_of_a_list_are_calls() -> None:
    each = Each(
        id="e",
        items=Const("[1, 2, 3]"),
        item="i",
        body=(ask("a", "{{ i }} {{ text }}"),),
        result=Ref("a"),
    )
    (step,) = planned(optimize(Graph("g", ("text",), (each,), Ref("e")), Context(STATS)))

    found = over(step, 100)
    assert (found.calls, found.away) == (300, None)


def test_a_reasoning_step_tells_what_thinking_took_and_by_which_rule() -> None:
    analyst = Analyst()
    spent = {"thought_tokens": 500, "probe_tokens": 60, "probe_again_tokens": 30}
    told = Reasoned(
        program="r0",
        step="solve",
        strategy="thought",
        stopped="settled",
        samples=1,
        full_tokens=1_000,
        again_tokens=10,
        rule="stands-6",
        shadow=True,
        **spent,
    )
    analyst.write(1.0, told)
    drift = {"left": "stands-6", "rule": "stands-7", "runs": 9, "loss": 0.2, "allowed": 0.05}
    analyst.write(2.0, Drifted(step="solve", **drift))

    text = analysis_text(analyst.analysis())
    (record,) = analysis_record(analyst.analysis())["steps"]

    assert "reasoning solve: 1 steps, 1 settled early: 500 tokens of thought, 90 of probes" in text
    assert "about 1,000 to the end: 400 saved (-40%); 1 of 1 shadow runs keep the answer" in text
    assert "stop rule solve: stands-6" in text
    assert "drift solve: stands-6 loses 20.0%" in text
    assert record["reasoning"]["saved_tokens"] == 400
    assert record["reasoning"]["rules"] == {"solve": "stands-6"}
