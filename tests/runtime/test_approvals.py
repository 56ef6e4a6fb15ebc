"""Approval by pause and resume: a run stops at a call, somebody answers, a resumed run acts on it."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from tenter.runtime import agent, tool, workflow
from tenter.runtime.approvals import answer, chosen, questions
from tenter.runtime.backends import registry
from tenter.runtime.backends.fake import FakeBackend
from tenter.runtime.calls import Chunk, Request
from tenter.runtime.cli import main
from tenter.runtime.errors import ApprovalWanted, InvalidInput
from tenter.runtime.jobs import Control, MapSpec, map_table, resume
from tenter.runtime.journal.store import Store
from tenter.runtime.report.tally import Tally
from tenter.runtime.run.local import run_workflow
from tenter.runtime.spec import dump, loads

sent: list[str] = []
began: list[str] = []
turns: list[str] = []


@tool(effect="once")
async def send(to: str) -> str:
    """Send it."""
    sent.append(to)
    return f"sent to {to}"


@tool(effect="once")
async def log(to: str) -> str:
    """Takes its time."""
    began.append(to)
    await anyio.sleep(0.05)
    sent.append(f"log {to}")
    return "logged"


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


class Mailer(FakeBackend):
    """Sends to whom it is told to, then says what came of it. Called a fake."""

    async def generate(self, request: Request) -> AsyncIterator[Chunk]:
        said = [message.content for message in request.messages]
        to = said[0].removeprefix("Write to ")
        turns.append(to)
        text = said[-1] if request.messages[-1].role == "tool" else self.orders(to)
        async for chunk in super().generate(request):
            yield Chunk(text, (*text.encode(), 256), finish=chunk.finish, usage=chunk.usage)

    def orders(self, to: str) -> str:
        other = call("log", to=to) if to.startswith("both") else ""
        return other + call("send", to=to) if to != "nobody" else "nobody asked"


@pytest.fixture(autouse=True)
def a_mailer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.BACKENDS, "mailer", Mailer)
    for seen in (sent, began, turns):
        seen.clear()


mailer = agent("Write to {{ to }}", tools=[send, log], allow=["log"], approve="pause")


@workflow
def letters(to: str) -> str:
    return mailer(to=to)


@workflow
async def letters_by_hand(to: str) -> str:
    return await mailer(to=to)


def spec_of(tmp_path: Path, *names: str, flow: str = "letters") -> MapSpec:
    (tmp_path / "in.csv").write_text("\n".join(["to", *names]) + "\n")
    return MapSpec(
        f"{__name__}:{flow}",
        str(tmp_path / "in.csv"),
        str(tmp_path / "out.csv"),
        models={"default": "mailer"},
        home=str(tmp_path / "home"),
    )


def go(spec: MapSpec) -> Any:
    return asyncio.run(map_table(spec, Control(), Tally()))


def go_on(spec: MapSpec) -> Any:
    return asyncio.run(resume("last", spec.home, Control(), Tally()))


def answer_all(spec: MapSpec, approve: bool) -> list[str]:
    store = Store(spec.home)
    run = store.find("last")
    asked = questions(store, run)
    asyncio.run(answer(store, run, asked, approve))
    return [f"{question.row} {question.tool}" for question in asked]


def answers(spec: MapSpec) -> list[str]:
    return [line.split(",")[1] for line in Path(spec.out).read_text().splitlines()[1:]]


@pytest.mark.parametrize("flow", ["letters", "letters_by_hand"])
@pytest.mark.parametrize(
    ("approve", "said", "done"),
    [(True, "sent to ann", ["ann", "bob"]), (False, "error: tool 'send' has an effect", [])],
    ids=["approved", "denied"],
)
def test_a_run_stops_at_a_call_and_goes_on_with_the_answer(
    tmp_path: Path, flow: str, approve: bool, said: str, done: list[str]
) -> None:
    spec = spec_of(tmp_path, "ann", "nobody", "bob", flow=flow)
    outcome = go(spec)
    assert (outcome.status, outcome.reason, outcome.rows_done) == ("paused", "approval", 1)
    assert sent == []
    assert sorted(turns) == ["ann", "bob", "nobody"]

    assert go_on(spec).status == "paused", "nobody has answered"
    assert answer_all(spec, approve) == ["0 send", "2 send"]
    assert go_on(spec).status == "done"
    assert sent == done
    assert answers(spec)[0].strip('"').startswith(said)
    assert sorted(turns) == ["ann", "ann", "bob", "bob", "nobody"], "no turn was repeated"
    assert questions(Store(spec.home), Store(spec.home).find("last")) == []


def test_an_effect_beside_the_question_comes_to_its_end_and_is_not_repeated(
    tmp_path: Path,
) -> None:
    spec = spec_of(tmp_path, "both")
    assert go(spec).status == "paused"
    assert (began, sent) == (["both"], ["log both"])
    answer_all(spec, True)
    assert go_on(spec).status == "done"
    assert (began, sent) == (["both"], ["log both", "both"])


@workflow
async def two_at_once(to: str) -> list[str]:
    return await asyncio.gather(mailer(to=to), log(to=to))


def test_an_effect_elsewhere_in_the_program_comes_to_its_end_too(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, "ann", flow="two_at_once")
    assert go(spec).status == "paused"
    assert sent == ["log ann"]
    answer_all(spec, True)
    assert go_on(spec).status == "done"
    assert (began, sent) == (["ann"], ["log ann", "ann"])


clerk = agent("Write to {{ to }}", tools=[send], approve="pause", name="clerk")
HANDED = clerk.as_tool("mail", "Writes letters.")


class Boss(Mailer):
    """Hands over to the clerk, and sends by himself whatever comes of it. Called a fake."""

    def orders(self, to: str) -> str:
        return (
            call("mail", to=to.removeprefix("boss "))
            if to.startswith("boss")
            else super().orders(to)
        )


boss = agent("Write to boss {{ to }}", tools=[HANDED], name="boss")


@workflow
async def handed_over(to: str) -> str:
    return await boss(to=to)


def test_an_agent_that_was_handed_over_to_stops_those_above_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry.BACKENDS, "mailer", Boss)
    spec = spec_of(tmp_path, "ann", flow="handed_over")
    assert go(spec).status == "paused"
    assert turns == ["boss ann", "ann"], "the one above does not act on a failure"
    answer_all(spec, True)
    assert go_on(spec).status == "done"
    assert sent == ["ann"]


def test_without_a_journal_the_question_is_the_error() -> None:
    async def once() -> None:
        await run_workflow(letters.workflow, {"to": "ann"}, backends={"default": Mailer()})

    with pytest.raises(ApprovalWanted, match="'send' needs approval, and this run is not recorded"):
        asyncio.run(once())
    assert sent == []


def test_the_command_line_lists_and_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = spec_of(tmp_path, "ann", "bob")
    home = ["--home", str(spec.home)]
    given = [spec.workflow, spec.table, "--out", spec.out, "--model", "default=mailer", *home]
    assert main(["map", *given]) == 9
    assert "tenter approve" in capsys.readouterr().err

    assert main(["approve", "last", *home, "--json"]) == 0
    listed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(one["tool"], one["arguments"]) for one in listed] == [
        ("send", {"to": "ann"}),
        ("send", {"to": "bob"}),
    ]
    assert main(["approve", "last", *home]) == 0
    assert "send(to='ann')" in capsys.readouterr().out

    assert main(["approve", "last", listed[1]["id"], *home]) == 0
    assert main(["approve", "last", "--all", "--deny", *home]) == 0
    assert main(["approve", "last", "nonsense", *home]) == 2
    assert main(["resume", "last", *home]) == 0
    assert sent == ["bob"]


def test_a_name_that_nobody_asked_for_is_refused() -> None:
    with pytest.raises(InvalidInput, match="no call 'x' waits"):
        chosen([], ["x"])


def test_yaml_says_it_too() -> None:
    text = dump(letters.workflow)
    assert "approve: pause" in text
    found = loads(text)
    assert found.graph is not None and letters.workflow.graph is not None
    assert found.graph.steps[0].loop == letters.workflow.graph.steps[0].loop  # type: ignore[union-attr]
