"""One workload made into another: other arrivals, fewer programs, slower tools.

All are lazy. What is random follows from the seed, so that each pass gives the same programs.
"""

from collections.abc import Callable, Iterator
from random import Random

from msgspec.structs import replace

from .program import Pause, Program, Turn, Workload


def poisson(workload: Workload, per_s: float, seed: int) -> Workload:
    """The programs of `workload`, in its order, at times of a Poisson process of rate `per_s`."""
    _positive("per_s", per_s)

    def make() -> Iterator[Program]:
        random, now_s = Random(seed), 0.0
        for program in workload:
            now_s += random.expovariate(per_s)
            yield replace(program, arrival_s=now_s)

    return Workload(workload.name, make)


def at_rate(workload: Workload, per_s: float) -> Workload:
    """`workload` with its arrivals drawn out or together, so that their mean rate is `per_s`.

    Bursts stay bursts. The rate is that of the gaps: one less than the programs, over the time from
    the first arrival to the last. Raises ValueError for a workload that has no such time.
    """
    _positive("per_s", per_s)

    def make() -> Iterator[Program]:
        first_s, last_s, count = _extent(workload)
        if last_s <= first_s:
            raise ValueError(f"{workload.name} has no arrival times to keep; use poisson")
        factor = (count - 1) / (last_s - first_s) / per_s
        for program in workload:
            yield replace(program, arrival_s=(program.arrival_s - first_s) * factor)

    return Workload(workload.name, make)


def _extent(workload: Workload) -> tuple[float, float, int]:
    first_s = last_s = 0.0
    count = 0
    for count, program in enumerate(workload, start=1):
        first_s = program.arrival_s if count == 1 else first_s
        last_s = program.arrival_s
    return first_s, last_s, count


def subsample(workload: Workload, programs: int, seed: int) -> Workload:
    """`programs` of the programs of `workload`, or all if it has no more, in its order."""

    def make() -> Iterator[Program]:
        count = workload.programs
        kept = frozenset(Random(seed).sample(range(count), min(programs, count)))
        return (program for index, program in enumerate(workload) if index in kept)

    return Workload(workload.name, make)


def fitting(workload: Workload, context_tokens: int) -> Workload:
    """`workload` for a model of that context: a program ends before the first stage with a turn
    whose prompt and answer do not fit; a program of which nothing is left is left out."""

    def make() -> Iterator[Program]:
        for program in workload:
            fits = 0
            for stage in program.stages:
                if any(turn.prompt_tokens + turn.output_tokens > context_tokens for turn in stage):
                    break
                fits += 1
            if fits:
                yield replace(program, stages=program.stages[:fits])

    return Workload(workload.name, make)


def tools_slower(workload: Workload, factor: float) -> Workload:
    """`workload` with every tool taking `factor` times as long; people stay as they are."""
    _positive("factor", factor)

    def slower(pause: Pause) -> Pause:
        return replace(pause, seconds=pause.seconds * factor) if pause.kind == "tool" else pause

    return Workload(workload.name, lambda: (_with_pauses(program, slower) for program in workload))


def _with_pauses(program: Program, change: Callable[[Pause], Pause]) -> Program:
    def changed(turn: Turn) -> Turn:
        return replace(turn, pause=change(turn.pause)) if turn.pause else turn

    return replace(program, stages=tuple(tuple(map(changed, stage)) for stage in program.stages))


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} must be positive, got {value}")
