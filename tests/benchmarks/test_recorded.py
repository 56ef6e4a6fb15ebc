"""The simulated engine that thinks what was recorded, beneath the runtime's own strategies."""

from collections.abc import Sequence
from typing import Any

import anyio
import numpy as np
import pytest
from _bootstrap import Bootstrap, interval
from _recorded import SUFFIX, Place, RecordedBackend, Rounds

from tenter.runtime import reason, run_workflow, workflow
from tenter.runtime.calls import CallId, Request
from tenter.runtime.clock import VirtualLoop
from tenter.runtime.reasoning.named import STRATEGIES
from tenter.runtime.reasoning.recorded import Recorded, RecordedTrial
from tenter.runtime.scheduler.events import CallEnded
from tenter.runtime.trace import MemoryTrace

SHORT = Recorded("p", 600, "4", True, (RecordedTrial(100, "4", 3),))
LONG = Recorded("p", 3_000, "5", True, (RecordedTrial(100, "7", 3), RecordedTrial(500, "4", 3)))
CUT = Recorded("p", 1_000, "9", False, ())


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualLoop}


async def think(
    rollouts: Sequence[Recorded], by_prefix: bool = False, **settings: Any
) -> tuple[Any, MemoryTrace]:
    ask = reason("What?", n=len(rollouts), max_tokens=4_000, suffix=SUFFIX, top_p=1.0, **settings)

    @workflow
    def solve() -> str:
        return ask()

    trace = MemoryTrace()
    async with RecordedBackend([rollouts], by_prefix) as backend:
        backends = {"default": backend}
        return await run_workflow(solve.workflow, {}, backends=backends, trace=trace), trace


def outputs(trace: MemoryTrace) -> int:
    ended = [record for _, record in trace.records if isinstance(record, CallEnded)]
    return sum(record.output_tokens for record in ended)


@pytest.mark.parametrize("by_prefix", [False, True], ids=["scheduler", "longest-prefix"])
async def test_a_vote_thinks_every_rollout_to_its_end(by_prefix: bool) -> None:
    answer, trace = await think([SHORT, SHORT, LONG], by_prefix, strategy="vote")
    assert answer == "4"
    assert outputs(trace) == 600 + 600 + 3_000


async def test_what_its_limit_cut_has_no_answer() -> None:
    answer, _ = await think([CUT, CUT, LONG], strategy="first-finish")
    assert answer == "5"


async def test_a_trial_answer_is_the_one_recorded_where_the_sample_stands() -> None:
    answer, trace = await think([SHORT, LONG], strategy="self-consistency", first=2)
    assert answer == "4"  # the long one stood beyond 500 tokens, and said 4
    assert outputs(trace) < 600 + 3_000


async def test_rollouts_share_the_prompt_and_nothing_behind_it() -> None:
    _, trace = await think([LONG, LONG], strategy="vote")
    ended = [record for _, record in trace.records if isinstance(record, CallEnded)]
    computed = sum(record.prompt_tokens - record.cached_tokens for record in ended)
    pieces = len(ended)
    assert computed <= pieces * 32  # what a page lacks
    async with RecordedBackend([[LONG, LONG]], False) as backend:
        one, two = (Request(CallId(f"r0/reason.sample{i}@0"), (1, 2)) for i in range(2))
        first = [chunk async for chunk in backend.generate(one)][-1].token_ids
        assert first[0] != [chunk async for chunk in backend.generate(two)][-1].token_ids[0]


@pytest.mark.parametrize(
    ("threshold", "drawn"), [(0.7, 5), (None, 8)], ids=["certaindex", "all rounds"]
)
async def test_a_round_follows_only_where_the_first_has_not_settled(
    monkeypatch: pytest.MonkeyPatch, threshold: float | None, drawn: int
) -> None:
    monkeypatch.setitem(STRATEGIES, "rounds", Rounds)
    answer, trace = await think([SHORT] * 8, strategy="rounds", threshold=threshold)
    assert answer == "4"
    assert outputs(trace) == drawn * 600


def test_a_call_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="no sample and no probe"):
        Place.of(Request(CallId("r0/reason.score1"), (1,)))
    found = Place.of(Request(CallId("r12/a.reason.probe3@256.7"), (1,)))
    assert (found.row, found.probe, found.sample, found.at_tokens) == (12, True, 3, 256)


def test_intervals_are_paired() -> None:
    values = np.arange(50.0)
    draws = Bootstrap(50)
    means = draws.means(values)
    assert means[0] == pytest.approx(24.5)
    low, high = interval(means)
    assert low < 24.5 < high
    assert interval(draws.means(values + 1) - means) == [1.0, 1.0]


def test_time_is_virtual() -> None:
    async def seconds() -> float:
        await think([LONG], strategy="vote")
        return anyio.current_time()

    assert anyio.run(seconds, backend_options={"loop_factory": VirtualLoop}) > 1.0
