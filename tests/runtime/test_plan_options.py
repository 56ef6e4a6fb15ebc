"""Free fields, and rules that are left out: in YAML, in Python and for a job."""

import json
from pathlib import Path
from typing import Any

import pytest

from tenter.planner.graph import LLM
from tenter.runtime import llm, workflow
from tenter.runtime.errors import InvalidInput, InvalidWorkflow
from tenter.runtime.jobs import Control, Job, MapSpec, map_table
from tenter.runtime.report.tally import Tally
from tenter.runtime.scheduler.events import CallReady, CallShared
from tenter.runtime.spec import dump, loads
from tenter.runtime.trace import read

PROMPT = "Judge.\nId: {{ id }}\nShop: {{ shop }}\n\nIs it good?"
YAML = f"""\
version: 1
name: judge
inputs: {{id: string, shop: string}}
models:
  default: {{backend: fake}}
steps:
  answer:
    llm: {json.dumps(PROMPT)}
    free_fields: [id, shop]
output: "{{{{ answer }}}}"
"""
WITHOUT = YAML.replace("steps:", "scheduling: {without: order}\nsteps:", 1)


def step_of(found: Any) -> LLM:
    (step,) = found.graph.steps
    assert isinstance(step, LLM)
    return step


def test_free_fields_are_the_same_in_yaml_and_python_and_change_the_fingerprint() -> None:
    answer = llm(PROMPT, free_fields=["id", "shop"])

    @workflow(models={"default": "fake"})
    def judge(id: str, shop: str) -> str:
        return answer(id=id, shop=shop)

    written = loads(YAML)
    assert step_of(written) == step_of(judge.workflow)
    assert loads(dump(written)).graph == written.graph
    fixed = loads(YAML.replace("    free_fields: [id, shop]\n", ""))
    assert fixed.fingerprint != written.fingerprint
    assert "free_fields" not in fixed.identity


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ("[id, shops]", "the free field 'shops' is not in the prompt; did you mean 'shop'"),
        ("[id]", "fewer than two fields are free"),
    ],
)
def test_fields_that_cannot_be_free_are_told_with_their_line(fields: str, told: str) -> None:
    with pytest.raises(InvalidWorkflow) as caught:
        loads(YAML.replace("[id, shop]", fields), "judge.yaml")
    (problem,) = caught.value.problems
    assert told in problem.message and problem.line in (7, 8, 9)
    with pytest.raises(InvalidInput, match="free_fields is a list of fields"):
        llm(PROMPT, free_fields="id")


def test_rules_are_left_out_by_name() -> None:
    assert loads(WITHOUT).scheduling.without == ("order",)
    assert loads(dump(loads(WITHOUT))).scheduling.without == ("order",)
    with pytest.raises(InvalidWorkflow, match="there is no rule 'ordr' to leave out"):
        loads(WITHOUT.replace("order", "ordr"))
    with pytest.raises(InvalidInput, match="there is no rule 'prune' to leave out"):
        workflow(without=["prune"])


def spec_of(folder: Path, yaml: str = YAML, **more: Any) -> MapSpec:
    (folder / "judge.yaml").write_text(yaml)
    rows = [{"id": f"{n}", "shop": f"shop {n % 2} " + "in the old town " * 20} for n in range(40)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    paths = (str(folder / name) for name in ("judge.yaml", "rows.jsonl", "out.jsonl"))
    return MapSpec(*paths, home=str(folder / "home"), **more)


def test_a_job_puts_free_fields_in_order_unless_that_is_left_out(tmp_path: Path) -> None:
    plan = Job(spec_of(tmp_path)).plan()
    assert plan is not None
    assert step_of(plan).prompt.source.index("{{ shop }}") < step_of(plan).prompt.source.index(
        "{{ id"
    )
    assert any("answers may change" in note for note in plan.notes)
    plan = Job(spec_of(tmp_path, without=("reorder",))).plan()
    assert plan is not None and step_of(plan).prompt.source == PROMPT
    with pytest.raises(InvalidInput, match="--without: there is no rule 'x'"):
        Job(spec_of(tmp_path, without=("x",)))


async def test_a_job_gives_the_scheduler_its_plan_and_answers_are_in_order(tmp_path: Path) -> None:
    answers: list[str] = []
    for without in ((), ("group", "order")):
        spec = spec_of(tmp_path, without=without)
        outcome = await map_table(spec, Control(), Tally())
        assert outcome.rows_done == 40
        (trace,) = (tmp_path / "home" / "runs" / outcome.run).glob("trace*")
        calls = [record for _, record in read(trace) if isinstance(record, CallReady)]
        planned = [call for call in calls if call.leader is not None]
        assert len(planned) == (0 if without else 40)
        answers.append((tmp_path / "out.jsonl").read_text())
    assert answers[0] == answers[1]
    ids = [json.loads(line)["id"] for line in answers[0].splitlines()]
    assert ids == [str(n) for n in range(40)]


async def test_a_workflow_says_what_is_left_out_of_its_runs(tmp_path: Path) -> None:
    spec = spec_of(
        tmp_path, YAML.replace("steps:", "scheduling: {without: [group, order]}\nsteps:")
    )
    outcome = await map_table(spec, Control(), Tally())
    (trace,) = (tmp_path / "home" / "runs" / outcome.run).glob("trace*")
    calls = [record for _, record in read(trace) if isinstance(record, CallReady)]
    assert calls and not any(call.leader or call.order_key is not None for call in calls)


ALONE = """\
version: 1
name: judge
inputs: {id: string}
models: {default: fake, small: fake}
steps:
  answer: {llm: "Judge {{ id }}", choices: [good, bad], EXTRA}
output: "{{ answer }}"
"""


@pytest.mark.parametrize(
    ("extra", "rule", "how", "calls", "left_out"),
    [
        ("pack: 8", "pack", "", 45, 40),  # five packs; a fake answers none of them
        ("cascade: {model: small, target: 0.5}", "cascade", "small-model", 60, 40),
    ],
)
async def test_what_may_change_answers_is_carried_out_unless_it_is_left_out(
    tmp_path: Path, extra: str, rule: str, how: str, calls: int, left_out: int
) -> None:
    for without, made in (((), calls), ((rule,), left_out)):
        spec = spec_of(tmp_path, ALONE.replace("EXTRA", extra), without=without, columns=("id",))
        outcome = await map_table(spec, Control(), Tally())
        (trace,) = (tmp_path / "home" / "runs" / outcome.run).glob("trace*")
        records = [record for _, record in read(trace)]
        assert sum(isinstance(record, CallReady) for record in records) == made
        shared = [record.how for record in records if isinstance(record, CallShared)]
        assert shared == ([how] * 20 if how and not without else [])
