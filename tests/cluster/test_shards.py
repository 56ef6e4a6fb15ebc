"""Runs in shards, all in this process: the same answers, whatever dies, and nothing done twice."""

import asyncio
import csv
import json
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for the module beside this file

from inside import InsideCluster, LocalProcess, running

from tenter.runtime.backends import registry
from tenter.runtime.backends.fake import FakeBackend
from tenter.runtime.calls import Chunk, Request
from tenter.runtime.errors import BackendUnavailable, InvalidInput
from tenter.runtime.jobs import Control, MapSpec, Outcome, map_table, resume
from tenter.runtime.journal.store import Store
from tenter.runtime.load import load_workflow
from tenter.runtime.operate.asking import request
from tenter.runtime.ray import driver, messages, work
from tenter.runtime.ray.sharding import Sharding
from tenter.runtime.ray.shares import split_limits
from tenter.runtime.report.tally import Tally
from tenter.runtime.scheduler.limits import Limits

ROWS = 60
FLOW = """\
version: 1
name: judge
inputs: {shop: string, text: string}
models:
  default: {backend: counted}
steps:
  kind: {llm: "Kind of shop {{ shop }}, about which much more can be said: {{ text }}"}
  note: {llm: "Note on {{ kind }}"}
output: {kind: "{{ kind }}", note: "{{ note }}"}
"""


def answer(prompt: str) -> str:
    if "poison" in prompt:
        raise ValueError("poisoned")
    if "deadly" in prompt:
        running.get().kill()
    return f"<{prompt[-40:]}>"


class Slowed(FakeBackend):
    """Takes its time for some prompts."""

    async def generate(self, request: Request) -> AsyncIterator[Chunk]:
        if "slow" in self.tokenizer.decode(list(request.token_ids)):
            await asyncio.sleep(0.02)
        async for chunk in super().generate(request):
            yield chunk


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each prompt was asked, by any process."""
    asked: Counter[str] = Counter()

    def counted(prompt: str) -> str:
        asked[prompt] += 1
        return answer(prompt)

    def made(latency_s: float = 0.001) -> FakeBackend:
        return Slowed(counted, latency_s=latency_s, max_running=4)

    monkeypatch.setitem(registry.BACKENDS, "counted", made)
    return asked


def table(path: Path, texts: Mapping[int, str]) -> str:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["shop", "text"])
        for row in range(ROWS):
            writer.writerow([f"number {row % 7}", f"{texts.get(row, 'review')} {row}"])
    return str(path)


def spec_of(
    folder: Path, name: str, texts: Mapping[int, str] | None = None, **more: Any
) -> MapSpec:
    """`texts` are words of rows that are to differ."""
    (folder / "flow.yaml").write_text(FLOW)
    options = {"home": str(folder / "home"), "concurrency": 8} | more
    source = table(folder / "in.csv", texts or {})
    return MapSpec(str(folder / "flow.yaml"), source, str(folder / name), **options)


def on_ray(folder: Path, name: str = "out.csv", **more: Any) -> MapSpec:
    return spec_of(folder, name, engine="ray", **({"shards": 3} | more))


@pytest.fixture
async def cluster(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[InsideCluster]:
    found = InsideCluster()

    @asynccontextmanager
    async def connected(address: str | None, cpus: int | None) -> AsyncIterator[InsideCluster]:
        yield found

    monkeypatch.setattr(driver, "connected", connected)
    yield found
    for process in found.placed:
        if process.buried is not None:
            await process.buried


async def run(spec: MapSpec, tally: Tally | None = None, control: Control | None = None) -> Outcome:
    return await map_table(spec, control or Control(), tally or Tally())


def cells(path: str) -> list[dict[str, str]]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


async def test_shards_give_the_bytes_of_a_local_run(
    tmp_path: Path, cluster: InsideCluster, prompts: Counter[str]
) -> None:
    here = await run(spec_of(tmp_path, "here.csv"))
    local = Counter(prompts)
    prompts.clear()
    tally = Tally()
    there = await run(on_ray(tmp_path), tally)

    assert (there.status, there.rows_done, there.rows_failed) == ("done", ROWS, 0)
    assert cells(there.out) == cells(here.out)
    assert prompts == local, "each call was made once"
    assert len(cluster.placed) == 3
    snapshot = tally.snapshot()
    assert (snapshot.rows_done, snapshot.programs_live) == (ROWS, 0)
    assert snapshot.total.calls == sum(local.values())
    assert snapshot.total.output_tokens == here.snapshot.total.output_tokens
    info = Store(tmp_path / "home").info(there.run)
    assert (info.status, info.rows_done) == ("done", ROWS)


async def test_rows_that_share_a_prefix_go_to_one_shard(
    tmp_path: Path,
    cluster: InsideCluster,
    prompts: Counter[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(work, "WORTH_ROWS", ROWS)  # each shard keeps what it was given
    tally = Tally()
    there = await run(on_ray(tmp_path), tally)
    trace = Store(tmp_path / "home").trace_path(there.run).read_text().splitlines()
    shops: dict[str, set[int]] = {}
    for line in map(json.loads, trace):
        if line["type"] == "Dispatch" and line["call"].endswith("kind"):
            shard = line["worker"].partition(":")[0]
            shops.setdefault(shard, set()).add(int(line["call"][1:].partition("/")[0]) % 7)

    assert len(shops) == 3
    assert sum(map(len, shops.values())) <= 7 + 2, "at most a shop for each cut is on both sides"


@pytest.mark.parametrize("moment", range(2, 26, 4))
async def test_a_shard_that_dies_is_taken_over_and_nothing_recorded_is_asked_again(
    moment: int,
    tmp_path: Path,
    cluster: InsideCluster,
    prompts: Counter[str],
) -> None:
    heard = 0

    def kill(process: LocalProcess, method: str) -> None:
        nonlocal heard
        heard += method in ("hear", "tell")
        if heard == moment and method in ("hear", "tell"):
            process.kill()

    cluster._watch = kill
    out = await run(on_ray(tmp_path))

    assert (out.status, out.rows_done) == ("done", ROWS)
    assert len(cluster.placed) == 4
    assert [row["text"] for row in cells(out.out)] == [f"review {row}" for row in range(ROWS)]
    assert all(row["note"] for row in cells(out.out))
    again = sum(prompts.values()) - len(prompts)
    assert again <= 3, "at most the calls in flight of one shard (8 rows over 3 shards)"


@pytest.mark.parametrize("deadly", [(0,), (17,), (30, 31, 59)])
async def test_rows_that_kill_their_process_are_failed_and_the_others_done(
    deadly: tuple[int, ...], tmp_path: Path, cluster: InsideCluster, prompts: Counter[str]
) -> None:
    tally = Tally()
    out = await run(on_ray(tmp_path, texts=dict.fromkeys(deadly, "deadly")), tally)

    assert (out.status, out.rows_done, out.rows_failed) == ("done", ROWS - len(deadly), len(deadly))
    failed = {number for number, row in enumerate(cells(out.out)) if row["error"]}
    assert failed == set(deadly)
    assert "died" in cells(out.out)[deadly[0]]["error"], "and says what happened"
    assert out.dead_letter is not None
    assert tally.snapshot().rows_failed == len(deadly)
    assert len(cluster.placed) <= 3 + 5 * len(deadly)


@pytest.mark.parametrize("deadly", [{0}, {0, 1}, {1, 2, 3}, {0, 2}, {0, 1, 2, 3}])
@pytest.mark.parametrize("rows", [1, 2, 4])
@pytest.mark.parametrize("concurrency", [1, 4])
async def test_the_last_rows_of_a_shard_that_kill_are_failed_though_no_other_ends(
    deadly: set[int],
    rows: int,
    concurrency: int,
    tmp_path: Path,
    cluster: InsideCluster,
    prompts: Counter[str],
) -> None:
    """Nothing shows that it is not the machine, but so few rows are better failed than not run."""
    texts = dict.fromkeys(deadly, "deadly")
    out = await run(on_ray(tmp_path, texts=texts, limit=rows, shards=1, concurrency=concurrency))

    failed = {number for number, row in enumerate(cells(out.out)) if row["error"]}
    assert failed == {row for row in deadly if row < rows}
    assert out.rows_done + out.rows_failed == rows


@pytest.mark.parametrize("concurrency", [1, 8])
async def test_a_shard_is_given_up_where_whatever_row_its_processes_run_they_die(
    concurrency: int, tmp_path: Path, cluster: InsideCluster, prompts: Counter[str]
) -> None:
    texts = dict.fromkeys(range(ROWS), "deadly")
    with pytest.raises(BackendUnavailable, match="6 processes in a row were lost"):
        await run(on_ray(tmp_path, texts=texts, shards=1, concurrency=concurrency))

    assert len(cluster.placed) == 6


async def test_a_shard_is_given_up_where_its_processes_die_before_they_run_a_row(
    tmp_path: Path, cluster: InsideCluster, prompts: Counter[str]
) -> None:
    def kill(process: LocalProcess, method: str) -> None:
        if method == "tell":
            process.kill()

    cluster._watch = kill
    with pytest.raises(BackendUnavailable, match="6 processes in a row were lost"):
        await run(on_ray(tmp_path, limit=2, shards=1))


@pytest.mark.slow
async def test_a_shard_that_is_done_takes_rows_of_one_that_is_not(
    tmp_path: Path, cluster: InsideCluster, prompts: Counter[str]
) -> None:
    """All slow rows are planned for one shard."""
    slow = {row: "slow" for row in range(ROWS) if row % 7 < 3}
    here = await run(spec_of(tmp_path, "here.csv", texts=slow))
    local = Counter(prompts)
    prompts.clear()
    out = await run(on_ray(tmp_path, texts=slow, shards=2, concurrency=2))

    assert cells(out.out) == cells(here.out)
    assert prompts == local, "each call was made once"
    asked = [row for process in cluster.placed for tell in process.told for row in tell.back]
    assert asked and set(asked) <= set(slow)
    ran = [Counter(row.row for tell in p.told for row in tell.rows) for p in cluster.placed]
    assert (ran[0] | ran[1]).total() == ROWS
    assert ran[0] & ran[1], "rows that were planned for one and run by the other"


async def test_a_shard_that_always_dies_is_named_with_the_cure(
    tmp_path: Path, cluster: InsideCluster, prompts: Counter[str]
) -> None:
    def kill(process: LocalProcess, method: str) -> None:
        if method == "hear" and process.number != 0 and process.asked.count("hear") == 1:
            process.kill()

    cluster._watch = kill
    with pytest.raises(
        BackendUnavailable, match=r"shard \d, with \d+ rows left.*it was killed.*resume the run"
    ):
        await run(on_ray(tmp_path, shards=2))
    cluster._watch = lambda process, method: None
    out = await resume("last", str(tmp_path / "home"), Control(), Tally())

    assert (out.status, out.rows_done) == ("done", ROWS)
    assert max(prompts.values()) <= 2


async def test_a_run_of_shards_goes_on_without_them(
    tmp_path: Path, cluster: InsideCluster, prompts: Counter[str]
) -> None:
    def stop(process: LocalProcess, method: str) -> None:
        if process.asked.count("hear") == 8:
            control.drain("asked")

    control = Control()
    cluster._watch = stop
    first = await run(on_ray(tmp_path), control=control)
    assert first.status == "paused" and first.reason == "asked"
    assert 0 < first.snapshot.rows_done < ROWS
    home = str(tmp_path / "home")
    out = await resume("last", home, Control(), Tally(), {"engine": "local"})

    assert (out.status, out.rows_done) == ("done", ROWS)
    assert set(prompts.values()) == {1}, "what ran was finished, and nothing was repeated"


async def test_failed_rows_are_retried_and_bound_a_run(
    tmp_path: Path, cluster: InsideCluster, prompts: Counter[str]
) -> None:
    spec = on_ray(tmp_path, texts={3: "poison", 40: "poison"})
    out = await run(spec)
    assert (out.status, out.rows_done, out.rows_failed) == ("done", ROWS - 2, 2)
    assert "poisoned" in cells(out.out)[3]["error"]
    assert out.dead_letter is not None

    before = sum(prompts.values())
    again = await resume(out.run, spec.home, Control(), Tally(), None, retry=True)
    assert again.rows_failed == 2 and sum(prompts.values()) == before + 2
    given_up = await run(replace(spec, max_errors=1, out=str(tmp_path / "other.csv")))
    assert given_up.status == "failed"


async def test_a_token_budget_holds_over_all_shards(
    tmp_path: Path, cluster: InsideCluster, prompts: Counter[str]
) -> None:
    whole = await run(spec_of(tmp_path, "here.csv"))
    total = whole.snapshot.total
    half = (total.prompt_tokens + total.output_tokens) // 2
    slow = {"default": "counted:latency_s=0.02"}
    out = await run(on_ray(tmp_path, token_budget=half, concurrency=3, models=slow))

    assert (out.status, out.reason) == ("paused", "tokens")
    spent = out.snapshot.total.prompt_tokens + out.snapshot.total.output_tokens
    assert half <= spent < 2 * half


async def test_what_cannot_be_is_told_before_anything_runs(
    tmp_path: Path, cluster: InsideCluster, prompts: Counter[str]
) -> None:
    with pytest.raises(InvalidInput, match="room for 8 processes with CPU=1 each"):
        await run(on_ray(tmp_path, shards=9))
    with pytest.raises(InvalidInput, match="--shards is for --engine ray"):
        await run(spec_of(tmp_path, "here.csv", shards=2))
    with pytest.raises(InvalidInput, match="--engine dask: it is one of local, ray"):
        await run(spec_of(tmp_path, "here.csv", engine="dask"))
    assert not prompts


async def test_a_workflow_that_differs_on_another_machine_is_refused(
    tmp_path: Path, cluster: InsideCluster, prompts: Counter[str]
) -> None:
    spec = on_ray(tmp_path)

    def change(process: LocalProcess, method: str) -> None:
        Path(spec.workflow).write_text(FLOW.replace("Note on", "A note on"))

    cluster._watch = change
    with pytest.raises(Exception, match="another one there than where the run was started"):
        await run(spec)


@pytest.mark.slow
async def test_a_live_run_is_paused_and_its_concurrency_changed_in_all_shards(
    tmp_path: Path, cluster: InsideCluster, prompts: Counter[str]
) -> None:
    spec = on_ray(tmp_path, concurrency=3, models={"default": "counted:latency_s=0.05"})
    begun = asyncio.Event()

    def begin(process: LocalProcess, method: str) -> None:
        if process.asked.count("hear") == 3:
            begun.set()

    cluster._watch = begin
    task = asyncio.create_task(run(spec))
    await begun.wait()
    store = Store(tmp_path / "home")
    name = store.find("last")
    said = [
        await request(store, name, "set", {"concurrency": 12}),
        await request(store, name, "pause", {}),
    ]
    at_rest = sum(prompts.values())
    said.append(await request(store, name, "continue", {}))
    out = await task

    assert [answer.ok for answer in said] == [True, True, True], said
    assert "concurrency 3 -> 12" in said[0].said
    assert at_rest < 2 * ROWS
    assert (out.status, out.rows_done) == ("done", ROWS)
    assert set(prompts.values()) == {1}
    bounds = [tell.concurrency for p in cluster.placed for tell in p.told if tell.concurrency]
    assert set(bounds) == {4}, "a third each"


async def test_without_ray_the_cure_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InvalidInput, match=r"needs Ray: pip install 'tenter\[ray\]'"):
        await run(on_ray(tmp_path, models={"default": "fake"}))
    with pytest.raises(InvalidInput, match=r"Ray Client cannot run this"):
        await run(on_ray(tmp_path, models={"default": "fake"}, ray_address="ray://head:10001"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens there
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False))
        with pytest.raises(BackendUnavailable, match=f"no Ray cluster answers at {address}.*head"):
            await run(on_ray(tmp_path, models={"default": "fake"}, ray_address=address))


def test_rows_are_given_away_between_two_groups_that_share_a_prefix(tmp_path: Path) -> None:
    (tmp_path / "flow.yaml").write_text(FLOW)
    shops = ["ten of them" for _ in range(10)] + ["six of them" for _ in range(6)]
    inputs = [{"shop": shop, "text": f"review {row}"} for row, shop in enumerate(shops)]
    graph = load_workflow(str(tmp_path / "flow.yaml")).graph
    sharding = Sharding(graph, (), 1)
    order = sharding.window(range(16), inputs)
    given = sharding.second_half(order)

    assert len({shops[row] for row in given}) == 1
    assert len(given) == shops.count(shops[given[0]])
    assert sharding.second_half([3]) == [3]


def test_limits_are_split_among_shards() -> None:
    limits = {"models": {"default": {"tokens_per_minute": 1000}}, "tenants": {"*": {"max_live": 2}}}
    split = split_limits(limits, 4)

    assert split["models"]["default"]["tokens_per_minute"] == 250
    assert split["tenants"]["*"] == {"max_running": None, "max_live": 1, "tokens_per_minute": None}
    assert Limits.read(split).of_model("default").tokens_per_minute == 250


def test_inputs_come_through_as_they_are() -> None:
    inputs = {"big": 2**80, "nan": 1.5, "text": "ü", "list": [None, True, {"a": -1}]}

    assert messages.unpack_inputs(messages.pack_inputs(inputs)) == inputs
    assert messages.unpack_inputs(messages.pack_inputs({"n": float("inf")})) == {"n": float("inf")}
