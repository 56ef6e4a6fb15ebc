"""Two real replicas behind one model: kills, returns, placement, and a model that was swapped.

The tests share two servers. One that is killed is started again on its port while the run goes on
with the other one.
"""

import asyncio
import json
import shutil
import urllib.request
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from environment import build
from servers import MODEL, Server

from tenter.planner.graph import LLM, Graph, Ref, Sampling
from tenter.planner.prompt import Prompt
from tenter.runtime.backends.sglang import SGLangBackend, connect
from tenter.runtime.calls import CallId, Request
from tenter.runtime.errors import InvalidConfig
from tenter.runtime.journal.base import Manifest
from tenter.runtime.journal.memory import NoJournal
from tenter.runtime.journal.store import Store
from tenter.runtime.run.context import current_program
from tenter.runtime.run.control import Control
from tenter.runtime.run.host import Host
from tenter.runtime.run.local import open_host, run_program
from tenter.runtime.run.program import Programs
from tenter.runtime.run.rows import Limits, Row, RowRun
from tenter.runtime.scheduler.events import CallEnded, Dispatch
from tenter.runtime.trace import MemoryTrace
from tenter.runtime.workflow import Input, Workflow

if TYPE_CHECKING:
    from collections.abc import Awaitable

pytestmark = pytest.mark.sglang

ROWS = 200
PATIENCE_S = 120.0  # until something that must happen counts as failed
NAMES = ("one", "other")


@pytest.fixture(scope="module")
def two(start_server: Callable[..., Server]) -> list[Server]:
    """Two servers, which the test before may have left dead."""
    return [start_server(name, ready=False) for name in NAMES]


@pytest.fixture
def pair(two: list[Server]) -> list[Server]:
    """Two servers that answer."""
    for each in two:
        each.launch()
    for each in two:
        each.wait()
    return two


def sums() -> Workflow:
    """One question for each row; no two rows ask the same."""
    args = (("x", Ref("x")), ("y", Ref("y")))
    step = LLM(
        id="sum",
        prompt=Prompt("Compute {{ x }} + {{ y }}. Think hard."),
        args=args,
        sampling=Sampling(max_tokens=24),
    )
    return Workflow(
        "sums", (Input("x"), Input("y")), Graph("sums", ("x", "y"), (step,), Ref("sum"))
    )


def rows(count: int = ROWS) -> Iterator[Row]:
    for number in range(count):
        yield Row(number, {}, {"x": str(number), "y": str(2 * number + 11)})


@dataclass
class Ends:
    """A sink: what came of each row."""

    values: dict[int, Any] = field(default_factory=dict[int, Any])
    errors: dict[int, str] = field(default_factory=dict[int, str])
    held = 0

    def put(self, row: Row, value: Any, error: str | None) -> None:
        assert row.row not in self.values.keys() | self.errors.keys(), "a row ended twice"
        if error is None:
            self.values[row.row] = value
        else:
            self.errors[row.row] = error


@asynccontextmanager
async def running(
    urls: Sequence[str], trace: MemoryTrace | None = None
) -> AsyncGenerator[tuple[Host, list[SGLangBackend]]]:
    async with (
        connect(urls) as backends,
        open_host({"default": backends}, trace=trace, share=False) as host,
    ):
        yield host, backends


async def run_rows(host: Host, folder: Path, name: str, count: int = ROWS) -> Ends:
    """Run a table into a journal of its own; it has each row once, as the sink has."""
    ends = Ends()
    store = Store(folder)
    journal = store.create(Manifest(name, "sums", "w", "m", "i", {}, "2026-01-01"))
    host.journal = journal
    run = RowRun(Programs(host, sums()), journal, ends, Control(), limits=Limits(64))
    try:
        async with asyncio.timeout(2 * PATIENCE_S):
            assert await run.run(rows(count)) == "done"
        recorded = await journal.rows(0, count)
        assert sorted(recorded) == list(range(count))
        assert store.info(name).rows_done == len(ends.values)
    finally:
        host.journal = NoJournal()
        await journal.close()
    host.scheduler.core.check()
    return ends


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def answered_by(trace: MemoryTrace) -> Counter[str]:
    """Calls that each worker answered."""
    at: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for _, item in trace.records:
        if isinstance(item, Dispatch):
            at[item.call] = item.worker
        elif isinstance(item, CallEnded) and item.finish in ("stop", "length"):
            counts[at[item.call]] += 1
    return counts


def in_thread(work: Callable[[], object]) -> "Awaitable[object]":
    return anyio.to_thread.run_sync(work)


def load_of(server: Server) -> int:
    with urllib.request.urlopen(f"{server.url}/v1/loads", timeout=10) as answer:
        (load,) = json.load(answer)["loads"]
    return load["num_running_reqs"] + load["num_waiting_reqs"]


# ---- deaths and returns -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("times", "end"),
    [(1, Server.kill), (2, Server.stop), pytest.param(10, Server.kill, marks=pytest.mark.slow)],
    ids=["a kill", "a rolling restart", "ten kills"],
)
async def test_a_run_survives_the_ends_of_its_replicas(
    times: int, end: Callable[[Server], None], pair: list[Server], tmp_path: Path
) -> None:
    draw, trace = Random(times), MemoryTrace()
    async with running([each.url for each in pair], trace) as (host, _):
        workers = host.scheduler.core.workers
        expected = (await run_rows(host, tmp_path, "whole")).values
        assert len(expected) == ROWS
        for number in range(times):
            victim = number % 2
            trace.records.clear()
            moment = draw.randrange(ROWS // 2)

            async def strike(victim: int = victim, moment: int = moment) -> None:
                worker = f"default/{victim}"
                await until(
                    lambda: (
                        sum(answered_by(trace).values()) >= moment and bool(workers[worker].running)
                    )
                )
                await in_thread(lambda: end(pair[victim]))
                pair[victim].launch()

            striking = asyncio.create_task(strike())
            ends = await run_rows(host, tmp_path, f"struck-{number}")
            await striking
            assert ends.errors == {}
            assert ends.values == expected
            await in_thread(pair[victim].wait)
            await until(lambda: len(workers) == 2)
        trace.records.clear()
        await run_rows(host, tmp_path, "after")
        assert set(answered_by(trace)) == {"default/0", "default/1"}
    assert [load_of(each) for each in pair] == [0, 0]


async def test_a_chat_moves_when_its_replica_dies_and_the_other_joins_later(
    pair: list[Server],
) -> None:
    """The answers are those of an undisturbed chat; the next run begins with one replica down."""
    trace = MemoryTrace()
    hurt = asyncio.Event()

    async def chat() -> list[str]:
        program: Any = current_program.get()
        session = program.session("You are careful. " + "Think before you speak. " * 20)
        said: list[str] = []
        for turn in range(6):
            answer = await session.ask(f"Compute {turn} + 17.", sampling=Sampling(max_tokens=24))
            said.append(answer.content)
            if turn == 2:
                hurt.set()
                await healed.wait()
        return said

    workflow = Workflow("chat", (), program=chat)
    healed = asyncio.Event()
    healed.set()
    async with running([each.url for each in pair]) as (host, _):
        expected = await run_program(host, workflow, {})
    healed.clear()
    hurt.clear()

    async with running([each.url for each in pair], trace) as (host, _):
        talking = asyncio.create_task(run_program(host, workflow, {}))
        async with asyncio.timeout(PATIENCE_S):
            await hurt.wait()
        (home,) = {item.worker for _, item in trace.records if isinstance(item, Dispatch)}
        victim = pair[int(home.rpartition("/")[2])]
        victim.kill()
        healed.set()
        async with asyncio.timeout(PATIENCE_S):
            assert await talking == expected
    used = [item.worker for _, item in trace.records if isinstance(item, Dispatch)]
    after = used[used.index(next(worker for worker in used if worker != home)) :]
    assert set(after) == {"default/0", "default/1"} - {home}

    async with running([each.url for each in pair], trace) as (host, backends):
        assert [backend.failure is None for backend in backends].count(False) == 1
        victim.launch()
        await in_thread(victim.wait)
        await until(lambda: len(host.scheduler.core.workers) == 2)
        trace.records.clear()
        ends = await run_plain(host, 60)
        assert len(ends.values) == 60
        assert set(answered_by(trace)) == {"default/0", "default/1"}


async def run_plain(host: Host, count: int, workflow: Workflow | None = None) -> Ends:
    """Rows without a journal."""
    ends = Ends()
    programs = Programs(host, workflow or sums())
    run = RowRun(programs, host.journal, ends, Control(), limits=Limits(64))
    async with asyncio.timeout(PATIENCE_S):
        assert await run.run(rows(count)) == "done"
    return ends


# ---- placement ------------------------------------------------------------------------------------


async def test_a_chat_stays_with_its_replica(pair: list[Server]) -> None:
    trace = MemoryTrace()

    async def chat(x: str, y: str) -> str:
        program: Any = current_program.get()
        session = program.session(f"You are number {x}. " * 70)  # dear to compute again
        for turn in range(4):
            await session.ask(f"Compute {turn} + {y}.", sampling=Sampling(max_tokens=8))
        return x

    workflow = Workflow("chat", (Input("x"), Input("y")), program=chat)
    async with running([each.url for each in pair], trace) as (host, _):
        ends = await run_plain(host, 8, workflow)
    assert len(ends.values) == 8
    places: dict[str, list[str]] = {}
    for _, item in trace.records:
        if isinstance(item, Dispatch):
            places.setdefault(item.call.partition("/")[0], []).append(item.worker)
    followed = [pair for each in places.values() for pair in pairwise(each)]
    assert sum(before == after for before, after in followed) >= 0.6 * len(followed)
    assert {place for each in places.values() for place in each} == {"default/0", "default/1"}


async def test_a_shared_system_prompt_does_not_pull_all_onto_one_replica(
    pair: list[Server],
) -> None:
    trace = MemoryTrace()
    step = LLM(
        id="sum",
        prompt=Prompt("Compute {{ x }} + {{ y }}."),
        system=Prompt("Be careful, and think before you speak. " * 40),
        args=(("x", Ref("x")), ("y", Ref("y"))),
        sampling=Sampling(max_tokens=12),
    )
    graph = Graph("sums", ("x", "y"), (step,), Ref("sum"))
    workflow = Workflow("sums", (Input("x"), Input("y")), graph)
    async with running([each.url for each in pair], trace) as (host, _):
        ends = await run_plain(host, 120, workflow)
    assert len(ends.values) == 120
    shares = answered_by(trace)
    assert min(shares["default/0"], shares["default/1"]) >= 15  # one may be the slower one
    last = [item for _, item in trace.records if isinstance(item, CallEnded)][-60:]
    cached = sum(item.cached_tokens for item in last)
    assert cached > 0.8 * sum(item.prompt_tokens for item in last)


# ---- another model in the place of one ----------------------------------------------------------


async def test_a_swapped_model_is_refused_with_both_names(
    pair: list[Server], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = tmp_path / "another-tiny"
    shutil.copytree(MODEL, copy)
    one, other = pair
    trace = MemoryTrace()
    async with running([one.url, other.url], trace) as (host, _):
        other.kill()
        swapped = launch_instead(other, copy)
        try:
            ends = await run_plain(host, 60)
            assert ends.errors == {}
            assert set(answered_by(trace)) >= {"default/0"}
            await until(lambda: "will not come back" in caplog.text)
            assert str(copy) in caplog.text and str(MODEL) in caplog.text
            assert list(host.scheduler.core.workers) == ["default/0"]
            with pytest.raises(InvalidConfig, match="alike") as refused:
                async with connect([one.url, other.url]):
                    pass
            assert str(copy) in str(refused.value) and str(MODEL) in str(refused.value)
            assert one.url in str(refused.value) and other.url in str(refused.value)
        finally:
            swapped.close()


def launch_instead(server: Server, model: Path) -> Server:
    """Another model's server on the port of one that has ended; its own port is not used."""
    home = build.find()
    assert home is not None
    flags = ("--model-path", str(model), "--port", server.url.rpartition(":")[2])
    other = Server("swapped", flags, python=build.python_of(home), folder=server.log.parent)
    other.launch()
    return other


# ---- data-parallel ranks ----------------------------------------------------------------------------


async def test_data_parallel_ranks_are_addressed_as_replicas(
    start_server: Callable[..., Server], two: list[Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in two:  # two ranks are two more engines
        each.stop()
    monkeypatch.setenv("SGLANG_CPU_OMP_THREADS_BIND", "0|0")  # the cores of the two ranks
    server = start_server("ranks", "--dp-size", "2")
    trace = MemoryTrace()
    try:
        async with running([server.url], trace) as (host, backends):
            assert len(backends) == 2
            ends = await run_plain(host, 60)
            assert len(ends.values) == 60
            assert set(answered_by(trace)) == {"default/0", "default/1"}
            # What one rank has computed only that rank has.
            prompt = tuple(range(300, 700))
            assert [await cached(backends[0], prompt, "a") for _ in range(2)] == [0, 399]
            assert [await cached(backends[1], prompt, "b") for _ in range(2)] == [0, 399]
    finally:
        server.stop()


async def cached(backend: SGLangBackend, prompt: tuple[int, ...], name: str) -> int:
    """Tokens of the prompt that were found."""
    request = Request(CallId(name), prompt, Sampling(max_tokens=1))
    (chunk,) = [chunk async for chunk in backend.generate(request)]
    assert chunk.usage is not None
    return chunk.usage.cached_tokens
