"""Workloads made into others: the seed decides, and nothing else changes."""

import statistics
from itertools import pairwise

import pytest

from tenter.runtime.replay import (
    Pause,
    Program,
    Span,
    Turn,
    Workload,
    at_rate,
    bfcl_web,
    fitting,
    poisson,
    subsample,
    swe_bench,
    tools_slower,
)


def three(*arrivals_s: float) -> Workload:
    """Programs of two turns: 100 and 300 tokens, a tool and a person between."""

    def program(index: int, arrival_s: float) -> Program:
        first = Turn((Span(index, 0, 100),), 10, Pause(2.0, "tool", "bash"))
        second = Turn((Span(index, 0, 300),), 10, Pause(60.0, "human"))
        return Program(arrival_s, f"p{index}", ((first,), (second,)))

    return Workload("three", lambda: (program(*pair) for pair in enumerate(arrivals_s)))


def test_poisson_arrivals_have_the_rate_and_follow_the_seed() -> None:
    workload = three(*[0.0] * 4000)
    arrivals_s = [program.arrival_s for program in poisson(workload, 2.0, seed=5)]
    gaps_s = [b - a for a, b in zip([0.0, *arrivals_s], arrivals_s, strict=False)]
    assert statistics.fmean(gaps_s) == pytest.approx(0.5, rel=0.05)
    assert statistics.stdev(gaps_s) == pytest.approx(0.5, rel=0.05)
    assert list(poisson(workload, 2.0, seed=5)) == list(poisson(workload, 2.0, seed=5))
    assert arrivals_s != [program.arrival_s for program in poisson(workload, 2.0, seed=6)]


def test_another_rate_keeps_the_bursts() -> None:
    faster = at_rate(three(10.0, 10.0, 14.0, 30.0), per_s=1.5)
    assert [program.arrival_s for program in faster] == pytest.approx([0.0, 0.0, 0.4, 2.0])
    with pytest.raises(ValueError, match="three has no arrival times to keep; use poisson"):
        list(at_rate(three(1.0, 1.0), per_s=1.0))


def test_a_subsample_keeps_the_order_and_follows_the_seed() -> None:
    workload = three(*map(float, range(50)))
    names = [program.name for program in subsample(workload, 10, seed=1)]
    assert len(names) == 10 and names == sorted(names, key=lambda name: int(name[1:]))
    assert names == [program.name for program in subsample(workload, 10, seed=1)]
    assert names != [program.name for program in subsample(workload, 10, seed=2)]
    assert list(subsample(workload, 99, seed=1)) == list(workload)


def test_programs_end_where_the_context_does() -> None:
    workload = three(0.0, 1.0)
    assert [len(program.stages) for program in fitting(workload, 310)] == [2, 2]
    assert [len(program.stages) for program in fitting(workload, 309)] == [1, 1]
    assert list(fitting(workload, 109)) == []


def test_slower_tools_leave_people_alone() -> None:
    (program,) = tools_slower(three(0.0), 2.0)
    assert [turn.pause and turn.pause.seconds for turn in program.turns] == [4.0, 60.0]


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan")])
def test_rates_are_positive(wrong: float) -> None:
    for make in (
        lambda: poisson(three(0.0), wrong, 0),
        lambda: at_rate(three(0.0), wrong),
        lambda: tools_slower(three(0.0), wrong),
        lambda: swe_bench(1, wrong, 0),
    ):
        with pytest.raises(ValueError, match="must be positive"):
            make()


def mean_and_deviation(values: list[float]) -> tuple[float, float]:
    return statistics.fmean(values), statistics.pstdev(values)


@pytest.mark.parametrize(
    ("make", "turns", "tokens", "tool_s"),
    [
        (swe_bench, (10.9, 2.1), (70_126, 19_732), (0.925, 3.550)),
        (bfcl_web, (6.3, 2.3), (93_256, 68_687), (1.923, 2.133)),
    ],
    ids=["swe-bench", "bfcl-web"],
)
def test_synthetic_programs_have_the_papers_figures(
    make: type[Workload], turns: object, tokens: object, tool_s: tuple[float, float]
) -> None:
    programs = list(make(8000, 0.5, 7))  # type: ignore[call-arg]
    last = [program.stages[-1][0] for program in programs]
    pauses = [turn.pause.seconds for program in programs for turn in program.turns if turn.pause]
    counts = [float(len(program.stages)) for program in programs]
    sizes = [float(turn.prompt_tokens + turn.output_tokens) for turn in last]
    assert mean_and_deviation(counts) == pytest.approx(turns, rel=0.05)
    assert mean_and_deviation(sizes) == pytest.approx(tokens, rel=0.05)
    assert statistics.fmean(pauses) == pytest.approx(tool_s[0], rel=0.05)
    # A sample's deviation of so heavy a tail is itself noisy.
    assert statistics.pstdev(pauses) == pytest.approx(tool_s[1], rel=0.25)


def test_the_slowest_fetches_hold_half_of_the_delay() -> None:
    pauses = [turn.pause for program in bfcl_web(8000, 1.0, 3) for turn in program.turns]
    fetches = sorted(p.seconds for p in pauses if p and p.tool == "fetch_url")
    assert sum(fetches[-len(fetches) // 10 :]) / sum(fetches) == pytest.approx(0.525, abs=0.02)


def test_another_rate_brings_the_same_programs() -> None:
    slow, fast = list(swe_bench(20, 0.1, 4)), list(swe_bench(20, 0.9, 4))
    assert [program.stages for program in slow] == [program.stages for program in fast]
    assert slow[-1].arrival_s == pytest.approx(9 * fast[-1].arrival_s)


def test_a_synthetic_session_grows_by_its_answers() -> None:
    (program,) = swe_bench(1, 1.0, 0)
    turns = list(program.turns)
    for before, after in pairwise(turns):
        assert after.prompt[0] == before.prompt[0]
        assert after.prompt[1].stop > before.answer.stop
    assert turns[-1].pause is None
