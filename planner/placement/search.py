"""`place`: searches for the placement with the smallest makespan.

Three kinds of placements compete: every worker takes its own rows through all steps; pools of
workers that keep one model each; and anything between, by list scheduling. The best are improved
by hill climbing over the preferences of the list scheduler, then over the visits themselves. How
long that takes depends on the numbers of steps and workers, not of rows. The same input, the same
placement: `seed` decides all draws.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, pairwise, product
from math import ceil, exp, inf
from random import Random

from .alone import row_parallel
from .build import Preferences, build
from .problem import Placement, Problem, Sequences, Stage, Visit, Worker, compile_problem
from .timeline import makespan, merged, spans

BUILD_STEPS = 200_000  # chunks that all passes of the list scheduler place together
MOVE_STEPS = 400_000  # chunks that all timelines of changed visits go through together
MOST_BUILDS, MOST_MOVES = 2_000, 24_000  # for small problems
MOST_POOLS, STARTS_PER_POOL = 60, 6
CLIMBS = 3  # starts that are improved
WARMTHS = (0.003, 0.05)  # of annealing
LEAST_MOVES = 1_000  # of one annealing
SWAPS = 0.2  # of the moves

Found = tuple[float, Preferences, Sequences]


def place(
    stages: Sequence[Stage],
    workers: Sequence[Worker],
    rows: int,
    load_s: Mapping[str, float],
    seed: int = 0,
) -> Placement:
    """Which worker answers which rows of which stage, in which order.

    `load_s` has the seconds to load each model. Raises ValueError where there is nothing to place
    or no worker for a stage.
    """
    if not workers or rows < 1:
        raise ValueError(f"{rows} rows on {len(workers)} workers: there is nothing to place")
    problem = compile_problem(stages, workers, rows, load_s, max(12, min(48, 6 * len(workers))))
    if not problem.names:
        return Placement(rows, max(_tools_s(stages), 0.0), {worker.name: () for worker in workers})
    draw = Random(seed)
    starts = [found[2] for found in _climbed(problem, draw)]
    starts.append(row_parallel(problem))
    tries = min(MOST_MOVES, MOVE_STEPS // (len(problem.names) * problem.chunks))
    starts = sorted((s for s in starts if s), key=lambda start: makespan(problem, start))
    runs = list(product(starts, WARMTHS))[: max(1, tries // LEAST_MOVES)]
    found = [_moved(problem, start, tries // len(runs), warmth, draw) for start, warmth in runs]
    sequences = min(found, key=lambda item: item[0])[1]
    return _placement(problem, sequences, workers, rows)


def _tools_s(stages: Sequence[Stage]) -> float:
    ends: dict[str, float] = {}
    for stage in stages:
        ends[stage.id] = stage.fixed_s + max((ends.get(p, 0.0) for p in stage.parents), default=0.0)
    return max(ends.values(), default=0.0)


# ---- over preferences ---------------------------------------------------------------------------


def _climbed(problem: Problem, draw: Random) -> list[Found]:
    """The best starts, improved; the very best longest."""
    size = len(problem.names) * problem.chunks
    found = sorted(_starts(problem), key=lambda item: item[0])
    passes = min(MOST_BUILDS, BUILD_STEPS // size)
    tries = max(20, passes - len(found)) // (2 * CLIMBS)
    climbed = [_climb(problem, start, tries, draw) for start in found[:CLIMBS]]
    climbed.sort(key=lambda item: item[0])
    return [_climb(problem, climbed[0], CLIMBS * tries, draw), *climbed[1:]]


def _starts(problem: Problem) -> Iterator[Found]:
    urgency = _urgency(problem)
    workers, chunks = len(problem.allowed), problem.chunks
    grains = {max(1, chunks * k // (4 * workers)) for k in (1, 4, 8)}
    for allowed in _pools(problem):
        for priority in (urgency, tuple(1 - share for share in urgency)):
            for grain in sorted(grains):
                preferences = Preferences(priority, (grain,) * len(urgency), allowed)
                yield _built(problem, preferences)


def _built(problem: Problem, preferences: Preferences) -> Found:
    _, sequences = build(problem, preferences)
    return makespan(problem, sequences) if sequences else inf, preferences, sequences


def _urgency(problem: Problem) -> tuple[float, ...]:
    """The work on the longest path from each stage to the end, as a share of the longest."""
    path = [0.0] * len(problem.names)
    for stage in reversed(range(len(path))):
        below = max((path[child] for child, _ in problem.children[stage]), default=0.0)
        path[stage] = problem.row[stage] + problem.fixed[stage] + below
    return tuple(value / (max(path) or 1.0) for value in path)


def _pools(problem: Problem) -> Iterator[tuple[frozenset[str], ...]]:
    """Who may load what: everybody everything; then pools in about the proportions of the work,
    and some workers that help everywhere."""
    yield problem.allowed
    workers, models = len(problem.allowed), sorted(set(problem.model))
    if len(set(problem.allowed)) > 1 or len(models) < 2:
        return  # the fleet has its pools already
    work = dict.fromkeys(models, 0.0)
    for model, row_s in zip(problem.model, problem.row, strict=True):
        work[model] += row_s
    total = sum(work.values()) or 1.0
    fair = [workers * work[model] / total for model in models]
    counts = (range(max(0, int(share) - 1), ceil(share) + 1) for share in fair)
    sizes = [
        found
        for found in product(*counts)
        if 0 <= workers - sum(found) <= max(2, workers // 4)
        and (sum(found) < workers or 0 not in found)
    ]
    size = len(problem.names) * problem.chunks
    most = min(MOST_POOLS, BUILD_STEPS // (2 * STARTS_PER_POOL * size))
    sizes.sort(key=lambda found: sum(abs(n - share) for n, share in zip(found, fair, strict=True)))
    for found in sizes[:most]:
        pools = (frozenset({m}) for m, n in zip(models, found, strict=True) for _ in range(n))
        yield (*pools, *[problem.allowed[0]] * (workers - sum(found)))


def _climb(problem: Problem, start: Found, tries: int, draw: Random) -> Found:
    best = start
    for _ in range(tries):
        preferences = best[1]
        for _ in range(draw.choice((1, 1, 2))):
            preferences = _changed(problem, preferences, draw)
        found = _built(problem, preferences)
        if found[0] <= best[0]:
            best = found
    return best


def _changed(problem: Problem, old: Preferences, draw: Random) -> Preferences:
    """Preferences that differ in one number or one worker's models."""
    priority, grain, allowed = list(old.priority), list(old.grain), list(old.allowed)
    warm, load, which = old.warm, old.load, draw.random()
    stage, worker = draw.randrange(len(priority)), draw.randrange(len(allowed))
    if which < 0.35:
        near = priority[stage] + draw.gauss(0, 0.15)
        priority[stage] = near if draw.random() < 0.5 else draw.uniform(-0.2, 1.2)
    elif which < 0.7:
        now, most = grain[stage], problem.chunks
        new = draw.choice((now - 1, now + 1, 2 * now, now // 2, draw.randint(1, most)))
        grain[stage] = max(1, min(most, new))
    elif which < 0.85:
        models = sorted(problem.allowed[worker])
        some = [frozenset({m}) for m in models] + [
            frozenset(two) for two in combinations(models, 2)
        ]
        allowed[worker] = draw.choice([*some, problem.allowed[worker]])
    elif which < 0.93:
        warm = draw.random()
    else:
        load = draw.choice((0.1, 0.3, 1.0, 3.0, 10.0))
    return Preferences(tuple(priority), tuple(grain), tuple(allowed), warm, load)


# ---- over visits --------------------------------------------------------------------------------


def _moved(
    problem: Problem, sequences: Sequences, tries: int, warmth: float, draw: Random
) -> tuple[float, Sequences]:
    """The visits, improved by moving some, whole or in part, in time and between workers.

    Simulated annealing (Kirkpatrick et al. 1983): at first a change for the worse by a share of
    about `warmth` is taken now and then, at the end none.
    """
    now, now_s = sequences, makespan(problem, sequences)
    best, best_s = now, now_s
    for count in range(tries):
        changed = _move(problem, now, draw)
        if changed is None or (changed_s := makespan(problem, changed)) == inf:
            continue
        heat_s = warmth * now_s * (1 - count / tries) ** 2
        if changed_s <= now_s or draw.random() < exp((now_s - changed_s) / max(heat_s, 1e-12)):
            now, now_s = changed, changed_s
            if now_s < best_s:
                best, best_s = now, now_s
    return best_s, best


def _move(problem: Problem, sequences: Sequences, draw: Random) -> Sequences | None:
    """A copy with one visit, or a part of it, elsewhere; None where the draw was void."""
    giver, taker = draw.randrange(len(sequences)), draw.randrange(len(sequences))
    if not sequences[giver]:
        return None
    place = draw.randrange(len(sequences[giver]))
    stage, chunks = sequences[giver][place]
    if problem.model[stage] not in problem.allowed[taker]:
        return None
    if draw.random() < SWAPS:
        return _swapped(problem, sequences, (giver, place), draw)
    cut = draw.choice((0, 0, 1, len(chunks) - 1, draw.randrange(len(chunks))))
    cut %= len(chunks)
    kept, moved = chunks[:cut], chunks[cut:]
    if kept and draw.random() < 0.5:
        kept, moved = moved, kept
    changed = list(sequences)
    changed[giver] = merged([*changed[giver][:place], (stage, kept), *changed[giver][place + 1 :]])
    taken = list(changed[taker])
    same = [index for index, (other, _) in enumerate(taken) if other == stage]
    if same and draw.random() < 0.5:
        index = draw.choice(same)
        taken[index] = stage, taken[index][1] + moved
    else:
        taken.insert(draw.randrange(len(taken) + 1), (stage, moved))
    changed[taker] = merged(taken)
    return changed


def _swapped(
    problem: Problem, sequences: Sequences, one: tuple[int, int], draw: Random
) -> Sequences | None:
    """A copy in which two visits have changed places; None where their workers may not."""
    other_worker = draw.randrange(len(sequences))
    if not sequences[other_worker]:
        return None
    other = other_worker, draw.randrange(len(sequences[other_worker]))
    visits = {place: sequences[place[0]][place[1]] for place in (one, other)}
    changed = [list(sequence) for sequence in sequences]
    for place, visit in ((one, visits[other]), (other, visits[one])):
        if problem.model[visit[0]] not in problem.allowed[place[0]]:
            return None
        changed[place[0]][place[1]] = visit
    return [merged(sequence) for sequence in changed]


# ---- the result ---------------------------------------------------------------------------------


def _placement(
    problem: Problem, sequences: Sequences, workers: Sequence[Worker], rows: int
) -> Placement:
    makespan_s, times = spans(problem, sequences)
    visits = {
        worker.name: tuple(
            Visit(problem.names[stage], _ranges(problem.bounds, chunks), *span)
            for (stage, chunks), span in zip(sequence, found, strict=True)
        )
        for worker, sequence, found in zip(workers, sequences, times, strict=True)
    }
    return Placement(rows, makespan_s, visits)


def _ranges(bounds: tuple[int, ...], chunks: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """The rows of `chunks` in their order, neighbours joined."""
    cuts = [0, *(i for i, (a, b) in enumerate(pairwise(chunks), 1) if b != a + 1), len(chunks)]
    return tuple((bounds[chunks[a]], bounds[chunks[b - 1] + 1]) for a, b in pairwise(cuts))
