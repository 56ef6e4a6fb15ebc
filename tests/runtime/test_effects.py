"""Calls with an effect that were cut off: no model has them repeated, and their author is asked."""

import asyncio
import csv
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import anyio
import pytest

from tenter.runtime import agent, tool, workflow
from tenter.runtime.approvals import answer, questions
from tenter.runtime.backends import registry
from tenter.runtime.backends.fake import FakeBackend
from tenter.runtime.calls import Chunk, Request
from tenter.runtime.cli import main
from tenter.runtime.clock import VirtualLoop
from tenter.runtime.jobs import Control, MapSpec, map_table, resume
from tenter.runtime.journal.base import StepRecord
from tenter.runtime.journal.memory import MemoryJournal
from tenter.runtime.journal.store import Store
from tenter.runtime.report.summary import render, summary
from tenter.runtime.report.tally import Tally
from tenter.runtime.run.codec import encode, identity
from tenter.runtime.run.context import current_program
from tenter.runtime.run.local import open_host
from tenter.runtime.run.program import Programs
from tenter.runtime.run.trust import Trust
from tenter.runtime.workflow import Workflow
from tenter.tools.registry import ToolTimeout

from .lives import Book, live

JOB = Path(__file__).with_name("payer_job.py")
paid: list[str] = []
slow: list[float] = []  # how long payments take, one after the other; then none of them any time;
# an infinite one ends at a time limit of its own


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualLoop}


@pytest.fixture(autouse=True)
def nothing_paid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.BACKENDS, "payer", Payer)
    paid.clear()
    slow.clear()


@tool(effect="once", timeout_s=60)
async def pay(order: str) -> str:
    """Pay an order."""
    paid.append(order)
    takes_s = slow.pop(0) if slow else 0
    if takes_s == inf:
        raise ToolTimeout("pay", "the bank does not answer")
    await anyio.sleep(takes_s)
    return f"receipt of {order}"


def call(order: str) -> str:
    return f"<tool_call>{json.dumps({'name': 'pay', 'arguments': {'order': order}})}</tool_call>"


class Payer(FakeBackend):
    """Pays, as often as it is told to, and then tells what it was told. Called a fake."""

    async def generate(self, request: Request) -> AsyncIterator[Chunk]:
        orders = request.messages[0].content.removeprefix("Pay ").split()
        told = [message.content for message in request.messages if message.role == "tool"]
        text = call(orders[len(told)]) if len(told) < len(orders) else " | ".join(told)
        async for chunk in super().generate(request):
            yield Chunk(text, (*text.encode(), 256), finish=chunk.finish, usage=chunk.usage)


async def work(orders: str) -> Any:
    program: Any = current_program.get()
    chat = program.session(trust=Trust(allow=frozenset({"pay"})))
    return await chat.run(f"Pay {orders}", [pay])


async def agent_says(orders: str, journal: MemoryJournal, tally: Tally) -> list[str]:
    """What the agent was told of each payment, with what an earlier attempt recorded."""
    recorded = {path: record for (_, path), record in (await journal.steps(0, 0)).items()}

    async with open_host({"default": Payer()}, journal=journal, trace=tally) as host:
        ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def over(value: Any, error: Exception | None) -> None:
            assert error is None, error
            ended.set_result(value)

        Programs(host, Workflow("w", (), program=partial(work, orders))).arrive(
            0, {}, over, recorded
        )
        return (await ended).split(" | ")


async def test_a_model_cannot_have_a_call_repeated_that_a_crash_cut_off() -> None:
    journal, tally = MemoryJournal(), Tally()
    intent = encode([identity({"order": "a1"})])
    journal.record(StepRecord(0, "session.pay?", intent), lambda: None)
    first, again, other = await agent_says("a1 a1 b2", journal, tally)
    assert "may have had its effect; it is not repeated" in first
    assert "started with the same arguments before" in again
    assert other == "receipt of b2"
    assert paid == ["b2"]
    assert summary(tally.snapshot())["unknown_effects"] == 1
    assert "see whether they had their effect" in render(tally.snapshot())


@pytest.mark.parametrize("withdrawn", [False, True])
async def test_a_row_whose_chats_an_earlier_version_numbered_otherwise_is_refused(
    withdrawn: bool,
) -> None:
    book = Book()
    for path, value in [
        ("pay?", False if withdrawn else identity({"order": "b2"})),
        ("pay#1?", identity({"order": "a1"})),
        ("pay#1", "receipt of a1"),
    ]:
        book.steps[path] = StepRecord(0, path, encode(value))
    error = await live(lambda: work("a1"), Payer(), book)
    assert "called in this row by an earlier version of Tenter" in str(error)
    assert paid == []


async def test_nor_one_that_did_not_end_in_its_time() -> None:
    slow[:] = [100]
    first, again, other = await agent_says("a1 a1 b2", MemoryJournal(), Tally())
    assert "did not end in its time, and may have had its effect" in first
    assert "started with the same arguments before" in again
    assert other == "receipt of b2"
    assert paid == ["a1", "b2"]


payer = agent("Pay {{ order }}", tools=[pay], allow=["pay"], approve="pause")


@workflow
def settle(order: str) -> str:
    return payer(order=order)


class TestTheAuthorIsAsked:
    """Where an agent pauses for approval: its row stops until somebody knows."""

    @pytest.fixture(name="spec")
    def spec_fixture(self, tmp_path: Path) -> MapSpec:
        """A run whose one row has stopped in a payment."""
        slow[:] = [inf]
        (tmp_path / "in.csv").write_text("order\na1 a1\n")
        places = str(tmp_path / "in.csv"), str(tmp_path / "out.csv")
        home, models = str(tmp_path / "home"), {"default": "payer"}
        spec = MapSpec(f"{__name__}:settle", *places, models=models, home=home)
        outcome = asyncio.run(map_table(spec, Control(), Tally()))
        assert (outcome.status, outcome.reason, paid) == ("paused", "approval", ["a1"])
        return spec

    def ends(self, spec: MapSpec, approve: bool, **given: Any) -> list[str]:
        """What the agent was told of its two payments, after this answer."""
        store = Store(spec.home)
        run = store.find("last")
        asked = questions(store, run)
        assert [(one.tool, one.arguments, one.began) for one in asked] == [
            ("pay", {"order": "a1"}, True)
        ]
        asyncio.run(answer(store, run, asked, approve, **given))
        assert asyncio.run(resume("last", spec.home, Control(), Tally())).status == "done"
        _, row = csv.reader(Path(spec.out).read_text().splitlines())
        return row[1].split(" | ")

    def test_it_had_no_effect_and_is_made(self, spec: MapSpec) -> None:
        assert self.ends(spec, True) == ["receipt of a1"] * 2
        assert paid == ["a1"] * 3, "the model asked twice, and nothing is unknown"

    def test_it_had_and_gave_this(self, spec: MapSpec) -> None:
        assert self.ends(spec, True, result="receipt 7") == ["receipt 7", "receipt of a1"]
        assert paid == ["a1"] * 2

    def test_nobody_knows_and_it_is_not_made(self, spec: MapSpec) -> None:
        first, again = self.ends(spec, False)
        assert "may have had its effect" in first
        assert "started with the same arguments before" in again
        assert paid == ["a1"]

    def test_by_the_command_line(self, spec: MapSpec, capsys: pytest.CaptureFixture[str]) -> None:
        home = ["--home", str(spec.home)]
        assert main(["approve", "last", "--json", *home]) == 0
        (line,) = capsys.readouterr().out.splitlines()
        name = json.loads(line)["id"]
        assert main(["approve", "last", "--all", *home]) == 0
        assert "answer for each by its name" in capsys.readouterr().err
        assert main(["approve", "last", name, "--result", "receipt 7", *home]) == 2
        assert main(["approve", "last", name, "--result", '"receipt 7"', "--deny", *home]) == 2
        assert main(["approve", "last", name, "--result", '"receipt 7"', *home]) == 0
        assert main(["resume", "last", *home]) == 0
        assert "receipt 7 | receipt of a1" in Path(spec.out).read_text()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(JOB), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flow", "status", "payments"), [("go_on", "done", 1), ("ask", "paused", 1)]
)
def test_killed_within_a_payment(tmp_path: Path, flow: str, status: str, payments: int) -> None:
    orders, out, log = tmp_path / "in.csv", tmp_path / "out.csv", tmp_path / "log"
    home = str(tmp_path / "home")
    orders.write_text("order\na1\n")
    assert run("map", flow, str(orders), str(out), home, str(log)).returncode == -9
    resumed = run("resume", home, str(log))
    assert resumed.stdout.strip() == status, resumed.stderr
    assert log.read_text().split() == ["a1"] * payments
    if status == "done":
        assert "same arguments before" in out.read_text()
        return
    store = Store(home)
    name = store.find("last")
    asyncio.run(answer(store, name, questions(store, name), True))
    assert run("resume", home, str(log)).stdout.strip() == "done"
    assert log.read_text().split() == ["a1", "a1"], "its author has said that it did nothing"
    assert "receipt of a1" in out.read_text()
