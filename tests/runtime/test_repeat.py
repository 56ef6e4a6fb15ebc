"""Bounded loops: a step that runs its body until a condition holds."""

from typing import Any

import pytest
from row_sink import RowSink

from tenter.planner.errors import InvariantBroken
from tenter.planner.explain import explain
from tenter.planner.graph import Const, Expr, Graph, Ref, Repeat, ToolCall
from tenter.planner.lower import lower
from tenter.planner.mermaid import mermaid
from tenter.planner.optimize import optimize
from tenter.planner.plan import Context, Expected
from tenter.planner.validate import validate
from tenter.runtime import llm, repeat, when, workflow
from tenter.runtime.api import WorkflowHandle
from tenter.runtime.backends.fake import FakeBackend
from tenter.runtime.clock import VirtualLoop
from tenter.runtime.errors import StepFailed
from tenter.runtime.journal.memory import MemoryJournal
from tenter.runtime.predict import Learned
from tenter.runtime.run.control import Control
from tenter.runtime.run.local import open_host, run_workflow
from tenter.runtime.run.program import Programs
from tenter.runtime.run.rows import Row, RowRun
from tenter.runtime.scheduler.events import Repeated
from tenter.runtime.spec import dump, loads
from tenter.runtime.trace import MemoryTrace
from tenter.runtime.workflow import Input, Workflow

better = llm("{{ text }}+")
good = llm("Good? {{ text }}")


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualLoop}


def says(prompt: str) -> str:
    """Adds a mark to a text; one with three of them is good."""
    if prompt.startswith("Good? "):
        return "yes" if prompt.count("+") >= 3 else "no"
    return prompt


def revised(most: int, on_limit: Any = "fail") -> WorkflowHandle:
    @workflow(name="revise")
    def flow(text: str) -> str:
        return repeat(
            text,
            lambda draft: better(text=draft),
            until=lambda draft: good(text=draft) == "yes",
            max_iterations=most,
            on_limit=on_limit,
        )

    return flow


async def run(flow: WorkflowHandle | Workflow, backend: FakeBackend, **inputs: Any) -> Any:
    flow = flow.workflow if isinstance(flow, WorkflowHandle) else flow
    return await run_workflow(flow, inputs, backends={"default": backend})


async def test_it_runs_until_its_condition_holds() -> None:
    backend = FakeBackend(says, remember=True)

    assert await run(revised(5), backend, text="a") == "a+++"
    assert backend.asked == ["a+", "Good? a+", "a++", "Good? a++", "a+++", "Good? a+++"]


async def test_at_the_limit_it_fails_and_says_how_to_go_on() -> None:
    with pytest.raises(StepFailed, match=r"'repeat1'.* after 2 iterations `good == 'yes'` does"):
        await run(revised(2), FakeBackend(says), text="a")


async def test_at_the_limit_it_takes_the_last_value_where_the_author_says_so() -> None:
    assert await run(revised(2, "last"), FakeBackend(says), text="a") == "a++"


async def test_a_body_without_calls_neither_recurses_nor_waits() -> None:
    @workflow
    def count(n: int) -> int:
        return repeat(n, lambda n: n + 1, until=lambda n: n >= 9_000, max_iterations=10_000)

    assert await run(count, FakeBackend(), n=0) == 9_000


async def test_loops_within_loops_keep_their_places_apart() -> None:
    @workflow
    def nested(text: str) -> str:
        return repeat(
            text,
            lambda outer: repeat(
                outer,
                lambda draft: better(text=draft),
                until=lambda draft: draft == outer + "++",
                max_iterations=2,
            ),
            until=lambda outer: outer == text + "++++",
            max_iterations=3,
        )

    assert await run(nested, FakeBackend(says), text="a") == "a++++"


async def test_a_loop_in_a_branch_that_is_not_taken_does_not_run() -> None:
    @workflow
    def maybe(text: str) -> str:
        again = lambda: repeat(
            text,
            lambda draft: better(text=draft),
            until=lambda draft: good(text=draft) == "yes",
            max_iterations=4,
        )
        return when(text == "a", again, "kept")

    assert await run(maybe, FakeBackend(says), text="b") == "kept"
    assert await run(maybe, FakeBackend(says), text="a") == "a+++"


async def test_what_goes_wrong_in_it_is_told_with_its_step() -> None:
    body = Repeat(
        id="again",
        start=Ref("x"),
        item="state",
        body=(),
        result=Ref("state", ("missing",)),
        until=Const("true"),
        max_iterations=2,
    )
    flow = Workflow("w", (Input("x"),), Graph("w", ("x",), (body,), Ref("again")))
    with pytest.raises(StepFailed, match=r"'again'.*there is no 'missing'"):
        await run(flow, FakeBackend(), x={"y": 1})


async def test_a_resumed_run_goes_on_inside_the_loop() -> None:
    journal, sink = MemoryJournal(), RowSink()

    async def attempt(stop_after: int | None) -> list[str]:
        control, asked = Control(), 0

        def reply(prompt: str) -> str:
            nonlocal asked
            asked += 1
            if asked == stop_after:
                control.drain()
            return says(prompt)

        backend = FakeBackend(reply, remember=True)
        resumed = stop_after is None
        async with open_host({"default": backend}, journal=journal, resumed=resumed) as host:
            rows = iter([Row(0, {}, {"text": "a"})])
            programs = Programs(host, revised(5).workflow)
            await RowRun(programs, journal, sink, control, resumed=resumed).run(rows)
        return backend.asked

    first = await attempt(stop_after=3)
    assert not sink.values
    second = await attempt(stop_after=None)
    assert sink.values == {0: "a+++"}
    assert (first[-1], second[0]) == ("Good? a++", "a+++"), "in the third iteration"


# ---- as text ------------------------------------------------------------------------------------


def test_it_reads_back_from_yaml_as_itself() -> None:
    flow = revised(5, "last").workflow
    again = loads(dump(flow))

    assert again.graph == flow.graph
    assert again.fingerprint == flow.fingerprint


def test_the_plan_says_how_often_it_expects_to_run() -> None:
    graph = revised(5).graph
    assert graph is not None
    told = explain(optimize(graph))

    assert "once" not in told.splitlines()[3]
    assert "row  repeat1 = repeat draft from text; at most 5 times, then fail" in told
    assert "~ 3 of at most 5 iterations" in told
    assert "until: good == 'yes'" in told
    assert "3 calls per row" in told
    assert "repeat1: repeat draft" in mermaid(graph)


def test_what_earlier_runs_took_is_what_is_expected() -> None:
    learned = Learned()
    for count in (1, 2, 2, 3):
        learned.observe(Repeated(program="r0", step="repeat1", iterations=count))
    mean = learned.mean_iterations("repeat1")
    assert mean == 2.0
    graph = revised(5).graph
    assert graph is not None
    told = explain(optimize(graph, Context(expected=Expected(iterations={"repeat1": mean}))))
    assert "~ 2 of at most 5 iterations" in told
    assert "2 calls per row" in told


async def test_the_trace_tells_how_often_it_ran() -> None:
    trace = MemoryTrace()
    await run_workflow(
        revised(5).workflow,
        {"text": "a"},
        backends={"default": FakeBackend(says)},
        trace=trace,
    )
    found = [record for _, record in trace.records if isinstance(record, Repeated)]
    assert [(each.step, each.iterations) for each in found] == [("repeat1", 3)]


def test_rules_look_into_its_body() -> None:
    """What only the condition reads stays, what nothing reads goes, equal steps become one."""
    calls = [
        ToolCall(id=name, tool="t", args=(("x", Ref("state")),), effect="pure") for name in "abc"
    ]
    other = ToolCall(id="d", tool="other", effect="pure")
    loop = Repeat(
        id="r",
        start=Ref("x"),
        item="state",
        body=(*calls, other),
        result=Ref("a"),
        until=Expr("b == 1", ("b",)),
        max_iterations=2,
    )
    plan = optimize(Graph("g", ("x",), (loop,), Ref("r")))

    (step,) = plan.steps
    assert [inside.id for inside in step.body] == ["a", "b"]
    assert "b = compute a" in explain(plan)


def test_a_condition_that_reads_nothing_of_the_loop_breaks_the_plan() -> None:
    loop = Repeat(
        id="r",
        start=Ref("x"),
        item="state",
        body=(),
        result=Ref("state"),
        until=Ref("gone"),
        max_iterations=2,
    )
    graph = Graph("g", ("x",), (loop,), Ref("r"))

    assert [str(each) for each in validate(graph)] == [
        "step 'r': its until reads 'gone', which is not defined; known: state, x"
    ]
    with pytest.raises(InvariantBroken, match="'r' reads 'gone'"):
        lower(graph, Context()).invariants()
