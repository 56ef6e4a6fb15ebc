"""List scheduling: what each worker does, given what it prefers (Graham 1969; Halo's greedy is one).

Whenever a worker is free it takes the stage with the best score among those whose inputs are there,
and at most a grain of its chunks. `search` looks for preferences that end early.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf

from .problem import Problem, Sequences

STAY = 0.2  # what going on with a stage is worth
NUDGE_S = 1e-6  # a worker that waits looks again after the event that it waits for


@dataclass(frozen=True, slots=True)
class Preferences:
    """What a worker goes by.

    `priority` and `grain` (chunks that a visit waits for and takes) are per stage; `allowed` per
    worker; `warm` is what following a parent is worth, `load` the price of loading a model as a
    share of the work that is ready for it.
    """

    priority: tuple[float, ...]
    grain: tuple[int, ...]
    allowed: tuple[frozenset[str], ...]
    warm: float = 0.3
    load: float = 1.0


def build(problem: Problem, preferences: Preferences) -> tuple[float, Sequences]:
    """The makespan (without tools behind the last steps) and who does what; infinite if stuck."""
    return _Build(problem, preferences).run()


class _Build:
    """The state of one pass through time."""

    def __init__(self, problem: Problem, preferences: Preferences) -> None:
        self.problem, self.preferences = problem, preferences
        stages, chunks, workers = len(problem.names), problem.chunks, len(problem.allowed)
        self.missing = [[len(found)] * chunks for found in problem.parents]
        self.inputs_s = [[root_s] * chunks for root_s in problem.root]
        # Chunks of a stage whose inputs have a known time; those whose time has come; those left.
        self.coming: list[list[tuple[float, int]]] = [
            [] if problem.parents[v] else [(problem.root[v], c) for c in range(chunks)]
            for v in range(stages)
        ]
        self.here: list[list[int]] = [[] for _ in range(stages)]
        self.left = [chunks] * stages
        self.free = [(0.0, worker) for worker in range(workers)]
        self.resident = list(problem.resident)
        self.stage = [-1] * workers  # of the latest visit
        self.visited: list[set[int]] = [set() for _ in range(workers)]  # its chunks
        self.shared: list[set[int]] = [set() for _ in range(workers)]  # those of the visit before
        self.sequences: Sequences = [[] for _ in range(workers)]

    def run(self) -> tuple[float, Sequences]:
        todo, end_s = len(self.problem.names) * self.problem.chunks, 0.0
        idle: list[int] = []  # workers for which no inputs are known to come
        while todo:
            if not self.free:
                return inf, []
            now_s, worker = heappop(self.free)
            stage, next_s = self._choose(worker, now_s)
            if stage < 0:
                if next_s < inf:
                    heappush(self.free, (max(next_s, now_s + NUDGE_S), worker))
                else:
                    idle.append(worker)
                continue
            chunks = self._take(worker, stage)
            todo -= len(chunks)
            free_s = self._visit(worker, stage, chunks, now_s)
            end_s = max(end_s, free_s)
            heappush(self.free, (free_s, worker))
            while idle:
                heappush(self.free, (now_s, idle.pop()))
        return end_s, self.sequences

    def _choose(self, worker: int, now_s: float) -> tuple[int, float]:
        """The best stage, or -1 and when inputs come that are known to come."""
        problem, preferences = self.problem, self.preferences
        last, resident = self.stage[worker], self.resident[worker]
        visited, allowed = self.visited[worker], preferences.allowed[worker]
        best, best_score, next_s = -1, -inf, inf
        for stage, left in enumerate(self.left):
            if not left or problem.model[stage] not in allowed:
                continue
            coming, here = self.coming[stage], self.here[stage]
            while coming and coming[0][0] <= now_s:
                here.append(heappop(coming)[1])
            if coming and coming[0][0] < next_s:
                next_s = coming[0][0]
            count = len(here)
            if not count or (count < preferences.grain[stage] and count < left and last != stage):
                continue
            score = preferences.priority[stage]
            if last == stage:
                score += STAY
            elif last in problem.warm[stage]:
                warm = sum(1 for chunk in here if chunk in visited)
                score += preferences.warm * warm / count
            price_s = 0.0 if last == stage else problem.fixed[stage]
            if resident != problem.model[stage]:
                price_s += problem.load[stage] * (0.5 if resident is None else 1.0)
            if price_s:
                score -= preferences.load * price_s / (problem.row[stage] * count + NUDGE_S)
            if score > best_score:
                best, best_score = stage, score
        return best, next_s

    def _take(self, worker: int, stage: int) -> list[int]:
        """Chunks for a visit, those first that follow the worker's latest visit."""
        here, grain = self.here[stage], max(self.preferences.grain[stage], 1)
        if len(here) <= grain:
            self.here[stage] = []
            return here
        if self.stage[worker] in self.problem.warm[stage]:
            here.sort(key=lambda chunk: chunk not in self.visited[worker])
        taken, self.here[stage] = here[:grain], here[grain:]
        return taken

    def _visit(self, worker: int, stage: int, chunks: list[int], now_s: float) -> float:
        """Let `worker` answer `chunks`; when it is free again."""
        problem, last = self.problem, self.stage[worker]
        goes_on = last == stage
        if not goes_on:
            warm = last in problem.warm[stage]
            self.shared[worker] = self.visited[worker] if warm else set()
            self.visited[worker] = set()
            if self.resident[worker] != problem.model[stage]:
                empty = self.resident[worker] is None
                now_s += problem.load[stage] * (0.5 if empty else 1.0)
                self.resident[worker] = problem.model[stage]
            self.sequences[worker].append((stage, tuple(chunks)))
        else:
            before = self.sequences[worker][-1][1]
            self.sequences[worker][-1] = (stage, before + tuple(chunks))
        factor = self._factor(worker, stage)
        shared, inputs_s = self.shared[worker], self.inputs_s[stage]
        fixed_s, row_s = problem.fixed[stage], problem.row[stage]
        for chunk in chunks:
            share = factor if chunk in shared else 1.0
            if not goes_on:
                now_s += share * (fixed_s + row_s)
                goes_on = True
            else:
                alone_s = inputs_s[chunk] + share * (fixed_s + row_s)
                now_s = max(now_s + share * row_s, alone_s)
            self._answered(stage, chunk, now_s)
        self.left[stage] -= len(chunks)
        self.stage[worker] = stage
        self.visited[worker].update(chunks)
        return now_s

    def _factor(self, worker: int, stage: int) -> float:
        """The share of its time that a chunk takes which the visit before had too."""
        visits = self.sequences[worker]
        warm: Mapping[int, float] = self.problem.warm[stage]
        return warm.get(visits[-2][0], 1.0) if len(visits) > 1 else 1.0

    def _answered(self, stage: int, chunk: int, now_s: float) -> None:
        """Note that a chunk is answered, and which others have their inputs by that."""
        for child, delay_s in self.problem.children[stage]:
            inputs_s, missing = self.inputs_s[child], self.missing[child]
            inputs_s[chunk] = max(inputs_s[chunk], now_s + delay_s)
            missing[chunk] -= 1
            if not missing[chunk]:
                heappush(self.coming[child], (inputs_s[chunk], chunk))
