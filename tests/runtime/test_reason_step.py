"""Reasoning steps in workflows: what is asked of the engine, what is aborted, what is remembered."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from tenter.runtime import reason, run_workflow, workflow
from tenter.runtime.backends.fake import FakeBackend
from tenter.runtime.calls import Chunk, Request, Usage
from tenter.runtime.clock import VirtualLoop
from tenter.runtime.errors import InvalidInput, InvalidWorkflow, StepFailed
from tenter.runtime.journal.memory import MemoryJournal
from tenter.runtime.report.summary import render, summary
from tenter.runtime.report.tally import Tally
from tenter.runtime.run.local import open_host
from tenter.runtime.run.program import Programs
from tenter.runtime.scheduler.events import Abort, CallEnded, Dispatch, Reasoned
from tenter.runtime.spec import dump, loads
from tenter.runtime.trace import MemoryTrace


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualLoop}


class Thinker(FakeBackend):
    """Each sample, told by its seed, says a line of its own, a byte a second. Called a fake."""

    def __init__(self, *lines: str) -> None:
        super().__init__()
        self.lines = lines
        self.requests: list[Request] = []
        self.live = 0
        self.ahead = 0  # of the first request, tokens that an earlier backend had drawn
        self._begun = 0

    async def generate(self, request: Request) -> AsyncIterator[Chunk]:
        self.requests.append(request)
        said = bytes(request.token_ids[len(self.requests[0].token_ids) - self.ahead :])
        if said:  # a thought that goes on
            line = next(each for each in self.lines if each.encode().startswith(said))
        else:
            line = self.lines[self._begun % len(self.lines)]
            self._begun += 1
        line = line.encode()[len(said) :]
        self.live += 1
        try:
            piece = line[: request.sampling.max_tokens]
            await anyio.sleep(len(piece))
        finally:
            self.live -= 1
        ended = len(line) <= request.sampling.max_tokens
        ids = (*piece, *((256,) if ended else ()))
        finish = "stop" if ended else "length"
        usage = Usage(prompt_tokens=len(request.token_ids), output_tokens=len(ids))
        yield Chunk(text=piece.decode(), token_ids=ids, finish=finish, usage=usage)


async def think(backend: FakeBackend, step: Any, trace: MemoryTrace | None = None) -> Any:
    @workflow
    def answer(x: str) -> str:
        return step(x=x)

    found = answer.workflow
    return await run_workflow(found, {"x": "2 + 2"}, backends={"default": backend}, trace=trace)


class Sure(Thinker):
    """Says 4 whenever it is asked. Called a fake."""

    cached_tokens = 0

    async def generate(self, request: Request) -> AsyncIterator[Chunk]:
        if request.sampling.temperature == 0.0:  # a probe
            self.requests.append(request)
            usage = Usage(len(request.token_ids), self.cached_tokens, 3)
            yield Chunk(text="4}", token_ids=(52, 125, 256), finish="stop", usage=usage)
            return
        async for chunk in super().generate(request):
            yield chunk


async def test_samples_that_agree_end_the_others() -> None:
    long = "x" * 150 + "\nanswer: 9"
    backend = Thinker("answer: 4", "so the answer: 4", long, long)
    trace = MemoryTrace()
    step = reason("What is {{ x }}?", strategy="first-finish", n=4, k=2, max_tokens=200)
    began = anyio.current_time()
    assert await think(backend, step, trace) == "4"
    assert anyio.current_time() - began < 30
    await anyio.lowlevel.checkpoint()
    assert backend.live == 0
    records = [record for _, record in trace.records]
    assert sum(isinstance(record, Abort) for record in records) == 2
    (told,) = [record for record in records if isinstance(record, Reasoned)]
    assert (told.stopped, told.samples) == ("settled", 4)
    assert told.thought_tokens < told.full_tokens


async def test_the_summary_tells_what_thinking_took() -> None:
    tally = Tally()
    long = "x" * 150 + "\nanswer: 9"
    step = reason("What is {{ x }}?", strategy="first-finish", n=4, k=2, max_tokens=200)

    @workflow
    def answer(x: str) -> str:
        return step(x=x)

    backends = {"default": Thinker("answer: 4", "so the answer: 4", long, long)}
    await run_workflow(answer.workflow, {"x": "2"}, backends=backends, trace=tally)
    found = summary(tally.snapshot())["reasoning"]
    assert (found["steps"], found["settled"]) == (1, 1)
    assert 0 < found["thought_tokens"] < found["full_tokens"]
    assert "1 settled early" in render(tally.snapshot())


async def test_the_samples_of_a_step_enter_together() -> None:
    trace = MemoryTrace()
    step = reason("What is {{ x }}?", strategy="vote", n=4, max_tokens=64)
    await think(Thinker("answer: 4"), step, trace)
    sent = [at_s for at_s, record in trace.records if isinstance(record, Dispatch)]
    assert len(sent) == 4
    assert len(set(sent)) == 1


async def test_a_thought_is_probed_where_it_stands_and_ends_when_it_has_settled() -> None:
    rule = {"version": 1, "name": "quick", "start_tokens": 16, "ratio": 1.5, "agree": 2}
    backend, trace = Sure("hm " * 400), MemoryTrace()
    step = reason("What is {{ x }}?", max_tokens=1000, rule=rule, suffix="\\boxed{", top_p=1.0)
    assert await think(backend, step, trace) == "4"
    probes = [each for each in backend.requests if each.sampling.temperature == 0.0]
    thoughts = [each for each in backend.requests if each.sampling.temperature > 0.0]
    assert bytes(probes[0].token_ids).endswith(b"\\boxed{")
    for probe in probes:  # it branches from what was thought, which is in the cache
        assert probe.token_ids[: len(thoughts[0].token_ids)] == thoughts[0].token_ids
    (told,) = [r for _, r in trace.records if isinstance(r, Reasoned)]
    assert told.thought_tokens < 200
    assert told.probe_tokens > 0
    assert told.rule == "quick"
    # Nothing was cached: each probe computes all before its suffix again, each piece all so far.
    probed = sum(len(each.token_ids) for each in probes)
    assert told.probe_tokens + told.probe_again_tokens == probed + 3 * len(probes)
    assert told.again_tokens == sum(len(each.token_ids) for each in thoughts[1:])
    tally = Tally()
    for at_s, record in trace.records:
        tally.add(at_s, record)
    found = summary(tally.snapshot())["reasoning"]
    spent = found["thought_tokens"] + found["probe_tokens"] + found["again_tokens"]
    assert found["probe_tokens"] == probed + 3 * len(probes)
    assert found["saved_tokens"] == found["full_tokens"] - spent


async def test_a_rule_that_asks_for_confidence_gives_way_where_a_model_does_not_tell_it() -> None:
    rule = {"version": 1, "name": "sure", "start_tokens": 16, "agree": 1, "confidence": 0.9}
    backend, trace = Sure("hm " * 40 + "\nanswer: 5"), MemoryTrace()
    step = reason("What is {{ x }}?", max_tokens=1000, rule=rule, suffix="\\boxed{")
    assert await think(backend, step, trace) == "5"
    (told,) = [r for _, r in trace.records if isinstance(r, Reasoned)]
    assert (told.rule, told.left_rule, told.probe_tokens) == ("full length", "sure", 0)


async def test_a_stopped_run_thinks_on_where_it_was() -> None:
    journal = MemoryJournal()
    line = "y" * 700 + "\nanswer: 4"
    step = reason("What is {{ x }}?", strategy="vote", n=1, max_tokens=900)

    @workflow
    def answer(x: str) -> str:
        return step(x=x)

    async def go(backend: Thinker, resumed: bool, until_s: float | None) -> Any:
        ends: list[Any] = []
        async with open_host({"default": backend}, journal=journal, resumed=resumed) as host:
            programs = Programs(host, answer.workflow)
            recorded = {path: r for (_, path), r in (await journal.steps(0, 0)).items()}
            over = anyio.Event()

            def ended(value: Any, error: Exception | None) -> None:
                ends.append(value if error is None else error)
                over.set()

            programs.arrive(0, {"x": "2 + 2"}, ended, recorded)
            with anyio.move_on_after(until_s if until_s is not None else 1e9):
                await over.wait()
            if not over.is_set():
                programs.cancel("r0")
        return ends[0]

    first = Thinker(line)
    await go(first, False, 600.0)
    second = Thinker(line)
    second.ahead = 512
    assert await go(second, True, None) == "4"
    asked = len(first.requests[0].token_ids)
    assert len(second.requests[0].token_ids) == asked + 512  # two pieces were recorded


async def test_no_answer_is_a_failed_step_that_says_why() -> None:
    step = reason("What is {{ x }}?", strategy="vote", n=2, max_tokens=20)
    with pytest.raises(StepFailed, match="gave no answer"):
        await think(Thinker("z" * 500), step)


YAML = """\
version: 1
name: think
inputs: {x: string}
steps:
  answer:
    reason: "What is {{ x }}?"
    strategy: self-consistency
    settings: {n: 6, answers: math}
    max_tokens: 64
output: "{{ answer }}"
"""


def test_yaml_has_the_step_too_and_round_trips() -> None:
    found = loads(YAML, "think.yaml")
    assert found.graph is not None
    assert loads(dump(found), "think.yaml").graph == found.graph
    thinking = reason(
        "What is {{ x }}?", strategy="self-consistency", n=6, answers="math", max_tokens=64
    )

    @workflow
    def think(x: str) -> str:
        return thinking(x=x)

    assert loads(dump(think.workflow), "think.yaml").graph == think.workflow.graph
    (one,), (two,) = found.graph.steps, think.workflow.graph.steps
    assert (one.reasoning, one.sampling) == (two.reasoning, two.sampling)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("strategy: self-consistency", "strategy: guess", "there is no strategy 'guess'"),
        ("n: 6", "samples: 6", "no setting 'samples'"),
        ("n: 6", "n: many", "n is of type int"),
        ("answers: math", "answers: verse", "answers are math"),
        ("n: 6", "rule: default", "no stop rule"),
        ("n: 6", "shadow: 2", "shadow is a share"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(old: str, new: str, said: str) -> None:
    with pytest.raises(InvalidWorkflow) as caught:
        loads(YAML.replace(old, new), "think.yaml")
    assert said in caught.value.problems[0].message
    assert caught.value.problems[0].line in (7, 8)
    with pytest.raises(InvalidInput):
        reason("x", strategy="thought", rule={"version": 99})


@pytest.mark.slow
def test_the_tiny_model_thinks_shorter_for_the_same_answer() -> None:
    step = reason(
        "Compute {{ x }}. Think hard.",
        strategy="self-consistency",
        n=8,
        max_tokens=200,
        temperature=1.0,
        top_p=1.0,
        suffix="</think>\n",
    )

    @workflow
    def answer(x: str) -> str:
        return step(x=x)

    sums, trace = ((23, 45), (12, 31), (8, 19), (40, 17)), MemoryTrace()

    async def go() -> int:
        right = 0
        for a, b in sums:
            inputs = {"x": f"{a} + {b} - 7"}
            found = await run_workflow(answer.workflow, inputs, trace=trace, seed=a)
            right += found == str(a + b - 7)
        return right

    assert asyncio.run(go()) >= 3
    told = [record for _, record in trace.records if isinstance(record, Reasoned)]
    assert len(told) == 4
    assert sum(each.thought_tokens for each in told) < sum(each.full_tokens for each in told)


@pytest.mark.slow
def test_on_the_embedded_engine_a_probe_computes_its_suffix_and_the_rest_of_a_page() -> None:
    rule = {"version": 1, "name": "twice", "start_tokens": 32, "step_tokens": 32, "agree": 2}
    suffix = "\n</think>\n"
    step = reason("Compute {{ x }}. Think hard.", max_tokens=200, suffix=suffix, rule=rule)

    @workflow
    def answer(x: str) -> str:
        return step(x=x)

    trace = MemoryTrace()
    assert asyncio.run(run_workflow(answer.workflow, {"x": "23 + 45 - 7"}, trace=trace)).strip()
    probes = [
        record
        for _, record in trace.records
        if isinstance(record, CallEnded) and ".probe" in record.call
    ]
    assert probes
    for probe in probes:
        assert probe.prompt_tokens - probe.cached_tokens <= 32
