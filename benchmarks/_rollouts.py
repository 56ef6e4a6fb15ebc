"""Self-consistency replayed over eight recorded rollouts: part of `certaindex_replay`.

Rollouts decode side by side, a token per unit of time; probes run beside them. Each problem is
replayed with the rollouts in several random orders, since a strategy may start only some of them.
"""

import csv
import gzip
import heapq
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
from _common import Figures

from tenter.runtime.reasoning.answers import math_value
from tenter.runtime.reasoning.certainty import leader
from tenter.runtime.reasoning.nouns import (
    Ask,
    Cancel,
    Event,
    Failed,
    Finish,
    Outcome,
    Probe,
    Probed,
    Think,
    Thought,
)
from tenter.runtime.reasoning.recorded import Recorded, RecordedTrial
from tenter.runtime.reasoning.strategy import SUFFIX_TOKENS, Step
from tenter.runtime.reasoning.votes import FirstFinish, SelfConsistency, Vote

ORDERS = 8
SEED = 11
Grade: TypeAlias = Callable[[str, str, str | None], bool]


@dataclass(slots=True)
class Problem:
    """The rollouts of one problem, and which of their answers were graded correct."""

    model: str
    data: str
    name: str
    rollouts: list[Recorded] = field(default_factory=list)
    correct: dict[str, bool] = field(default_factory=dict)

    def right(self, answer: str | None, grade: Grade) -> bool:
        if answer is None:
            return False
        known = self.correct.get(answer)
        return grade(self.data, self.name, answer) if known is None else known


def read(data: Path) -> list[Problem]:
    """All problems with their rollouts in order."""
    trials: dict[tuple[str, ...], list[RecordedTrial]] = defaultdict(list)
    for row in _rows(data / "rollouts8_probes.csv.gz"):
        decoded = int(row.get("probe_out_tokens") or 0) or _tokens(row)
        trials[_name(row)].append(
            RecordedTrial(int(row["token_position"]), row["probe_answer"], decoded)
        )
    found: dict[tuple[str, ...], Problem] = {}
    for row in _rows(data / "rollouts8.csv.gz"):
        problem = found.setdefault(
            _name(row)[:3],
            Problem(row.get("model") or "as recorded", row["dataset"], row["problem_id"]),
        )
        told = tuple(sorted(trials[_name(row)], key=lambda trial: trial.at_tokens))
        ended = row["finished_naturally"] == "True"
        problem.rollouts.append(
            Recorded(row["problem_id"], int(row["tokens_used"]), row["final_answer"], ended, told)
        )
        answer, right = row["final_answer"], row["final_correct"] == "True"
        problem.correct[answer] = problem.correct.get(answer, False) or right
    return list(found.values())


def _tokens(row: dict[str, str]) -> int:
    """Decoded tokens of a probe whose count was not recorded: its text at 3 characters a token."""
    return max(1, min(32, len(row.get("reasoning") or row["probe_answer"]) // 3 + 1))


def _rows(path: Path):
    csv.field_size_limit(1 << 30)
    with gzip.open(path, "rt", newline="") as file:
        yield from csv.DictReader(file)


def _name(row: dict[str, str]) -> tuple[str, ...]:
    return row.get("model") or "", row["dataset"], row["problem_id"], row["rollout_id"]


@dataclass(slots=True)
class Race:
    """The driver: performs a strategy's asks on the recorded rollouts, in virtual token time."""

    rollouts: Sequence[Recorded]
    now: int = 0
    tokens: int = 0
    decoding: dict[int, tuple[Think, int]] = field(default_factory=dict)  # request: since when
    position: dict[int, int] = field(default_factory=dict)  # of each sample that is not decoding
    due: list[tuple[int, int, Event]] = field(default_factory=list)

    def run(self, step: Step) -> tuple[Outcome, int, int]:
        """The outcome, all tokens, and the time it took."""
        asks = step.begin()
        while True:
            for ask in asks:
                outcome = self.perform(ask)
                if outcome is not None:
                    return outcome, self.tokens, self.now
            self.now, request, event = heapq.heappop(self.due)
            if isinstance(event, Thought):
                if request not in self.decoding:
                    asks = ()
                    continue
                self.stop(request, event.tokens)
            asks = step.observe(event)

    def perform(self, ask: Ask) -> Outcome | None:
        match ask:
            case Think():
                record, at = self.rollouts[ask.sample], self.position.get(ask.sample, 0)
                used = min(ask.max_tokens, record.tokens - at)
                ended = record.ended and at + used == record.tokens
                self.decoding[ask.request] = (ask, self.now)
                event = Thought(ask.request, record.answer if ended else "", used, ended)
                heapq.heappush(self.due, (self.now + used, ask.request, event))
            case Probe(request=request) if self.at(ask.sample) < ask.least_tokens:
                heapq.heappush(self.due, (self.now, request, Failed(request)))
            case Probe():
                trial = self.rollouts[ask.sample].at(ask.at_tokens or self.at(ask.sample))
                trial = trial or RecordedTrial(0, "", 1)
                self.tokens += trial.tokens + SUFFIX_TOKENS
                event = Probed(ask.request, trial.text, trial.tokens, SUFFIX_TOKENS)
                heapq.heappush(self.due, (self.now + trial.tokens, ask.request, event))
            case Cancel():
                if ask.request in self.decoding:
                    self.stop(ask.request, self.now - self.decoding[ask.request][1])
            case Finish(outcome):
                return outcome
            case _:
                raise TypeError(f"rollouts have no {ask!r}")
        return None

    def at(self, sample: int) -> int:
        for ask, since in self.decoding.values():
            if ask.sample == sample:
                return self.position.get(sample, 0) + self.now - since
        return self.position.get(sample, 0)

    def stop(self, request: int, used: int) -> None:
        ask, _ = self.decoding.pop(request)
        self.tokens += used
        self.position[ask.sample] = self.position.get(ask.sample, 0) + used


def strategies(limit: int) -> dict[str, Callable[[], Step]]:
    """The methods, each a new strategy."""
    common = {"budget_tokens": 1 << 40, "limit_tokens": limit, "extract": str}
    return {
        "vote8": lambda: Vote(**common),
        "certaindex": lambda: Vote(**common, threshold=0.7),
        "first-finish": lambda: FirstFinish(**common),
        "first-3": lambda: FirstFinish(**common, k=3),
        "ours": lambda: SelfConsistency(**common),
        "ours-no-cap": lambda: SelfConsistency(**common, cap=1.0),
        "ours-first-3": lambda: SelfConsistency(**common, first=3, wave=5),
        "ours-all-at-once": lambda: SelfConsistency(**common, first=8),
    }


def rollouts(figures: Figures, data: Path, grade: Grade, resamples: int) -> None:
    """All methods on all problems, per model and data set."""
    groups: dict[tuple[str, str], list[Problem]] = defaultdict(list)
    for problem in read(data):
        groups[problem.model, problem.data].append(problem)
    for (model, name), problems in groups.items():
        limit = max(record.tokens for one in problems for record in one.rollouts)
        about = {"model": model, "data": f"{name} x8", "problems": len(problems)}
        made = {
            method: np.array([_mean(one, make, grade) for one in problems])
            for method, make in strategies(limit).items()
        }
        made["vote8-cut-too"] = np.array([_plain_vote(one, grade) for one in problems])
        _report(figures, made, about, resamples)


def _mean(problem: Problem, make: Callable[[], Step], grade: Grade) -> np.ndarray:
    """Correct, tokens, sequential tokens: means over orders of the rollouts."""
    rng = np.random.default_rng(SEED)
    found = []
    for _ in range(ORDERS):
        order = [problem.rollouts[at] for at in rng.permutation(len(problem.rollouts))]
        outcome, tokens, now = Race(order).run(make())
        found.append((float(problem.right(outcome.answer, grade)), tokens, now))
    return np.mean(found, axis=0)


def _plain_vote(problem: Problem, grade: Grade) -> tuple[float, float, float]:
    """The vote with what was extracted from rollouts that their limit cut, too."""
    found = leader([record.answer for record in problem.rollouts], math_value)
    lengths = [record.tokens for record in problem.rollouts]
    right = problem.right(found.answer if found else None, grade)
    return float(right), float(sum(lengths)), float(max(lengths))


def _report(
    figures: Figures, made: dict[str, np.ndarray], about: dict[str, object], resamples: int
) -> None:
    base = made["vote8"]
    n = len(base)
    drawn = np.random.default_rng(SEED).multinomial(n, np.full(n, 1 / n), size=resamples)
    weights = np.vstack([np.ones(n), drawn]) / n
    whole = weights @ base
    for method, values in made.items():
        means, setup = weights @ values, {**about, "method": method}
        for metric, column in (("accuracy", 0), ("tokens", 1), ("sequential_tokens", 2)):
            ci = _interval(means[:, column])
            figures.add(metric, means[0, column], whole[0, column], **setup, interval=ci)
        loss = whole[:, 0] - means[:, 0]
        figures.add("accuracy_loss", loss[0], **setup, interval=_interval(loss))
        for metric, column in (("tokens_over_vote8", 1), ("sequential_over_vote8", 2)):
            over = means[:, column] / whole[:, column]
            figures.add(metric, over[0], 1.0, **setup, interval=_interval(over))


def _interval(values: np.ndarray) -> list[float]:
    low, high = np.percentile(values[1:], [2.5, 97.5])
    return [float(f"{low:.4g}"), float(f"{high:.4g}")]
