"""Results of earlier runs answer equal, deterministic calls; nothing else does."""

import csv
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tenter.planner.graph import Sampling
from tenter.runtime import llm, session, tool, workflow
from tenter.runtime.backends.fake import FakeBackend
from tenter.runtime.cli import main
from tenter.runtime.clock import VirtualLoop
from tenter.runtime.journal import MemoryJournal, MemoryResults
from tenter.runtime.run.local import run_workflow
from tenter.runtime.scheduler.events import CallShared
from tenter.runtime.spec import dump, loads
from tenter.runtime.trace import MemoryTrace
from tenter.runtime.workflow import Workflow


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualLoop}


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def calls() -> FakeBackend:
    return FakeBackend(lambda prompt: f"said {len(prompt)}", remember=True)


async def ran(
    flow: Workflow, inputs: Mapping[str, Any], results: MemoryResults, **options: Any
) -> tuple[Any, list[str], list[CallShared]]:
    """The result of one run, what its model was asked, and what was shared."""
    backend, trace = options.pop("backend", None) or calls(), MemoryTrace()
    value = await run_workflow(
        flow, inputs, backends={"default": backend}, results=results, trace=trace, **options
    )
    shared = [record for _, record in trace.records if isinstance(record, CallShared)]
    return value, backend.asked, shared


echo = llm("Say {{ text }}", name="echo")


@workflow
def one(text: str) -> str:
    return echo(text=text)


@pytest.mark.anyio
async def test_the_second_run_asks_no_model_and_says_why() -> None:
    results = MemoryResults()
    first, asked, shared = await ran(one.workflow, {"text": "a"}, results)
    assert len(asked) == 1 and not shared
    second, asked, shared = await ran(one.workflow, {"text": "a"}, results)

    assert second == first
    assert asked == []
    assert [(each.step, each.how) for each in shared] == [("echo", "result-cache")]
    assert shared[0].prompt_tokens > 0 and shared[0].output_tokens > 0


@pytest.mark.anyio
@pytest.mark.parametrize(
    "other",
    [
        llm("Say {{ text }}", name="echo", max_tokens=9),
        llm("Say {{ text }}", name="echo", stop="x"),
        llm("Say {{ text }}", name="echo", system="Be brief."),
        llm("Say {{ text }}", name="echo", output=int),
        llm("Say {{ text }}", name="echo", choices=["a", "b"]),
        llm("Say {{ text }}", name="echo", temperature=0.5, seed=1),
        llm("Say  {{ text }}", name="echo"),
    ],
    ids=["max_tokens", "stop", "system", "grammar", "choices", "sampling", "prompt"],
)
async def test_what_determines_an_answer_is_in_its_key(other: Any) -> None:
    @workflow
    def another(text: str) -> Any:
        return other(text=text)

    results = MemoryResults()
    await ran(one.workflow, {"text": "a"}, results)
    backend = FakeBackend(lambda prompt: "1", remember=True)
    _, asked, shared = await ran(another.workflow, {"text": "a"}, results, backend=backend)
    assert len(asked) == 1 and not shared


@pytest.mark.anyio
async def test_another_model_answers_for_itself() -> None:
    results = MemoryResults()
    await ran(one.workflow, {"text": "a"}, results)
    other = calls()
    other.capabilities = replace(other.capabilities, model_fingerprint="other weights")
    _, asked, _ = await ran(one.workflow, {"text": "a"}, results, backend=other)
    assert len(asked) == 1


@pytest.mark.anyio
async def test_roles_are_in_the_key() -> None:
    """A text in the prompt is no system prompt, whatever separates the two."""

    @workflow
    def split(text: str) -> str:
        return llm("{{ text }}", system="Be brief.", name="said")(text=text)

    @workflow
    def whole(text: str) -> str:
        return llm("{{ text }}", name="said")(text=text)

    results = MemoryResults()
    await ran(split.workflow, {"text": "a"}, results)
    for text in ("Be brief.\0a", "Be brief.a", "a"):
        _, asked, _ = await ran(whole.workflow, {"text": text}, results)
        assert len(asked) == 1


@pytest.mark.anyio
async def test_a_draw_without_a_seed_is_never_answered_from_another() -> None:
    @workflow
    def draw(text: str) -> str:
        return llm("Say {{ text }}", temperature=1.0, name="draw")(text=text)

    results = MemoryResults()
    for _ in range(2):
        _, asked, shared = await ran(draw.workflow, {"text": "a"}, results)
        assert len(asked) == 1 and not shared
    assert results.holding().results == 0


made: list[str] = []


@tool(effect="pure")
async def upper(text: str) -> str:
    made.append(text)
    return text.upper()


@tool(effect="pure", memo_s=60)
async def shout(text: str) -> str:
    made.append(text)
    return text + "!"


@tool(effect="idempotent")
async def look(text: str) -> str:
    made.append(text)
    return text


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("used", "after_s", "repeated"),
    [(upper, 0, False), (shout, 30, False), (shout, 90, True), (look, 0, True)],
    ids=["pure", "memo", "memo is over", "idempotent"],
)
async def test_tools(used: Any, after_s: float, repeated: bool) -> None:
    @workflow
    def flow(text: str) -> str:
        return used(text=text)

    clock = Clock()
    results = MemoryResults(clock=clock)
    first = await run_workflow(flow.workflow, {"text": "a"}, backends={}, results=results)
    made.clear()
    clock.now_s += after_s
    second = await run_workflow(flow.workflow, {"text": "a"}, backends={}, results=results)
    assert second == first
    assert bool(made) is repeated


@pytest.mark.anyio
async def test_turns_of_a_chat_are_answered_to_the_letter() -> None:
    @workflow
    async def chat(text: str) -> list[str]:
        talk = session(system="Be brief.")
        said = await talk.ask(text)
        return [said.content, (await talk.ask("And now?")).content]

    results = MemoryResults()
    first, asked, _ = await ran(chat.workflow, {"text": "a"}, results)
    assert len(asked) == 2
    second, asked, shared = await ran(chat.workflow, {"text": "a"}, results)
    assert second == first
    assert asked == [] and [each.how for each in shared] == ["result-cache"] * 2
    _, asked, _ = await ran(chat.workflow, {"text": "b"}, results)
    assert len(asked) == 2


@pytest.mark.anyio
async def test_turns_that_are_drawn_are_not_kept() -> None:
    @workflow
    async def chat(text: str) -> str:
        return (await session().ask(text, sampling=Sampling(temperature=1.0))).content

    results = MemoryResults()
    for _ in range(2):
        _, asked, _ = await ran(chat.workflow, {"text": "a"}, results)
        assert len(asked) == 1


@pytest.mark.anyio
async def test_an_answer_that_fails_is_not_kept() -> None:
    @workflow
    def number(text: str) -> int:
        return llm("{{ text }}", output=int, name="number")(text=text)

    results = MemoryResults()
    with pytest.raises(Exception, match="number"):
        await ran(number.workflow, {"text": "a"}, results, backend=calls())
    good = FakeBackend(lambda prompt: "7", remember=True)
    value, asked, _ = await ran(number.workflow, {"text": "a"}, results, backend=good)
    assert value == 7 and len(asked) == 1


@pytest.mark.anyio
async def test_a_find_is_recorded_like_any_result() -> None:
    results, journal = MemoryResults(), MemoryJournal()
    value, *_ = await ran(one.workflow, {"text": "a"}, results)
    await ran(one.workflow, {"text": "a"}, results, journal=journal)
    found = await journal.steps(0, 0)
    assert [path for _, path in found] == ["echo"]
    assert json.loads(found[0, "echo"].value) == value


# ---- from the command line ----------------------------------------------------------------------

FLOW = """
version: 1
name: echo
inputs: { text: string }
cache: true
steps:
  said: { llm: "Say {{ text }}", max_tokens: 8 }
output: "{{ said }}"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TENTER_HOME", str(tmp_path / "home"))
    (tmp_path / "flow.yaml").write_text(FLOW)
    (tmp_path / "plain.yaml").write_text(FLOW.replace("cache: true\n", ""))
    (tmp_path / "table.csv").write_text("text\n" + "".join(f"t{n}\n" for n in range(6)))
    return tmp_path


def mapped(capsys: pytest.CaptureFixture[str], out: str, *more: str, flow: str = "flow") -> Any:
    model = ("--model", "default=fake:reply=fine")
    capsys.readouterr()
    given = ["map", f"{flow}.yaml", "table.csv", "--out", out, "--force", "--json", *model, *more]
    assert main(given) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])["summary"]["calls"]


def test_yaml_flag_and_commands(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mapped(capsys, "a.csv", flow="plain")["made"] == 6
    assert mapped(capsys, "a.csv")["made"] == 6, "nothing was kept by a run that did not ask"
    found = mapped(capsys, "b.csv")
    assert (found["made"], found["saved_by"]) == (0, {"result-cache": 6})
    assert (folder / "a.csv").read_bytes() == (folder / "b.csv").read_bytes()
    assert mapped(capsys, "b.csv", "--cache", flow="plain")["made"] == 0, "the same calls"
    assert mapped(capsys, "b.csv", "--no-cache")["made"] == 6

    assert main(["cache", "stats", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["results"] == 6
    assert main(["cache", "clear"]) == 0
    assert "6 results thrown away" in capsys.readouterr().out
    assert mapped(capsys, "b.csv")["made"] == 6


def test_one_row_at_a_time(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        given = ["run", "flow.yaml", "text=t1", "--model", "default=fake:reply=fine"]
        assert main(given) == 0
        assert capsys.readouterr().out == "fine\n"
    assert main(["cache", "stats"]) == 0
    assert ": 1 results" in capsys.readouterr().out


def test_another_reply_of_the_fake_is_another_model(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mapped(capsys, "a.csv")
    assert mapped(capsys, "b.csv", "--model", "default=fake:reply=other")["made"] == 6
    with (folder / "b.csv").open(newline="") as file:
        assert {row["answer"] for row in csv.DictReader(file)} == {"other"}


def test_it_is_refused_where_nothing_is_shared(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["map", "flow.yaml", "table.csv", "--out", "o.csv", "--cache", "--no-consolidate"]
    assert main(given) == 2
    assert "give one" in capsys.readouterr().err


def test_a_workflow_says_it_in_python_and_in_yaml() -> None:
    made = loads(FLOW)
    assert made.cache and loads(dump(made)).cache
    assert not one.workflow.cache

    @workflow(cache=True)
    def keeps(text: str) -> str:
        return echo(text=text)

    assert keeps.workflow.cache and keeps.workflow.fingerprint
    assert "cache: true" in dump(keeps.workflow)
