"""What reasoning steps have in common: budgets that are left, turns by what is left to think, the
evidence of shadow runs."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from tenter.runtime import reason, run_workflow, workflow
from tenter.runtime.backends.fake import FakeBackend
from tenter.runtime.calls import Chunk, Request, Usage
from tenter.runtime.clock import VirtualLoop
from tenter.runtime.errors import BackendUnavailable, Drained
from tenter.runtime.predict import Learned
from tenter.runtime.report.summary import render
from tenter.runtime.report.tally import Tally
from tenter.runtime.run.local import open_host
from tenter.runtime.run.program import Programs
from tenter.runtime.scheduler.events import CallReady, Dispatch, Drifted, Reasoned
from tenter.runtime.scheduler.placement import OUTPUT_WEIGHT
from tenter.runtime.trace import Fanout, MemoryTrace
from tenter.runtime.workflow import Scheduling

END = 256
SUFFIX = "so:"


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualLoop}


class Writer(FakeBackend):
    """Writes as many x as the number behind `len=` in its prompt says, a byte a second, then
    `answer: 7`; asked in between it says what stands behind `try=`. Called a fake."""

    def __init__(self, max_running: int = 64) -> None:
        super().__init__(max_running=max_running)

    async def generate(self, request: Request) -> AsyncIterator[Chunk]:
        said = bytes(token for token in request.token_ids if token < END).decode()
        if said.endswith(SUFFIX):
            text, ends = said.partition("try=")[2][:1] + "}", True
        else:
            question, _, thought = said.partition("?")
            line = "x" * int(question.partition("len=")[2][:4]) + "\nanswer: 7"
            text = line[len(thought) : len(thought) + request.sampling.max_tokens]
            ends = len(thought) + len(text) == len(line)
            ends = ends and len(text) < request.sampling.max_tokens
        with anyio.CancelScope() as scope:
            self.running[request.call] = scope
            try:
                await anyio.sleep(len(text))
            finally:
                del self.running[request.call]
        ids = (*text.encode(), *((END,) if ends else ()))
        finish = "abort" if scope.cancelled_caught else "stop" if ends else "length"
        usage = Usage(prompt_tokens=len(request.token_ids), output_tokens=len(ids))
        yield Chunk(text=text, token_ids=ids, finish=finish, usage=usage)


def reasoned(trace: MemoryTrace) -> list[Reasoned]:
    return [record for _, record in trace.records if isinstance(record, Reasoned)]


# ---- budgets -----------------------------------------------------------------------------------


async def easy_then_hard(trace: MemoryTrace, **settings: Any) -> Any:
    """A step that needs 21 tokens of 200, then one that needs 261."""
    budget = {"strategy": "vote", "n": 1, "max_tokens": 400, "budget_tokens": 200, **settings}
    easy = reason("len=0010 {{ x }}?", **budget)
    hard = reason("len=0250 {{ x }}?", **budget)

    @workflow
    def answer(x: str) -> str:
        return hard(x=easy(x=x))

    backends = {"default": Writer()}
    return await run_workflow(answer.workflow, {"x": "go"}, backends=backends, trace=trace)


async def test_what_a_settled_step_leaves_goes_to_one_that_runs_short() -> None:
    trace = MemoryTrace()
    assert await easy_then_hard(trace) == "7"
    first, second = reasoned(trace)
    assert (first.lent_tokens, second.lent_tokens) == (0, 179)
    assert first.thought_tokens + second.thought_tokens <= 400


async def test_a_step_may_keep_out_of_the_pool() -> None:
    with pytest.raises(Exception, match="its budget of 200 tokens gave no answer"):
        await easy_then_hard(MemoryTrace(), pool="none")


async def rows(pool: str) -> list[Any]:
    """An easy row, and a hard one that ends later."""
    step = reason(
        "len={{ x }}?", strategy="vote", n=1, max_tokens=400, budget_tokens=200, pool=pool
    )

    @workflow
    def answer(x: str) -> str:
        return step(x=x)

    found: dict[int, Any] = {}
    async with open_host({"default": Writer()}) as host:
        programs, over = Programs(host, answer.workflow), anyio.Event()

        def arrive(row: int, x: str) -> None:
            def ended(value: Any, error: Exception | None) -> None:
                found[row] = value
                if len(found) == 2:
                    over.set()

            programs.arrive(row, {"x": x}, ended)

        arrive(0, "0010")
        arrive(1, "0250")
        await over.wait()
    return [found[0], found[1]]


async def test_a_pool_of_the_run_is_for_all_programs() -> None:
    assert await rows("run") == ["7", "7"]
    assert await rows("program") == ["7", None]


async def test_what_is_aborted_gives_back_what_it_had_not_drawn() -> None:
    trace = MemoryTrace()
    quick = reason(
        "len=0010 {{ x }}?", strategy="first-finish", n=3, max_tokens=800, budget_tokens=2400
    )
    hard = reason("len=0700 {{ x }}?", strategy="vote", n=1, max_tokens=800, budget_tokens=200)

    @workflow
    def answer(x: str) -> str:
        return hard(x=quick(x=x))

    backends = {"default": Writer()}
    await run_workflow(answer.workflow, {"x": "go"}, backends=backends, trace=trace)
    assert reasoned(trace)[1].lent_tokens >= 500


# ---- turns -------------------------------------------------------------------------------------


async def test_programs_with_little_left_to_think_go_first() -> None:
    step = reason("len={{ x }}?", strategy="vote", n=1, max_tokens=2_000)
    short = reason("len={{ x }}?", strategy="vote", n=1, max_tokens=40)
    trace, found = MemoryTrace(), list[int]()

    @workflow
    async def answer(x: str) -> str:
        return await (step if x == "0600" else short)(x=x)

    options: dict[str, Any] = {"scheduling": Scheduling(order="shortest-remaining")}
    async with open_host({"default": Writer(max_running=1)}, trace=trace, **options) as host:
        programs, over = Programs(host, answer.workflow), anyio.Event()

        def arrive(row: int, x: str) -> None:
            def ended(value: Any, error: Exception | None) -> None:
                assert error is None
                found.append(row)
                if len(found) == 4:
                    over.set()

            programs.arrive(row, {"x": x}, ended)

        for row, x in enumerate(("0600", "0600", "0010", "0010")):
            arrive(row, x)
        await over.wait()
    assert found[:2] == [2, 3]
    ready = [record for _, record in trace.records if isinstance(record, CallReady)]
    mine = [record.remaining_tokens for record in ready if record.program == "r0"]
    assert mine == sorted(mine, reverse=True)  # the less there is to think, the sooner its turn
    assert mine[0] == OUTPUT_WEIGHT * 2_000 + ready[0].prompt_tokens
    assert sum(isinstance(record, Dispatch) for _, record in trace.records) == len(ready)


# ---- shadow runs -------------------------------------------------------------------------------

RULE = {"version": 1, "name": "stands-4-first", "start_tokens": 16, "step_tokens": 8, "ratio": 1.2}


def questions(
    count: int, trial: str, home: Path, run: str = "", **settings: Any
) -> tuple[Tally, MemoryTrace]:
    """A run over `count` questions, all of them shadow runs, whose early answer is `trial`; what
    it learns is kept in `home`."""
    given = {"rule": {**RULE, "agree": 2}, "shadow": 1.0, "drift": 0.05, **settings}
    step = reason(
        "len=0200 try=" + trial + " {{ x }}?",
        max_tokens=1_000,
        suffix=SUFFIX,
        name="think",
        **given,
    )

    @workflow
    def answer(x: str) -> str:
        return step(x=x)

    async def go() -> tuple[Tally, MemoryTrace]:
        tally, trace = Tally(), MemoryTrace()
        learned = Learned.load(home, "answer", "f")
        both = Fanout(tally, trace)
        opened = open_host({"default": Writer()}, trace=both, learned=learned, run=run)
        async with opened as host:
            programs = Programs(host, answer.workflow)
            for row in range(count):
                over = anyio.Event()
                programs.arrive(row, {"x": str(row)}, lambda value, error, over=over: over.set())
                await over.wait()
        assert learned.save()
        return tally, trace

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(go())


def test_evidence_against_a_rule_adds_up_over_runs_until_it_is_widened(tmp_path: Path) -> None:
    tally, trace = questions(5, "3", tmp_path)
    assert not [record for _, record in trace.records if isinstance(record, Drifted)]
    assert "0 of 5 shadow runs keep the answer" in render(tally.snapshot())

    tally, trace = questions(5, "3", tmp_path)
    (drift,) = [record for _, record in trace.records if isinstance(record, Drifted)]
    assert (drift.left, drift.rule) == ("stands-4-first", "stands-4-early")
    assert "think: stands-4-first loses 100.0%" in render(tally.snapshot())

    tally, trace = questions(1, "3", tmp_path)
    assert "stands-4-early (for stands-4-first)" in render(tally.snapshot())
    assert reasoned(trace)[0].left_rule == "stands-4-first"


def test_a_rule_that_keeps_its_word_stays(tmp_path: Path) -> None:
    for _ in range(2):
        tally, trace = questions(10, "7", tmp_path)
    assert not [record for _, record in trace.records if isinstance(record, Drifted)]
    assert "stop rule  " in render(tally.snapshot())
    assert [record.shadow for record in reasoned(trace)] == [True] * 10


def test_an_answer_that_nobody_can_read_is_kept_only_if_it_is_the_same(tmp_path: Path) -> None:
    cut = {"version": 1, "name": "brief", "agree": 0, "cap": 1.0, "cut_tokens": 100}
    for trial, same in (("3", False), ("7", True)):
        _, trace = questions(1, trial, tmp_path, rule=cut, answers=["yes", "no"])
        assert [record.shadow for record in reasoned(trace)] == [same]


def test_each_run_over_a_table_has_other_shadow_runs_and_a_resumed_one_the_same(
    tmp_path: Path,
) -> None:
    def shadows(run: str) -> list[bool]:
        _, trace = questions(12, "7", tmp_path, shadow=0.5, run=run)
        return [record.shadow is not None for record in reasoned(trace)]

    monday, tuesday = shadows("monday"), shadows("tuesday")
    assert shadows("monday") == monday != tuesday


def test_what_an_author_changes_begins_anew(tmp_path: Path) -> None:
    questions(9, "3", tmp_path)
    _, trace = questions(1, "3", tmp_path, drift=0.3)
    assert reasoned(trace)[0].rule == "stands-4-first"


def test_damaged_evidence_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    questions(2, "3", tmp_path)
    (path,) = (each for each in (tmp_path / "learned").glob("answer-*.json"))
    document = json.loads(path.read_text())
    (state,) = document["shadows"].values()
    state[3] = -1
    path.write_text(json.dumps(document))
    _, trace = questions(1, "3", tmp_path)
    assert reasoned(trace)[0].rule == "stands-4-first"
    assert "damaged" in caplog.text


# ---- the end of a run --------------------------------------------------------------------------


async def stopped_by(error: Exception, when_s: float) -> Any:
    """What a program comes to whose run ends at `when_s`, in `error`'s way."""

    class Failing(Writer):
        async def generate(self, request: Request) -> AsyncIterator[Chunk]:
            if anyio.current_time() >= when_s and isinstance(error, BackendUnavailable):
                raise error
            async for chunk in super().generate(request):
                yield chunk

    step = reason("len=0300 {{ x }}?", strategy="vote", n=3, max_tokens=1_000)

    @workflow
    def answer(x: str) -> str:
        return step(x=x)

    ends: list[Any] = []
    async with open_host({"default": Failing()}) as host:
        programs, over = Programs(host, answer.workflow), anyio.Event()

        def ended(value: Any, error: Exception | None) -> None:
            ends.append(error)
            over.set()

        programs.arrive(0, {"x": "go"}, ended)
        await anyio.sleep(when_s)
        if isinstance(error, Drained):
            programs.drain()
        await over.wait()
    return ends[0]


async def test_a_run_that_drains_stops_a_thought_and_does_not_fail_it() -> None:
    assert isinstance(await stopped_by(Drained("", ""), 100.0), Drained)


async def test_a_model_that_is_gone_ends_the_step() -> None:
    found = await stopped_by(BackendUnavailable("gone"), 100.0)
    assert isinstance(found, BackendUnavailable)
