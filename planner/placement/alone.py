"""The best order for a worker that takes its own rows through all steps: for one worker, the plan.

Exact, by dynamic programming over what is done and what ran last, as long as the steps are few.
"""

from functools import cache
from itertools import pairwise
from math import inf

from .problem import Problem, Sequences

EXACT_STAGES = 14  # beyond, the order in which the stages are given


def row_parallel(problem: Problem) -> Sequences:
    """Every worker takes an equal share of the rows through all stages.

    No worker waits for another, but each loads every model. Empty where a worker may not.
    """
    workers = len(problem.allowed)
    if any(not set(problem.model) <= allowed for allowed in problem.allowed):
        return []
    order, chunks = best_order(problem, 1 / workers), problem.chunks
    cuts = [chunks * worker // workers for worker in range(workers + 1)]
    shares = [tuple(range(a, b)) for a, b in pairwise(cuts)]
    return [[(stage, share) for stage in order] if share else [] for share in shares]


def best_order(problem: Problem, share: float = 1.0) -> tuple[int, ...]:
    """The order of the stages over a `share` of the rows that takes the fewest seconds."""
    count = len(problem.names)
    if count > EXACT_STAGES:
        return tuple(range(count))
    needs = [sum(1 << parent for parent, _ in found) for found in problem.parents]
    took_s = [
        f + r * problem.chunks * share for f, r in zip(problem.fixed, problem.row, strict=True)
    ]

    def seconds(stage: int, last: int) -> float:
        warm = problem.warm[stage].get(last, 1.0) * took_s[stage]
        if last >= 0 and problem.model[last] == problem.model[stage]:
            return warm
        return warm + problem.load[stage] * (0.5 if last < 0 else 1.0)

    @cache
    def rest(done: int, last: int) -> tuple[float, tuple[int, ...]]:
        best: tuple[float, tuple[int, ...]] = (inf, ())
        for stage in range(count):
            if done >> stage & 1 or needs[stage] & ~done:
                continue
            after_s, order = rest(done | 1 << stage, stage)
            best = min(best, (seconds(stage, last) + after_s, (stage, *order)))
        return best if done != (1 << count) - 1 else (0.0, ())

    return rest(0, -1)[1]
