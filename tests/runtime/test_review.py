"""Where runs used to hang, leak, or blame the wrong row: one test for each."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import pytest

from tenter.planner.graph import LLM, Each, Ref, Sampling, ToolCall
from tenter.planner.prompt import Prompt
from tenter.runtime.backends.fake import FakeBackend
from tenter.runtime.calls import Chunk, Request
from tenter.runtime.clock import VirtualLoop, now
from tenter.runtime.errors import BackendUnavailable, StepFailed
from tenter.runtime.journal.memory import MemoryJournal
from tenter.runtime.run.control import Control
from tenter.runtime.run.local import open_host, run_program
from tenter.runtime.run.program import Programs
from tenter.runtime.run.rows import Row, RowRun
from tenter.runtime.scheduler.core import Core
from tenter.runtime.scheduler.events import (
    CallEnded,
    CallReady,
    DropCall,
    ProgramArrived,
    ToolStarted,
    WorkerDown,
    WorkerUp,
)
from tenter.runtime.scheduler.loop import Answer, Scheduler

from .test_run import (
    ASK,
    ECHO,
    Collected,
    echo,
    here,
    llm,
    program,
    rows,
    run_rows,
    static,
    tool,
)


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualLoop}


# ---- workers that die -----------------------------------------------------------------------------


class Dying(FakeBackend):
    """Answers until the loop's clock is at `dies_s`."""

    def __init__(self, dies_s: float, **more: Any) -> None:
        super().__init__(lambda prompt: prompt, latency_s=1.0, **more)
        self._dies_s = dies_s

    async def generate(self, request: Request) -> AsyncIterator[Chunk]:
        async for chunk in super().generate(request):
            if now() >= self._dies_s:
                raise BackendUnavailable("the engine crashed")
            yield chunk


class Call:
    """A submission that remembers what it was told."""

    program, step, model, shared_tokens, gang = "p", "s", "m", 0, 0

    def __init__(self, name: str) -> None:
        self.request = Request(name, (1,))  # type: ignore[arg-type]
        self.answers: list[Answer] = []
        self.ended = asyncio.Event()

    def heard(self, chunk: Chunk) -> None:
        pass

    def lost(self) -> None:
        pass

    def done(self, answer: Answer) -> None:
        self.answers.append(answer)
        self.ended.set()


async def test_the_calls_of_a_dead_worker_are_answered_by_another() -> None:
    backends = {"m/0": Dying(0.5, max_running=4), "m/1": FakeBackend(latency_s=3.0)}
    async with Scheduler(Core(), backends, dict.fromkeys(backends, "m")) as scheduler:
        scheduler.arrive("p", 0, "w", lambda: None)
        calls = [Call(f"c{index}") for index in range(6)]
        for call in calls:
            scheduler.submit(call)
        for call in calls:
            await call.ended.wait()
        late = Call("late")
        scheduler.submit(late)
        await late.ended.wait()
    assert [answer.error for call in (*calls, late) for answer in call.answers] == [None] * 7


def test_a_call_that_comes_after_the_last_worker_died_is_dropped() -> None:
    core = Core()
    core.handle(ProgramArrived(program="p", row=0, workflow="w"), 0)
    core.handle(WorkerUp(worker="m/0", model="m", max_running=1, kv_tokens=1000), 0)
    core.handle(WorkerDown(worker="m/0", error="gone"), 1)
    late = CallReady(call="c", program="p", step="s", model="m", prompt_tokens=1, max_tokens=1)
    (drop,) = core.handle(late, 2)
    assert isinstance(drop, DropCall) and "gone" in drop.reason
    core.check()


async def test_rows_are_not_blamed_for_the_death_of_the_last_worker() -> None:
    journal = MemoryJournal()
    with pytest.raises(BackendUnavailable, match="the engine crashed"):
        await run_rows(ECHO, Dying(2.5), rows(100), journal=journal, concurrency=10)
    recorded = await journal.rows(0, 99)
    assert len(recorded) == 20 and not any(record.error for record in recorded.values())
    _, sink = await run_rows(ECHO, echo(), rows(100), journal=journal, resumed=True)
    assert len(sink.values) == 100 and not sink.errors


# ---- one bad row ---------------------------------------------------------------------------------


async def test_an_answer_that_no_journal_can_hold_is_its_rows_error() -> None:
    step = llm("s", "{{ x }}", "x", schema='{"type": "string"}')
    backend = FakeBackend(lambda prompt: '"\\ud800"' if prompt == "1" else '"fine"')
    _, sink = await run_rows(static(step, result=Ref("s")), backend, rows(3))
    assert sink.values == {0: "fine", 2: "fine"} and "surrogates" in sink.errors[1]


async def test_a_result_that_no_journal_can_hold_is_its_rows_error() -> None:
    given = [Row(row, {}, {"x": "\ud800" if row == 1 else "fine"}) for row in range(3)]
    workflow = static(result=Ref("x"))
    _, sink = await run_rows(workflow, FakeBackend(), given, journal=MemoryJournal())
    assert sink.values == {0: "fine", 2: "fine"} and "surrogates" in sink.errors[1]


async def test_a_sink_that_fails_ends_the_run() -> None:
    class Full(Collected):
        def put(self, row: Row, value: Any, error: str | None) -> None:
            if row.row == 5:
                raise OSError("no space left on device")
            super().put(row, value, error)

    journal = MemoryJournal()
    async with open_host({"default": echo(latency_s=1.0)}, journal=journal) as host:
        run = RowRun(Programs(host, ECHO), journal, Full(), Control())
        with pytest.raises(OSError, match="no space left"):
            await run.run(iter(rows(20)))


async def test_an_each_without_steps_takes_every_item() -> None:
    each = Each(id="e", items=Ref("x"), item="i", body=(), result=Ref("i"))
    backends = {"default": FakeBackend()}
    async with open_host(backends) as host:
        for count in (0, 1, 3, 5000):
            items = list(range(count))
            assert await run_program(host, static(each, result=Ref("e")), {"x": items}) == items


# ---- a run that stops ------------------------------------------------------------------------------


async def test_rows_are_not_blamed_when_the_table_cannot_be_read_on() -> None:
    async def work(x: str) -> str:
        return x if x == "0" else await here().llm(ASK, {"q": x})

    def broken() -> Iterator[Row]:
        yield from rows(10)
        raise OSError("the disk is gone")

    journal = MemoryJournal()
    with pytest.raises(OSError, match="the disk is gone"):
        await run_rows(
            program(work),
            echo(latency_s=9.0),
            broken(),
            journal=journal,
            window_rows=10,  # type: ignore[arg-type]
        )
    assert list(await journal.rows(0, 9)) == [0]


async def test_rows_are_not_blamed_for_the_end_after_too_many_errors() -> None:
    async def work(x: str) -> list[str]:
        if x == "0":
            raise ValueError(x)
        return [await here().llm(ASK, {"q": f"{x}/{turn}"}) for turn in range(3)]

    journal = MemoryJournal()
    status, sink = await run_rows(
        program(work), echo(latency_s=1.0), rows(5), journal=journal, max_errors=0
    )
    assert status == "failed" and list(sink.errors) == [0]


async def test_a_joined_step_of_a_draining_run_is_not_taken_for_a_failure() -> None:
    """Two programs wait for one call that is never started; both catch the error."""

    async def work(x: str) -> str:
        try:
            return await here().llm(ASK, {"q": "same"})
        except StepFailed:
            return "without"

    async def drain() -> None:
        await anyio.sleep(0.5)
        control.drain()

    control = Control()
    backend = FakeBackend(latency_s=1.0, max_running=1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(drain)
        async with open_host({"default": backend}) as host:
            blocker = Programs(host, ECHO)
            blocker.arrive(9, {"x": "blocks"}, lambda value, error: None)
            await anyio.sleep(0.1)
            sink = Collected()
            run = RowRun(Programs(host, program(work)), MemoryJournal(), sink, control)
            assert await run.run(iter(rows(2))) == "paused"
    assert not sink.values and not sink.errors


async def test_a_tool_that_an_abort_kept_from_starting_is_started_by_the_resume() -> None:
    sent: list[str] = []

    async def send(x: str) -> str:
        sent.append(x)
        return "sent"

    step = ToolCall(id="mail", tool="send", args=(("x", Ref("x")),), effect="once")
    workflow = static(step, result=Ref("mail"), send=tool(send, effect="once"))

    class Slow(MemoryJournal):
        def record(self, entry: Any, then: Any = None, sync: bool = False) -> None:
            super().record(entry, then, sync)
            if getattr(entry, "path", "") == "mail?" and not control.wish:
                control.abort()  # between the intent and its acknowledgement
                programs.cancel("r0")

    control, journal, sink = Control(), Slow(), Collected()
    async with open_host({"default": FakeBackend()}, journal=journal) as host:
        programs = Programs(host, workflow)
        await RowRun(programs, journal, sink, control).run(iter(rows(1)))
        await anyio.sleep(1)
    assert not sent
    _, sink = await run_rows(workflow, FakeBackend(), rows(1), journal=journal, resumed=True)
    assert sink.values == {0: "sent"} and sent == ["0"]


# ---- resuming `async def` programs -----------------------------------------------------------------


async def test_a_resumed_program_that_takes_its_steps_in_another_order_gets_the_right_values() -> (
    None
):
    """Two branches race; which comes first to the second step differs after the resume."""
    sampled = LLM(id="ask", prompt=Prompt("{{ q }}"), sampling=Sampling(temperature=1.0))
    first = {"slow": "a", "done": ""}

    async def branch(x: str) -> str:
        await anyio.sleep(9.0 if x == first["slow"] else 1.0)
        return await here().llm(sampled, {"q": x})

    async def work(x: str) -> list[str]:
        values = await asyncio.gather(branch("a"), branch("b"))
        await here().llm(ASK, {"q": "last"})
        return values

    async def abort() -> None:
        await anyio.sleep(10.5)
        control.abort()

    control, journal = Control(), MemoryJournal()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(abort)
        await run_rows(
            program(work), echo(latency_s=1.0), rows(1), journal=journal, control=control
        )
    first["slow"] = "b"
    backend = echo(latency_s=1.0)
    _, sink = await run_rows(program(work), backend, rows(1), journal=journal, resumed=True)
    assert sink.values == {0: ["<a>", "<b>"]} and backend.asked == ["last"]


async def test_steps_of_one_name_made_on_the_way_keep_apart_when_resumed() -> None:
    slow = "a"

    async def branch(name: str) -> str:
        await anyio.sleep(9.0 if name == slow else 1.0)
        return await here().llm(LLM(id="llm", prompt=Prompt(name)), {})

    async def work(x: str) -> list[str]:
        values = await asyncio.gather(branch("a"), branch("b"))
        await here().llm(ASK, {"q": "last"})
        return values

    async def abort() -> None:
        await anyio.sleep(10.5)
        control.abort()

    control, journal = Control(), MemoryJournal()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(abort)
        await run_rows(
            program(work), echo(latency_s=1.0), rows(1), journal=journal, control=control
        )
    slow = "b"
    backend = echo(latency_s=1.0)
    _, sink = await run_rows(program(work), backend, rows(1), journal=journal, resumed=True)
    assert sink.values == {0: ["<a>", "<b>"]} and backend.asked == ["last"]


async def test_two_chats_of_a_program_keep_apart_when_it_is_resumed() -> None:
    slow = "a"

    async def chat(name: str, session: Any) -> str:
        await anyio.sleep(9.0 if name == slow else 1.0)
        return (await session.ask(name)).content

    async def work(x: str) -> list[str]:
        both = [(name, here().session()) for name in "ab"]
        values = await asyncio.gather(*(chat(name, session) for name, session in both))
        await here().llm(ASK, {"q": "last"})
        return values

    async def abort() -> None:
        await anyio.sleep(10.5)
        control.abort()

    control, journal = Control(), MemoryJournal()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(abort)
        await run_rows(
            program(work), echo(latency_s=1.0), rows(1), journal=journal, control=control
        )
    slow = "b"
    backend = echo(latency_s=1.0)
    _, sink = await run_rows(program(work), backend, rows(1), journal=journal, resumed=True)
    assert sink.values == {0: ["<a>", "<b>"]} and backend.asked == ["last"]


async def test_a_once_tool_that_is_reached_with_other_arguments_is_refused() -> None:
    async def send(x: str) -> str:
        return x

    sender = tool(send, effect="once")

    async def work(x: str) -> str:
        sent = await here().use(sender, {"x": words.pop()})
        await here().llm(ASK, {"q": "last"})
        return sent

    words, control, journal = ["later", "first"], Control(), MemoryJournal()

    async def abort() -> None:
        await anyio.sleep(0.5)
        control.abort()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(abort)
        await run_rows(
            program(work), echo(latency_s=1.0), rows(1), journal=journal, control=control
        )
    _, sink = await run_rows(program(work), echo(), rows(1), journal=journal, resumed=True)
    assert "other arguments" in sink.errors[0]


async def test_what_a_program_does_to_a_shared_value_no_other_program_sees() -> None:
    async def tags() -> list[str]:
        return ["a"]

    shared = tool(tags)

    async def work(x: str) -> list[str]:
        found = await here().use(shared, {})
        found.append(x)
        return found

    _, sink = await run_rows(program(work), FakeBackend(), rows(3), concurrency=1)
    assert sink.values == {0: ["a", "0"], 1: ["a", "1"], 2: ["a", "2"]}


# ---- what is kept ----------------------------------------------------------------------------------


@pytest.mark.slow
async def test_nothing_grows_with_rows_tools_and_steps_made_on_the_way() -> None:
    async def look(x: str) -> str:
        return x

    async def work(x: str) -> str:
        found = await here().use(tool(look, effect="idempotent"), {"x": x})
        step = LLM(id="ask", prompt=Prompt("{{ q }}" + " " * (int(x) % 7)))
        return await here().llm(step, {"q": found})

    async with open_host({"default": FakeBackend()}, call_timeout_s=3600.0) as host:
        journal, sink = MemoryJournal(), Collected()
        run = RowRun(Programs(host, program(work)), journal, sink, Control())
        assert await run.run(iter(rows(6000))) == "done"
        assert not host._side_tasks  # pyright: ignore[reportPrivateUsage]
        assert len(host._asking) <= 4096  # pyright: ignore[reportPrivateUsage]
        assert len(host.scheduler.core._timers) < 1000  # pyright: ignore[reportPrivateUsage]


def test_a_pin_whose_time_is_over_holds_no_room_any_more() -> None:
    core = Core(hold=lambda pause: 5.0)
    core.handle(WorkerUp(worker="m/0", model="m", max_running=4, kv_tokens=1000), 0)
    for name in ("p", "q"):
        core.handle(ProgramArrived(program=name, row=0, workflow="w"), 0)
    turn = {"step": "s", "model": "m", "prompt_tokens": 400, "max_tokens": 10}
    core.handle(CallReady(call="p/1", program="p", session="p/s", **turn), 0)  # type: ignore[arg-type]
    core.handle(CallEnded(call="p/1", program="p", step="s", finish="stop", prompt_tokens=400), 1)
    core.handle(ToolStarted(program="p", step="t", tool="t", session="p/s", eta_s=1.0), 1)
    assert core.workers["m/0"].kv_pinned == 400
    core.handle(CallReady(call="q/1", program="q", **turn), 7)  # type: ignore[arg-type]
    assert core.workers["m/0"].kv_pinned == 0
    core.check()
