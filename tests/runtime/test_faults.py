"""Bad servers through the whole stack: RELIABILITY's B1 to B5 in the size of a test suite.

A table runs through the row loop, the scheduler and a real client against a fake server that
misbehaves as it is told. What counts is what came of each row and what the server was asked.
"""

import asyncio
import csv
import itertools
import json
import os
import random
import sys
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any
from zlib import crc32

import anyio
import pytest

pytest.importorskip("aiohttp")

from bad_server import (
    GENERATION,
    BadServer,
    Fault,
    answer,
    cut,
    events,
    grammar_error,
    half,
    hang,
    html,
    loris,
    reset,
    stall,
    status,
)

from tenter.planner.graph import LLM, Graph, Ref, Sampling
from tenter.planner.prompt import Prompt
from tenter.runtime.backends import openai_models
from tenter.runtime.backends.base import Backend
from tenter.runtime.backends.openai import OpenAIBackend
from tenter.runtime.backends.sglang import Patience, open_backends
from tenter.runtime.jobs import MapSpec, map_table
from tenter.runtime.journal.memory import NoJournal
from tenter.runtime.models import tiny_path
from tenter.runtime.report.tally import Tally
from tenter.runtime.run.control import Control
from tenter.runtime.run.host import Host
from tenter.runtime.run.local import open_host
from tenter.runtime.run.program import Programs
from tenter.runtime.run.rows import Limits, Row, RowRun
from tenter.runtime.scheduler import retry
from tenter.runtime.scheduler.core import Core
from tenter.runtime.scheduler.events import (
    CallBroke,
    CallReady,
    Command,
    Dispatch,
    DropCall,
    Probe,
    ProgramArrived,
    TimerFired,
    WorkerDown,
    WorkerFine,
    WorkerUp,
)
from tenter.runtime.trace import MemoryTrace
from tenter.runtime.workflow import Input, Workflow

ROWS = 120
CALLS = 2 * ROWS  # each row asks twice
HANG_S = 20.0  # by when a run that goes on counts as hanging
PATIENCE = Patience(
    quiet_s=0.3,
    answer_s=0.3,
    first_retry_s=0.1,
    last_retry_s=0.4,
    abort_s=(0.02, 0.05, 0.1),
    leave_s=0.5,
)
DIALECTS = ("sglang", "openai")

# What RELIABILITY lists: each is tried again.
FAULTS: dict[str, Callable[[], Fault]] = {
    "429": lambda: status(429),
    "500": lambda: status(500),
    "503": lambda: status(503),
    "cut": cut,
    "half": half,
    "reset": reset,
    "garbage": lambda: answer(b"\x00\xff garbage \xfe"),
    "html": html,
    "wrong shape": lambda: events(b'{"text": [1, 2], "choices": 7}', b"[]"),
    "bad utf-8": lambda: events(b'{"text": "\xff\xfe"}'),
    "bad json": lambda: events(b'{"text": "a'),
}


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


class Draws:
    """Misbehaves in a share of the attempts, which the prompt and the attempt's number decide."""

    def __init__(self, share: float, kinds: Sequence[Callable[[], Fault]], seed: int = 0) -> None:
        self._share, self._kinds, self._seed = share, kinds, seed
        self._attempts: Counter[str] = Counter()
        self.faults = 0

    def __call__(self, path: str, body: Any) -> Fault | None:
        if path not in GENERATION:
            return None
        prompt = json.dumps(body.get("input_ids") or body.get("messages"))
        self._attempts[prompt] += 1
        draw = crc32(f"{self._seed} {self._attempts[prompt]} {prompt}".encode())
        if draw / 2**32 >= self._share:
            return None
        self.faults += 1
        return self._kinds[draw % len(self._kinds)]()


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pauses between attempts, a tenth as long."""
    monkeypatch.setattr(retry, "FIRST_S", retry.FIRST_S / 10)


@pytest.fixture
async def server() -> AsyncGenerator[BadServer]:
    async with BadServer(str(tiny_path())) as running:
        settle(running)
        yield running


def settle(server: BadServer) -> None:
    """As the shipped tiny model would be served."""
    server.server_info = {"tokenizer_path": str(tiny_path()), "max_total_num_tokens": 1 << 20}
    server.eos_id = 2


@asynccontextmanager
async def opened(dialect: str, *urls: str) -> AsyncGenerator[Sequence[Backend]]:
    if dialect == "sglang":
        async with open_backends(urls, patience=PATIENCE, random=Random(1)) as backends:
            yield backends
    else:
        jitter = Random(1)
        async with OpenAIBackend(urls[0], tokenizer=tiny_path(), jitter=jitter) as backend:
            yield [backend]


def two_questions() -> Workflow:
    """Asks about its input, and once more about the answer: no two rows ask the same."""

    def llm(name: str, prompt: str, **sources: str) -> LLM:
        args = tuple((field, Ref(source)) for field, source in sources.items())
        return LLM(id=name, prompt=Prompt(prompt), args=args, sampling=Sampling(max_tokens=20))

    first = llm("first", "About {{ x }}", x="x")
    second = llm("second", "More on {{ y }} about {{ x }}", x="x", y="first")
    return Workflow("two", (Input("x"),), Graph("two", ("x",), (first, second), Ref("second")))


def rows(count: int = ROWS) -> Iterator[Row]:
    for number in range(count):
        yield Row(number, {}, {"x": f"topic {number}"})


async def run_rows(
    backends: Sequence[Backend],
    trace: MemoryTrace | None = None,
    during: Callable[[Host], Awaitable[None]] | None = None,
    given: Iterator[Row] | None = None,
    **options: Any,
) -> Ends:
    """Every row ends once, nothing is left of the run; returns how the rows ended."""
    ends, journal = Ends(), NoJournal()
    async with asyncio.timeout(HANG_S):
        async with open_host({"default": backends}, trace=trace, **options) as host:
            run = RowRun(
                Programs(host, two_questions()), journal, ends, Control(), limits=Limits(64)
            )
            async with asyncio.TaskGroup() as tasks:
                if during is not None:
                    tasks.create_task(during(host))  # type: ignore[arg-type]
                assert await run.run(given or rows()) == "done"
            host.scheduler.core.check()
            assert not host.scheduler.core.calls
    return ends


async def clean_answers(dialect: str) -> dict[int, Any]:
    """What a server without faults answers."""
    async with BadServer(str(tiny_path())) as server:
        settle(server)
        async with opened(dialect, server.url) as backends:
            ends = await run_rows(backends)
    assert len(ends.values) == ROWS
    return ends.values


@pytest.fixture(scope="module")
async def clean() -> dict[str, dict[int, Any]]:
    return {dialect: await clean_answers(dialect) for dialect in DIALECTS}


def asked(server: BadServer) -> int:
    return sum(server.requests[path] for path in GENERATION)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(HANG_S):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


# ---- B2: answers that are none ------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("kind", FAULTS)
async def test_a_tenth_of_one_fault_costs_no_row_and_few_requests(
    kind: str, dialect: str, server: BadServer, clean: dict[str, dict[int, Any]]
) -> None:
    server.choose = draws = Draws(0.1, [FAULTS[kind]], seed=4)
    async with opened(dialect, server.url) as backends:
        ends = await run_rows(backends)
    assert ends.errors == {}
    assert ends.values == clean[dialect]
    assert draws.faults > 0.05 * CALLS
    assert asked(server) <= 1.2 * CALLS


@pytest.mark.slow
@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_third_of_all_faults_ends_every_row_with_its_answer_or_its_cause(
    dialect: str, server: BadServer, clean: dict[str, dict[int, Any]]
) -> None:
    server.choose = Draws(0.3, list(FAULTS.values()), seed=5)
    async with opened(dialect, server.url) as backends:
        ends = await run_rows(backends)
    assert len(ends.values) + len(ends.errors) == ROWS
    assert len(ends.values) > 0.9 * ROWS
    assert all(clean[dialect][row] == value for row, value in ends.values.items())
    assert all(server.url in error for error in ends.errors.values())
    assert asked(server) <= 2 * CALLS


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_refusal_is_the_row_s_end_and_is_not_tried_again(
    dialect: str, server: BadServer
) -> None:
    server.choose = draws = Draws(0.1, [grammar_error], seed=6)
    async with opened(dialect, server.url) as backends:
        ends = await run_rows(backends)
    assert len(ends.errors) == draws.faults > 0
    assert len(ends.values) == ROWS - draws.faults
    assert all("400" in error and "Unsupported type" in error for error in ends.errors.values())
    assert all(server.url in error for error in ends.errors.values())
    assert asked(server) <= CALLS


@pytest.mark.slow
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("kind", ["503", "cut", "html"])
async def test_a_full_outage_costs_few_requests_and_no_row(
    kind: str, dialect: str, server: BadServer, clean: dict[str, dict[int, Any]]
) -> None:
    trace = MemoryTrace()
    bad = True
    server.choose = lambda path, body: FAULTS[kind]() if bad and path != "/server_info" else None

    async def mend(host: Host) -> None:
        nonlocal bad
        await until(lambda: any(isinstance(item, Probe) for _, item in trace.records))
        asked_before = asked(server)
        await asyncio.sleep(0.5)  # for as long as the outage goes on
        assert asked(server) - asked_before <= 0.1 * CALLS
        bad = False

    bad = False
    async with opened(dialect, server.url) as backends:
        bad = True
        ends = await run_rows(backends, trace, mend)
    assert ends.errors == {}
    assert ends.values == clean[dialect]
    in_flight = backends[0].capabilities.max_running
    assert asked(server) <= 1.1 * CALLS + in_flight


@pytest.mark.slow
@pytest.mark.parametrize("dialect", DIALECTS)
async def test_retry_after_is_kept_by_all_calls_of_the_server(
    dialect: str, server: BadServer
) -> None:
    trace = MemoryTrace()
    server.next(*[None] * 9, status(429, retry_after="1"))
    async with opened(dialect, server.url) as backends:
        ends = await run_rows(backends, trace)
    (broke_s,) = [at_s for at_s, item in trace.records if isinstance(item, CallBroke)]
    sent_s = [at_s for at_s, item in trace.records if isinstance(item, Dispatch)]
    assert ends.errors == {}
    assert not [at_s for at_s in sent_s if broke_s < at_s < broke_s + 1.0]
    assert asked(server) == len(sent_s) == CALLS + 1


# ---- B1: a server that goes away ----------------------------------------------------------------


@pytest.mark.slow
async def test_a_replica_killed_in_mid_stream_again_and_again_loses_nothing(
    clean: dict[str, dict[int, Any]],
) -> None:
    kills, draw = 8, random.Random(3)
    async with BadServer(str(tiny_path())) as one, BadServer(str(tiny_path())) as other:
        for each in (one, other):
            settle(each)
            each.token_s = 0.005

        async def kill(host: Host) -> None:
            workers = host.scheduler.core.workers
            for _ in range(kills):
                victim = draw.choice([one, other])
                await asyncio.sleep(draw.uniform(0.0, 0.1))
                await victim.stop()
                await asyncio.sleep(0.05)
                await victim.start()
                await until(lambda: len(workers) == 2)

        async with opened("sglang", one.url, other.url) as backends:
            ends = await run_rows(backends, during=kill)
    assert ends.errors == {}
    assert ends.values == clean["sglang"]
    assert one.requests["/generate"] > 0 < other.requests["/generate"]


def core_with_a_call() -> Core:
    """One worker, which runs a call, at 0 s; a call waits for 60 s where no worker is left."""
    core = Core(patience_s=60.0)
    core.handle(WorkerUp(worker="m/0", model="m", max_running=8, kv_tokens=10_000), 0.0)
    core.handle(ProgramArrived(program="p", row=0, workflow="w"), 0.0)
    core.handle(ready("c0"), 0.0)
    return core


def ready(call: str, deadline_s: float | None = None) -> CallReady:
    return CallReady(
        call=call,
        program="p",
        step="s",
        model="m",
        prompt_tokens=9,
        max_tokens=9,
        deadline_s=deadline_s,
    )


def test_each_outage_has_a_patience_of_its_own() -> None:
    core = core_with_a_call()
    core.handle(ready("c1", deadline_s=58.0), 0.0)
    down = WorkerDown(worker="m/0", error="refused", returns=True)
    core.handle(down, 1.0)
    core.handle(WorkerUp(worker="m/0", model="m", max_running=8, kv_tokens=10_000), 10.0)
    core.handle(down, 55.0)
    assert "c0" not in dropped(core.handle(TimerFired(), 61.5))
    assert "c0" in dropped(core.handle(TimerFired(), 115.5))


def dropped(commands: Sequence[Command]) -> list[str]:
    return [command.call for command in commands if isinstance(command, DropCall)]


def test_each_suspicion_has_a_patience_of_its_own() -> None:
    core = core_with_a_call()

    def fails_call_after_call(at_s: float) -> None:
        for number in range(retry.BREAKS):
            core.handle(ready(f"{at_s} {number}"), at_s)
        for number in range(retry.BREAKS):
            core.handle(CallBroke(call=f"{at_s} {number}", worker="m/0", error="503"), at_s)
        assert core.workers["m/0"].suspect

    fails_call_after_call(1.0)
    core.handle(WorkerFine(worker="m/0"), 10.0)
    fails_call_after_call(55.0)
    core.handle(TimerFired(), 61.5)
    assert "m/0" in core.workers


ODDITIES = {
    "sglang": (
        ("/server_info", answer(b"{}")),
        ("/server_info", answer(b"[1]")),
        ("/server_info", answer(b'{"model_path": ')),
        ("/server_info", html()),
        ("/model_info", status(401)),
        ("/model_info", status(404)),
        ("/generate", status(403)),
        ("/generate", status(503)),
    ),
    "openai": (
        ("/v1/models", answer(b'{"data": []}')),
        ("/v1/models", answer(b'{"data": [{"id": 1}, {"id": "a"}]}')),
        ("/v1/models", answer(b'{"data": ')),
        ("/v1/models", html()),
        ("/v1/models", status(401)),
        ("/v1/models", status(404)),
        ("/v1/models", status(503)),
    ),
}


@pytest.mark.parametrize(
    ("dialect", "path", "oddity"),
    [(dialect, *oddity) for dialect in DIALECTS for oddity in ODDITIES[dialect]],
)
async def test_what_a_starting_server_says_is_not_final(
    dialect: str, path: str, oddity: Fault, server: BadServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai_models, "BACKOFF_S", 0.02)
    async with opened(dialect, server.url) as (backend,), asyncio.timeout(HANG_S):
        server.next(oddity, path=path)
        before = server.requests[path]
        await backend.recover()
        assert server.requests[path] == before + 2


async def test_a_server_whose_length_of_context_is_odd_takes_the_default(
    server: BadServer,
) -> None:
    card = {"id": server.model, "max_model_len": "8k"}
    server.next(answer(json.dumps({"data": [card]}).encode()), path="/v1/models")
    async with opened("openai", server.url) as (backend,):
        assert backend.capabilities.context_tokens == 32_768


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_call_that_is_forbidden_is_the_end_of_one_row(
    dialect: str, server: BadServer, clean: dict[str, dict[int, Any]]
) -> None:
    server.choose = draws = Draws(0.05, [lambda: status(403, message="blocked")], seed=7)
    async with opened(dialect, server.url) as backends:
        ends = await run_rows(backends)
    assert len(ends.errors) == draws.faults > 0
    assert all("blocked" in error for error in ends.errors.values())
    assert all(clean[dialect][row] == value for row, value in ends.values.items())


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_key_that_is_refused_for_a_while_costs_no_row(
    dialect: str,
    server: BadServer,
    clean: dict[str, dict[int, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(openai_models, "BACKOFF_S", 0.05)
    trace = MemoryTrace()
    refused = False
    server.choose = lambda path, body: status(401) if refused else None

    async def rotate(host: Host) -> None:
        nonlocal refused
        await until(lambda: asked(server) > 20)
        refused = True
        await until(lambda: any(isinstance(item, WorkerDown) for _, item in trace.records))
        refused = False

    async with opened(dialect, server.url) as backends:
        ends = await run_rows(backends, trace, rotate)
    assert ends.errors == {}
    assert ends.values == clean[dialect]


# ---- B3: servers that take their time -----------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("kind", [hang, stall, loris], ids=["hang", "stall", "slow loris"])
async def test_a_call_that_never_ends_ends_at_its_deadline_and_alone(
    kind: Callable[[], Fault], dialect: str, server: BadServer, clean: dict[str, dict[int, Any]]
) -> None:
    server.choose = draws = Draws(0.03, [kind], seed=8)
    async with opened(dialect, server.url) as backends:
        ends = await run_rows(backends, call_timeout_s=6.0)  # longer than any stall here
        await until(lambda: server.disconnected >= draws.faults)
    assert len(ends.errors) == draws.faults > 0
    assert all(clean[dialect][row] == value for row, value in ends.values.items())
    assert not server.running


async def test_the_error_of_a_late_call_names_its_deadline(server: BadServer) -> None:
    server.choose = Draws(0.03, [hang], seed=8)
    async with opened("sglang", server.url) as backends:
        ends = await run_rows(backends, call_timeout_s=0.5)
    assert ends.errors
    assert all("deadline" in error for error in ends.errors.values())


# ---- B4: cancels ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_thousand_cancels_leave_nothing_running(dialect: str, server: BadServer) -> None:
    count, draw = 1000, random.Random(9)
    server.answer_tokens, server.token_s = 10_000, 0.05
    server.server_info |= {"max_running_requests": 100}
    before = asyncio.all_tasks()
    ended: list[Exception | None] = []
    async with (
        opened(dialect, server.url) as backends,
        asyncio.timeout(HANG_S),
        open_host({"default": backends}) as host,
    ):
        programs = Programs(host, two_questions())
        for number in range(count):
            inputs = {"x": f"topic {number}"}
            programs.arrive(number, inputs, lambda value, error: ended.append(error))
        left = [f"r{number}" for number in range(count)]
        while left:
            for _ in range(draw.randint(1, 60)):
                if left:
                    programs.cancel(left.pop(draw.randrange(min(len(left), 150))))
            await asyncio.sleep(draw.choice([0.0, 0.005, 0.02]))
        await until(lambda: not host.scheduler.core.calls)
        await until(lambda: not server.running)
        assert not programs.live
    assert len(ended) == count and all(error is not None for error in ended)
    assert 0 < asked(server) <= count
    await until(lambda: asyncio.all_tasks() <= before | server_tasks(before))


def server_tasks(before: set[asyncio.Task[Any]]) -> set[asyncio.Task[Any]]:
    """Tasks of the fake server's own connections."""
    own = asyncio.all_tasks() - before
    return {task for task in own if "web_protocol" in str(task.get_coro())}


# ---- B5: the same job twice -------------------------------------------------------------------------

SAME = """\
version: 1
name: same
inputs: { ticket: string, item: string, day: string }
steps:
  kind:
    llm: "{{ item }} on {{ day }}: which team handles this ticket?\\n\\n{{ ticket }}"
    max_tokens: 8
  note:
    system: "You take notes for {{ kind }}."
    llm: "A note about {{ ticket }} ({{ item }})"
    max_tokens: 8
output: { kind: "{{ kind }}", note: "{{ note }}" }
"""


@pytest.mark.slow
async def test_hash_seeds_do_not_change_what_is_asked(tmp_path: Path, server: BadServer) -> None:
    (tmp_path / "same.yaml").write_text(SAME)
    draw = random.Random(2)
    lines = [
        [f"Parcel {n} is late.", draw.choice("abc"), str(draw.randint(1, 5))] for n in range(40)
    ]
    prompts: list[list[Any]] = []
    outputs: list[list[str]] = []
    for seed in range(10):
        draw.shuffle(lines)
        with (tmp_path / "in.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["ticket", "item", "day"], *lines])
        server.bodies.clear()
        out = tmp_path / f"{seed}.csv"
        await tenter_map(tmp_path, out, f"sglang:url={server.url}", hash_seed=seed)
        prompts.append(
            sorted(prompt for body in server.bodies["/generate"] for prompt in ids(body))
        )
        outputs.append(sorted(out.read_text().splitlines()))
    assert len(outputs[0]) == 41
    assert all(found == prompts[0] for found in prompts)
    assert all(found == outputs[0] for found in outputs)


def ids(body: dict[str, Any]) -> list[list[int]]:
    """The prompts of one request."""
    given = body["input_ids"]
    return given if given and isinstance(given[0], list) else [given]


async def tenter_map(folder: Path, out: Path, model: str, hash_seed: int) -> None:
    """`tenter map` in a process of its own."""
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed), "OMP_NUM_THREADS": "1"}
    files = [str(folder / "same.yaml"), str(folder / "in.csv"), "--out", str(out)]
    options = ["--model", f"default={model}", "--home", str(folder / f"home-{hash_seed}")]
    command = [sys.executable, "-m", "tenter.runtime", "map", *files, *options]
    done = await anyio.run_process(command, env=environment, check=False)
    assert done.returncode == 0, done.stderr.decode()[-2000:]


# ---- all of it at once --------------------------------------------------------------------------


async def test_a_whole_job_writes_each_row_once_with_its_error_beside_it(
    tmp_path: Path, server: BadServer
) -> None:
    (tmp_path / "same.yaml").write_text(SAME)
    with (tmp_path / "in.csv").open("w", newline="") as file:
        table = [[f"Parcel {number} is late.", "a", "1"] for number in range(ROWS)]
        csv.writer(file).writerows([["ticket", "item", "day"], *table])
    kinds = itertools.chain(FAULTS.values(), [grammar_error])
    server.choose = Draws(0.2, list(kinds), seed=10)
    model = f"sglang:url={server.url}"
    spec = MapSpec(
        str(tmp_path / "same.yaml"),
        str(tmp_path / "in.csv"),
        str(tmp_path / "out.csv"),
        models={"default": model},
        home=str(tmp_path / "home"),
    )
    async with asyncio.timeout(HANG_S):
        outcome = await map_table(spec, Control(), Tally())
    assert outcome.status == "done"
    assert outcome.rows_done + outcome.rows_failed == ROWS
    with (tmp_path / "out.csv").open() as file:
        found = list(csv.DictReader(file))
    assert [row["ticket"] for row in found] == [line[0] for line in table]
    failed = [row for row in found if row["error"]]
    assert len(failed) == outcome.rows_failed > 0
    assert all(server.url in row["error"] for row in failed)
    assert outcome.dead_letter is not None
    letters = [json.loads(line)["error"] for line in lines_of(outcome.dead_letter)]
    assert letters == [row["error"] for row in failed]


def lines_of(path: str) -> list[str]:
    return Path(path).read_text().splitlines()
