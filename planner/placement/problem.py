"""The nouns of placement, and the tables that its inner loops read.

The cost model is Halo's (2509.02121, section 4): a step over n rows takes `fixed_s + n * row_s`
where it runs, loading another model comes before it, and it is cheaper where a parent just ran.
Ours is finer in one respect: a worker answers the rows of a visit one after the other and takes up
rows as their inputs come, so that steps overlap. A row is answered no earlier than `fixed_s +
row_s` after its inputs, and a visit whose rows wait for it takes what Halo's formula says.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

AFFINITY = 0.9  # of its time a step takes where a parent just ran for the same rows (Halo)

Chunks = tuple[int, ...]
Sequences = list[list[tuple[int, Chunks]]]  # per worker, in order: a stage, and its chunks of rows


@dataclass(frozen=True, slots=True)
class Stage:
    """A step as placement sees it: `fixed_s + row_s * rows` seconds on a worker.

    `model` is what a worker must have loaded; tools that a machine runs so many of at a time name
    that machine. None: a tool that everybody may call at once; it takes `fixed_s`. `warm` maps a
    stage to the share of its time that this one takes right behind it, for the same rows; None:
    AFFINITY behind each parent.
    """

    id: str
    model: str | None
    parents: tuple[str, ...] = ()
    fixed_s: float = 0.0
    row_s: float = 0.0
    warm: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True)
class Worker:
    """What runs one stage at a time. `models`: those it may load; None: all. `resident`: now."""

    name: str
    models: frozenset[str] | None = None
    resident: str | None = None


@dataclass(frozen=True, slots=True)
class Visit:
    """A worker's turn at a stage, over the rows of the half-open ranges `rows`."""

    stage: str
    rows: tuple[tuple[int, int], ...]
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Placement:
    """Who does what, in which order. `visits` holds those of each worker."""

    rows: int
    makespan_s: float
    visits: Mapping[str, tuple[Visit, ...]]
    _index: Mapping[str, tuple[list[int], list[tuple[str, int]]]] = field(
        init=False, repr=False, compare=False, hash=False
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "_index", _index(self.visits))

    def where(self, stage: str, row: int) -> tuple[str, int]:
        """The worker that answers `row` of `stage`, and the place of that visit in its order.

        Raises KeyError for a stage that needs no worker, and for a row beyond the table.
        """
        starts, found = self._index[stage]
        if not 0 <= row < self.rows:
            raise KeyError(f"row {row} is not one of {self.rows}")
        return found[bisect_right(starts, row) - 1]


def _index(
    visits: Mapping[str, tuple[Visit, ...]],
) -> dict[str, tuple[list[int], list[tuple[str, int]]]]:
    """Per stage the first rows of its ranges, sorted, and the worker and order of each."""
    ranges: dict[str, list[tuple[int, tuple[str, int]]]] = {}
    for worker, turns in visits.items():
        for order, visit in enumerate(turns):
            found = ranges.setdefault(visit.stage, [])
            found += [(low, (worker, order)) for low, _ in visit.rows]
    for found in ranges.values():
        found.sort()
    return {name: ([x for x, _ in f], [y for _, y in f]) for name, f in ranges.items()}


@dataclass(frozen=True, slots=True)
class Problem:
    """Stages by number, parents first; rows by chunk. `row[v]` is in seconds per chunk."""

    names: tuple[str, ...]
    model: tuple[str, ...]
    fixed: tuple[float, ...]
    row: tuple[float, ...]
    load: tuple[float, ...]
    warm: tuple[Mapping[int, float], ...]
    parents: tuple[tuple[tuple[int, float], ...], ...]  # with the seconds of the tools between
    children: tuple[tuple[tuple[int, float], ...], ...]
    root: tuple[float, ...]  # seconds of the tools before the first stage
    tail: tuple[float, ...]  # seconds of the tools behind a stage
    bounds: tuple[int, ...]  # where the chunks of rows begin, and the end
    allowed: tuple[frozenset[str], ...]  # per worker
    resident: tuple[str | None, ...]

    @property
    def chunks(self) -> int:
        return len(self.bounds) - 1


def compile_problem(
    stages: Sequence[Stage],
    workers: Sequence[Worker],
    rows: int,
    load_s: Mapping[str, float],
    chunks: int,
) -> Problem:
    """The tables. Raises ValueError for what cannot be placed, naming the stage."""
    ordered = _sorted(stages)
    placed = [stage for stage in ordered if stage.model is not None]
    number = {stage.id: index for index, stage in enumerate(placed)}
    before, tools = _through_tools(ordered, number)
    models = frozenset(stage.model for stage in placed if stage.model is not None)
    allowed = tuple(models if w.models is None else models & w.models for w in workers)
    for stage in placed:
        if not any(stage.model in found for found in allowed):
            raise ValueError(f"no worker serves {stage.model!r}, which step {stage.id!r} needs")
    parents = tuple(tuple(sorted(before[s.id][0].items())) for s in placed)
    children: list[list[tuple[int, float]]] = [[] for _ in placed]
    for child, found in enumerate(parents):
        for parent, delay_s in found:
            children[parent].append((child, delay_s))
    warm = tuple(
        {number[name]: f for name, f in s.warm.items() if name in number}
        if s.warm is not None
        else {number[name]: AFFINITY for name in s.parents if name in number}
        for s in placed
    )
    chunks = max(1, min(rows, chunks))
    return Problem(
        names=tuple(s.id for s in placed),
        model=tuple(s.model or "" for s in placed),
        fixed=tuple(s.fixed_s for s in placed),
        row=tuple(s.row_s * rows / chunks for s in placed),
        load=tuple(load_s.get(s.model or "", 0.0) for s in placed),
        warm=warm,
        parents=parents,
        children=tuple(map(tuple, children)),
        root=tuple(before[s.id][1] for s in placed),
        tail=tuple(tools.get(index, 0.0) for index in range(len(placed))),
        bounds=tuple(rows * c // chunks for c in range(chunks + 1)),
        allowed=allowed,
        resident=tuple(w.resident for w in workers),
    )


def _sorted(stages: Sequence[Stage]) -> list[Stage]:
    """The stages, parents first, otherwise in their order."""
    known = {stage.id: stage for stage in stages}
    if len(known) < len(stages):
        raise ValueError("two steps to be placed have the same name")
    left, done, ordered = list(stages), set[str](), list[Stage]()
    while left:
        ready = [s for s in left if all(p in done or p not in known for p in s.parents)]
        if not ready:
            raise ValueError(f"steps wait for each other: {', '.join(s.id for s in left)}")
        ordered.append(ready[0])
        done.add(ready[0].id)
        left.remove(ready[0])
    return ordered


def _through_tools(
    ordered: Sequence[Stage], number: Mapping[str, int]
) -> tuple[dict[str, tuple[dict[int, float], float]], dict[int, float]]:
    """Per stage the placed stages it waits for and the seconds of tools between; and what tools
    take behind each placed stage, where nothing but tools follow."""
    found: dict[str, tuple[dict[int, float], float]] = {}
    behind: dict[int, float] = {}
    for stage in ordered:
        waits, since_start_s = dict[int, float](), 0.0
        for parent in stage.parents:
            if parent in number:
                waits[number[parent]] = max(waits.get(number[parent], 0.0), 0.0)
                continue
            above, start_s = found.get(parent, ({}, 0.0))
            since_start_s = max(since_start_s, start_s)
            for index, delay_s in above.items():
                waits[index] = max(waits.get(index, 0.0), delay_s)
        if stage.model is None:
            waits = {index: delay_s + stage.fixed_s for index, delay_s in waits.items()}
            since_start_s += stage.fixed_s
            for index, delay_s in waits.items():
                behind[index] = max(behind.get(index, 0.0), delay_s)
        found[stage.id] = waits, since_start_s
    return found, behind


def load_bound(
    stages: Sequence[Stage], workers: int, rows: int, affinity: float = AFFINITY
) -> float:
    """Seconds that no placement can beat: all work, each step as cheap as behind a parent, evenly
    over all workers, and no model loaded. (Loads and first steps make it out of reach.)"""
    work_s = sum(s.fixed_s + s.row_s * rows for s in stages if s.model is not None)
    return affinity * work_s / workers


def fleet_bound(stages: Sequence[Stage], workers: Sequence[Worker], rows: int) -> float:
    """Seconds that no placement on these workers can beat: all work evenly over all of them, and
    that of each model over those that may have it. Nothing is taken to be cheaper for its place."""
    work_s: dict[str, float] = {}
    for stage in stages:
        if stage.model is not None:
            work_s[stage.model] = work_s.get(stage.model, 0.0) + stage.row_s * rows
    bounds = [sum(work_s.values()) / len(workers)]
    for model, seconds in work_s.items():
        bounds.append(seconds / max(1, sum(_may_have(worker, model) for worker in workers)))
    return max(bounds)


def _may_have(worker: Worker, model: str) -> bool:
    return worker.models is None or model in worker.models
