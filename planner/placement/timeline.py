"""When every chunk of rows is answered, given the sequence of visits of each worker."""

from collections.abc import Iterable
from math import inf

from .problem import Problem, Sequences

_NOTHING: frozenset[int] = frozenset()


def makespan(problem: Problem, sequences: Sequences) -> float:
    """The seconds until all is answered; infinite where workers wait for each other."""
    return _Timeline(problem, sequences).run()


def spans(problem: Problem, sequences: Sequences) -> tuple[float, list[list[tuple[float, float]]]]:
    """The makespan, and when each visit of each worker begins (its load included) and ends."""
    timeline = _Timeline(problem, sequences)
    return timeline.run(), timeline.spans


class _Timeline:
    """Follows each worker until it needs a chunk that is not answered yet, then others first."""

    def __init__(self, problem: Problem, sequences: Sequences) -> None:
        self.problem, self.sequences = problem, sequences
        workers = range(len(sequences))
        self.ended: list[list[float]] = [[-1.0] * problem.chunks for _ in problem.names]
        self.waiting: dict[tuple[int, int], list[int]] = {}  # a chunk, and the workers that need it
        self.at = [(0, 0) for _ in workers]  # visit, and chunk within it
        self.now_s = [0.0 for _ in workers]
        self.resident = list(problem.resident)
        self.before = [(-1, _NOTHING) for _ in workers]  # the visit before, and its chunks
        self.spans: list[list[tuple[float, float]]] = [[] for _ in workers]

    def run(self) -> float:
        ready = list(range(len(self.sequences)))
        last_s = 0.0
        while ready:
            last_s = max(last_s, self._follow(ready.pop(), ready))
        if any(at[0] < len(s) for at, s in zip(self.at, self.sequences, strict=True)):
            return inf
        return last_s

    def _follow(self, worker: int, ready: list[int]) -> float:
        """Go on with `worker` until it has to wait; the end of what it did, tools included."""
        problem, sequence = self.problem, self.sequences[worker]
        visit, chunk = self.at[worker]
        now_s = self.now_s[worker]
        last_s = now_s
        while visit < len(sequence):
            stage, chunks = sequence[visit]
            before, shared = self.before[worker]
            warm = problem.warm[stage].get(before, 1.0)
            row_s, fixed_s = problem.row[stage], problem.fixed[stage]
            ended = self.ended[stage]
            while chunk < len(chunks):
                rows = chunks[chunk]
                inputs_s = self._inputs(stage, rows, worker)
                if inputs_s < 0:
                    self.at[worker], self.now_s[worker] = (visit, chunk), now_s
                    return last_s
                factor = warm if rows in shared else 1.0
                alone_s = inputs_s + factor * (fixed_s + row_s)
                if chunk == 0:
                    start_s = now_s
                    now_s = max(now_s + self._load(worker, stage), inputs_s)
                    self.spans[worker].append((start_s, now_s))
                    now_s += factor * (fixed_s + row_s)
                else:
                    now_s = max(now_s + factor * row_s, alone_s)
                ended[rows] = now_s
                last_s = max(last_s, now_s + problem.tail[stage])
                if (stage, rows) in self.waiting:
                    ready += self.waiting.pop((stage, rows))
                chunk += 1
            self.spans[worker][-1] = (self.spans[worker][-1][0], now_s)
            self.before[worker] = stage, frozenset(chunks)
            visit, chunk = visit + 1, 0
        self.at[worker], self.now_s[worker] = (visit, chunk), now_s
        return last_s

    def _inputs(self, stage: int, rows: int, worker: int) -> float:
        """When the inputs of a chunk are there; -1, and the worker is noted, if it is not known."""
        ready_s = self.problem.root[stage]
        for parent, delay_s in self.problem.parents[stage]:
            ended_s = self.ended[parent][rows]
            if ended_s < 0:
                self.waiting.setdefault((parent, rows), []).append(worker)
                return -1.0
            ready_s = max(ready_s, ended_s + delay_s)
        return ready_s

    def _load(self, worker: int, stage: int) -> float:
        """Seconds to load the stage's model; half of them where there was none (Halo)."""
        model, resident = self.problem.model[stage], self.resident[worker]
        self.resident[worker] = model
        if resident == model:
            return 0.0
        return self.problem.load[stage] * (0.5 if resident is None else 1.0)


def merged(visits: Iterable[tuple[int, tuple[int, ...]]]) -> list[tuple[int, tuple[int, ...]]]:
    """Visits without empty ones, and neighbours of one stage as one."""
    found: list[tuple[int, tuple[int, ...]]] = []
    for stage, chunks in visits:
        if not chunks:
            continue
        if found and found[-1][0] == stage:
            found[-1] = (stage, found[-1][1] + chunks)
        else:
            found.append((stage, chunks))
    return found
