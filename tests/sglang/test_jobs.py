"""Whole jobs on real servers: the answers of the embedded engine, once each, whatever happens."""

import asyncio
import csv
import json
import os
import signal
import sqlite3
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

pytest.importorskip("torch")

from tenter.runtime import load_workflow, run_workflow
from tenter.runtime.backends.registry import open_replicas
from tenter.runtime.workflow import ModelSpec

if TYPE_CHECKING:
    from servers import Server

pytestmark = pytest.mark.sglang

EXAMPLES = Path(__file__).parents[2] / "examples"
TINY = Path(__file__).parents[2] / "runtime" / "models" / "tiny"
ROWS = 60
PATIENCE_S = 120.0
FLOAT32 = "embedded:dtype=float32"


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "tenter.runtime", *arguments]


def triage(out: Path, model: str, rows: int = ROWS) -> list[str]:
    """`tenter map` of the example over the example's table."""
    files = [str(EXAMPLES / "triage.yaml"), str(EXAMPLES / "tickets.csv")]
    more = ["--limit", str(rows), "--model", f"default={model}", "--home", str(out.parent / "home")]
    return command("map", *files, "--out", str(out), *more, "--json")


async def run(arguments: list[str]) -> dict[str, Any]:
    """What the last line of a command's --json says."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with anyio.fail_after(PATIENCE_S):
        done = await anyio.run_process(arguments, env=environment, check=False)
    assert done.returncode == 0, done.stderr.decode()[-2000:] + done.stdout.decode()[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def answers(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
async def expected(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """What the embedded engine answers in float32, greedily."""
    out = tmp_path_factory.mktemp("embedded") / "answers.csv"
    await run(triage(out, FLOAT32))
    found = answers(out)
    assert len(found) == ROWS and not any(row["error"] for row in found)
    return found


def loads_of(*servers: "Server") -> int:
    """Requests that the servers say they have."""
    total = 0
    for server in servers:
        with urllib.request.urlopen(f"{server.url}/v1/loads", timeout=10) as answer:
            loads = json.load(answer)["loads"]
        total += sum(load["num_running_reqs"] + load["num_waiting_reqs"] for load in loads)
    return total


async def becomes(true: Callable[[], bool]) -> None:
    with anyio.fail_after(PATIENCE_S):
        while not await anyio.to_thread.run_sync(true):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_a_table_has_the_answers_of_the_embedded_engine(
    sglang_stock: "Server",
    sglang_plugin: "Server",
    expected: list[dict[str, str]],
    tmp_path: Path,
) -> None:
    model = f"sglang:url={sglang_stock.url},url={sglang_plugin.url}"
    out = tmp_path / "answers.csv"
    end = await run(triage(out, model))
    assert (end["status"], end["rows_done"], end["rows_failed"]) == ("done", ROWS, 0)
    assert answers(out) == expected
    await becomes(lambda: loads_of(sglang_stock, sglang_plugin) == 0)


async def test_kill_9_and_resume_lose_no_row_and_leave_nothing_running(
    sglang_stock: "Server", expected: list[dict[str, str]], tmp_path: Path
) -> None:
    out, home = tmp_path / "answers.csv", tmp_path / "home"
    arguments = triage(out, f"sglang:url={sglang_stock.url}")
    steps = 0
    for _ in range(3):
        async with await anyio.open_process(arguments, stdout=subprocess.DEVNULL) as process:
            await becomes(lambda goal=steps + 15: recorded(home) >= goal)
            process.kill()
            assert await process.wait() == -signal.SIGKILL
        await becomes(lambda: loads_of(sglang_stock) == 0)
        assert recorded(home) >= steps + 15
        steps = recorded(home)
        arguments = command("resume", "last", "--home", str(home), "--json")
    end = await run(arguments)
    assert (end["status"], end["rows_done"], end["rows_failed"]) == ("done", ROWS, 0)
    assert answers(out) == expected


def recorded(home: Path) -> int:
    """Steps in the journal of the only run."""
    paths = list(home.glob("**/journal.db"))
    if not paths:
        return 0
    try:
        with sqlite3.connect(f"file:{paths[0]}?mode=ro", uri=True) as journal:
            (count,) = journal.execute("select count(*) from steps").fetchone()
        return count
    except sqlite3.OperationalError:  # it is being made
        return 0


async def test_another_dialect_of_the_same_server_answers_the_same_table(
    sglang_stock: "Server", expected: list[dict[str, str]], tmp_path: Path
) -> None:
    out = tmp_path / "answers.csv"
    model = f"openai:url={sglang_stock.url}/v1,tokenizer={TINY},max_running=8"
    end = await run(triage(out, model))
    found = answers(out)
    assert (end["status"], end["rows_done"] + end["rows_failed"]) == ("done", ROWS)
    assert [row["id"] for row in found] == [row["id"] for row in expected]
    # A team is written by the model here, after other words, and chosen by its probability there;
    # where both come to the same, the same reply is asked for.
    same = [
        pair for pair in zip(found, expected, strict=True) if pair[0]["team"] == pair[1]["team"]
    ]
    assert len(same) > ROWS / 5
    assert all(row == other for row, other in same)
    await becomes(lambda: loads_of(sglang_stock) == 0)


async def test_an_agent_with_tools_answers_on_every_kind_of_server(
    sglang_stock: "Server", sglang_plugin: "Server", sglang_sessions: "Server"
) -> None:
    shopping = load_workflow(str(EXAMPLES / "agent.py"))
    question = {"question": "What is the total price of 2 tables and 3 lamps?"}
    for server in (sglang_stock, sglang_plugin, sglang_sessions):
        spec = ModelSpec(backend="sglang", options={"url": server.url})
        async with open_replicas(spec) as backends:
            with anyio.fail_after(PATIENCE_S):
                said = await run_workflow(shopping, question, backends={"default": backends})
        assert said == "The total is 332.", server
