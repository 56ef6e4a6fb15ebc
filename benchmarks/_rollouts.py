"""Self-consistency replayed over eight recorded rollouts: part of `certaindex_replay`.

Rollouts decode side by side, a token per unit of time; probes run beside them. Each problem is
replayed with the rollouts in several random orders, since a strategy may start only some of them.
"""

import heapq
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
from _common import Figures
from _records import Row, rows

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

ROLLOUTS, ORDERS = 8, 8
QUICK_PROBLEMS = 120  # of all models and data sets together
UNCUT = 32_768  # tokens that a rollout may have had, if none was cut
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
    """All problems with their rollouts in order; a line that is there twice counts once."""
    trials: dict[tuple[str, ...], dict[int, RecordedTrial]] = defaultdict(dict)
    for row in rows(data, "rollouts8_probes"):
        at_tokens, text = row.whole("token_position"), row.text("probe_answer")
        told = row.text("reasoning", "") or text
        decoded = row.whole("probe_out_tokens", "0") or told_tokens(told)
        trials[_name(row)][at_tokens] = RecordedTrial(at_tokens, text, decoded)
    problems: dict[tuple[str, ...], Problem] = {}
    for name, row in {_name(row): row for row in rows(data, "rollouts8")}.items():
        data_set, number = row.text("dataset"), row.text("problem_id")
        model = row.text("model", "") or "as recorded"
        problem = problems.setdefault(name[:3], Problem(model, data_set, number))
        told = tuple(trial for _, trial in sorted(trials[name].items()))
        answer, ended = row.text("final_answer"), row.flag("finished_naturally")
        problem.rollouts.append(Recorded(number, row.whole("tokens_used"), answer, ended, told))
        right = row.flag("final_correct")
        problem.correct[answer] = problem.correct.get(answer, False) or right
    return list(problems.values())


def told_tokens(text: str) -> int:
    """Decoded tokens of a probe whose count was not recorded: its text at 3 characters a token."""
    return max(1, min(32, len(text) // 3 + 1))


def _name(row: Row) -> tuple[str, ...]:
    return row.key(("model", "dataset", "problem_id", "rollout_id"))


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


def strategies(limit: int, n: int) -> dict[str, Callable[[], Step]]:
    """The methods on `n` rollouts, each a new strategy."""
    common = {"budget_tokens": 1 << 40, "limit_tokens": limit, "extract": str, "n": n}
    return {
        "vote8": lambda: Vote(**common),
        "certaindex": lambda: Vote(**common, threshold=0.7),
        "first-finish": lambda: FirstFinish(**common),
        "first-3": lambda: FirstFinish(**common, k=min(3, n)),
        "ours": lambda: SelfConsistency(**common, first=min(4, n)),
        "ours-no-cap": lambda: SelfConsistency(**common, first=min(4, n), cap=1.0),
        "ours-first-3": lambda: SelfConsistency(**common, first=min(3, n), wave=5),
        "ours-all-at-once": lambda: SelfConsistency(**common, first=n),
    }


def limit_of(records: Sequence[Recorded]) -> int:
    """What their longest may have had; where none was cut nobody knows, and no cap is to be felt."""
    longest = max(record.tokens for record in records)
    return longest if any(not record.ended for record in records) else max(UNCUT, 2 * longest)


def rollouts(figures: Figures, data: Path, grade: Grade, resamples: int, quick: bool) -> None:
    """All methods on all problems, per model and data set; `quick`: on QUICK_PROBLEMS of each."""
    groups: dict[tuple[str, str], list[Problem]] = defaultdict(list)
    for problem in read(data):
        groups[problem.model, problem.data].append(problem)
    for (model, name), problems in groups.items():
        if quick and len(problems) > QUICK_PROBLEMS // len(groups):
            drawn = np.random.default_rng(SEED).permutation(len(problems))
            problems = [problems[at] for at in drawn[: max(1, QUICK_PROBLEMS // len(groups))]]
        limit = limit_of([record for one in problems for record in one.rollouts])
        about = {"model": model, "data": f"{name} x8", "problems": len(problems)}
        made = {
            method: np.array([_mean(one, method, limit, grade) for one in problems])
            for method in strategies(limit, ROLLOUTS)
        }
        made["vote8-cut-too"] = np.array([_plain_vote(one, grade) for one in problems])
        _report(figures, made, about, resamples)


def _mean(problem: Problem, method: str, limit: int, grade: Grade) -> np.ndarray:
    """Correct, tokens, sequential tokens: means over orders of the rollouts."""
    rng = np.random.default_rng(SEED)
    make = strategies(limit, min(ROLLOUTS, len(problem.rollouts)))[method]
    found = []
    for _ in range(ORDERS):
        order = [problem.rollouts[at] for at in rng.permutation(len(problem.rollouts))]
        outcome, tokens, now = Race(order).run(make())
        found.append((float(problem.right(outcome.answer, grade)), tokens, now))
    return np.mean(found, axis=0)


def _plain_vote(problem: Problem, grade: Grade) -> tuple[float, float, float]:
    """The vote with what was extracted from rollouts that their limit cut, too."""
    chosen = problem.rollouts[:ROLLOUTS]
    found = leader([record.answer for record in chosen], math_value)
    lengths = [record.tokens for record in chosen]
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
