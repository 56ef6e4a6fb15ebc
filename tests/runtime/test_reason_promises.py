"""Whatever models and scorers do, and whenever a program is cancelled: no reasoning step leaves a
call running, and no more is drawn than the steps' budgets have together."""

import asyncio
import math
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenter.runtime import reason, workflow
from tenter.runtime.backends.fake import FakeBackend
from tenter.runtime.calls import Chunk, Request, Usage
from tenter.runtime.clock import VirtualLoop
from tenter.runtime.errors import TenterError
from tenter.runtime.reasoning.named import STRATEGIES
from tenter.runtime.reasoning.nouns import Outcome
from tenter.runtime.reasoning.strategy import Step
from tenter.runtime.run.local import open_host
from tenter.runtime.run.program import Programs
from tenter.runtime.scheduler.events import CallEnded, CallReady, DropCall, Reasoned
from tenter.runtime.trace import MemoryTrace

END = 256
TEXTS = ("\\boxed{1}", "\\boxed{2}", "answer: 1/2", "", "wait", "1. one\n2. two\n\n", "\x00{{{")
SUFFIX = "so:"
BUDGET = 400
PROGRAMS = 3


class Chaos(FakeBackend):
    """Answers, late, with anything: too little, too much, nothing, an error. Called a fake."""

    def __init__(self, random: Random) -> None:
        super().__init__(max_running=6)
        self.random = random
        self.delivered = 0  # tokens

    async def generate(self, request: Request) -> AsyncIterator[Chunk]:
        random, most = self.random, request.sampling.max_tokens
        with anyio.CancelScope() as scope:
            self.running[request.call] = scope
            try:
                await anyio.sleep(random.choice([0.0, 0.5, 2.0, 9.0]))
            finally:
                del self.running[request.call]
        if scope.cancelled_caught:
            yield Chunk(finish="abort", usage=Usage(prompt_tokens=len(request.token_ids)))
            return
        if random.random() < 0.15:
            yield Chunk(finish="error", error="the model is out of sorts")
            return
        ids = random.choice(TEXTS).encode()[:most]
        ends = random.random() < 0.5 and len(ids) < most
        if not ends and random.random() < 0.8:
            ids = (ids * most or b"x" * most)[:most]
        tokens = (*ids, END) if ends else tuple(ids)
        self.delivered += len(tokens)
        finish = "stop" if ends or random.random() < 0.3 else "length"
        usage = Usage(prompt_tokens=len(request.token_ids), output_tokens=len(tokens))
        text = ids.decode()
        if request.stream and len(tokens) > 4:
            yield Chunk(text=text[:4], token_ids=tokens[:4])
            text, tokens = text[4:], tokens[4:]
        yield Chunk(text=text, token_ids=tokens, finish=finish, usage=usage)


def scorer_of(random: Random) -> Any:
    async def score(thought: str) -> Any:
        await anyio.sleep(random.choice([0.0, 1.0]))
        reward = random.choice([0.1, 0.5, 0.9, 0.9, math.nan, "many", None])
        if reward is None:
            raise RuntimeError("no opinion")
        return reward

    return score


SETTINGS: dict[str, dict[str, Any]] = {
    "thought": {
        "rule": {"version": 1, "name": "t", "start_tokens": 8, "step_tokens": 4, "agree": 2}
    },
    "self-consistency": {"n": 4, "first": 2, "wave": 2},
    "vote": {"n": 3, "threshold": 0.5, "check_from": 2},
    "first-finish": {"n": 4, "k": 2},
    "best-of-n": {"n": 4, "enough": 0.8},
    "rebase": {"width": 4, "step_tokens": 12, "depth": 5, "certain": 0.9, "check_from": 2},
    "mcts": {"rollouts": 12, "step_tokens": 12, "certain": 0.9, "check_from": 2},
    "routed": {"plan_tokens": 40, "short_tokens": 10, "long_tokens": 40, "final_tokens": 30},
}
SCORED = ("best-of-n", "rebase", "mcts", "routed")


async def run(strategy: str, seed: int, cancel_s: float | None, pool: str) -> None:
    random, trace = Random(seed), MemoryTrace()
    backend = Chaos(random)
    step = reason(
        "{{ x }}?",
        strategy=strategy,
        scorer=scorer_of(random) if strategy in SCORED else None,
        max_tokens=120,
        budget_tokens=BUDGET,
        answer_tokens=8,
        suffix=SUFFIX,
        pool=pool,
        **SETTINGS[strategy],
    )

    @workflow
    def answer(x: str) -> list[str]:
        return [step(x=x), step(x=x)]

    ends: dict[int, Any] = {}
    thoughts: list[tuple[Step, Outcome]] = []
    async with open_host({"default": backend}, trace=trace, share=False, seed=seed) as host:
        host.observe_thought = lambda row, step, outcome: thoughts.append((step, outcome))
        programs, over = Programs(host, answer.workflow), anyio.Event()

        def arrive(row: int) -> None:
            def ended(value: Any, error: Exception | None) -> None:
                assert row not in ends
                ends[row] = value if error is None else error
                if len(ends) == PROGRAMS:
                    over.set()

            programs.arrive(row, {"x": f"row {row}"}, ended)

        for row in range(PROGRAMS):
            arrive(row)
        if cancel_s is not None:
            with anyio.move_on_after(cancel_s):
                await over.wait()
            programs.cancel("r1")
        await over.wait()
        for _ in range(20):  # what was aborted says so
            await anyio.lowlevel.checkpoint()
        assert not backend.running
        assert not any(
            task.get_coro().__qualname__.startswith("Drive") for task in asyncio.all_tasks()
        )
    records = [record for _, record in trace.records]
    ready = {record.call for record in records if isinstance(record, CallReady)}
    assert ready
    done = {record.call for record in records if isinstance(record, CallEnded | DropCall)}
    assert ready == done
    assert backend.delivered <= BUDGET * 2 * PROGRAMS
    for given_up in ends.values():
        assert isinstance(given_up, list | TenterError)
    for strategy_at_end, outcome in thoughts:
        assert strategy_at_end.done
        assert len(outcome.finished) == sum(b.ended for b in strategy_at_end.branches.values())
    for record in records:
        if isinstance(record, Reasoned):
            assert record.thought_tokens + record.probe_tokens <= BUDGET + record.lent_tokens


def test_every_strategy_that_a_step_may_name_is_run_live() -> None:
    assert SETTINGS.keys() == STRATEGIES.keys()


@pytest.mark.parametrize("strategy", SETTINGS)
@given(
    seed=st.integers(0, 2**32),
    cancel_s=st.none() | st.floats(0, 30),
    pool=st.sampled_from(["program", "run", "none"]),
)
@settings(max_examples=12, deadline=None)
def test_the_promises_hold_live(
    strategy: str, seed: int, cancel_s: float | None, pool: str
) -> None:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(run(strategy, seed, cancel_s, pool))
