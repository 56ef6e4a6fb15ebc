"""Tool steps: what a tool tells of its end, equal calls in flight, reads and what is written."""

import asyncio
import sqlite3
import threading
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from tenter.runtime.backends.fake import FakeBackend
from tenter.runtime.clock import VirtualLoop
from tenter.runtime.errors import StepFailed, ToolFailed
from tenter.runtime.journal.base import StepRecord
from tenter.runtime.journal.memory import MemoryJournal
from tenter.runtime.report.summary import render, summary
from tenter.runtime.report.tally import Tally
from tenter.runtime.run.codec import encode, identity
from tenter.runtime.run.context import current_program
from tenter.runtime.run.local import open_host, run_workflow
from tenter.runtime.run.program import Programs
from tenter.runtime.scheduler.events import (
    CallShared,
    PinJudged,
    Release,
    Retain,
    SessionEnded,
    ToolEnded,
    ToolProgress,
    ToolStarted,
)
from tenter.runtime.trace import Fanout, MemoryTrace, Record
from tenter.runtime.workflow import Input, Workflow
from tenter.tools import Tool, sql_tool, tool_context
from tenter.tools.python import python_tool

from .one_row import rows


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualLoop}


def here() -> Any:
    return current_program.get()


async def run(body: Any, **options: Any) -> list[Record]:
    """The records of one program."""
    trace = MemoryTrace()
    workflow = Workflow("w", (), program=body)
    backends = {"default": FakeBackend()}
    await run_workflow(workflow, {}, backends=backends, trace=trace, **options)
    return [record for _, record in trace.records]


def of(kind: type[Record], records: list[Record]) -> list[Any]:
    return [record for record in records if type(record) is kind]


class TestTold:
    async def test_the_scheduler_hears_what_a_tool_tells(self) -> None:
        async def build() -> str:
            tool_context().eta(60)
            await anyio.sleep(30)
            tool_context().eta(5)
            await anyio.sleep(5)
            return "built"

        async def body() -> None:
            chat = here().session()
            await chat.ask("go")
            await chat.use(python_tool(build, effect="idempotent"), {})

        told = of(ToolProgress, await run(body))
        assert [(one.left_s, one.session) for one in told] == [
            (60, "r0/session"),
            (5, "r0/session"),
        ]

    async def test_the_same_end_told_again_is_no_news(self) -> None:
        async def count() -> None:
            for left in range(100, 0, -1):
                tool_context().eta(left)
                await anyio.sleep(1)

        async def body() -> None:
            await here().use(python_tool(count, effect="idempotent", timeout_s=None), {})

        assert len(of(ToolProgress, await run(body))) == 1

    async def test_a_tool_that_was_left_behind_is_not_heard(self) -> None:
        late: list[Any] = []

        async def build() -> None:
            late.append(tool_context())

        async def body() -> None:
            await here().use(python_tool(build, effect="idempotent"), {})
            late[0].eta(60)

        assert of(ToolProgress, await run(body)) == []


def test_a_tool_in_a_thread_tells_too() -> None:
    threads: list[int] = []

    def build() -> None:
        threads.append(threading.get_ident())
        tool_context().eta(60)

    async def body() -> None:
        await here().use(python_tool(build, effect="idempotent"), {})
        await anyio.lowlevel.checkpoint()

    records = asyncio.run(run(body))
    assert threads != [threading.get_ident()]
    assert [one.left_s for one in of(ToolProgress, records)] == [60]


class TestJoined:
    async def test_a_chat_that_waits_for_the_call_of_another_keeps_its_kv(self) -> None:
        async def look() -> str:
            await anyio.sleep(5)
            return "seen"

        tool = python_tool(look, effect="pure")

        async def body() -> None:
            chats = [here().session(), here().session()]
            for number, chat in enumerate(chats):
                await chat.ask(f"go {number}")
            await asyncio.gather(*(chat.use(tool, {}) for chat in chats))

        records = await run(body)
        names = ["r0/session", "r0/session#1"]
        started = {one.session: one.joined for one in of(ToolStarted, records)}
        assert started == {names[0]: False, names[1]: True}
        assert len(of(ToolEnded, records)) == 1, "its duration teaches once"
        assert sorted(one.session for one in of(Retain, records)) == names

    async def test_the_summary_counts_the_calls_of_tools_that_were_not_made(self) -> None:
        async def look() -> str:
            await anyio.sleep(1)
            return "seen"

        tool, tally = python_tool(look, effect="pure"), Tally()

        async def body() -> None:
            await asyncio.gather(*(here().use(tool, {}) for _ in range(3)))
            await here().use(tool, {})
            await here().session().ask("go")

        workflow = Workflow("w", (), program=body)
        trace = Fanout(MemoryTrace(), tally)
        await run_workflow(workflow, {}, backends={"default": FakeBackend()}, trace=trace)
        figures = summary(tally.snapshot())
        assert figures["tool_calls"] == {
            "made": 1,
            "saved": 3,
            "saved_by": {"joined": 2, "cached": 1},
            "early": 0,
            "wasted": 0,
        }
        assert figures["calls"]["saved"] == 0
        assert "tools" in render(tally.snapshot())


@pytest.fixture(name="shop")
def shop_fixture(tmp_path: Path) -> str:
    path = tmp_path / "shop.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE stock (item TEXT, count INT)")
        connection.execute("CREATE TABLE staff (name TEXT)")
        connection.execute("INSERT INTO stock VALUES ('lamp', 3)")
    connection.close()
    return f"sqlite:///{path}"


READS = [
    "SELECT count FROM stock",
    "select COUNT  from Stock -- how many",
    "SELECT name FROM staff",
]


class TestReads:
    """SQL, on a real database file; threads and all, so on the real clock."""

    def ask(self, *steps: tuple[Tool, str] | list[tuple[Tool, str]]) -> tuple[list[Any], list[str]]:
        """Their rows, those of a list asked at once; and how calls were shared."""
        rows: list[Any] = []

        async def one(tool: Tool, sql: str) -> Any:
            return (await here().use(tool, {"sql": sql})).get("rows")

        async def body() -> None:
            for step in steps:
                at_once = step if isinstance(step, list) else [step]
                rows.extend(await asyncio.gather(*(one(*each) for each in at_once)))

        records = asyncio.run(run(body))
        return rows, [record.how for record in of(CallShared, records)]

    def test_equal_reads_in_flight_are_made_once(self, shop: str) -> None:
        read = sql_tool("read", shop)
        rows, shared = self.ask([(read, sql) for sql in READS], (read, READS[0]))
        assert rows == [[[3]], [[3]], [], [[3]]]
        assert shared == ["joined"], "spelled otherwise, and equal; afterwards it is asked again"

    def test_what_is_kept_is_asked_again_after_a_write_to_its_table(self, shop: str) -> None:
        read, write = sql_tool("read", shop, memo_s=60), sql_tool("write", shop, write=True)
        look, names = (read, READS[0]), (read, READS[2])
        rows, shared = self.ask(
            look, names, look, (write, "UPDATE stock SET count = 2"), look, names, look
        )
        assert rows == [[[3]], [], [[3]], None, [[2]], [], [[2]]]
        assert shared == ["cached", "cached", "cached"], "only the first look after the write asks"

    def test_a_statement_whose_tables_cannot_be_told_ends_all(self, shop: str) -> None:
        read = sql_tool("read", shop, effect="pure")
        write = sql_tool("write", shop, write=True)
        look = (read, READS[0])
        rows, shared = self.ask(look, look, (write, "ANALYZE"), look)
        assert rows == [[[3]], [[3]], None, [[3]]]
        assert shared == ["cached"]

    @pytest.mark.parametrize("sql", ["SELECT random()", "SELECT date('now')"])
    def test_what_differs_each_time_is_not_shared(self, shop: str, sql: str) -> None:
        read = sql_tool("read", shop)
        assert self.ask([(read, sql), (read, sql)])[1] == []


class TestOutcome:
    """A call with an effect that a crash cut off: its intent is recorded, and no result."""

    async def resumed(self, outcome: Any) -> tuple[Any, list[str]]:
        """The program's result, and who was called, with which key."""
        called: list[str] = []

        async def pay(order: str) -> str:
            called.append(f"pay {tool_context().key}")
            return f"paid {order}"

        async def found(order: str) -> str | None:
            called.append(f"look {tool_context().key}")
            return None if outcome is None else f"{outcome} {order}"

        tool = python_tool(pay, outcome=None if outcome == "unknown" else found)

        async def body(x: str) -> str:
            try:
                return await here().use(tool, {"order": x})
            except ToolFailed as error:
                return str(error)

        journal = MemoryJournal()
        intent = StepRecord(0, "pay?", encode(identity({"order": "0"})))
        journal.record(intent, lambda: None)
        flow = Workflow("w", (Input("x"),), program=body)
        values = await rows(flow, FakeBackend(), journal, resumed=True)
        return values[0], called

    async def test_what_it_came_to_is_its_result(self) -> None:
        said, called = await self.resumed("was paid")
        assert said == "was paid 0"
        assert [one.split()[0] for one in called] == ["look"]

    async def test_one_that_had_no_effect_is_made(self) -> None:
        said, called = await self.resumed(None)
        assert said == "paid 0"
        looked, paid = (one.split() for one in called)
        assert (looked[0], paid[0]) == ("look", "pay")
        assert looked[1] == paid[1] != "", "by one key"

    async def test_without_anybody_to_ask_it_fails(self) -> None:
        said, called = await self.resumed("unknown")
        assert "may have had its effect; it is not repeated" in said
        assert called == []


async def test_a_call_that_is_cancelled_before_it_began_is_made_by_the_next_program() -> None:
    async def look() -> str:
        return "seen"

    tool = python_tool(look, effect="pure")

    async def body(row: int) -> Any:
        call = asyncio.ensure_future(here().use(tool, {}))
        await asyncio.sleep(0)  # it is about to run
        if row == 0:
            call.cancel()
            raise StepFailed("no")
        return await call

    outcomes: list[Any] = []
    async with open_host({"default": FakeBackend()}) as host:
        programs = Programs(host, Workflow("w", (Input("row"),), program=body))
        for row in range(2):
            programs.arrive(row, {"row": row}, lambda value, error: outcomes.append(value))
            await anyio.sleep(1)
    assert outcomes == [None, "seen"]


class TestCompaction:
    async def test_what_is_replaced_is_released_at_once(self) -> None:
        async def look() -> str:
            return "seen"

        tool = python_tool(look, effect="idempotent")

        async def body() -> None:
            chat = here().session("be brief")
            await chat.ask("a" * 400)
            await chat.use(tool, {})
            await chat.compact(summary="short")
            assert here().host.scheduler.core.sessions == {}
            await chat.ask("b")
            await chat.use(tool, {})

        records = await run(body)
        decided = [record for record in records if type(record) in (Retain, Release, SessionEnded)]
        assert [(type(one).__name__, one.session) for one in decided[:4]] == [  # type: ignore[attr-defined]
            ("Retain", "r0/session"),
            ("SessionEnded", "r0/session"),
            ("Release", "r0/session"),
            ("Retain", "r0/session#1"),
        ]
        assert not [one for one in of(PinJudged, records) if not one.held]
