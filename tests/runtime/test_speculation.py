"""Pure tools that start while the turn that asks for them is still being written."""

import asyncio
import json
import threading
from contextvars import ContextVar
from functools import partial
from itertools import count
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from typist import Typist

from tenter.runtime import agent
from tenter.runtime.backends.fake import FakeBackend
from tenter.runtime.clock import VirtualLoop, now
from tenter.runtime.errors import StepFailed
from tenter.runtime.journal.memory import MemoryJournal
from tenter.runtime.run.context import current_program
from tenter.runtime.run.early import EarlyCall
from tenter.runtime.run.local import open_host, run_workflow
from tenter.runtime.run.program import Programs
from tenter.runtime.run.turns import CallStream, read_turn
from tenter.runtime.scheduler.events import (
    CallEnded,
    Speculated,
    ToolEnded,
    ToolProgress,
    ToolStarted,
)
from tenter.runtime.trace import MemoryTrace, Record
from tenter.runtime.workflow import Input, Workflow
from tenter.tools import Tool, tool_context
from tenter.tools.python import python_tool
from tenter.tools.registry import Touched

LOG: list[str] = []


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualLoop}


@pytest.fixture(autouse=True)
def log() -> list[str]:
    """What the tools of this module were called with, and what was cancelled."""
    LOG.clear()
    return LOG


def call(tool: str, **arguments: Any) -> str:
    return f"<tool_call>{json.dumps({'name': tool, 'arguments': arguments})}</tool_call>"


async def look(place: str, s: float = 1.0) -> str:
    """Look somewhere."""
    LOG.append(f"{place} at {now():.0f}")
    try:
        await anyio.sleep(s)
    except asyncio.CancelledError:
        LOG.append(f"{place} cancelled")
        raise
    return f"dust in {place}"


class Ordered(MemoryJournal):
    """Remembers in which order the steps were recorded, without their values."""

    def __init__(self) -> None:
        super().__init__()
        self.order: list[str] = []

    def record(self, entry: Any, *more: Any, **options: Any) -> None:
        self.order.append(entry.path.partition("@")[0])
        super().record(entry, *more, **options)


LOOK = python_tool(look, effect="pure")
LONG = "so " * 40  # takes 3 s


async def act(
    backend: FakeBackend, *tools: Tool, speculate: bool = True, **options: Any
) -> tuple[Any, list[Record], float]:
    """What an agent answers, the trace, and how long it took."""

    async def work() -> Any:
        program: Any = current_program.get()
        return await program.session().run("go", tools or [LOOK], speculate=speculate, **limits)

    limits = {name: options.pop(name) for name in ("max_turns",) if name in options}
    trace, began_s = MemoryTrace(), now()
    workflow = Workflow("w", (), program=work)
    answer = await run_workflow(workflow, {}, backends={"default": backend}, trace=trace, **options)
    return answer, [record for _, record in trace.records], now() - began_s


def of(kind: type[Record], records: list[Record]) -> list[Any]:
    return [record for record in records if type(record) is kind]


async def test_a_call_that_is_complete_runs_beside_the_rest_of_its_turn() -> None:
    lines = call("look", place="attic", s=6) + LONG + call("look", place="cellar", s=1), "done"
    plain, early = Typist(*lines), Typist(*lines)

    answer, _, plain_s = await act(plain, speculate=False)
    assert answer == "done"
    answer, records, early_s = await act(early)

    assert answer == "done"
    assert early.asked == plain.asked, "the model reads the same"
    assert plain_s - early_s == pytest.approx(5, abs=0.5)
    assert [(one.tool, one.used) for one in of(Speculated, records)] == [("look", True)] * 2


async def test_the_scheduler_hears_of_it_when_the_turn_has_ended() -> None:
    backend = Typist(call("look", place="attic", s=9) + LONG, "done")
    journal = Ordered()
    _, records, _ = await act(backend, journal=journal)

    kinds = [type(record) for record in records]
    assert kinds.index(CallEnded) < kinds.index(ToolStarted) < kinds.index(ToolEnded)
    (started,), (ended,) = of(ToolStarted, records), of(ToolEnded, records)
    assert started.ran_s == pytest.approx(3.3, abs=0.2)
    assert ended.seconds == pytest.approx(9, abs=0.01)
    assert ended.session == started.session
    assert journal.order == ["turn", "look", "turn"]


async def test_no_session_waits_for_one_that_has_ended() -> None:
    backend = Typist(call("look", place="attic", s=1) + LONG, "done")
    _, records, _ = await act(backend)
    (started,), (ended,) = of(ToolStarted, records), of(ToolEnded, records)
    assert ended.seconds == started.ran_s == pytest.approx(1, abs=0.01)
    assert started.session is ended.session is None


async def test_its_time_is_its_own_however_late_it_is_taken_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ticks = count()
    for module in ("early", "tool_steps"):
        monkeypatch.setattr(f"tenter.runtime.run.{module}.now", lambda: float(next(ticks)))
    backend = Typist(call("look", place="attic", s=0) + LONG, "done")
    _, records, _ = await act(backend)
    (ended,) = of(ToolEnded, records)
    assert ended.seconds == 1


@pytest.mark.parametrize(
    "more", [{"effect": "once"}, {"effect": "idempotent"}, {"effect": "pure", "sensitive": True}]
)
async def test_others_wait_for_the_end_of_their_turn(more: dict[str, Any]) -> None:
    backend = Typist(call("look", place="attic") + LONG, "done")
    answer, records, _ = await act(backend, python_tool(look, **more))
    assert answer == "done"
    assert of(Speculated, records) == []
    assert len(LOG) == 1


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(call("look", place="attic", s=9) + "</think>I know it.", id="a thought"),
        pytest.param(
            '{"name": "look", "parameters": {"place": "attic", "s": 9}} is what I could say',
            id="an example",
        ),
    ],
)
async def test_what_the_turn_does_not_end_with_is_cancelled(line: str) -> None:
    journal = Ordered()
    answer, records, _ = await act(Typist(line), journal=journal)
    assert answer == read_turn(line).content
    (dropped,) = of(Speculated, records)
    assert not dropped.used
    assert [line.split()[1] for line in LOG] == ["at", "cancelled"]
    assert of(ToolStarted, records) == []
    assert journal.order == ["turn"]


async def test_a_turn_that_is_written_anew_begins_anew() -> None:
    one = call("look", place="attic", s=9)
    backend = Typist(one + LONG + "!", call("look", place="cellar", s=1) + LONG, "done")
    answer, records, _ = await act(backend)
    assert answer == "done"
    assert [one.used for one in of(Speculated, records)] == [False, True]
    assert [line.split()[0] for line in LOG] == ["attic", "attic", "cellar"]
    assert "dust in cellar" in backend.asked[-1]
    assert "attic" not in backend.asked[-1].partition("so so")[2]


async def test_a_limit_that_is_reached_ends_it() -> None:
    backend = Typist(call("look", place="attic", s=60) + LONG)
    with pytest.raises(StepFailed, match="max_turns"):
        await act(backend, max_turns=1)
    assert "attic cancelled" in LOG


async def test_a_program_that_ends_takes_it_along() -> None:
    backend = Typist(call("look", place="attic", s=60) + LONG * 10, "done")
    with anyio.move_on_after(10):
        await act(backend)
    assert LOG[1:] == ["attic cancelled"]


async def test_who_is_cancelled_leaves_nothing_that_others_wait_for() -> None:
    one = call("look", place="attic", s=5)
    backend = Typist(LONG + one + LONG, one, "done")

    async def work() -> Any:
        program: Any = current_program.get()
        with anyio.move_on_after(1):
            await program.session().run("go", [LOOK], speculate=True)
        await anyio.sleep(20)  # the turn goes on, and ends with the call
        return await program.session().run("again", [LOOK])

    workflow = Workflow("w", (), program=work)
    assert await run_workflow(workflow, {}, backends={"default": backend}) == "done"
    assert len(LOG) == 1


async def test_an_error_is_told_as_if_it_had_come_later() -> None:
    async def fail(place: str) -> str:
        raise ValueError(f"no {place}")

    backend = Typist(call("fail", place="attic") + LONG, "done")
    answer, records, _ = await act(backend, python_tool(fail, effect="pure"))
    assert answer == "done"
    assert "tool 'fail': ValueError: no attic" in backend.asked[-1]
    assert [one.ok for one in of(ToolEnded, records)] == [False]


async def test_what_it_told_of_its_end_is_passed_on() -> None:
    async def build(place: str) -> str:
        tool_context().eta(9)
        await anyio.sleep(9)
        return "built"

    backend = Typist(call("build", place="attic") + LONG, "done")
    _, records, _ = await act(backend, python_tool(build, effect="pure"))
    (told,) = of(ToolProgress, records)
    (started,) = of(ToolStarted, records)
    assert told.left_s == pytest.approx(9 - started.ran_s)
    assert records.index(started) < records.index(told)


async def test_arguments_that_nobody_can_write_down_are_no_end_of_the_turn() -> None:
    half = '<tool_call>{"name": "look", "arguments": {"place": "\\ud800"}}</tool_call>'
    outcomes: list[str] = []
    for speculate in (False, True):
        try:
            answer, _, _ = await act(Typist(half + LONG, "done"), speculate=speculate)
            outcomes.append(answer)
        except StepFailed as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]


async def test_a_tool_sees_what_its_agent_set() -> None:
    user: ContextVar[str] = ContextVar("user", default="nobody")

    async def who(place: str) -> str:
        return f"{user.get()} is in {place}"

    async def work(name: str, place: str) -> None:
        user.set(name)
        program: Any = current_program.get()
        line = call("who", place=place) + LONG
        await program.session(model=place).run(line, [tool], speculate=True)

    async def both() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(work("ann", "attic"))
            tasks.create_task(work("bob", "cellar"))

    tool = python_tool(who, effect="pure")
    backends = {
        place: Typist(call("who", place=place) + LONG, "done") for place in ("attic", "cellar")
    }
    await run_workflow(Workflow("w", (), program=both), {}, backends=backends)
    assert "ann is in attic" in backends["attic"].asked[-1]
    assert "bob is in cellar" in backends["cellar"].asked[-1]


async def test_a_tool_that_takes_steps_of_the_program_is_made_at_the_end() -> None:
    clerk = agent("{{ task }}", name="clerk").as_tool("clerk", "Knows the stock.")
    assert clerk.effect == "pure"
    backend = Typist(call("clerk", task="count") + LONG, "three lamps", "done")
    answer, records, _ = await act(backend, clerk)
    assert answer == "done"
    assert "three lamps" in backend.asked[-1]
    assert of(Speculated, records) == []


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_tool_in_a_thread_that_takes_steps_tells_the_loop(anyio_backend: str) -> None:
    threads: list[int] = []
    host: Any = SimpleNamespace(abandon=lambda signature: threads.append(threading.get_ident()))
    early = EarlyCall(host, ToolStarted(program="p", step="look", tool="look"), "", b"same")
    await asyncio.to_thread(early.undo)
    assert await early.outcome is None
    assert threads == [threading.get_ident()]


async def test_what_was_written_to_meanwhile_is_read_again() -> None:
    rows = ["old"]

    async def read(place: str) -> str:
        LOG.append(place)
        return rows[-1]

    async def write() -> None:
        rows.append("new")

    reads = Touched(reads=frozenset({"db#t"}))
    writes = Touched(writes=frozenset({"db#t"}))
    reader = python_tool(read, effect="pure")
    object.__setattr__(reader, "touches", lambda values: reads)
    writer = python_tool(write, effect="idempotent")
    object.__setattr__(writer, "touches", lambda values: writes)
    backend = Typist(call("read", place="t") + LONG, "done")

    async def work() -> Any:
        program: Any = current_program.get()

        async def later() -> None:
            await anyio.sleep(3)
            await program.use(writer, {})

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(later())
            await program.session().run("go", [reader], speculate=True)

    await run_workflow(Workflow("w", (), program=work), {}, backends={"default": backend})
    assert LOG == ["t", "t"]
    assert "new" in backend.asked[-1]


class TestEqualCalls:
    """Of several agents: one makes the call, early or not."""

    async def both(self, *lines: tuple[str, ...]) -> list[Any]:
        """The answers of agents that write these lines, one model each."""
        backends = {f"m{n}": Typist(*each) for n, each in enumerate(lines)}

        async def work(agent: int) -> Any:
            program: Any = current_program.get()
            chat = program.session(model=f"m{agent}")
            return await chat.run(f"go {agent}", [LOOK], speculate=True)

        answers: list[Any] = [None] * len(lines)
        async with open_host(backends) as host:
            programs = Programs(host, Workflow("w", (Input("agent"),), program=work))
            ended = [asyncio.get_running_loop().create_future() for _ in lines]
            for row, future in enumerate(ended):

                def over(value: Any, error: Any, row: int = row, future: Any = future) -> None:
                    answers[row] = value
                    future.set_result(error)

                programs.arrive(row, {"agent": row}, over)
            assert await asyncio.gather(*ended) == [None] * len(lines)
        return answers

    async def test_another_one_waits_for_an_early_call(self) -> None:
        one = call("look", place="attic", s=2)
        assert await self.both((one + LONG, "done"), (one, "too")) == ["done", "too"]
        assert len(LOG) == 1

    async def test_and_makes_it_itself_if_that_is_dropped(self) -> None:
        one = call("look", place="attic", s=30)
        thought = f"{one}{LONG}</think>I know it."
        assert await self.both((thought,), (one, "too")) == ["I know it.", "too"]
        assert [line.split()[1] for line in LOG] == ["at", "at", "cancelled"]

    async def test_the_same_call_twice_in_a_turn_is_made_once(self) -> None:
        one = call("look", place="attic", s=2)
        assert await self.both((one + one + LONG, "done")) == ["done"]
        assert len(LOG) == 1


async def test_a_resumed_agent_makes_no_call_early_whose_result_is_recorded() -> None:
    journal = MemoryJournal()
    line = call("look", place="attic") + LONG
    answer, _, _ = await act(Typist(line, "done"), journal=journal)
    recorded = {path: record for (_, path), record in (await journal.steps(0, 0)).items()}
    assert answer == "done"

    async def work() -> Any:
        program: Any = current_program.get()
        return await program.session().run("go", [LOOK], speculate=True)

    def over(answers: list[Any], value: Any, error: Exception | None) -> None:
        answers.append(value)

    turns = [path for path in recorded if path.startswith("turn")]
    for left in (recorded, {p: r for p, r in recorded.items() if p not in turns}):
        LOG.clear()
        async with open_host(
            {"default": Typist(line, "done")}, journal=journal, resumed=True
        ) as host:
            answers: list[Any] = []
            programs = Programs(host, Workflow("w", (), program=work))
            programs.arrive(0, {}, partial(over, answers), left)
        assert answers == ["done"]
        assert LOG == []


CALLS = [
    call("look", a=1),
    call("look", a='}{"</tool_call') + "\n" + call("look"),
    "I look. " + call("look", a="ä\\") + " That is all.",
    '{"name": "look", "parameters": {"a": 1}};\n{"name": "look", "parameters": {"a": 2}}',
    '<|python_tag|>{"name": "look", "parameters": {}}',
    "<think>" + call("look", b=1) + "</think>\n" + call("look", a=1),
    '<tool_call>{"name": "look", "arguments": "{\\"a\\": 1}"}</tool_call>',
    '{"answer": 3}',
    "<tool_call>look</tool_call> <b>plain</b>",
    call("other"),
]


@pytest.mark.parametrize("text", CALLS)
def test_calls_are_found_however_the_answer_is_cut(text: str) -> None:
    wanted = [one for one in read_turn(text, ["look"]).tool_calls if one[0] == "look"]
    for size in range(1, len(text) + 1):
        stream = CallStream(["look"])
        pieces = [text[start : start + size] for start in range(0, len(text), size)]
        assert [one for piece in pieces for one in stream.push(piece)] == wanted


def test_a_call_is_found_with_its_last_brace() -> None:
    stream = CallStream(["look"])
    assert stream.push('<tool_call>{"name": "look", "arguments": {"a": 1}') == []
    assert stream.push("}") == [("look", '{"a": 1}')]
