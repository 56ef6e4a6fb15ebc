"""A live run steered from outside, in virtual time: what is asked is done, once, and told."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import msgspec
import pytest

from tenter.planner.graph import LLM, Graph, Ref, ToolCall
from tenter.planner.prompt import Prompt
from tenter.runtime.backends.fake import FakeBackend
from tenter.runtime.clock import VirtualLoop, now
from tenter.runtime.errors import InvalidInput, TenterError
from tenter.runtime.journal.base import RowRecord
from tenter.runtime.journal.memory import MemoryJournal
from tenter.runtime.operate import door
from tenter.runtime.operate.asking import request
from tenter.runtime.operate.door import Live, Request, Requests, ask, read_live, write_live
from tenter.runtime.operate.settings import Settings
from tenter.runtime.operate.steering import Steered, steered
from tenter.runtime.operate.watching import Watched
from tenter.runtime.report.tally import Tally
from tenter.runtime.run.control import Control
from tenter.runtime.run.local import open_host
from tenter.runtime.run.program import Programs
from tenter.runtime.run.rows import Limits, Row, RowRun
from tenter.runtime.scheduler.core import Core
from tenter.runtime.scheduler.events import (
    Asked,
    CallEnded,
    CallReady,
    Change,
    Dispatch,
    ProgramArrived,
    WorkerUp,
)
from tenter.runtime.trace import Fanout, MemoryTrace
from tenter.runtime.workflow import Input, Scheduling, Workflow
from tenter.tools import Tool

RUN = "run_0123456789abcdef"
PROMPT = Prompt("{{ x }}")
SAY = LLM(id="s", prompt=PROMPT, args=(("x", Ref("x")),))


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualLoop}


def workflow(*steps: Any, result: str = "s", **tools: Tool) -> Workflow:
    return Workflow(
        "w", (Input("x"),), Graph("w", ("x",), steps or (SAY,), Ref(result)), tools=tools
    )


FLOW, TEN, NO_WISH = workflow(), Settings(10), Scheduling()


class Collected:
    held = 0

    def __init__(self) -> None:
        self.values: dict[int, Any] = {}
        self.errors: dict[int, str] = {}

    def put(self, row: Row, value: Any, error: str | None) -> None:
        assert row.row not in self.values and row.row not in self.errors, "a row comes out once"
        if error is None:
            self.values[row.row] = value
        else:
            self.errors[row.row] = error


class Store:
    """A store of one run, as far as whoever asks looks at it."""

    def __init__(self, folder: Path, status: str = "paused", failed: int = 0) -> None:
        self._folder = folder
        manifest = SimpleNamespace(once=False)
        self._info = SimpleNamespace(status=status, rows_failed=failed, manifest=manifest)

    def folder(self, run: str) -> Path:
        return self._folder

    def info(self, run: str) -> Any:
        return self._info


@dataclass
class Job:
    """A run in `folder`; each call takes a second, and ten rows go side by side."""

    folder: Path
    rows: int = 100
    flow: Workflow = FLOW
    settings: Settings = TEN
    scheduling: Scheduling = NO_WISH

    def __post_init__(self) -> None:
        self.backend = FakeBackend(lambda p: p, latency_s=1.0, remember=True)
        self.journal, self.control = MemoryJournal(), Control()
        self.tally, self.kept, self.sink = Tally(), MemoryTrace(), Collected()
        self.host: Any = None
        self.status = ""

    async def run(self, resumed: bool = False, retry: bool = False) -> None:
        given = (Row(row, {}, {"x": f"row {row}"}) for row in range(self.rows))
        trace = Fanout(self.kept, self.tally)
        many = self.settings.concurrency
        async with open_host(
            {"default": self.backend},
            journal=self.journal,
            trace=trace,
            max_programs=many,
            resumed=resumed,
            scheduling=self.scheduling,
        ) as self.host:
            rows = RowRun(
                *(Programs(self.host, self.flow), self.journal, self.sink, self.control),
                limits=Limits(many),
                resumed=resumed,
                retry=retry,
            )
            pools = {"default": "default"}
            parts = Steered(RUN, self.host, rows, self.control, self.tally, trace, pools)
            async with steered(parts, self.settings, self.folder):
                self.status = await rows.run(given)
            self.host.scheduler.core.check()

    def again(self) -> "Job":
        """A process that resumes the run: all it has is the journal."""
        fresh = Job(self.folder, self.rows, self.flow, TEN, self.scheduling)
        fresh.journal, fresh.backend = self.journal, self.backend
        return fresh

    async def ask(self, what: Any, **values: Any) -> Any:
        return await request(Store(self.folder), RUN, what, values)  # type: ignore[arg-type]

    @asynccontextmanager
    async def live(self, after_s: float = 2.6) -> AsyncIterator[None]:
        """The run beside the body, which begins after some seconds and may outlast it."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.run)
            await anyio.sleep(after_s)
            yield

    @property
    def complete(self) -> bool:
        wanted = {row: f"row {row}" for row in range(self.rows)}
        return self.status == "done" and self.sink.values == wanted


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


# ---- pause, continue, cancel -----------------------------------------------------------------------


async def test_a_paused_run_starts_no_call_and_goes_on_where_it_was(job: Job) -> None:
    async with job.live():
        answer = await job.ask("pause")
        assert (answer.ok, answer.said) == (True, "paused; 10 calls that run still end")
        await anyio.sleep(5)
        assert not job.backend.running
        asked = len(job.backend.asked)
        await anyio.sleep(3600)
        assert len(job.backend.asked) == asked == len(job.sink.values)
        assert (await job.ask("pause")).said == "paused already"
        assert (await job.ask("continue")).said == "it goes on"
        assert (await job.ask("continue")).said == "it was not paused"
    assert job.complete
    assert len(job.backend.asked) == 100


async def test_a_paused_run_starts_no_tool(tmp_path: Path) -> None:
    started: list[str] = []

    async def look(x: str) -> str:
        started.append(x)
        await anyio.sleep(0.25)
        return x

    steps = SAY, ToolCall(id="t", tool="look", args=(("x", Ref("s")),))
    tool = Tool("look", "", "{}", look, effect="once")
    job = Job(tmp_path, rows=30, flow=workflow(*steps, result="t", look=tool))
    async with job.live(0.6):
        await job.ask("pause")  # the first ten calls run
        await anyio.sleep(60)
        assert len(job.backend.asked) == 10 and not started and not job.sink.values
        await job.ask("continue")
    assert job.complete and sorted(started) == sorted(f"row {row}" for row in range(30))


@pytest.mark.parametrize("paused", [False, True], ids=["running", "paused"])
async def test_a_cancelled_run_finishes_what_runs_and_is_resumed(job: Job, paused: bool) -> None:
    async with job.live():
        if paused:
            await job.ask("pause")
        answer = await job.ask("cancel")
        assert answer.ok and "finishing" in answer.said
    assert (job.status, job.control.reason) == ("paused", "asked")
    assert not job.sink.errors and 30 <= len(job.sink.values) < 60
    assert read_live(job.folder).state == "ended"  # type: ignore[union-attr]

    second = job.again()
    await second.run(resumed=True)
    assert second.complete and len(job.backend.asked) == 100, "nothing was asked twice"


async def test_a_paused_run_with_held_tools_can_be_cancelled(tmp_path: Path) -> None:
    async def look(x: str) -> str:
        return x

    steps = SAY, ToolCall(id="t", tool="look", args=(("x", Ref("s")),))
    job = Job(tmp_path, 30, workflow(*steps, result="t", look=Tool("look", "", "{}", look)))
    async with job.live(0.6):
        await job.ask("pause")
        await anyio.sleep(3)
        await job.ask("cancel")
    assert job.status == "paused" and not job.sink.values and not job.sink.errors

    second = job.again()
    await second.run(resumed=True)
    assert second.complete and len(job.backend.asked) == 30


async def test_cancelled_at_once_breaks_off_what_runs(job: Job) -> None:
    job.backend._latency_s = 1000.0
    async with job.live():
        assert (await job.ask("cancel", now=True)).said == "stopping at once"
    assert now() < 10 and not job.backend.running
    assert (job.status, job.sink.values, job.sink.errors) == ("paused", {}, {})


async def test_a_stopping_run_only_lets_itself_be_stopped_sooner(job: Job) -> None:
    job.backend._latency_s = 1000.0
    async with job.live():
        await job.ask("cancel")
        refused = await job.ask("set", concurrency=3)
        assert not refused.ok and "is stopping already" in refused.said
        assert (await job.ask("cancel")).said == "stopping already"
        await job.ask("cancel", now=True)
    assert now() < 20


async def test_rows_that_a_tenants_limit_holds_back_do_not_keep_a_drained_run_alive(
    tmp_path: Path,
) -> None:
    tenants = Scheduling(limits={"tenants": {"*": {"max_live": 2}}}, tenant="x")
    job = Job(tmp_path, rows=40, scheduling=tenants)
    async with job.live(1.6):
        job.control.drain()
    assert job.status == "paused" and now() < 10


# ---- set --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("many", [2, 40])
async def test_concurrency_changes_while_the_run_goes_on(job: Job, many: int) -> None:
    async with job.live():
        assert (await job.ask("set", concurrency=many)).said == f"concurrency 10 -> {many}"
        await anyio.sleep(3.1)
        assert len(job.backend.running) <= many
        assert len(job.backend.running) == many or job.complete
    assert job.complete


async def test_policies_change_while_the_run_goes_on(job: Job) -> None:
    async with job.live():
        answer = await job.ask("set", order="fair", retention="never", max_errors=7)
        assert answer.said == (
            "order fcfs -> fair, retention shadow-price -> never, max_errors unbounded -> 7"
        )
    assert job.complete
    change = [record for _, record in job.kept.records if isinstance(record, Change)][-1]
    assert (change.order, change.retention, change.max_programs) == ("fair", "never", None)


async def test_limits_change_while_the_run_goes_on(job: Job) -> None:
    async with job.live():
        first = await job.ask("set", limits='{"models": {"default": {"max_running": 2}}}')
        assert first.said.startswith('limits {} -> {"models": {"default": ')
        await anyio.sleep(2.1)
        assert len(job.backend.running) == 2
        await job.ask("set", limits='{"working_set": 0.5}')
        await anyio.sleep(1.1)
        assert len(job.backend.running) == 2  # what is not named stays
        assert (await job.ask("set", limits='{"models": {}}')).ok
        await anyio.sleep(2.1)
        assert len(job.backend.running) == 10
    assert job.complete


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"concurrency": 0}, "--concurrency 0: it must be at least 1"),
        ({"concurrency": "many"}, "--concurrency 'many': it must be a whole number"),
        ({"concurrency": True}, "it must be a whole number"),
        ({"order": "lifo"}, "there is no order 'lifo'; there is fcfs"),
        ({"retention": "sometimes"}, "--retention: there is no retention policy 'sometimes'"),
        ({"time_limit_s": -1}, "--time-limit -1: it must be more than 0 s"),
        ({"token_budget": 2.5}, "--token-budget 2.5: it must be a whole number"),
        ({"limits": '{"models": {"default": 3}}'}, "--limits.models.default: there must be a"),
        ({"limits": '{"models": {"defualt": {"max_live": 2}}}'}, "no such model; it uses default"),
        ({"limits": '{"past_future": false}'}, "past_future cannot be changed"),
        ({"limits": "[["}, "--limits: write a mapping"),
        ({"speed": 3}, "there is no setting 'speed'; there is concurrency, order"),
        ({}, "name what is to change"),
    ],
    ids=str,
)
async def test_what_cannot_be_is_refused_by_name_and_changes_nothing(
    job: Job, values: dict[str, Any], said: str
) -> None:
    async with job.live(0.6):
        answer = await job.ask("set", **values)
        assert not answer.ok and said in answer.said
        job.control.abort()
    assert job.host.scheduler.core._max_programs == 10


# ---- budgets ----------------------------------------------------------------------------------------


async def test_a_token_budget_stops_the_run_and_a_resume_goes_on(tmp_path: Path) -> None:
    """A call takes 10 or 12 tokens; no call starts once 200 are spent, so 10 in flight go over."""
    job = Job(tmp_path, settings=Settings(10, token_budget=200))
    await job.run()
    used = job.tally.snapshot().total
    assert (job.status, job.control.reason) == ("paused", "tokens")
    assert 200 <= used.prompt_tokens + used.output_tokens <= 200 + 10 * 12
    assert not job.sink.errors

    second = job.again()
    await second.run(resumed=True)
    assert second.complete and len(job.backend.asked) == 100


async def test_a_larger_budget_lets_a_run_go_on_before_it_stops(tmp_path: Path) -> None:
    job = Job(tmp_path, settings=Settings(10, token_budget=1000))
    async with job.live():
        await job.ask("set", token_budget=1_000_000)
    assert job.complete


async def test_a_time_limit_stops_the_run_and_a_resume_goes_on(tmp_path: Path) -> None:
    job = Job(tmp_path, settings=Settings(10, time_limit_s=3.5))
    await job.run()
    assert (job.status, job.control.reason) == ("paused", "time")
    assert now() < 6 and not job.sink.errors
    second = job.again()
    await second.run(resumed=True)
    assert second.complete and len(job.backend.asked) == 100


async def test_a_run_that_ends_as_its_budget_does_is_done(tmp_path: Path) -> None:
    job = Job(tmp_path, rows=10, settings=Settings(10, token_budget=50))
    await job.run()
    assert job.complete


def test_the_core_dispatches_nothing_once_the_budget_is_spent() -> None:
    core = Core(max_programs=1)
    core.handle(WorkerUp(worker="w", model="m", max_running=1, kv_tokens=10_000), 0.0)
    core.handle(Change(token_budget=100), 0.0)
    for row in range(2):
        core.handle(ProgramArrived(program=f"p{row}", row=row, workflow="w"), 0.0)
    for call in ("a", "b", "c"):
        ready = CallReady(
            call=call, program="p0", step="s", model="m", prompt_tokens=50, max_tokens=9
        )
        core.handle(ready, 0.0)
    about = {"program": "p0", "step": "s", "finish": "stop", "prompt_tokens": 50}
    assert Dispatch in map(type, core.handle(CallEnded(call="a", **about), 1.0))
    assert core.handle(CallEnded(call="b", **about), 2.0) == [] and core.spent
    assert [type(one) for one in core.handle(Change(token_budget=200), 3.0)] == [Dispatch]


# ---- who may ask ------------------------------------------------------------------------------------


async def test_what_was_asked_and_by_whom_is_in_the_trace(job: Job) -> None:
    async with job.live():
        await job.ask("set", concurrency=20)
        await job.ask("set", order="lifo")
    first, second = (record for _, record in job.kept.records if isinstance(record, Asked))
    assert f"(process {os.getpid()})" in first.by
    assert (first.what, first.values, first.ok) == ("set", {"concurrency": 20}, True)
    assert first.said == "concurrency 10 -> 20"
    assert not second.ok


async def test_requests_to_an_attempt_that_has_died_are_not_heeded(job: Job) -> None:
    """They were written while no process ran the run, or for the one before this one."""
    ask(job.folder, Request("1", "another attempt", "me", "cancel"))
    async with job.live():
        ask(job.folder, Request("2", "another attempt", "me", "cancel"))
        attempt = read_live(job.folder).attempt  # type: ignore[union-attr]
    assert job.complete
    second = job.again()
    async with anyio.create_task_group() as tasks:
        ask(job.folder, Request("3", attempt, "me", "cancel"))
        tasks.start_soon(second.run, True)
        await anyio.sleep(0.5)
        ask(job.folder, Request("4", attempt, "me", "cancel"))
    assert second.complete


GARBAGE = [
    b"\x00\xff\xfe not json\n",
    b"{}\n[]\nnull\n\n \n",
    b'{"id":"1","to":"x","by":"me","ask":"explode"}\n',
    b'{"id":"1","to":"x","by":"me","ask":"set","values":{"concurrency":NaN}}\n',
    b'{"id":"1","to":"x","by":"me","ask":"set","more":1}\n',
    b"[" * 100_000 + b"\n",
    b"x" * 600_000,
    b'{"id":"1","to":"x","by":"me","ask":"pau',  # torn
]


async def test_garbage_is_passed_over_and_what_comes_after_it_is_heeded(job: Job) -> None:
    async with job.live():
        for garbage in GARBAGE:
            with (job.folder / door.REQUESTS).open("ab") as file:
                file.write(garbage)
            await anyio.sleep(0.3)
        assert (await job.ask("set", concurrency=50)).ok
    assert job.complete


def put_fifo(path: Path) -> None:
    os.mkfifo(path)


def put_link(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("put", [put_fifo, put_link, Path.mkdir])
async def test_what_is_no_plain_file_stops_nobody(job: Job, put: Callable[[Path], None]) -> None:
    put(job.folder / door.REQUESTS)
    async with job.live(0.6):
        with pytest.raises(TenterError, match="run folder|has not answered"):
            await job.ask("pause")
    assert job.complete


async def test_a_folder_that_is_gone_stops_nobody(tmp_path: Path) -> None:
    job = Job(tmp_path / "gone")
    await job.run()
    assert job.complete


def test_requests_are_read_once_and_from_now_on(tmp_path: Path) -> None:
    one, two, three = (Request(str(n), "a", "me", "pause") for n in range(3))
    ask(tmp_path, one)
    requests = Requests(tmp_path)
    assert requests.new() == []
    ask(tmp_path, two)
    ask(tmp_path, three)
    assert requests.new() == [two, three]
    assert requests.new() == []
    (tmp_path / door.REQUESTS).write_bytes(b"")
    assert requests.new() == []
    ask(tmp_path, one)
    assert requests.new() == [one]


@pytest.mark.parametrize(
    ("status", "failed", "said"),
    [
        ("paused", 0, f"run {RUN} is not running; to go on: tenter resume {RUN}"),
        ("failed", 3, f"run {RUN} is not running; to go on: tenter resume {RUN}"),
        ("done", 0, f"run {RUN} is done already"),
        ("done", 3, f"`tenter retry {RUN}` runs its 3 failed rows again"),
        ("running", 0, "is just starting or ending, or runs on another machine"),
    ],
)
async def test_a_run_that_is_not_live_is_named_with_the_cure(
    tmp_path: Path, status: str, failed: int, said: str
) -> None:
    for _ in range(2):
        with pytest.raises(InvalidInput) as refused:
            await request(Store(tmp_path, status, failed), RUN, "pause", {})  # type: ignore[arg-type]
        assert said in str(refused.value)
        (tmp_path / door.LIVE).write_text('{"run": "damaged')


async def test_a_frozen_run_is_told_as_such(job: Job) -> None:
    async with job.live():
        live = read_live(job.folder)
        job.control.abort()
    assert live is not None
    write_live(job.folder, live)  # its process lives, and looks at nothing
    with pytest.raises(TenterError, match="has not answered for 60 s"):
        await job.ask("pause")


async def test_a_process_that_has_died_is_not_asked(job: Job) -> None:
    async with job.live():
        live = read_live(job.folder)
        job.control.abort()
    assert live is not None
    write_live(job.folder, msgspec.structs.replace(live, owner=replace(live.owner, began=1)))
    with pytest.raises(InvalidInput, match="not running; to go on: tenter resume"):
        await job.ask("pause")


# ---- watch and retry --------------------------------------------------------------------------------


async def test_a_watched_run_tells_its_progress_and_states_until_it_ends(job: Job) -> None:
    states: list[str] = []
    done: list[int] = []
    async with job.live(1.2):
        live = read_live(job.folder)
        assert live is not None
        watched = Watched(live)

        async def look() -> None:
            while True:
                done.append(watched.snapshot().rows_done)
                await anyio.sleep(1)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(look)
            tasks.start_soon(job.ask, "pause")
            tasks.start_soon(later, 5, job.ask, "continue")
            await watched.follow(job.folder, states.append)
            tasks.cancel_scope.cancel()
    assert states == ["paused", "running"]
    assert done == sorted(done) and done[-1] > 50
    json.dumps(done)


async def later(seconds: float, work: Callable[..., Any], *arguments: Any) -> None:
    await anyio.sleep(seconds)
    await work(*arguments)


async def test_retry_runs_failed_rows_alone_and_keeps_their_finished_steps(tmp_path: Path) -> None:
    broken = True

    async def look(x: str) -> str:
        if broken and x.endswith("7"):
            raise ValueError("not today")
        return x

    steps = SAY, ToolCall(id="t", tool="look", args=(("x", Ref("s")),))
    flow = workflow(*steps, result="t", look=Tool("look", "", "{}", look, effect="idempotent"))
    job = Job(tmp_path, rows=30, flow=flow)
    await job.run()
    assert sorted(job.sink.errors) == [7, 17, 27]

    broken = False
    resumed = job.again()
    await resumed.run(resumed=True)
    assert sorted(resumed.sink.errors) == [7, 17, 27], "what failed stays failed"
    retried = job.again()
    await retried.run(resumed=True, retry=True)
    assert retried.complete and not retried.sink.errors
    assert len(job.backend.asked) == 30
    records = await job.journal.rows(0, 29)
    assert records[7] == RowRecord(7, b'"row 7"')


async def test_a_request_costs_the_run_no_more_than_its_own_bytes(job: Job) -> None:
    """A flood is read in pieces, and only the last answers are kept."""
    async with job.live():
        attempt = read_live(job.folder).attempt  # type: ignore[union-attr]
        for number in range(3000):
            ask(job.folder, Request(str(number), attempt, "me", "set", {"concurrency": 10}))
        assert (await job.ask("set", concurrency=50)).ok
        live = read_live(job.folder)
        assert isinstance(live, Live) and len(live.answers) <= 32
    assert job.complete
    assert asyncio.get_running_loop().time() < 60
