"""Memory is bounded by the windows and by what is in flight, never by the table: things counted."""

import asyncio
import gc
import weakref
from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from tenter.planner.graph import LLM, Each, Graph, Ref, ToolCall
from tenter.planner.prompt import Prompt
from tenter.runtime.backends.fake import FakeBackend
from tenter.runtime.clock import VirtualLoop, now
from tenter.runtime.journal.memory import MemoryJournal
from tenter.runtime.run.control import Control
from tenter.runtime.run.local import open_host, run_workflow
from tenter.runtime.run.program import Programs
from tenter.runtime.run.rows import Limits, Row, RowRun
from tenter.runtime.run.sharing import LEAST, Sharing
from tenter.runtime.run.walk import OPEN_ITEMS
from tenter.runtime.workflow import Input, Workflow
from tenter.tools import Tool

ROWS, WINDOW, MANY = 2000, 64, 8
SAY = LLM(id="s", prompt=Prompt("{{ x }}"), args=(("x", Ref("x")),))


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualLoop}


def workflow(*steps: Any, result: str = "s", **tools: Tool) -> Workflow:
    return Workflow(
        "w", (Input("x"),), Graph("w", ("x",), steps or (SAY,), Ref(result)), tools=tools
    )


class Counted(Row):
    """A row that can be counted while it is somebody's."""

    __hash__ = object.__hash__


class Table:
    """Rows that come into being when they are read; `most` existed at once."""

    def __init__(self, rows: int = ROWS) -> None:
        self._rows = rows
        self.alive: weakref.WeakSet[Counted] = weakref.WeakSet()
        self.read = 0

    def __iter__(self) -> Iterator[Row]:
        for number in range(self._rows):
            row = Counted(number, {"x": f"row {number}"}, {"x": f"row {number}"})
            self.alive.add(row)
            self.read += 1
            yield row


class Gauge:
    """A sink that puts rows into their order, as the output does, and notes what there is at most."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._held: dict[int, Row] = {}
        self.written = 0
        self.most: dict[str, int] = {}

    @property
    def held(self) -> int:
        return len(self._held)

    def put(self, row: Row, value: Any, error: str | None) -> None:
        assert error is None and row.row not in self._held
        self._held[row.row] = row
        self.note("held", self.held)
        self.note("read", self._table.read - self.written)
        if row.row % 16 == 0:
            self.note("alive", len(self._table.alive))
            self.note("tasks", len(asyncio.all_tasks()))
        while self.written in self._held:
            del self._held[self.written]
            self.written += 1

    def note(self, what: str, count: int) -> None:
        self.most[what] = max(self.most.get(what, 0), count)


class SlowJournal(MemoryJournal):
    """Keeps a record only after `keeps_s`; `most` waited at once."""

    keeps_s = 5.0

    def __init__(self) -> None:
        super().__init__()
        self.waiting = self.most = 0

    def record(self, entry: Any, then: Any = None, sync: bool = False) -> None:
        self.waiting += 1
        self.most = max(self.most, self.waiting)

        def kept() -> None:
            self.waiting -= 1
            if then is not None:
                then()

        asyncio.get_running_loop().call_later(self.keeps_s, kept)


async def run(
    flow: Workflow,
    backend: FakeBackend,
    table: Table,
    journal: MemoryJournal | None = None,
    order: tuple[str, ...] = (),
) -> tuple[Gauge, Programs]:
    sink = Gauge(table)
    journal = journal or MemoryJournal()
    async with open_host({"default": backend}, journal=journal) as host:
        programs = Programs(host, flow)
        limits = Limits(MANY, window_rows=WINDOW)
        rows = RowRun(programs, journal, sink, Control(), order, limits)
        assert await rows.run(iter(table)) == "done"
        assert not host.scheduler.core.programs and not host.scheduler.core.calls
    assert sink.written == table.read == ROWS
    return sink, programs


def check(sink: Gauge) -> None:
    """At most the window that runs and the one before it, whose last rows are awaited."""
    assert sink.most["read"] <= 2 * WINDOW
    assert sink.most["held"] < 2 * WINDOW
    assert sink.most["alive"] <= 2 * WINDOW + 1
    assert sink.most["tasks"] < 6 * MANY + 20


async def test_a_big_table_is_read_as_fast_as_its_rows_are_answered() -> None:
    backend = FakeBackend(lambda p: p, latency_s=1.0, max_running=4)
    sink, programs = await run(workflow(), backend, Table())
    check(sink)
    assert not programs.live


async def test_one_slow_row_holds_the_reader_back_and_not_the_memory() -> None:
    """The first row takes an hour: what comes after it is held, and no more than a window of it."""

    async def wait(x: str) -> str:
        await anyio.sleep(3600 if x == "row 0" else 0.01)
        return x

    step = ToolCall(id="t", tool="wait", args=(("x", Ref("x")),))
    flow = workflow(step, result="t", wait=Tool("wait", "", "{}", wait, timeout_s=7200))
    sink, _ = await run(flow, FakeBackend(), Table())
    check(sink)
    assert now() >= 3600


async def test_rows_in_another_order_than_the_tables_are_held_no_longer_than_two_windows() -> None:
    sink, _ = await run(workflow(), FakeBackend(latency_s=1.0), Table(), order=("x",))
    check(sink)


async def test_a_slow_journal_holds_programs_back() -> None:
    """A row counts as in flight until its end is kept, so few records wait for the disk."""
    journal = SlowJournal()
    sink, _ = await run(workflow(), FakeBackend(lambda p: p), Table(), journal)
    check(sink)
    assert journal.most <= MANY
    assert now() >= ROWS / MANY * 2 * SlowJournal.keeps_s * 0.99


async def test_slow_tools_hold_programs_back() -> None:
    running = most = 0

    async def work(x: str) -> str:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await anyio.sleep(2)
        running -= 1
        return x

    steps = SAY, ToolCall(id="t", tool="work", args=(("x", Ref("s")),))
    flow = workflow(*steps, result="t", work=Tool("work", "", "{}", work, effect="idempotent"))
    sink, _ = await run(flow, FakeBackend(lambda p: p), Table())
    check(sink)
    assert most <= MANY


async def test_a_long_list_is_opened_as_its_items_end() -> None:
    running = most = 0

    async def work(x: str) -> str:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await anyio.sleep(1)
        running -= 1
        return x

    step = ToolCall(id="t", tool="work", args=(("x", Ref("item")),))
    each = Each(id="e", items=Ref("x"), item="item", body=(step,), result=Ref("t"))
    flow = workflow(each, result="e", work=Tool("work", "", "{}", work, effect="idempotent"))
    items = [str(number) for number in range(5000)]
    backends = {"default": FakeBackend()}
    assert await run_workflow(flow, {"x": items}, backends=backends) == items
    assert most <= OPEN_ITEMS


async def test_nothing_is_left_of_a_run() -> None:
    table = Table()
    await run(workflow(), FakeBackend(latency_s=0.1), table)
    gc.collect()
    assert len(table.alive) == 0


def test_results_that_answer_nobody_make_room_for_others() -> None:
    """Where rows differ few results are kept; where they repeat, as many as there is room for."""
    sharing = Sharing(capacity=50_000)
    for number in range(60_000):
        sharing.finish(b"%d" % number, "answer")
    kept = sum(sharing.known(b"%d" % number) for number in range(60_000))
    assert kept == LEAST

    for _ in range(1000):
        sharing.result(b"59999")
    for number in range(60_000):
        sharing.finish(b"%d" % number, "answer")
    kept = sum(sharing.known(b"%d" % number) for number in range(60_000))
    assert kept == 50_000
