"""Programs run in virtual time: data flow, sharing, failing, resuming, stopping."""

import asyncio
import json
import re
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from tenter.planner.graph import (
    LLM,
    Compute,
    Const,
    Each,
    Expr,
    Graph,
    Ref,
    Sampling,
    Select,
    Step,
    ToolCall,
)
from tenter.planner.prompt import Prompt
from tenter.runtime.backends.fake import FakeBackend
from tenter.runtime.clock import VirtualLoop, now
from tenter.runtime.errors import CallFailed, JournalError, OutputInvalid, StepFailed, ToolFailed
from tenter.runtime.journal.base import RowRecord, StepRecord
from tenter.runtime.journal.memory import MemoryJournal, NoJournal
from tenter.runtime.report.tally import Tally
from tenter.runtime.run.context import current_program
from tenter.runtime.run.control import Control
from tenter.runtime.run.local import open_host, run_program, run_workflow
from tenter.runtime.run.program import Programs
from tenter.runtime.run.rows import Limits, Row, RowRun
from tenter.runtime.run.turns import read_turn
from tenter.runtime.scheduler.events import CallShared
from tenter.runtime.trace import MemoryTrace, Trace
from tenter.runtime.workflow import Input, Scheduling, Workflow
from tenter.tools import Tool


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualLoop}


def llm(name: str, prompt: str, *sources: str, **more: Any) -> LLM:
    fields = Prompt(prompt).fields
    args = tuple((field, Ref(source)) for field, source in zip(fields, sources, strict=True))
    return LLM(id=name, prompt=Prompt(prompt), args=args, **more)


def static(*steps: Step, result: Any, inputs: tuple[str, ...] = ("x",), **tools: Tool) -> Workflow:
    graph = Graph("w", inputs, steps, result)
    return Workflow("w", tuple(Input(name) for name in inputs), graph, tools=tools)


def tool(function: Callable[..., Any], effect: Any = "pure", **more: Any) -> Tool:
    return Tool(function.__name__, "", "{}", function, effect=effect, **more)


async def one(workflow: Workflow, backend: FakeBackend, **inputs: Any) -> Any:
    return await run_workflow(workflow, inputs, backends={"default": backend})


def echo(**more: Any) -> FakeBackend:
    return FakeBackend(lambda prompt: f"<{prompt}>", remember=True, **more)


async def test_a_step_starts_as_soon_as_its_own_inputs_are_there() -> None:
    """No barrier: the short branch's second step does not wait for the long branch."""
    ends: dict[str, float] = {}

    async def wait(seconds: float, name: str) -> float:
        await anyio.sleep(seconds)
        ends[name] = now()
        return seconds

    def waits(name: str, seconds: float, after: str | None = None) -> ToolCall:
        args = (("seconds", Const(str(seconds))), ("name", Const(f'"{name}"')))
        when = Expr(f"{after} > 0", (after,)) if after else None
        return ToolCall(id=name, tool="wait", args=args, effect="pure", when=when)

    steps = (waits("long", 9), waits("short", 1), waits("next", 1, after="short"))
    await one(static(*steps, result=Ref("next"), wait=tool(wait)), FakeBackend(), x=0)
    assert ends == {"short": 1, "next": 2, "long": 9}


async def test_values_flow_through_every_kind_of_step() -> None:
    steps = (
        llm("shout", "{{ x }}!", "x"),
        Each(
            id="each",
            items=Ref("xs"),
            item="item",
            body=(llm("mark", "{{ item }}{{ x }}", "item", "x"),),
            result=Ref("mark"),
        ),
        llm("yes", "yes", when=Expr("x == 'a'", ("x",))),
        llm("no", "no", when=Expr("x != 'a'", ("x",))),
        Select(id="pick", condition=Expr("x == 'a'", ("x",)), then=Ref("yes"), otherwise=Ref("no")),
        Compute(id="all", value=Expr("{'shout': shout, 'n': each | length}", ("shout", "each"))),
    )
    backend = echo()
    result = Expr("[all, each, pick]", ("all", "each", "pick"))
    workflow = static(*steps, result=result, inputs=("x", "xs"))
    value = await one(workflow, backend, x="a", xs=["1", "2"])
    assert value == [{"shout": "<a!>", "n": 2}, ["<1a>", "<2a>"], "<yes>"]
    assert "no" not in backend.asked


async def test_an_each_over_nothing_is_an_empty_list_and_over_no_list_an_error() -> None:
    each = Each(id="e", items=Ref("x"), item="i", body=(llm("s", "{{ i }}", "i"),), result=Ref("s"))
    workflow = static(each, result=Ref("e"))
    assert await one(workflow, FakeBackend(), x=[]) == []
    with pytest.raises(StepFailed, match="'e'.*needs a list, and got str"):
        await one(workflow, FakeBackend(), x="text")


async def test_long_chains_and_wide_fans_neither_recurse_nor_pile_up() -> None:
    chain = [
        llm("s0", "{{ x }}", "x"),
        *(llm(f"s{i}", "{{ x }}", f"s{i - 1}") for i in range(1, 3000)),
    ]
    backend = FakeBackend(lambda prompt: prompt)
    assert await one(static(*chain, result=Ref("s2999")), backend, x="v") == "v"
    each = Each(id="e", items=Ref("x"), item="i", body=(llm("s", "{{ i }}", "i"),), result=Ref("s"))
    items = [str(i) for i in range(5000)]
    assert await one(static(each, result=Ref("e")), backend, x=items) == items


async def test_equal_calls_run_once_in_flight_and_afterwards() -> None:
    backend = echo(latency_s=1.0)
    steps = (llm("a", "same {{ x }}", "x"), llm("b", "same {{ x }}", "x"), llm("c", "{{ a }}", "a"))
    await one(static(*steps, result=Ref("c")), backend, x="1")
    assert sorted(backend.asked) == ["<same 1>", "same 1"]


async def test_sampled_calls_are_never_shared_and_seeds_differ_by_row_and_step() -> None:
    seeds: list[int | None] = []

    class Watching(FakeBackend):
        def generate(self, request: Any) -> Any:
            seeds.append(request.sampling.seed)
            return super().generate(request)

    warm = Sampling(temperature=1.0)
    steps = (llm("a", "p", sampling=warm), llm("b", "p", sampling=warm))
    for _ in range(2):
        await one(static(*steps, result=Ref("b")), Watching(), x="")
    assert seeds[0] is not None and seeds[0] != seeds[1]
    assert seeds[:2] == seeds[2:]


async def test_a_choice_is_one_of_the_choices() -> None:
    step = llm("kind", "{{ x }}", "x", choices=("red", "green", "blue"))
    assert await one(static(step, result=Ref("kind")), FakeBackend(), x="q") in step.choices


async def test_structured_output_is_checked_again() -> None:
    schema = '{"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}}'
    workflow = static(llm("s", "{{ x }}", "x", schema=schema), result=Ref("s"))
    assert await one(workflow, FakeBackend(lambda p: '{"n": 1}'), x="") == {"n": 1}
    for answer, problem in (('{"n": "a"}', "n: 'a' is not of type"), ("{", "it is not JSON")):
        with pytest.raises(OutputInvalid, match=problem) as caught:
            await one(workflow, FakeBackend(lambda p, answer=answer: answer), x="")
        assert caught.value.step == "s" and caught.value.output == answer


async def test_a_thought_is_no_part_of_the_answer() -> None:
    backend = FakeBackend(lambda p: "<think>\n1+1=2\n</think>\n 2 ")
    assert await one(static(llm("s", "p"), result=Ref("s")), backend, x="") == "2"


async def test_a_failing_tool_names_the_step_and_stops_the_rest_of_its_program() -> None:
    stopped: list[str] = []

    async def slow() -> str:
        try:
            await anyio.sleep(100)
        except asyncio.CancelledError:
            stopped.append("slow")
            raise
        return ""

    async def bad() -> str:
        await anyio.sleep(1)
        raise ValueError("no such order")

    steps = (ToolCall(id="one", tool="slow"), ToolCall(id="two", tool="bad"))
    workflow = static(*steps, result=Ref("one"), slow=tool(slow), bad=tool(bad))
    with pytest.raises(ToolFailed, match="step 'two'.*no such order"):
        await one(workflow, FakeBackend(), x="")
    assert stopped == ["slow"]


async def test_cancelling_the_caller_aborts_the_calls_on_the_backend() -> None:
    backend = FakeBackend(latency_s=100)
    async with open_host({"default": backend}) as host:
        task = asyncio.create_task(run_program(host, static(llm("s", "p"), result=Ref("s")), {}))
        await anyio.sleep(1)
        assert len(backend.running) == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await anyio.lowlevel.checkpoint()
        assert not backend.running
        assert now() < 2


# ---- rows --------------------------------------------------------------------------------------


class Collected:
    """A sink that keeps everything, by row."""

    def __init__(self) -> None:
        self.values: dict[int, Any] = {}
        self.errors: dict[int, str] = {}

    held = 0

    def put(self, row: Row, value: Any, error: str | None) -> None:
        assert row.row not in self.values and row.row not in self.errors
        if error is None:
            self.values[row.row] = value
        else:
            self.errors[row.row] = error


def rows(count: int, text: Callable[[int], str] = str) -> list[Row]:
    return [Row(row, {"x": text(row)}, {"x": text(row)}) for row in range(count)]


async def run_rows(
    workflow: Workflow,
    backend: FakeBackend,
    given: list[Row],
    *,
    journal: Any = None,
    control: Control | None = None,
    trace: Trace | None = None,
    resumed: bool = False,
    order: tuple[str, ...] = (),
    **limits: Any,
) -> tuple[str, Collected]:
    sink = Collected()
    journal = journal or NoJournal()
    async with open_host(
        {"default": backend}, journal=journal, trace=trace, resumed=resumed
    ) as host:
        run = RowRun(
            Programs(host, workflow),
            journal,
            sink,
            control or Control(),
            order,
            Limits(**limits),
            resumed,
        )
        status = await run.run(iter(given))
        host.scheduler.core.check()
    return status, sink


ECHO = static(llm("s", "{{ x }}", "x"), result=Ref("s"))


async def test_every_row_comes_out_once_with_bounded_concurrency() -> None:
    most = 0

    class Counting(FakeBackend):
        async def generate(self, request: Any) -> Any:
            nonlocal most
            most = max(most, len(self.running) + 1)
            async for chunk in super().generate(request):
                yield chunk

    backend = Counting(lambda p: p, latency_s=1.0)
    status, sink = await run_rows(ECHO, backend, rows(500), concurrency=10, window_rows=64)
    assert status == "done" and sink.values == {row: str(row) for row in range(500)}
    assert most == 10


async def test_bad_rows_and_failing_rows_do_not_end_the_job() -> None:
    given = [*rows(3), Row(3, {}, problem="line 5: not UTF-8"), Row(4, {}, {})]
    tally = Tally()
    status, sink = await run_rows(ECHO, FakeBackend(lambda p: p), given, trace=tally)
    assert status == "done" and sorted(sink.values) == [0, 1, 2]
    assert sink.errors[3] == "line 5: not UTF-8"
    assert (tally.snapshot().rows_done, tally.snapshot().rows_failed) == (3, 2)
    assert "'x' is undefined" in sink.errors[4]


async def test_too_many_errors_end_the_job() -> None:
    given = [Row(row, {}, problem="bad") for row in range(10)]
    status, _ = await run_rows(ECHO, FakeBackend(), given, max_errors=3)
    assert status == "failed"


async def test_rows_of_a_window_run_in_the_plans_order() -> None:
    backend = echo()
    given = rows(8, lambda row: "ab"[row % 2] + str(row))
    await run_rows(ECHO, backend, given, order=("x",), concurrency=1)
    assert backend.asked == sorted(backend.asked)


async def test_equal_rows_are_consolidated_and_the_trace_says_so() -> None:
    backend, trace = echo(latency_s=1.0), MemoryTrace()
    _, sink = await run_rows(ECHO, backend, rows(100, lambda row: str(row % 4)), trace=trace)
    assert len(backend.asked) == 4 and len(sink.values) == 100
    shared = [record for _, record in trace.records if isinstance(record, CallShared)]
    assert len(shared) == 96


async def test_draining_finishes_what_runs_and_a_resume_does_the_rest() -> None:
    journal, control = MemoryJournal(), Control()
    backend = echo(latency_s=1.0)

    async def drain() -> None:
        await anyio.sleep(2.5)
        control.drain()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(drain)
        status, first = await run_rows(
            ECHO, backend, rows(100), journal=journal, control=control, concurrency=10
        )
    assert status == "paused" and len(first.values) == 30
    status, sink = await run_rows(ECHO, backend, rows(100), journal=journal, resumed=True)
    assert status == "done" and len(sink.values) == 100
    assert len(backend.asked) == 100


async def test_draining_starts_no_further_step_and_no_row_is_blamed_for_it() -> None:
    """Two rows run their first step when the drain comes: it is finished, the second not begun."""

    async def careless(x: str) -> str:
        first = await here().llm(ASK, {"q": f"a{x}"})
        try:
            return first + await here().llm(ASK, {"q": f"b{x}"})
        except StepFailed:
            return "half an answer"

    journal, control, tally = MemoryJournal(), Control(), Tally()
    backend = echo(latency_s=1.0)

    async def drain() -> None:
        await anyio.sleep(0.5)
        control.drain()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(drain)
        status, first = await run_rows(
            program(careless), backend, rows(2), journal=journal, control=control, trace=tally
        )
    assert status == "paused" and now() == 1.0
    assert (tally.snapshot().rows_done, tally.snapshot().rows_failed) == (0, 0)
    assert first.values == {} and first.errors == {}
    _, sink = await run_rows(program(careless), backend, rows(2), journal=journal, resumed=True)
    assert sink.values == {0: "<a0><b0>", 1: "<a1><b1>"}
    assert sorted(backend.asked) == ["a0", "a1", "b0", "b1"]


async def test_aborting_stops_at_once_and_a_resume_repeats_only_what_was_in_flight() -> None:
    journal, control = MemoryJournal(), Control()
    backend = echo(latency_s=1.0)
    steps = (llm("a", "a{{ x }}", "x"), llm("b", "b{{ a }}", "a"))
    workflow = static(*steps, result=Ref("b"))

    async def abort() -> None:
        await anyio.sleep(1.5)
        control.abort()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(abort)
        status, first = await run_rows(
            workflow, backend, rows(20), journal=journal, control=control, concurrency=10
        )
    assert status == "paused" and first.values == {} and first.errors == {}
    assert now() < 2 and not backend.running
    status, sink = await run_rows(workflow, backend, rows(20), journal=journal, resumed=True)
    assert status == "done"
    assert sink.values == {row: f"<b<a{row}>>" for row in range(20)}
    assert len(backend.asked) == 40 + 10  # ten second steps were in flight


async def test_a_leader_that_is_cancelled_hands_its_work_to_one_who_waits() -> None:
    """Rows 0 and 1 share a call; row 0 fails meanwhile, and row 1 still gets its answer."""

    async def fail(x: str) -> str:
        await anyio.sleep(1)
        if x == "first":
            raise ValueError("broken")
        return x

    steps = (llm("s", "same"), ToolCall(id="t", tool="fail", args=(("x", Ref("x")),)))
    workflow = static(*steps, result=Ref("s"), fail=tool(fail))
    backend = echo(latency_s=5.0)
    _, sink = await run_rows(workflow, backend, rows(2, ("first", "second").__getitem__))
    assert sink.values == {1: "<same>"} and "broken" in sink.errors[0]


class BreakingJournal(MemoryJournal):
    """A journal whose disk fails at the given record. A fake."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.left = at

    def record(self, entry: StepRecord | RowRecord, then: Any = None, sync: bool = False) -> None:
        self.left -= 1
        if self.left < 0:
            error = JournalError("no space left on device")
            told, self.on_failure = self.on_failure, None
            if told is not None:
                asyncio.get_running_loop().call_soon(told, error)
            raise error
        super().record(entry, then, sync)


@pytest.mark.parametrize("at", [0, 1, 7, 50])
async def test_a_broken_journal_ends_the_run_with_its_error_and_without_hanging(at: int) -> None:
    backend = echo(latency_s=1.0)
    with pytest.raises(JournalError, match="no space left"):
        await run_rows(ECHO, backend, rows(100), journal=BreakingJournal(at), concurrency=10)
    assert not backend.running


async def test_a_tool_with_an_effect_is_not_silently_repeated() -> None:
    sent: list[str] = []

    async def send(x: str) -> str:
        sent.append(x)
        return "sent"

    step = ToolCall(id="mail", tool="send", args=(("x", Ref("x")),), effect="once")
    workflow = static(step, result=Ref("mail"), send=tool(send, effect="once"))
    journal = MemoryJournal()
    journal.record(StepRecord(0, "mail?", b"null"))  # started, and then the process died
    journal.record(StepRecord(1, "mail?", b"null"))
    journal.record(StepRecord(1, "mail", b'"sent"'))
    _, sink = await run_rows(workflow, FakeBackend(), rows(3), journal=journal, resumed=True)
    assert "may have had its effect; it is not repeated" in sink.errors[0]
    assert sink.values == {1: "sent", 2: "sent"} and sent == ["2"]


async def test_memory_does_not_grow_with_the_rows() -> None:
    """What the host, the core and the driver keep is empty after each row has ended."""
    backend = FakeBackend(lambda p: p)
    journal = NoJournal()
    async with open_host({"default": backend}, journal=journal) as host:
        programs = Programs(host, ECHO)
        sink = Collected()
        await RowRun(programs, journal, sink, Control()).run(iter(rows(2000)))
        core = host.scheduler.core
        assert not core.programs and not core.calls and not core.sessions and not programs.live
        assert core.first_waiting("default") is None


# ---- programs of their own -----------------------------------------------------------------------


def program(function: Callable[..., Any], **tools: Tool) -> Workflow:
    return Workflow("p", (Input("x"),), program=function, tools=tools)


def here() -> Any:
    found = current_program.get()
    assert found is not None
    return found


ASK = LLM(id="ask", prompt=Prompt("{{ q }}"))


async def test_an_async_workflow_runs_as_it_is_and_resumes_where_it_was() -> None:
    async def work(x: str) -> list[str]:
        answers = [await here().llm(ASK, {"q": f"{x}{turn}"}) for turn in range(3)]
        return answers

    backend, journal = echo(latency_s=1.0), MemoryJournal()
    control = Control()

    async def abort() -> None:
        await anyio.sleep(1.5)
        control.abort()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(abort)
        await run_rows(program(work), backend, rows(1), journal=journal, control=control)
    assert backend.asked == ["00", "01"]
    _, sink = await run_rows(program(work), backend, rows(1), journal=journal, resumed=True)
    assert sink.values == {0: ["<00>", "<01>", "<02>"]}
    assert backend.asked == ["00", "01", "01", "02"]


async def test_an_error_in_an_async_workflow_is_its_rows_error() -> None:
    async def work(x: str) -> str:
        raise KeyError(x)

    _, sink = await run_rows(program(work), FakeBackend(), rows(1))
    assert re.fullmatch(r"KeyError: '0' \(test_run.py:\d+\)", sink.errors[0])


async def test_a_workflow_inside_a_workflow_keeps_its_own_paths() -> None:
    async def work(x: str) -> list[str]:
        return [await here().workflow(ECHO, {"x": x + mark}) for mark in "ab"]

    journal = MemoryJournal()
    _, sink = await run_rows(program(work), echo(), rows(1), journal=journal)
    assert sink.values == {0: ["<0a>", "<0b>"]}
    paths = [path for _, path in await journal.steps(0, 0)]
    assert len(paths) == 2 and all(re.fullmatch(r"w@[0-9a-f]{12}\.s", path) for path in paths)


def scripted(*turns: str) -> FakeBackend:
    answers = iter(turns)
    return FakeBackend(lambda prompt: next(answers), remember=True)


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


async def test_an_agent_calls_tools_until_it_answers_and_its_kv_is_pinned_meanwhile() -> None:
    async def price(item: str) -> int:
        await anyio.sleep(3)
        return 7

    async def work(x: str) -> str:
        return await here().session(system="Be brief.").run(f"Price of {x}?", tools=[tool(price)])

    backend = scripted(call("price", item="pen"), "It costs 7.")
    async with open_host({"default": backend}, scheduling=Scheduling(retention="forever")) as host:
        answer = await run_program(host, program(work), {"x": "pen"})
        assert answer == "It costs 7."
        await anyio.sleep(0.1)
        assert list(backend.retained) == []  # released at the program's end
        assert backend.released == ["r0/session"]
    assert backend.asked[1].endswith("tool: 7")


async def test_wrong_tool_calls_are_told_to_the_model() -> None:
    async def price(item: str) -> int:
        raise LookupError("no such item")

    async def work(x: str) -> str:
        return await here().session().run("?", tools=[tool(price)])

    backend = scripted(call("cost"), call("price", item="pen"), "I do not know.")
    assert await run_workflow(program(work), {"x": ""}, backends={"default": backend})
    assert "there is no tool 'cost'; there is price" in backend.asked[1]
    assert "no such item" in backend.asked[2]


async def test_an_agent_that_never_answers_is_stopped_at_its_turns() -> None:
    async def work(x: str) -> str:
        return await here().session().run("?", max_turns=4)

    backend = FakeBackend(lambda p: call("again"), remember=True)
    with pytest.raises(StepFailed, match="after 4 turns"):
        await run_workflow(program(work), {"x": ""}, backends={"default": backend})
    assert len(backend.asked) == 4


def test_a_turns_tool_calls_are_read_and_what_is_no_call_stays_text() -> None:
    message = read_turn("I look.\n" + call("f", a=1) + call("g"))
    assert message.tool_calls == (("f", '{"a": 1}'), ("g", "{}")) and message.content == "I look."
    for text in ("<tool_call>{</tool_call>", "<tool_call>[1]</tool_call>", "<tool_call>"):
        assert read_turn(text).tool_calls == () and read_turn(text).content == text


def test_a_turn_of_blanks_is_read_in_linear_time() -> None:
    text = "<tool_call>x" + " " * 2_000_000 + "y"
    assert read_turn(text).content == text


async def test_a_backend_that_fails_fails_the_call_and_nothing_hangs() -> None:
    class Failing(FakeBackend):
        async def generate(self, request: Any) -> Any:
            raise ConnectionError("reset by peer")
            yield

    with pytest.raises(CallFailed, match="reset by peer"):
        await one(ECHO, Failing(), x="")


async def test_the_same_run_gives_the_same_trace() -> None:
    async def trace() -> list[tuple[float, str]]:
        memory = MemoryTrace()
        await run_rows(ECHO, echo(latency_s=0.5), rows(50), trace=memory, concurrency=7)
        start = memory.records[0][0]
        return [(at - start, str(record)) for at, record in memory.records]

    first = await trace()
    assert first == await trace()
    assert sum("Dispatch" in text for _, text in first) == 50
