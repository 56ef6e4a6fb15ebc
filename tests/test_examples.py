"""The examples do what they say, on the embedded engine with the tiny model: no GPU, no server."""

import csv
import json
from collections.abc import AsyncIterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tenter.runtime import load_workflow, run_workflow
from tenter.runtime.backends.base import Backend
from tenter.runtime.backends.fake import FakeBackend
from tenter.runtime.backends.registry import open_replicas
from tenter.runtime.calls import Chunk, Request
from tenter.runtime.scheduler.events import ToolRefused
from tenter.runtime.trace import MemoryTrace
from tenter.runtime.workflow import ModelSpec

from .tools import conftest

postgres = conftest.postgres  # the server of the SQL tests
EXAMPLES = Path(__file__).parents[1] / "examples"
TEAMS = ("billing", "bug", "shipping", "sales", "other")
CLEAR_TICKETS = {
    "The invoice is wrong. Thanks, Ben": "billing",
    "Hello, The website shows an error. Please help.": "bug",
    "Where is my parcel? My order number is 1234.": "shipping",
    "What does a team plan cost?": "sales",
}


@pytest.fixture(scope="module")
async def tiny() -> AsyncIterator[Backend]:
    pytest.importorskip("torch")
    async with open_replicas(ModelSpec()) as (backend,):
        yield backend


async def answer(example: str, tiny: Backend, **inputs: Any) -> Any:
    return await run(example, inputs, tiny)


async def run(example: str, inputs: Mapping[str, Any], backend: Backend) -> Any:
    """The answer of an example, in which no call may be taken for one that strangers chose."""
    workflow, trace = load_workflow(str(EXAMPLES / example)), MemoryTrace()
    found = await run_workflow(workflow, inputs, backends={"default": backend}, trace=trace)
    assert not [record for _, record in trace.records if isinstance(record, ToolRefused)]
    return found


@pytest.mark.parametrize("example", ["triage.py", "triage.yaml"])
async def test_triage_answers_from_the_policy_of_the_right_team(
    example: str, tiny: Backend
) -> None:
    reply = await answer(example, tiny, ticket="The invoice is wrong. Thanks, Ada")

    assert set(reply) == {"team", "subject", "body"}
    assert reply["team"] == "billing"
    assert "invoice" in reply["subject"]
    assert "We refund double charges within 14 days." in reply["body"]
    assert reply["body"].startswith("Hello Ada,")


@pytest.mark.parametrize(("ticket", "team"), CLEAR_TICKETS.items(), ids=CLEAR_TICKETS.values())
async def test_clear_tickets_go_to_their_team(ticket: str, team: str, tiny: Backend) -> None:
    reply = await answer("triage.py", tiny, ticket=ticket)

    assert reply["team"] == team
    assert f"the {team} team" in reply["body"]


async def test_the_agent_looks_up_and_calculates(tiny: Backend) -> None:
    """Longer shopping lists are beyond the tiny model; docs/tiny-model.md says how often."""
    question = "What is the total price of 2 tables and 3 lamps?"

    assert await answer("agent.py", tiny, question=question) == "The total is 332."


async def test_votes_are_counted_and_come_out_the_same_again(tiny: Backend) -> None:
    first = await answer("vote.py", tiny, question="What is 31 + 45?", samples=5)
    again = await answer("vote.py", tiny, question="What is 31 + 45?", samples=5)

    assert first == again
    assert sum(first.values()) == 5
    assert next(iter(first)) == "76"


async def test_the_agents_of_the_shop_ask_postgresql(
    tiny: Backend, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shop_in(postgres)
    monkeypatch.setenv("SHOP", postgres)

    async def ask(question: str) -> Any:
        return await answer("text_to_sql.py:shop", tiny, question=question)

    assert await ask("What is the price of a desk?") == "It costs 188 dollars."
    assert await ask("Where is order 1234?") == "Order 1234 is shipped in Porto."


async def test_the_analyst_writes_sql_and_only_reads(
    postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tiny model writes no SQL: a script stands in for one that does, and for a bad one."""
    await shop_in(postgres)
    monkeypatch.setenv("SHOP", postgres)
    statements = [
        "DELETE FROM orders",
        "SELECT 1; DROP TABLE orders",
        "SELECT name, price FROM items WHERE price < 30 ORDER BY price",
    ]

    class Writer(FakeBackend):
        async def generate(self, request: Request) -> AsyncIterator[Chunk]:
            told = [message.content for message in request.messages if message.role == "tool"]
            text = told[-1] if len(told) == len(statements) else query(statements[len(told)])
            heard[:] = told
            async for chunk in super().generate(request):
                yield Chunk(text, (*text.encode(), 256), finish=chunk.finish, usage=chunk.usage)

    heard: list[str] = []
    inputs = {"question": "What is cheap?"}
    said = await run("text_to_sql.py:analyst", inputs, Writer())

    assert json.loads(said)["rows"] == [["pen", 3], ["lamp", 24]]
    assert all(text.startswith("error:") for text in heard[:2])


def query(sql: str) -> str:
    return f"<tool_call>{json.dumps({'name': 'query', 'arguments': {'sql': sql}})}</tool_call>"


async def shop_in(database: str) -> None:
    """The example's tables, made anew."""
    import psycopg

    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
        await connection.execute("DROP TABLE IF EXISTS items, orders")
        await connection.execute((EXAMPLES / "shop.sql").read_text())  # pyright: ignore


async def test_research_grows_where_its_sources_do_not_agree(tiny: Backend) -> None:
    found = await answer("research.py", tiny, question="Is the hotel Aurora any good?")

    assert found["verdict"] == "positive"
    assert found["tally"] == {"positive": 2, "negative": 1}
    steps = found["steps"]
    assert steps.index("tally") < steps.index("read_friend") < steps.index("second_tally")


async def test_the_debate_ends_when_most_agree(tiny: Backend) -> None:
    found = await answer("debate.py", tiny, question="Compute 91 - 17 + 64 - 38 + 25.")

    assert found["answer"] == "125"
    assert set(found["rounds"][0]) == {"quick", "careful", "clerk"}


async def test_debaters_hear_what_the_others_said() -> None:
    """Models that know nothing, and repeat the last number that they hear."""

    def reply(prompt: str) -> str:
        heard = prompt.partition("They say: ")[2].partition(".")[0]
        return heard.rpartition(", ")[2] or str(next(numbers))

    numbers = count()
    backend = FakeBackend(reply)
    found = await run("debate.py", {"question": "?"}, backend)

    first, second = found["rounds"]
    assert len(set(first.values())) == 3
    assert set(second.values()) == {found["answer"]} <= set(first.values())


async def test_the_coding_loop_ends_when_its_tests_pass(tiny: Backend, tmp_path: Path) -> None:
    numbers = [91, -17, 64, -38, 25]
    found = await answer("coding.py", tiny, numbers=numbers, folder=str(tmp_path))

    assert found["solution"] == "125"
    assert (tmp_path / "solution.py").read_text() == "result = 125\n"


@pytest.mark.slow
async def test_failed_attempts_do_not_make_the_chat_longer(tmp_path: Path) -> None:
    left = iter(["3", "4", "125"])
    backend = FakeBackend(lambda prompt: next(left), remember=True)
    inputs = {"numbers": [91, -17, 64, -38, 25], "folder": str(tmp_path)}
    found = await run("coding.py", inputs, backend)

    assert found == {"solution": "125", "attempts": 3}
    assert "Earlier attempts failed." in backend.asked[2]
    assert backend.asked[2].count("Compute 91") == 2


def test_the_tickets_are_what_the_script_writes(tmp_path: Path, monkeypatch: Any) -> None:
    import importlib.util

    spec = importlib.util.spec_from_file_location("make_tickets", EXAMPLES / "make_tickets.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "OUT", tmp_path / "tickets.csv")
    module.main()

    assert (tmp_path / "tickets.csv").read_text() == (EXAMPLES / "tickets.csv").read_text()
    with (EXAMPLES / "tickets.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 360
    assert len({row["id"] for row in rows}) == 360
    assert len({row["ticket"] for row in rows}) < 360, "some tickets repeat"
