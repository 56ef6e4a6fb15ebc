"""A pipeline over a table becomes programs: stages, prompts, what is shared, what is drawn."""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tenter.runtime import cli_simulate
from tenter.runtime.backends.estimate import EstimatedTokenizer
from tenter.runtime.calls import Message
from tenter.runtime.cli import main
from tenter.runtime.errors import InvalidInput, InvalidTable
from tenter.runtime.predict import Learned
from tenter.runtime.replay import Program, Workload, shared_tokens
from tenter.runtime.scheduler.events import CallEnded, CallReady, ProgramArrived, ToolEnded
from tenter.runtime.simulate import Setup, simulate
from tenter.runtime.simulate.table import Asked, Lowered, lowered

TRIAGE = """
version: 1
name: triage
inputs: {ticket: string}
tools: {policy: {python: "desk:policy", effect: pure}, send: {python: "desk:send", effect: once}}
steps:
  kind:
    llm: "Which of the teams of this company should take care of this ticket?\\n\\n{{ ticket }}"
    choices: [billing, shipping]
  rule: {tool: policy, with: {kind: "{{ kind }}"}}
  reply:
    llm: "Apply the rule: {{ rule }}\\nAnswer this {{ kind }} ticket:\\n{{ ticket }}"
    max_tokens: 64
  sent: {tool: send, with: {text: "{{ reply }}"}}
output: "{{ sent }}"
"""
DESK = """
def policy(kind: str) -> str:
    raise RuntimeError("called")

def send(text: str) -> str:
    raise RuntimeError("called")
"""


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    (tmp_path / "desk.py").write_text(DESK)
    return tmp_path


def written(folder: Path, text: str, rows: Sequence[dict[str, Any]]) -> tuple[str, str]:
    workflow, table = folder / "flow.yaml", folder / "rows.jsonl"
    workflow.write_text(text)
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(workflow), str(table)


def tickets(count: int) -> list[dict[str, str]]:
    return [{"ticket": f"{number} parcels have not arrived at all"} for number in range(count)]


def made(
    folder: Path, text: str, rows: Sequence[dict[str, Any]], **more: Any
) -> tuple[Lowered, list[Program]]:
    workflow, table = written(folder, text, rows)
    with lowered(Asked(workflow, table, home=str(folder / "home"), **more)) as found:
        return found, list(found.workload)


def test_steps_become_stages_with_their_real_prompts(desk: Path) -> None:
    found, programs = made(desk, TRIAGE, tickets(4))
    assert found.rows == 4 and len(programs) == 4 and found.bad_rows == 0
    asked = (
        "Which of the teams of this company should take care of this ticket?\n\n"
        "0 parcels have not arrived at all"
    )
    exact = len(EstimatedTokenizer().chat([Message("user", asked)]))
    for program in programs:
        (kind,), (reply,) = program.stages
        assert kind.prompt_tokens == exact and kind.output_tokens == 1  # prefill only
        assert 1 <= reply.output_tokens <= 64 and reply.pause is None
    first, *others = programs
    common = [shared_tokens(first.stages[0][0].prompt, p.stages[0][0].prompt) for p in others]
    assert common == [16] * 3  # of 19 tokens of common text, those in whole chunks
    assert {program.arrival_s for program in programs} == {0.0}


def test_a_pure_tool_is_waited_for_once_per_value(desk: Path) -> None:
    found, programs = made(desk, TRIAGE, tickets(30), tool_s=2.5)
    waited = [p.stages[0][0].pause for p in programs]
    assert sum(pause is not None for pause in waited) == 2  # billing, shipping
    for pause in filter(None, waited):
        assert (pause.seconds, pause.tool) == (2.5, "policy")
    assert any("policy, send takes: 2.5 s" in note for note in found.notes)


def test_equal_calls_are_asked_once(desk: Path) -> None:
    found, programs = made(desk, TRIAGE, tickets(3) * 2)
    assert len(programs) == 3 and found.shared == 6


def test_programs_are_the_same_each_time_and_other_for_another_seed(desk: Path) -> None:
    one, other = made(desk, TRIAGE, tickets(9))[1], made(desk, TRIAGE, tickets(9))[1]
    assert one == other != made(desk, TRIAGE, tickets(9), seed=1)[1]


def test_rows_arrive_at_a_rate_and_can_be_limited(desk: Path) -> None:
    _, programs = made(desk, TRIAGE, tickets(40), per_s=2.0, limit=20)
    arrivals = [program.arrival_s for program in programs]
    assert len(arrivals) == 20 and arrivals == sorted(arrivals)
    assert 4 < arrivals[-1] < 25


BRANCHES = """
version: 1
name: branches
inputs: {urgent: boolean, parts: {type: array, items: {type: string}}}
steps:
  notes:
    each: parts
    as: part
    steps: {note: {llm: "Note this: {{ part }}"}}
    result: "{{ note }}"
  alarm: {when: urgent, then: {steps: {cry: {llm: "Cry: {{ parts }}"}}, result: "{{ cry }}"}, else: "-"}
  all: {llm: "Sum up {{ notes | join(' ') }}", output: {text: string, good: boolean}}
  end: {llm: "{{ all.text }} {{ all.good }} {{ alarm }}"}
output: "{{ end }}"
"""


def test_lists_and_branches_follow_the_row(tmp_path: Path) -> None:
    rows = [{"urgent": True, "parts": ["a", "b"]}, {"urgent": False, "parts": ["c", "d", "e"]}]
    _, (urgent, calm) = made(tmp_path, BRANCHES, rows)
    assert [len(stage) for stage in urgent.stages] == [3, 1, 1]  # two notes and the cry
    assert [len(stage) for stage in calm.stages] == [3, 1, 1]
    notes = sum(turn.output_tokens for turn in calm.stages[0])
    assert calm.stages[1][0].prompt_tokens == pytest.approx(notes, abs=40)


AGENT = """
version: 1
name: helper
inputs: {question: string}
tools: {policy: {python: "desk:policy", effect: pure}}
steps:
  found: {agent: "{{ question }}", tools: [policy], max_turns: 6, turn_tokens: 40}
output: "{{ found }}"
"""


def test_an_agent_is_a_conversation_with_pauses(desk: Path) -> None:
    rows = [{"question": f"What about {number}?"} for number in range(60)]
    found, programs = made(desk, AGENT, rows)
    assert found.sessions and {len(program.stages) for program in programs} == set(range(1, 7))
    for program in programs:
        turns = list(program.turns)
        assert all(turn.pause and turn.pause.tool == "policy" for turn in turns[:-1])
        for before, after in pairwise(turns):
            known = before.prompt_tokens + before.output_tokens
            assert shared_tokens(before.prompt, after.prompt) == before.prompt_tokens
            assert after.prompt_tokens == known + 50
    result = simulate(Workload("agents", lambda: iter(programs)), Setup())
    assert result.hit_rate > 0.3  # the chats so far


def test_what_earlier_runs_have_taught_is_used(desk: Path) -> None:
    learned = Learned.load(desk / "home", "triage", "of that run")
    for row in range(20):
        call, program = f"r{row}/reply", f"r{row}"
        for event in (
            ProgramArrived(program=program, row=row, workflow="triage"),
            CallReady(call, program, "reply", "default", 30, 64),
            CallEnded(call, program, "reply", "stop", prompt_tokens=30, output_tokens=7),
            ToolEnded(program, "rule", "policy", 0.25, True),
        ):
            learned.observe(event)
    assert learned.save()
    found, programs = made(desk, TRIAGE, tickets(10))
    assert {program.stages[1][0].output_tokens for program in programs} == {7}
    pauses = [program.stages[0][0].pause for program in programs]
    assert {pause.seconds for pause in pauses if pause} == {0.25}
    assert any("how long send takes" in note for note in found.notes)
    assert not any("answers of" in note for note in found.notes)


def test_rows_that_cannot_be_used_are_counted(tmp_path: Path) -> None:
    flow = "version: 1\nname: f\ninputs: {n: integer}\nsteps: {a: {llm: 'Say {{ n }}'}}\n"
    rows = [{"n": 1}, {"n": "many"}, {"n": 3}]
    found, programs = made(tmp_path, flow + "output: '{{ a }}'\n", rows)
    assert len(programs) == 2 and found.bad_rows == 1 and "row 2:" in found.first_bad


NO_MODEL = (
    "version: 1\nname: f\ninputs: {n: string}\nsteps: {a: {value: '{{ n }}'}}\noutput: '{{ a }}'\n"
)


def test_what_cannot_be_simulated_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no row asks a model"):
        made(tmp_path, NO_MODEL, [{"n": "x"}])
    with pytest.raises(InvalidTable, match="there is no column 'n'"):
        made(tmp_path, NO_MODEL, [{"m": "x"}])
    with pytest.raises(InvalidInput, match="--rate must be positive, not 0 rows per second"):
        made(tmp_path, NO_MODEL, [{"n": "x"}], per_s=0.0)
    program = tmp_path / "program.py"
    program.write_text(
        "from tenter.runtime import workflow\n"
        "@workflow\nasync def flow(n: str) -> str:\n    return n\n"
    )
    table = str(tmp_path / "rows.jsonl")
    (tmp_path / "rows.jsonl").write_text('{"n": "x"}\n')
    recorded = pytest.raises(InvalidInput, match="simulate what was recorded")
    with recorded, lowered(Asked(f"{program}:flow", table)):
        pass


def test_the_command_takes_a_pipeline_and_a_table(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = written(desk, TRIAGE, tickets(12))
    asked = ["simulate", *files, "--hardware", "H100", "--model-preset", "llama-3.1-8b"]
    more = ["--replicas", "2", "--rate", "5", "--home", str(desk), "--programs", "10"]
    assert main([*asked, *more]) == 0
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == ["policy", "stock", "shadow-price"]
    assert "triage: 10 programs, 20 calls" in err and "tokens are estimated" in err
    assert main([*asked, *more, "--json", "--what-if", "--tokenizer", "tiny"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0]["type"] == "lowered" and lines[0]["rows"] == 10
    assert [line["programs"] for line in lines if line["type"] == "simulated"] == [10] * 8


def test_progress_is_told_of_lowering_and_of_each_simulation(
    desk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_simulate, "EVERY_S", -1.0)
    files = written(desk, TRIAGE, tickets(5))
    assert main(["simulate", *files, "--policy", "stock", "--home", str(desk), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    told = [line for line in lines if line["type"] == "progress"]
    assert [line["rows_done"] for line in told if line["what"] == "lowering"] == [1, 2, 3, 4, 5]
    done = [(line["programs_done"], line["programs"]) for line in told if "programs" in line]
    assert done == [(count, 5) for count in range(1, 6)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["FLOW"], "say which rows it runs over: tenter simulate"),
        (["FLOW", "none.csv"], "none.csv: there is no such file"),
        (["FLOW", "ROWS", "--tool-seconds", "-1"], "--tool-seconds must be 0 or more"),
        (["FLOW", "ROWS", "--tokenizer", "nowhere"], "nowhere has no tokenizer.json"),
        (["swe-bench:5", "--tokenizer", "tiny"], "--tokenizer is for a pipeline over a table"),
    ],
    ids=lambda given: given[-1] if isinstance(given, list) else "",
)
def test_errors_name_the_cure(
    given: list[str], message: str, desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flow, rows = written(desk, TRIAGE, tickets(2))
    names = {"FLOW": flow, "ROWS": rows}
    assert main(["simulate", *(names.get(word, word) for word in given)]) == 2
    assert message in capsys.readouterr().err


LONG = """
version: 1
name: long
inputs: {words: {type: array, items: {type: string}}}
models: {default: {backend: embedded}, small: {backend: embedded, dtype: bfloat16}}
steps:
  short:
    reduce: "Sum up: {% for word in words %}{{ word }} {% endfor %}"
    over: words
    batch_tokens: 100
    max_tokens: 20
  kind:
    llm: "Which? {{ short }}"
    choices: [a, b]
    cascade: {model: small}
  told: {llm: "Tell. {{ kind }}", pack: 4}
output: "{{ told }}"
"""


def test_a_reduce_is_a_tree_of_calls_and_what_is_not_simulated_is_said(tmp_path: Path) -> None:
    rows = [{"words": [f"word number {n}" for n in range(40)]}, {"words": ["one"]}]
    found, (long, short) = made(tmp_path, LONG, rows)
    calls = [len(stage) for stage in long.stages]
    assert calls[0] > 1 and calls[-3:] == [1, 1, 1] and sorted(calls, reverse=True) == calls
    assert all(turn.prompt_tokens <= 110 for stage in long.stages for turn in stage)
    assert [len(stage) for stage in short.stages][:2] == [1, 1]
    told = " ".join(found.notes)
    assert "told: each row has a prompt of its own; packs are not simulated" in told
    assert "kind: all rows are answered by the step's own model" in told
