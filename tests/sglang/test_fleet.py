"""Two processes on one real server, through a real Redis: shares that add up, equal calls once."""

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("torch")
sys.path.insert(0, str(Path(__file__).parents[1] / "journal"))

import redis_server
from servers import POOL_TOKENS
from test_jobs import EXAMPLES, command, run

if TYPE_CHECKING:
    from servers import Server

pytestmark = [
    pytest.mark.sglang,
    pytest.mark.skipif(redis_server.BINARY is None, reason="there is no redis-server here"),
]

ROWS = 40


@pytest.fixture
def home(tmp_path: Path) -> Iterator[str]:
    pytest.importorskip("redis")
    server = redis_server.RedisServer(tmp_path / "redis")
    server.start()
    yield server.url(folder=tmp_path / "home")
    server.kill()


def job(out: Path, url: str, home: str, *more: str) -> list[str]:
    files = [str(EXAMPLES / "triage.yaml"), str(EXAMPLES / "tickets.csv")]
    model = ("--model", f"default=sglang:url={url}", "--limit", str(ROWS))
    return command("map", *files, "--out", str(out), *model, "--home", home, "--json", *more)


async def both(tmp_path: Path, url: str, home: str, *more: str) -> list[dict[str, Any]]:
    runs = (run(job(tmp_path / f"{name}.csv", url, home, *more)) for name in "ab")
    return list(await asyncio.gather(*runs))


def shares(tmp_path: Path, run: str) -> list[tuple[int, int]]:
    """KV tokens and calls at once, as the process was told."""
    lines = (tmp_path / "home" / "runs" / run / "trace.jsonl").read_text().splitlines()
    told = [event for event in map(json.loads, lines) if event["type"] == "WorkerShare"]
    return [(event["kv_tokens"], event["max_running"]) for event in told]


async def test_both_keep_to_their_shares(sglang_stock: "Server", tmp_path: Path, home: str) -> None:
    done = await both(tmp_path, sglang_stock.url, home)
    for each in done:
        assert (each["rows_done"], each["rows_failed"]) == (ROWS, 0)
        told = shares(tmp_path, each["run"])
        assert min(tokens for tokens, _ in told) <= POOL_TOKENS // 2
        assert max(tokens for tokens, _ in told) <= POOL_TOKENS
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


async def test_equal_calls_are_made_once(sglang_stock: "Server", tmp_path: Path, home: str) -> None:
    done = await both(tmp_path, sglang_stock.url, home, "--cache")
    alone = await run(job(tmp_path / "c.csv", sglang_stock.url, f"{home}&fleet=off", "--cache"))
    made = sum(each["summary"]["calls"]["made"] for each in done)
    answered = sum(each["summary"]["calls"]["saved"] for each in done)
    assert made <= answered
    assert alone["summary"]["calls"]["made"] == 0
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
