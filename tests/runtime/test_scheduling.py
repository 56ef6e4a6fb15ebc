"""Order, retention and limits as authors choose them, and what runs learn from each other."""

import json
from pathlib import Path
from typing import Any

import pytest

from tenter.runtime import llm, workflow
from tenter.runtime.backends.fake import FakeBackend
from tenter.runtime.errors import InvalidConfig, InvalidInput, InvalidWorkflow
from tenter.runtime.jobs import Control, MapSpec, map_table
from tenter.runtime.report.tally import Tally
from tenter.runtime.run.local import open_host
from tenter.runtime.scheduler.events import CallReady, ProgramArrived
from tenter.runtime.spec import dump, loads
from tenter.runtime.trace import read
from tenter.runtime.workflow import Scheduling

YAML = """\
version: 1
name: echo
inputs: {who: string, text: string}
models:
  default: {backend: fake}
scheduling:
  order: fair:shortest-remaining
  retention: fixed:30
  tenant: who
  limits:
    tenants: {"*": {max_running: 2}}
    models: {default: {tokens_per_minute: 100000}}
    working_set: 0.9
steps:
  answer: {llm: "Say {{ text }}", max_tokens: 8}
output: "{{ answer }}"
"""


def test_yaml_says_who_goes_first() -> None:
    found = loads(YAML, "echo.yaml")
    assert found.scheduling.order == "fair:shortest-remaining"
    assert found.scheduling.limits["working_set"] == 0.9
    assert loads(dump(found), "echo.yaml").scheduling == found.scheduling
    plain = loads(YAML.replace("fair:shortest-remaining", "fcfs"), "echo.yaml")
    assert plain.fingerprint == found.fingerprint  # it changes no answer


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("fair:shortest-remaining", "quickest", "there is no order 'quickest'"),
        ("fixed:30", "now-and-then", "now-and-then"),
        ("tenant: who", "tenant: whom", "there is no input 'whom'; did you mean 'who'"),
        ("max_running: 2", "max_runing: 2", "there is no 'max_runing'"),
        ("working_set: 0.9", "working_set: 9", "working_set"),
        ("order:", "ordr:", "did you mean 'order'"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(old: str, new: str, said: str) -> None:
    with pytest.raises(InvalidWorkflow) as caught:
        loads(YAML.replace(old, new), "echo.yaml")
    problem = next(each for each in caught.value.problems if said in each.message)
    assert 6 <= problem.line <= 13


def test_python_says_who_goes_first() -> None:
    say = llm("Say {{ text }}")

    @workflow(order="deadline", tenant="who", limits={"working_set": 0.5})
    def echo(who: str, text: str) -> str:
        return say(text=text)

    found = echo.workflow.scheduling
    assert (found.order, found.tenant, found.limits) == ("deadline", "who", {"working_set": 0.5})
    with pytest.raises(InvalidInput, match="no order"):
        workflow(order="quickest")


async def test_a_host_refuses_what_does_not_exist() -> None:
    for wrong in (Scheduling(order="x"), Scheduling(retention="x"), Scheduling(limits={"x": 1})):
        with pytest.raises(InvalidConfig):
            async with open_host({"default": FakeBackend()}, scheduling=wrong):
                pass


async def test_a_job_goes_by_its_own_wishes_and_learns_from_the_last(tmp_path: Path) -> None:
    (tmp_path / "echo.yaml").write_text(YAML)
    rows = [{"who": f"user{n % 3}", "text": f"number {n}"} for n in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    async def once(out: str, **more: Any) -> list[Any]:
        spec = MapSpec(
            str(tmp_path / "echo.yaml"),
            str(tmp_path / "rows.jsonl"),
            str(tmp_path / out),
            home=str(tmp_path / "home"),
            **more,
        )
        outcome = await map_table(spec, Control(), Tally())
        assert outcome.rows_done == 12
        (trace,) = (tmp_path / "home" / "runs" / outcome.run).glob("trace*")
        return [record for _, record in read(trace)]

    first = await once("a.jsonl")
    arrived = [record for record in first if isinstance(record, ProgramArrived)]
    assert {record.tenant for record in arrived} == {"user0", "user1", "user2"}
    assert arrived[0].expected_tokens is None
    ready = [record for record in first if isinstance(record, CallReady)]
    assert ready[0].expected_tokens is None

    second = await once("b.jsonl", order="fcfs")
    assert all(r.expected_tokens for r in second if isinstance(r, ProgramArrived))
    assert all(r.remaining_tokens for r in second if isinstance(r, CallReady))


@pytest.mark.parametrize(
    "wrong", [{"order": "x"}, {"retention": "x"}, {"tenant": "x"}, {"limits": {"x": 1}}]
)
async def test_a_job_refuses_what_does_not_exist(tmp_path: Path, wrong: dict[str, Any]) -> None:
    (tmp_path / "echo.yaml").write_text(YAML)
    (tmp_path / "rows.jsonl").write_text('{"who": "a", "text": "b"}\n')
    spec = MapSpec(
        str(tmp_path / "echo.yaml"), str(tmp_path / "rows.jsonl"), str(tmp_path / "o.csv"), **wrong
    )
    with pytest.raises(InvalidInput):
        await map_table(spec, Control(), Tally())
