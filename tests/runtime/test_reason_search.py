"""Reasoning steps with a scorer: what it is told, what it steers, and what it may do wrong."""

import asyncio
import hashlib
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from tenter.runtime import llm, reason, run_workflow, tool, workflow
from tenter.runtime.backends.fake import FakeBackend
from tenter.runtime.calls import Chunk, Request, Usage
from tenter.runtime.clock import VirtualLoop
from tenter.runtime.errors import InvalidInput, InvalidWorkflow, StepFailed
from tenter.runtime.journal.memory import MemoryJournal
from tenter.runtime.report.summary import render
from tenter.runtime.report.tally import Tally
from tenter.runtime.run.local import open_host
from tenter.runtime.run.program import Programs
from tenter.runtime.scheduler.events import CallEnded, Dispatch, Reasoned, ToolEnded
from tenter.runtime.spec import dump, loads
from tenter.runtime.trace import Fanout, MemoryTrace

END = 256


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualLoop}


class Chain(FakeBackend):
    """Writes steps of a letter, `a\\n\\n` or `b\\n\\n`, by seed; the fourth is `answer: N`, the number
    of its a's. A byte a second. Called a fake."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[Request] = []
        self.judged: list[str] = []
        self.live = 0
        self.slow = False  # by seed, up to three times

    def said(self, request: Request) -> tuple[str, bool]:
        """The next step, and whether it is the last."""
        thought = bytes(t for t in request.token_ids if t < END).decode().partition("?")[2]
        steps = [step for step in thought.split("\n\n") if step]
        if len(steps) >= 3:
            return f"answer: {sum(step == 'a' for step in steps)}", True
        seed = f"{request.sampling.seed}".encode()
        return "ab"[hashlib.blake2b(seed, digest_size=1).digest()[0] % 2] + "\n\n", False

    async def generate(self, request: Request) -> AsyncIterator[Chunk]:
        if request.choices is not None:
            prompt = self.tokenizer.decode(list(request.token_ids))
            self.judged.append(prompt)
            good = prompt.count("a\n\n") / 4
            usage = Usage(prompt_tokens=len(request.token_ids), cached_tokens=5)
            odds = (math.log(0.01 + good), math.log(1.01 - good))
            yield Chunk(finish="stop", usage=usage, choice_logprobs=odds)
            return
        self.requests.append(request)
        text, last = self.said(request)
        self.live += 1
        try:
            times = 1 + (request.sampling.seed or 0) % 3 if self.slow else 1
            await anyio.sleep(len(text) * times)
        finally:
            self.live -= 1
        stopped = not last and "\n\n" in request.sampling.stop
        ids = (*text.encode(), *((END,) if last else ()))
        usage = Usage(prompt_tokens=len(request.token_ids), output_tokens=len(ids))
        shown = text.removesuffix("\n\n") if stopped else text
        finish = "stop" if last or stopped else "length"
        yield Chunk(text=shown, token_ids=ids, finish=finish, usage=usage)


async def share_of_a(thought: str) -> float:
    """How many of three steps are an a."""
    return thought.count("a\n\n") / 3


async def think(backend: FakeBackend, step: Any, trace: Any = None, **options: Any) -> Any:
    @workflow
    def answer(x: str) -> str:
        return step(x=x)

    backends = {"default": backend}
    return await run_workflow(
        answer.workflow, {"x": "2 + 2"}, backends=backends, trace=trace, **options
    )


def told(trace: MemoryTrace) -> Reasoned:
    (found,) = [record for _, record in trace.records if isinstance(record, Reasoned)]
    return found


SEARCH = {"max_tokens": 100, "step_tokens": 16}


async def test_rebase_grows_what_is_rewarded_from_the_tokens_of_its_parent() -> None:
    backend, trace = Chain(), MemoryTrace()
    step = reason("{{ x }}?", strategy="rebase", scorer=share_of_a, width=8, **SEARCH)
    assert await think(backend, step, trace) == "3"
    asked = [tuple(request.token_ids) for request in backend.requests]
    prompt = asked[0]
    assert asked[:8] == [prompt] * 8
    grown = [ids for ids in asked if ids != prompt]
    begun = {*(ids + tuple(b"a\n\n") for ids in asked), *(ids + tuple(b"b\n\n") for ids in asked)}
    assert all(ids in begun for ids in grown)  # each goes on from what was drawn, token by token
    a, b = (sum(bytes(ids).decode().endswith(f"?{c}\n\n") for ids in grown) for c in "ab")
    assert a > 2 * b  # of the second steps
    assert told(trace).scores >= 8
    assert told(trace).thought_tokens == sum(
        record.output_tokens for _, record in trace.records if isinstance(record, CallEnded)
    )
    sent = [at_s for at_s, record in trace.records if isinstance(record, Dispatch)]
    assert sent[:8] == [sent[0]] * 8  # a round enters as a gang


async def test_mcts_ends_when_its_answers_are_certain_and_good() -> None:
    backend, trace = Chain(), MemoryTrace()
    step = reason(
        "{{ x }}?",
        strategy="mcts",
        scorer=share_of_a,
        rollouts=200,
        certain=0.3,
        enough=0.6,
        check_from=3,
        **SEARCH,
    )
    assert await think(backend, step, trace) == "3"
    assert told(trace).stopped == "settled"
    assert len(backend.requests) < 200
    assert told(trace).full_tokens > told(trace).thought_tokens


async def test_a_model_judges_by_the_probability_of_its_first_choice() -> None:
    backend, tally, trace = Chain(), Tally(), MemoryTrace()
    judge = llm("{{ question }}\n{{ thought }}\nIs this good?", choices=["yes", "no"])
    step = reason("{{ x }}?", strategy="rebase", scorer=judge, width=8, **SEARCH)
    assert await think(backend, step, Fanout(tally, trace)) == "3"
    assert backend.judged[0].startswith("2 + 2?\n")
    assert told(trace).score_tokens > 0
    assert f"{told(trace).scores} rewards" in render(tally.snapshot())


async def test_best_of_n_takes_the_answer_that_is_scored_highest() -> None:
    seen: list[tuple[str, str]] = []

    @tool(effect="pure")
    async def check(question: str, answer: str) -> float:
        seen.append((question, answer))
        return -abs(float(answer) - 1)

    trace = MemoryTrace()
    step = reason("{{ x }}?", strategy="best-of-n", scorer=check, n=8, max_tokens=100)
    assert await think(Chain(), step, trace) == "1"
    assert {question for question, _ in seen} == {"2 + 2?"}
    assert len({answer for _, answer in seen}) > 1
    assert sum(isinstance(record, ToolEnded) for _, record in trace.records) == 8


class Solver(FakeBackend):
    """Plans two parts, solves each with a word, answers with what was solved. Called a fake."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[Request] = []

    async def generate(self, request: Request) -> AsyncIterator[Chunk]:
        self.requests.append(request)
        prompt = self.tokenizer.decode(list(request.token_ids))
        if "Now give the answer" in prompt:
            text = f"\\boxed{{{prompt.count('done')}}}"
        elif "Sub-problem" in prompt:
            text = "done"
        else:
            text = "1. the easy one\n2. the hard one"
        ids = (*text.encode(), END)
        usage = Usage(prompt_tokens=len(request.token_ids), output_tokens=len(ids))
        yield Chunk(text=text, token_ids=ids, finish="stop", usage=usage)


async def test_routed_thinks_long_about_hard_parts_only() -> None:
    backend, trace = Solver(), MemoryTrace()

    async def difficulty(part: str) -> float:
        return 0.9 if "hard" in part else 0.1

    step = reason("{{ x }}?", strategy="routed", scorer=difficulty, long_tokens=700)
    assert await think(backend, step, trace) == "2"
    plan, easy, hard, last = backend.requests
    assert [each.sampling.max_tokens for each in (easy, hard)] == [128, 256]  # a piece of 700
    for before, after in ((plan, easy), (easy, hard), (hard, last)):
        assert after.token_ids[: len(before.token_ids)] == before.token_ids
    assert told(trace).stopped == "ended"


# ---- hostile scorers ---------------------------------------------------------------------------


async def raising(thought: str) -> float:
    raise RuntimeError(f"no reward for {len(thought)} characters")


async def wordy(thought: str) -> Any:
    return "9" * 10_000


@pytest.mark.parametrize(
    ("scorer", "said"),
    [(raising, "no reward for"), (wordy, "a reward is a number")],
    ids=["raises", "text"],
)
async def test_a_scorer_that_gives_nothing_fails_the_step_and_says_why(
    scorer: Any, said: str
) -> None:
    backend = Chain()
    step = reason("{{ x }}?", strategy="best-of-n", scorer=scorer, n=2, max_tokens=100)
    with pytest.raises(StepFailed, match=said):
        await think(backend, step)
    assert backend.live == 0


@pytest.mark.parametrize("reward", [math.nan, math.inf, 10**400, 1e300, None, [1.0], {}])
async def test_what_is_no_reward_is_refused(reward: Any) -> None:
    async def odd(thought: str) -> Any:
        return reward

    for strategy in ("best-of-n", "rebase", "mcts"):
        step = reason("{{ x }}?", strategy=strategy, scorer=odd, max_tokens=40)
        with pytest.raises(StepFailed, match="it never had a reward"):
            await think(Chain(), step)


async def test_samples_without_a_reward_are_passed_over_and_told() -> None:
    async def moody(thought: str) -> float:
        if "b" in thought:
            raise ValueError("no b")
        return 1.0

    tally = Tally()
    step = reason("{{ x }}?", strategy="rebase", scorer=moody, width=8, **SEARCH)
    assert await think(Chain(), step, tally) == "3"
    assert "of them came to nothing" in render(tally.snapshot())


async def test_a_scorer_that_hangs_is_given_up() -> None:
    @tool(effect="pure", timeout_s=5.0)
    async def hanging(thought: str) -> float:
        await anyio.sleep_forever()
        return 1.0

    step = reason("{{ x }}?", strategy="best-of-n", scorer=hanging, n=2, max_tokens=100)
    began = anyio.current_time()
    with pytest.raises(StepFailed, match="took longer than timeout_s=5"):
        await think(Chain(), step)
    assert anyio.current_time() - began < 60


async def test_a_decision_cancels_the_scorers_that_are_not_needed_any_more() -> None:
    cancelled: list[str] = []

    @tool(effect="pure", timeout_s=None)
    async def slow_but(answer: str) -> float:
        try:
            await anyio.sleep(1 if answer == "3" else 1e6)
        except asyncio.CancelledError:
            cancelled.append(answer)
            raise
        return 1.0

    step = reason(
        "{{ x }}?", strategy="best-of-n", scorer=slow_but, n=24, enough=0.9, max_tokens=100
    )
    assert await think(Chain(), step) == "3"
    assert cancelled


def test_a_scorer_that_cannot_be_one_is_refused_with_the_cure() -> None:
    @tool
    def acts(thought: str) -> float:
        return 1.0

    def other(opinion: str) -> float:
        return 1.0

    for scorer, said in (
        (acts, "effect"),
        (other, "'opinion'.*question"),
        (3, "a function, a tool or an llm"),
        (lambda thought: 1.0, "no name"),
        (llm("Is {{ thought }} good?"), "choices"),
        (llm("Is {{ it }} good?", choices=["yes", "no"]), "'it'"),
    ):
        with pytest.raises(InvalidInput, match=said):
            reason("x", strategy="best-of-n", scorer=scorer)
    with pytest.raises(InvalidInput, match="needs a scorer"):
        reason("x", strategy="rebase")
    with pytest.raises(InvalidInput, match="asks no scorer"):
        reason("x", strategy="vote", scorer=share_of_a)


# ---- a run that is stopped ---------------------------------------------------------------------


async def run_until(
    backend: Chain, step: Any, journal: MemoryJournal, until_s: float = math.inf
) -> Any:
    """A run of `step` on what `journal` has, stopped at `until_s`; its answer or its error."""

    @workflow
    def answer(x: str) -> str:
        return step(x=x)

    recorded = {path: r for (_, path), r in (await journal.steps(0, 0)).items()}
    ends: list[Any] = []
    async with open_host({"default": backend}, journal=journal, resumed=bool(recorded)) as host:
        programs, over = Programs(host, answer.workflow), anyio.Event()

        def ended(value: Any, error: Exception | None) -> None:
            ends.append(value if error is None else error)
            over.set()

        programs.arrive(0, {"x": "2 + 2"}, ended, recorded)
        with anyio.move_on_after(until_s):
            await over.wait()
        if not over.is_set():
            programs.cancel("r0")
    assert backend.live == 0
    return ends[0]


@pytest.mark.parametrize("until_s", [12.0, 20.0])
@pytest.mark.parametrize("strategy", ["rebase", "mcts", "best-of-n"])
async def test_what_was_stopped_goes_on_from_what_it_had(strategy: str, until_s: float) -> None:
    asked: list[str] = []

    async def scorer(thought: str) -> float:
        asked.append(thought)
        return thought.count("a") / 3

    settings = {} if strategy == "best-of-n" else {"step_tokens": 16}
    step = reason("{{ x }}?", strategy=strategy, scorer=scorer, max_tokens=100, **settings)
    journal, first, second, whole = MemoryJournal(), Chain(), Chain(), Chain()
    first.slow = second.slow = True  # so that some samples are ahead of others
    await run_until(first, step, journal, until_s)
    assert await run_until(second, step, journal) == "3"
    assert await run_until(whole, step, MemoryJournal()) == "3"
    assert len(second.requests) < len(whole.requests)


# ---- YAML --------------------------------------------------------------------------------------

YAML = """\
version: 1
name: think
inputs: {x: string}
tools:
  share: {python: "test_reason_search:share_of_a", effect: pure}
steps:
  searched:
    reason: "{{ x }}?"
    strategy: rebase
    settings: {width: 4, step_tokens: 16}
    scorer: share
    max_tokens: 100
  judged:
    reason: "{{ x }}?"
    strategy: best-of-n
    scorer:
      llm: "{{ question }} {{ answer }} Right?"
      choices: ["yes", "no"]
    max_tokens: 100
output: "{{ searched }} {{ judged }}"
"""


def test_yaml_names_scorers_too_and_round_trips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    found = loads(YAML, "think.yaml")
    assert loads(dump(found), "think.yaml").graph == found.graph
    assert list(found.tools) == ["share"]

    async def go() -> Any:
        return await run_workflow(found, {"x": "2 + 2"}, backends={"default": Chain()})

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        searched, judged = runner.run(go()).split()
    assert searched == "3"
    assert judged in "0123"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("scorer: share", "scorer: shore", "not under tools"),
        ("scorer: share", "scorer: 3", "scorer is a text"),
        ('choices: ["yes", "no"]', "max_tokens: 3", "choices"),
        ("{{ answer }}", "{{ reply }}", "'reply'"),
        ("    scorer: share\n", "", "needs a scorer"),
        (
            "strategy: rebase\n    settings: {width: 4, step_tokens: 16}",
            "strategy: vote",
            "asks no",
        ),
        ("effect: pure", "effect: once", "effect"),
    ],
)
def test_yaml_tells_what_is_wrong_with_a_scorer(
    old: str, new: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    assert old in YAML
    with pytest.raises(InvalidWorkflow) as caught:
        loads(YAML.replace(old, new), "think.yaml")
    found = [problem for problem in caught.value.problems if said in problem.message]
    assert [problem.line >= 9 for problem in found] == [True]


# ---- a real model ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["rebase", "mcts"])
def test_on_the_embedded_engine_a_branch_computes_what_it_adds(strategy: str) -> None:
    async def tidy(thought: str) -> float:
        return 1 / (1 + len(thought))

    settings = {"width": 6} if strategy == "rebase" else {"rollouts": 24}
    step = reason(
        "Compute {{ x }}. Think hard.",
        strategy=strategy,
        scorer=tidy,
        step_tokens=12,
        until="\n",
        max_tokens=160,
        temperature=1.0,
        top_p=1.0,
        **settings,
    )

    @workflow
    def answer(x: str) -> str:
        return step(x=x)

    trace = MemoryTrace()
    found = asyncio.run(run_workflow(answer.workflow, {"x": "23 + 45 - 7"}, trace=trace))
    assert found.strip()
    ends = [record for _, record in trace.records if isinstance(record, CallEnded)]
    first = min(end.prompt_tokens for end in ends)
    grown = [end for end in ends if end.prompt_tokens > first]
    assert len(grown) > 5
    for end in grown:  # its page that is not full, and what its parent drew last
        assert end.prompt_tokens - end.cached_tokens <= 32
    assert told(trace).thought_tokens == sum(end.output_tokens for end in ends)
