"""`tenter calibrate`: thoughts to their end, and the boldest rule that they vouch for."""

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tenter.runtime.backends.fake import FakeBackend
from tenter.runtime.calibrating import calibrate_step
from tenter.runtime.calls import Chunk, Request, Usage
from tenter.runtime.clock import VirtualLoop
from tenter.runtime.errors import InvalidInput
from tenter.runtime.jobs import MapSpec
from tenter.runtime.reasoning.families import CUTS, SURE, families_for
from tenter.runtime.reasoning.recorded import Recorded, RecordedTrial
from tenter.runtime.reasoning.rules import LADDER, StopRule

YAML = """\
version: 1
name: solve
inputs: {x: string}
steps:
  answer:
    reason: "What is {{ x }}?"
    max_tokens: 2000
    settings: {suffix: "BOX{"}
output: "{{ answer }}"
"""
THOUGHT = "hm " * 400 + "\nanswer: 4"
SETTLED = 300  # tokens after which a probe says what the end says
ROWS = 260  # so many vouch for a cut that loses nothing


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualLoop}


class Settling(FakeBackend):
    """Changes its mind once, long before it ends. Called a fake."""

    async def generate(self, request: Request) -> AsyncIterator[Chunk]:
        prompt = bytes(token for token in request.token_ids if token < 256)
        usage = Usage(prompt_tokens=len(request.token_ids), output_tokens=1)
        said = prompt.count(b"hm") * 3
        if prompt.endswith(b"BOX{"):
            text = "4}" if said > SETTLED else "7}"
            yield Chunk(text=text, token_ids=(*text.encode(), 256), finish="stop", usage=usage)
            return
        rest = THOUGHT[said:].encode()
        piece = rest[: request.sampling.max_tokens // 3 * 3 or 3]
        ended = len(piece) == len(rest)
        ids = (*piece, *((256,) if ended else ()))
        finish = "stop" if ended else "length"
        yield Chunk(text=piece.decode(), token_ids=ids, finish=finish, usage=usage)


class Knowing(Settling):
    """Settles sooner or later by its row, and is sure from then on; all that was thought is cached.
    Called a fake."""

    def __init__(self) -> None:
        super().__init__()
        self.capabilities = replace(self.capabilities, logprobs=True)

    async def generate(self, request: Request) -> AsyncIterator[Chunk]:
        prompt = bytes(token for token in request.token_ids if token < 256).decode()
        count = len(request.token_ids)
        if not prompt.endswith("BOX{"):
            async for chunk in super().generate(request):
                usage = Usage(count, count - 1, len(chunk.token_ids))
                yield msgspec.structs.replace(chunk, usage=usage)
            return
        row = int(prompt.partition("0 * ")[2].partition("?")[0])
        sure = prompt.count("hm") * 3 > SETTLED + row % 8 * 100
        usage = Usage(count, count - 5, 3)
        text, logprobs = ("4}", (-0.001,) * 3) if sure else ("7}", (-1.0,) * 3)
        ids = (*text.encode(), 256)
        yield Chunk(text=text, token_ids=ids, logprobs=logprobs, finish="stop", usage=usage)


@pytest.mark.slow
async def test_rows_that_know_when_they_have_settled_are_asked_how_sure_they_are(
    spec: MapSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    @asynccontextmanager
    async def opened(models: Any) -> AsyncGenerator[Any]:
        yield {"default": Knowing()}

    monkeypatch.setattr("tenter.runtime.calibrating.open_backends", opened)
    done = await calibrate_step(spec, label="right")
    assert done.found.rule.confidence is not None
    assert done.found.rule.vouch is not None
    assert done.found.rule.vouch.saved > 0.3
    assert "no confidence" not in done.found.message
    assert StopRule.from_json(json.dumps(done.settings["rule"])) == done.found.rule


@pytest.fixture(name="spec")
def spec_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MapSpec:
    @asynccontextmanager
    async def opened(models: Any) -> AsyncGenerator[Any]:
        yield {"default": Settling()}

    monkeypatch.setattr("tenter.runtime.calibrating.open_backends", opened)
    (tmp_path / "solve.yaml").write_text(YAML)
    rows = [{"x": f"2 + 2 + 0 * {n}", "right": "4"} for n in range(ROWS)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return MapSpec(str(tmp_path / "solve.yaml"), str(tmp_path / "rows.jsonl"), "", journal=False)


@pytest.mark.slow
@pytest.mark.parametrize("label", ["right", None])
async def test_rows_that_settle_early_vouch_for_a_rule(spec: MapSpec, label: str | None) -> None:
    done = await calibrate_step(spec, label=label)
    assert (done.rows, done.failed, done.step) == (ROWS, 0, "answer")
    assert done.found.rule.vouch is not None
    cut = done.found.rule.cut_tokens
    assert cut is not None
    assert cut > SETTLED  # all rows settle at one length, so a cut is the best of all rules
    assert "no confidence was recorded" in done.found.message
    assert done.found.rule.vouch.saved > 0.1
    assert "saves" in done.found.message
    assert done.settings["suffix"] == "BOX{"
    assert StopRule.from_json(json.dumps(done.settings["rule"])) == done.found.rule


async def test_too_few_rows_vouch_for_nothing_and_it_says_how_many_it_takes(spec: MapSpec) -> None:
    few = MapSpec(spec.workflow, spec.table, "", journal=False, limit=20)
    done = await calibrate_step(few, label="right")
    assert not done.found.rule.stops
    assert not done.found.enough_data
    assert "20 problems cannot vouch" in done.found.message


def table(spec: MapSpec, rows: list[dict[str, Any]]) -> MapSpec:
    Path(spec.table).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return spec


async def test_a_question_that_is_asked_often_is_one_problem(spec: MapSpec) -> None:
    rows = [{"x": f"2 + 2 + 0 * {n % 5}", "right": "4"} for n in range(40)]
    done = await calibrate_step(table(spec, rows), label="right", budget=0.2)
    assert done.rows == 40
    assert not done.found.rule.stops
    assert not done.found.enough_data
    assert "5 problems cannot vouch" in done.found.message


async def test_rows_whose_label_is_no_answer_are_no_evidence(spec: MapSpec) -> None:
    rows = [{"x": f"{n}", "right": 4 if n < 20 else ("" if n % 2 else None)} for n in range(ROWS)]
    done = await calibrate_step(table(spec, rows), label="right")
    assert (done.rows, done.failed) == (20, ROWS - 20)
    assert "20 problems cannot vouch" in done.found.message
    assert "240 rows are left out" in done.found.message


async def test_labels_that_no_thought_ends_with_vouch_for_nothing(spec: MapSpec) -> None:
    rows = [{"x": f"{n}", "right": 0} for n in range(30)]
    done = await calibrate_step(table(spec, rows), label="right")
    assert (done.rows, done.found.rule.stops) == (30, False)
    assert "no thought ends with its row's label" in done.found.message


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"step": "other"}, "no such reasoning step"),
        ({"label": "wrong"}, "no such column"),
        ({"budget": 2.0}, "share of the answers"),
    ],
)
async def test_what_cannot_be_calibrated_is_refused(
    spec: MapSpec, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidInput, match=said):
        await calibrate_step(spec, **change)


async def test_a_workflow_without_thought_is_refused(spec: MapSpec) -> None:
    plain = YAML.replace("reason:", "llm:").replace("    settings", "    #")
    Path(spec.workflow).write_text(plain)  # noqa: ASYNC240
    with pytest.raises(InvalidInput, match="no reasoning step"):
        await calibrate_step(spec)


def _record(tokens: int, logprobs: tuple[float, ...] = ()) -> Recorded:
    return Recorded("p", tokens, "4", True, (RecordedTrial(8, "4}", 2, logprobs),))


def test_short_thoughts_are_probed_as_much_earlier() -> None:
    (standing, cuts), left_out = families_for([_record(3_000)] * 9)
    assert (standing.rules, cuts.rules) == (LADDER, CUTS)
    assert "no confidence was recorded" in left_out[0]
    short, sure, cuts = families_for([_record(300, logprobs=(-0.1,))] * 9)[0]
    assert len(sure.rules) == len(SURE)
    assert cuts.rules[0].cut_tokens == 1_200
    for rule, long in zip(short.rules, LADDER, strict=True):
        assert rule.start_tokens == pytest.approx(long.start_tokens / 10, rel=0.1)
        assert rule.agree == long.agree
