"""Workers and equal work shared through a Redis that is killed, emptied, frozen, failed over."""

import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from redis_server import RedisServer, free_port, until
from test_redis_faults import AOF, sentinel

from tenter.runtime.backends.fake import FakeBackend
from tenter.runtime.fleet import claims, flights, lease, ledger_redis, membership
from tenter.runtime.fleet.ledger import Answer, Ask, MemoryLedger
from tenter.runtime.fleet.ledger_redis import RedisLedger
from tenter.runtime.fleet.link import Link
from tenter.runtime.fleet.membership import Membership
from tenter.runtime.fleet.prefixes import MemoryDirectory
from tenter.runtime.fleet.prefixes_redis import RedisDirectory
from tenter.runtime.fleet.shares import Amount
from tenter.runtime.journal.address import parse_redis
from tenter.runtime.predict import Learned, store
from tenter.runtime.scheduler.core import Core
from tenter.runtime.scheduler.events import (
    CallEnded,
    CallReady,
    ProgramArrived,
    ProgramEnded,
    ToolEnded,
)
from tenter.runtime.scheduler.loop import Scheduler

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

Start = Callable[..., RedisServer]
WHOLE = Amount(1000, 8)
AWAY_S = float(os.environ.get("TENTER_REDIS_AWAY_S", "1.5"))  # RELIABILITY R1: 30
ALL = Ask("", WHOLE, WHOLE, Amount(), WHOLE, Amount())


@asynccontextmanager
async def ledger(url: str) -> Any:
    link = Link(parse_redis(url))
    try:
        yield RedisLedger(link)
    finally:
        await link.close()


@pytest.mark.parametrize("age_s", [0.0, ledger_redis.SETTLE_S + 0.2], ids=["young", "settled"])
async def test_the_script_does_what_the_ledger_in_memory_does(
    redis: RedisServer, age_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same beats of five processes, in an order drawn at random, have the same answers."""
    monkeypatch.setattr(ledger_redis, "LEASE_S", 600.0)
    draw = random.Random(1)
    memory = MemoryLedger(time.monotonic)
    async with ledger(redis.url()) as stored:
        if age_s:
            for one in (memory, stored):
                first = await one.beat("w", ALL)
                await one.leave("w", first.token)
            await asyncio.sleep(age_s)
        tokens: dict[int, tuple[str, str]] = {}
        for _ in range(60):
            who = draw.randrange(5)
            amounts = [Amount(draw.randint(0, 1500), draw.randint(0, 10)) for _ in range(4)]
            whole = Amount(draw.choice([1000, 1000, 600]), draw.choice([8, 3]))
            asks = [Ask(token, whole, *amounts) for token in tokens.get(who, ("", ""))]
            answers = await memory.beat("w", asks[0]), await stored.beat("w", asks[1])
            assert _plain(answers[0]) == _plain(answers[1])
            tokens[who] = answers[0].token, answers[1].token
        assert await stored.beat("w", replace(ALL, token="no such")) is None
        assert await memory.beat("w", replace(ALL, token="no such")) is None


def _plain(answer: Answer | None) -> Any:
    return None if answer is None else (answer.granted, answer.whole, sorted(answer.others))


async def test_the_directory_in_redis_is_that_in_memory(redis: RedisServer) -> None:
    draw = random.Random(2)
    link = Link(parse_redis(redis.url()))
    memory, stored = MemoryDirectory(time.monotonic), RedisDirectory(link)
    since = [[0, 0] for _ in range(3)]
    known: list[list[set[Any]]] = [[set(), set()] for _ in range(3)]
    for _ in range(40):
        who = draw.randrange(3)
        blocks = [(draw.randrange(300), 64) for _ in range(draw.randrange(20))]
        for place, one in enumerate((memory, stored)):
            since[who][place], news = await one.exchange("w", since[who][place], 100, blocks)
            known[who][place].update(news)
        await asyncio.sleep(0.002)  # or two would be of one millisecond
    for who in range(3):
        for place, one in enumerate((memory, stored)):
            _, news = await one.exchange("w", since[who][place], 100, [])
            known[who][place].update(news)
        assert known[who][0] == known[who][1]
    await link.close()


# ---- members -------------------------------------------------------------------------------------


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short time limits."""
    monkeypatch.setattr(ledger_redis, "LEASE_S", 0.6)
    monkeypatch.setattr(ledger_redis, "SETTLE_S", 0.3)
    monkeypatch.setattr(membership, "BEAT_S", 0.05)


@asynccontextmanager
async def member(url: str, name: str = "m/0") -> Any:
    """A scheduler that has leased its share of the worker "w"; yields what it may use now."""
    backend = FakeBackend(lambda prompt: prompt, 0.0, max_running=WHOLE.slots)
    backend.capabilities = replace(backend.capabilities, kv_tokens=WHOLE.tokens, place="w")
    link = Link(parse_redis(url))
    async with Scheduler(Core(), {name: backend}, {name: "m"}) as scheduler:
        part = Membership(scheduler, {name: "w"}, RedisLedger(link), "the Redis")
        await part.begin()
        keeping = asyncio.create_task(part.keep())
        try:
            yield lambda: scheduler.core.workers[name].share_tokens
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
            await part.close()
            await link.close()


async def becomes(ready: Callable[[], bool]) -> None:
    for _ in range(2000):
        if ready():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it does not become so")


@pytest.mark.usefixtures("short")
async def test_shares_come_back_from_those_who_leave_and_those_who_die(redis: RedisServer) -> None:
    async with member(redis.url()) as mine, ledger(redis.url()) as book:
        await becomes(lambda: mine() == 1000)
        async with member(redis.url()) as other:
            await becomes(lambda: mine() == other() == 500)
        await becomes(lambda: mine() == 1000)
        dead = await book.beat("w", ALL)
        await becomes(lambda: mine() < 1000)
        await becomes(lambda: mine() == 1000)
        assert await book.beat("w", replace(ALL, token=dead.token)) is None


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("fault", ["gone", "emptied", "frozen"])
async def test_shares_while_redis_is_away_and_after(
    start_redis: Start, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = start_redis(*(() if fault == "emptied" else AOF))
    url = server.url(timeout_s=0.2)
    async with member(url) as one, member(url) as two:
        await becomes(lambda: one() == two() == 500)
        await asyncio.to_thread(server.freeze if fault == "frozen" else server.kill)
        for _ in range(round(AWAY_S / 0.05)):
            await asyncio.sleep(0.05)
            assert one() == two() == 500
        await asyncio.to_thread(server.thaw if fault == "frozen" else server.start)
        await becomes(lambda: caplog.text.count("answers again") == 2)
        for _ in range(40):
            await asyncio.sleep(0.02)
            assert one() + two() <= 1000
        await becomes(lambda: one() == two() == 500)
        async with member(url) as three:
            await becomes(lambda: one() == two() == three() == 333)


@pytest.mark.usefixtures("short")
async def test_after_a_while_without_redis_shares_are_split_evenly(
    start_redis: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "KEEP_S", 0.3)
    server = start_redis()
    url = server.url(timeout_s=0.2)
    async with member(url) as one, ledger(url) as book:
        other = await book.beat("w", ALL)
        for _ in range(20):
            await asyncio.sleep(0.05)
            assert await book.beat("w", replace(ALL, token=other.token)) is not None
        assert one() < 200, "the other one needs all there is"
        await asyncio.to_thread(server.kill)
        await becomes(lambda: one() == 500)
        async with member(url) as late:
            assert late() == 1000, "it knows of nobody"


@pytest.mark.usefixtures("short")
async def test_shares_over_a_failover(start_redis: Start, tmp_path: Path) -> None:
    primary = start_redis(*AOF)
    replica = start_redis(*AOF, "--replicaof", f"127.0.0.1 {primary.port}")
    watcher = sentinel(tmp_path / "sentinel", primary.port)
    try:
        until(lambda: replica.ask("INFO", "replication")["master_link_status"] == "up")
        url = f"redis+sentinel://127.0.0.1:{watcher.port}/main/0?timeout_s=0.5"
        async with member(url) as one, member(url) as two:
            await becomes(lambda: one() == two() == 500)
            await asyncio.to_thread(primary.kill)
            async with member(url) as three:
                await becomes(lambda: one() == two() == three() == 333)
        assert replica.ask("ROLE")[0] == b"master"
    finally:
        watcher.kill()


@pytest.mark.usefixtures("short")
# redis-py forgets to close the connections of a node that has died.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_shares_in_a_cluster(start_redis: Start) -> None:
    server = start_redis("--cluster-enabled", "yes", "--cluster-port", str(free_port()))
    server.ask("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
    until(lambda: b"cluster_state:ok" in server.ask("CLUSTER", "INFO"))
    url = f"redis+cluster://127.0.0.1:{server.port}?timeout_s=2"
    async with member(url) as one, member(url) as two:
        await becomes(lambda: one() == two() == 500)


# ---- equal work ----------------------------------------------------------------------------------

FLOW = """
version: 1
name: slow
inputs: { text: string }
cache: true
steps:
  said: { llm: "Say {{ text }}", max_tokens: 8 }
output: "{{ said }}"
"""


@pytest.fixture
def start(redis: RedisServer, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """`start(out, rows, latency_s)`: a run in a process of its own."""
    found: list[subprocess.Popen[bytes]] = []
    home = redis.url(folder=tmp_path / "home")

    def start(out: str, rows: int, latency_s: float) -> subprocess.Popen[bytes]:
        (tmp_path / "flow.yaml").write_text(FLOW)
        (tmp_path / "table.csv").write_text("text\n" + "".join(f"t{n}\n" for n in range(rows)))
        given = ["map", "flow.yaml", "table.csv", "--out", out, "--json", "--home", home]
        model = ("--model", f"default=fake:latency_s={latency_s}")
        command = [sys.executable, "-m", "tenter.runtime", *given, *model]
        pipe = subprocess.PIPE
        found.append(subprocess.Popen(command, cwd=tmp_path, stdout=pipe, stderr=pipe))
        return found[-1]

    yield start
    for process in found:
        process.kill()
        process.communicate()


def calls_of(process: Any) -> Any:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err.decode()
    return json.loads(out.splitlines()[-1])["summary"]["calls"]


async def test_two_processes_do_equal_calls_once(start: Any, tmp_path: Path) -> None:
    both = [start(f"{name}.csv", 30, 0.3) for name in "ab"]
    found = [await asyncio.to_thread(calls_of, process) for process in both]
    assert sum(each["made"] for each in found) == 30
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


async def test_the_work_of_one_that_was_killed_is_taken_over(
    start: Any, redis: RedisServer
) -> None:
    first = start("a.csv", 5, 120)
    await asyncio.to_thread(until, lambda: len(redis.ask("KEYS", "tenter:claim:*")) == 5)
    second = start("b.csv", 5, 0.1)
    await asyncio.sleep(1)
    first.kill()
    assert (await asyncio.to_thread(calls_of, second))["made"] == 5


async def test_claims_in_redis(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "LEASE_S", 0.4)
    monkeypatch.setattr(claims, "STORE_S", 0.2)
    links = [Link(parse_redis(redis.url())) for _ in range(2)]
    one, two = (claims.RedisClaims(link) for link in links)
    await one.beat()
    await two.beat()
    assert await one.claim(b"x") and await one.claim(b"x") and not await two.claim(b"x")
    await two.end(b"x", kept=False)
    assert not await two.claim(b"x"), "it is not its own"
    await one.end(b"x", kept=False)
    assert await two.claim(b"x")
    await two.end(b"x", kept=True)
    assert not await one.claim(b"x"), "the result is on its way"
    await asyncio.sleep(0.3)
    assert await one.claim(b"x")
    await two.beat()
    await asyncio.sleep(0.5)
    assert await two.claim(b"x"), "the owner has given no sign of life"
    await two.beat()
    assert not await one.claim(b"x")
    await two.rest()
    assert await one.claim(b"x")
    for link in links:
        await link.close()


async def test_without_redis_nobody_waits_for_equal_work(start_redis: Start) -> None:
    server = start_redis()
    link = Link(parse_redis(server.url(timeout_s=0.2)))
    alone = flights.Flights(claims.RedisClaims(link), Nothing())
    await alone.begin()
    server.kill()
    assert await alone.enter(b"x", lambda: False) is None
    alone.leave(b"x", kept=True)
    await alone.close()
    await link.close()


class Nothing:
    """A result cache that works, and has nothing."""

    works = True

    async def find(self, key: bytes) -> None:
        return None


# ---- what was learned ----------------------------------------------------------------------------


def learned_of(home: str, lengths: list[int]) -> Learned:
    """A run whose calls had answers of these lengths, not saved yet."""
    learned = Learned.load(home, "flow", "f")
    for at, length in enumerate(lengths):
        name = f"p{at}"
        about = {"call": name, "program": name, "step": "turn", "prompt_tokens": 10}
        learned.observe(ProgramArrived(program=name, row=0, workflow="flow"))
        learned.observe(CallReady(model="m", max_tokens=1000, **about))
        learned.observe(CallEnded(finish="stop", output_tokens=length, **about))
        ended = ToolEnded(program=name, step="t", tool="sh", seconds=2.0, ok=True)
        learned.observe(ended)
        learned.observe(ProgramEnded(program=name, row=0, ok=True))
    return learned


def test_runs_on_two_machines_teach_the_next_one_together(redis: RedisServer) -> None:
    one, other = learned_of(redis.url(), [10] * 50), learned_of(redis.url(), [30] * 50)
    assert one.save() and other.save()
    again = Learned.load(redis.url(), "flow", "f")
    assert again.mean_output_tokens("flow", "turn") == pytest.approx(20.0)
    assert again.known.predictors["tool_s"].count() == 100
    edited = Learned.load(redis.url(), "flow", "edited")
    assert edited.known.predictors["output_tokens"].count() == store.EDITED


def test_many_that_save_at_once_lose_nothing(redis: RedisServer) -> None:
    runs = [learned_of(redis.url(), [number] * 10) for number in range(8)]
    with ThreadPoolExecutor(len(runs)) as pool:
        assert all(pool.map(Learned.save, runs))
    again = Learned.load(redis.url(), "flow", "f")
    assert again.known.predictors["output_tokens"].count() == 80


def test_without_redis_nothing_is_known_and_nothing_kept(
    start_redis: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(store, "FILES", 2)
    server = start_redis()
    for name in ("f", "g", "h"):
        learned = learned_of(server.url(), [10])
        learned._shelf.name = f"{name}.json"  # pyright: ignore
        assert learned.save()
    assert len(server.ask("ZRANGE", "tenter:{learned}:saved", 0, -1)) <= 3
    server.kill()
    learned = learned_of(server.url(), [10])
    assert not learned.save()
    assert "going on without what earlier runs have learned" in caplog.text
    assert "what this run has learned is not kept" in caplog.text


async def test_who_listens_is_told_of_ends(redis: RedisServer) -> None:
    mine, other = Link(parse_redis(redis.url())), Link(parse_redis(redis.url()))
    begun, heard = asyncio.Event(), asyncio.Queue[bytes]()
    listening = asyncio.ensure_future(claims.RedisClaims(other).hear(begun.set, heard.put_nowait))
    await begun.wait()
    worker = claims.RedisClaims(mine)
    await worker.beat()
    for key, kept in ((b"x", True), (b"y", False)):
        assert await worker.claim(key)
        await worker.end(key, kept)
        assert await heard.get() == key
    assert not await claims.RedisClaims(other).claim(b"x")
    assert await claims.RedisClaims(other).claim(b"y")
    redis.kill()
    with pytest.raises(claims.ClaimsAway):
        await listening
    await mine.close()
    await other.close()
