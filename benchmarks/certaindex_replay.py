"""Stop rules for reasoning, replayed over recorded thoughts: what they save, and what they cost.

Chains of thought (trajectories, probes, grades) and 8 rollouts per problem (self-consistency).
The rule that is judged is the one that ships: the strategy itself runs over the record.

    python benchmarks/certaindex_replay.py [--quick] [--data DIR] [--grading strict|closed]

Tokens are all that is decoded, of thought and of probes, and what a probe prefills beyond the
cached thought: its suffix, 20 tokens. Sequential tokens are those decoded in turn: the latency in
token times (of parallel samples the longest path). Intervals are 95 % bootstrap percentiles over
problems (all thoughts about one problem are drawn together). Figures per model and data set, and
per model over all data sets (data "all").

- full: as recorded. cut-N: stopped at N tokens without forcing, wrong if it has not ended.
  forced-N: stopped at N and asked (as are all thoughts that their limit cut, in every method but
  full and cut).
- dynasor-*: the published efforts. An effort that probes more often than the data were
  probed (64 tokens) runs at their spacing, so "crazy" (every 32) equals "high". The published exit test needs agreement; its code exits without. We replay the paper's.
- deer: needs token probabilities (a column `probe_logprobs`, space-separated); left out without.
- ours: the default rule, as shipped. ours-calibrated: learn-then-test on one half of the problems,
  judged on the other half, both ways; per model over its data sets together; where calibration
  cannot vouch for a rule it is full length. ours-from-others: calibrated on half of the problems
  of all *other* models, judged on the other half of this one's (leave one model out); with one
  model, on its other data sets.
- hindsight: stop at the first trial whose answer is the thought's own last answer and stays so;
  hindsight-correct: at the first correct trial. Not rules: bounds on what any could reach.

`tokens_over_forced` is the method's tokens over those of forced truncation at its accuracy, by
linear interpolation on the frontier of forced truncation (budgets in steps of 256; the frontier is
the running best by tokens); above the best that forcing reaches, over the tokens of its best.
"""

import argparse
import sys
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from _common import Figures, one_thread

one_thread()
import numpy as np
from _records import Row, path_of, rows
from _rollouts import rollouts, told_tokens

from tenter.runtime.reasoning.answers import math_value
from tenter.runtime.reasoning.calibrate import Calibration, Cost, calibrate
from tenter.runtime.reasoning.families import families_for
from tenter.runtime.reasoning.recorded import Recorded, RecordedTrial, replay
from tenter.runtime.reasoning.rules import (
    DEFAULT,
    EFFORTS,
    LADDER,
    NEVER,
    StopRule,
    deer,
    dynasor,
)
from tenter.runtime.reasoning.strategy import SUFFIX_TOKENS

FORCED = range(256, 32_769, 256)
SHOWN = (1_024, 2_048, 4_096, 8_192, 12_288)
RESAMPLES = 1_000
QUICK_THOUGHTS = 1_400  # of more, --quick draws so many
SEED = 7


@dataclass(frozen=True, slots=True)
class Thought:
    """One recorded thought with its grades: of its answer, and of each trial's."""

    model: str
    data: str
    limit_tokens: int
    correct: bool
    record: Recorded
    trial_correct: tuple[bool, ...]

    @property
    def problem(self) -> tuple[str, str]:
        return self.data, str(self.record.problem)


@dataclass(frozen=True, slots=True)
class Grades:
    """Whether an answer to a problem is correct; what is not listed is wrong.

    "closed": an answer that is equal in value to one listed as correct is correct too.
    """

    listed: frozenset[tuple[str, str, str]]
    values: frozenset[tuple[str, str, object]] = frozenset()

    @classmethod
    def read(cls, data: Path, closed: bool) -> "Grades":
        right = {
            (row.text("dataset"), row.text("problem_id"), row.text("probe_answer"))
            for row in rows(data, "grades")
            if row.flag("correct")
        }
        values = {(data, problem, math_value(text)) for data, problem, text in right}
        values = {value for value in values if value[2] is not None}
        return cls(frozenset(right), frozenset(values) if closed else frozenset())

    def __call__(self, data: str, problem: str, answer: str | None) -> bool:
        if answer is None:
            return False
        if (data, problem, answer) in self.listed:
            return True
        return bool(self.values) and (data, problem, math_value(answer)) in self.values


def thoughts(data: Path, grades: Grades, most: int | None = None) -> list[Thought]:
    """All recorded thoughts, with their trials in order; a line that is there twice counts once.

    `most`: about so many, of problems drawn at random.
    """
    lines = {_name(row): row for row in rows(data, "trajectories")}
    if most is not None and len(lines) > most:
        lines = _some(lines, most)
    trials: dict[tuple[str, ...], dict[int, RecordedTrial]] = {name: {} for name in lines}
    for row in rows(data, "probes"):
        told = trials.get(_name(row))
        if told is not None:
            at_tokens, decoded = row.whole("token_position"), row.whole("probe_out_tokens", "0")
            text, logprobs = row.text("probe_answer"), row.numbers("probe_logprobs")
            told[at_tokens] = RecordedTrial(at_tokens, text, decoded or told_tokens(text), logprobs)
    made = list[Thought]()
    for name, row in lines.items():
        told = tuple(trial for _, trial in sorted(trials[name].items()))
        data_set, problem = row.text("dataset"), row.text("problem_id")
        length = row.whole("tokens_used")
        limit = row.whole("budget", "0") or length
        ended = row.text("finish_reason") != "length"
        record = Recorded(problem, length, row.text("final_answer"), ended, told)
        right = tuple(grades(data_set, problem, trial.text) for trial in told)
        correct, limit = row.flag("final_correct"), max(limit, length)
        made.append(Thought(row.text("model"), data_set, limit, correct, record, right))
    return made


def _some(lines: dict[tuple[str, ...], Row], most: int) -> dict[tuple[str, ...], Row]:
    """The lines of about so many thoughts: all those about some problems."""
    of_problem: dict[tuple[str, ...], list[tuple[str, ...]]] = defaultdict(list)
    for name, row in lines.items():
        of_problem[row.key(("dataset", "problem_id"))].append(name)
    problems, drawn = sorted(of_problem), list[tuple[str, ...]]()
    for number in np.random.default_rng(SEED).permutation(len(problems)):
        if len(drawn) >= most:
            break
        drawn += of_problem[problems[number]]
    print(f"{len(drawn)} of {len(lines)} thoughts, all about some problems", file=sys.stderr)
    return {name: lines[name] for name in drawn}


def _name(row: Row) -> tuple[str, ...]:
    return row.key(("model", "dataset", "seed", "problem_id"))


@dataclass(slots=True)
class Result:
    """What a method made of each thought: columns correct, tokens, sequential tokens."""

    values: np.ndarray

    @property
    def accuracy(self) -> float:
        return float(self.values[:, 0].mean())

    @property
    def tokens(self) -> float:
        return float(self.values[:, 1].mean())


@dataclass(slots=True)
class Bench:
    """The thoughts of one model, the methods that ran on them, and their figures."""

    all: Sequence[Thought]
    grades: Grades
    resamples: int
    ran: dict[StopRule, dict[int, tuple[float, int, int]]] = field(default_factory=dict)

    def run(self, rule: StopRule, chosen: Sequence[Thought]) -> Result:
        """The rule over `chosen`; a thought is replayed once per rule."""
        rule = replace(rule, vouch=None)
        done = self.ran.setdefault(rule, {})
        for one in chosen:
            if id(one) not in done:
                done[id(one)] = self._replayed(rule, one)
        return Result(np.array([done[id(one)] for one in chosen], float))

    def _replayed(self, rule: StopRule, one: Thought) -> tuple[float, int, int]:
        made = replay(rule, one.record, limit_tokens=one.limit_tokens)
        right = one.correct
        if made.stopped != "ended":
            right = self.grades(one.data, str(one.record.problem), made.answer)
        return float(right), made.tokens, made.sequential_tokens

    def costs(self, rule: StopRule, chosen: Sequence[Thought]) -> list[Cost]:
        """Loss and tokens per problem, for calibration."""
        values = self.run(rule, chosen).values
        by_problem: dict[tuple[str, str], list[tuple[float, float, float]]] = defaultdict(list)
        for one, value in zip(chosen, values, strict=True):
            loss = float(one.correct) - value[0]
            by_problem[one.problem].append((loss, value[1], one.record.tokens))
        return [Cost(name, *np.mean(found, axis=0)) for name, found in by_problem.items()]


def full(one: Thought) -> tuple[float, int, int]:
    return float(one.correct), one.record.tokens, one.record.tokens


def forced(budget: int) -> Callable[[Thought], tuple[float, int, int]]:
    """The fair control: stop at the budget, and ask."""

    def stop(one: Thought) -> tuple[float, int, int]:
        if one.record.ended and one.record.tokens <= budget:
            return full(one)
        return _asked(one, min(budget, one.record.tokens))

    return stop


def cut(budget: int) -> Callable[[Thought], tuple[float, int, int]]:
    """Stop at the budget; what has not ended is wrong."""

    def stop(one: Thought) -> tuple[float, int, int]:
        if one.record.tokens <= budget:
            return full(one)
        return 0.0, budget, budget

    return stop


def hindsight(one: Thought) -> tuple[float, int, int]:
    """At the first trial from which on all trials are as good as the end."""
    at = len(one.trial_correct)
    while at and one.trial_correct[at - 1] >= one.correct:
        at -= 1
    return _told(one, at)


def hindsight_correct(one: Thought) -> tuple[float, int, int]:
    """At the first correct trial."""
    right = one.trial_correct
    return _told(one, right.index(True) if True in right else len(right))


def _told(one: Thought, at: int) -> tuple[float, int, int]:
    trials = one.record.trials
    return full(one) if at >= len(trials) else _asked(one, trials[at].at_tokens)


def _asked(one: Thought, tokens: int) -> tuple[float, int, int]:
    """Stop there, or at the first trial behind, and ask."""
    trials = one.record.trials
    if not trials:
        return full(one)
    tokens = max(tokens, trials[0].at_tokens)
    at = bisect_right(trials, tokens, key=lambda trial: trial.at_tokens) - 1
    decoded = tokens + trials[at].tokens
    return float(one.trial_correct[at]), decoded + SUFFIX_TOKENS, decoded


def applied(
    method: Callable[[Thought], tuple[float, int, int]], chosen: Sequence[Thought]
) -> Result:
    return Result(np.array([method(one) for one in chosen], float))


def at_accuracy(frontier: np.ndarray, accuracy: np.ndarray) -> np.ndarray:
    """Tokens of forced truncation at each accuracy; `frontier` (draws, budgets, 2), cheap first."""
    best = np.maximum.accumulate(frontier[..., 0], axis=1)
    found = np.empty(len(accuracy))
    for draw, wanted in enumerate(accuracy):
        rising, tokens = best[draw], frontier[draw, :, 1]
        at = int(np.searchsorted(rising, wanted - 1e-12))
        if at >= len(rising):
            at = int(np.argmax(rising))
            found[draw] = tokens[at]
        elif at == 0 or rising[at] == rising[at - 1]:
            found[draw] = tokens[at]
        else:
            # from the first budget that reached the accuracy below, up to this one
            low = int(np.searchsorted(rising, rising[at - 1] - 1e-12))
            share = (wanted - rising[low]) / (rising[at] - rising[low])
            found[draw] = tokens[low] + share * (tokens[at] - tokens[low])
    return found


@dataclass(slots=True)
class Draws:
    """Bootstrap draws of the problems behind some thoughts; row 0 is the sample itself."""

    problems: np.ndarray  # problem number of each thought
    weights: np.ndarray  # (draws, thoughts)

    @classmethod
    def of(cls, names: Sequence[object], resamples: int) -> "Draws":
        order = {name: at for at, name in enumerate(dict.fromkeys(names))}
        problems = np.array([order[name] for name in names])
        n = len(order)
        drawn = np.random.default_rng(SEED).multinomial(n, np.full(n, 1 / n), size=resamples)
        counts = np.vstack([np.ones(n, int), drawn])
        return cls(problems, counts[:, problems].astype(float))

    def means(self, values: np.ndarray) -> np.ndarray:
        """(draws, columns): the means of the columns in each draw."""
        return (self.weights @ values) / self.weights.sum(axis=1, keepdims=True)


def interval(values: np.ndarray) -> list[float]:
    low, high = np.percentile(values[1:], [2.5, 97.5])
    return [float(f"{low:.4g}"), float(f"{high:.4g}")]


def report(
    figures: Figures,
    draws: Draws,
    results: dict[str, Result],
    frontier: np.ndarray,
    notes: dict[str, str],
    **about: object,
) -> None:
    """All figures of all methods on one set of thoughts; baselines are those of full length."""
    base = draws.means(results["full"].values)
    for name, result in results.items():
        means = draws.means(result.values)
        over = means[:, 1] / at_accuracy(frontier, means[:, 0])
        setup = {**about, "method": name, **({"note": notes[name]} if name in notes else {})}
        for metric, column in (("accuracy", 0), ("tokens", 1), ("sequential_tokens", 2)):
            ci = interval(means[:, column])
            figures.add(metric, means[0, column], base[0, column], **setup, interval=ci)
        loss = base[:, 0] - means[:, 0]
        figures.add("accuracy_loss", loss[0], **setup, interval=interval(loss))
        figures.add("tokens_over_forced", over[0], 1.0, **setup, interval=interval(over))


def halves(chosen: Sequence[Thought]) -> list[frozenset[tuple[str, str]]]:
    """The problems of each data set, dealt at random into two halves."""
    rng = np.random.default_rng(SEED)
    parts: tuple[set[tuple[str, str]], ...] = (set(), set())
    for data in sorted({one.data for one in chosen}):
        names = sorted({one.problem for one in chosen if one.data == data})
        for at, number in enumerate(rng.permutation(len(names))):
            parts[at % 2].add(names[number])
    return [frozenset(part) for part in parts]


def _chosen(bench: Bench, seen: Sequence[Thought]) -> Calibration:
    families, _ = families_for([one.record for one in seen])
    return calibrate(lambda rule: bench.costs(rule, seen), families=families)


def calibrated(bench: Bench, chosen: Sequence[Thought]) -> tuple[Result, str]:
    """Calibrate on one half of the problems, judge on the other, both ways."""
    parts, values, said = halves(chosen), np.zeros((len(chosen), 3)), list[str]()
    for here, there in ((0, 1), (1, 0)):
        seen = [one for one in chosen if one.problem in parts[here]]
        found = _chosen(bench, seen)
        said.append(found.message)
        for at, one in enumerate(chosen):
            if one.problem in parts[there]:
                values[at] = bench.run(found.rule, [one]).values[0]
    return Result(values), " | ".join(said)


def from_others(bench: Bench, model: str) -> tuple[dict[int, np.ndarray], str]:
    """Calibrate on one half of the problems of all other models, judge on the other half of this
    one's, both ways; with one model, on its other data sets. Values by thought, and the rules."""
    mine = [one for one in bench.all if one.model == model]
    values: dict[int, np.ndarray] = {}
    said: list[str] = []
    for seen, unseen in _splits(bench.all, mine):
        rule = _chosen(bench, seen).rule if seen else NEVER
        said.append(f"{'/'.join(sorted({one.data for one in unseen}))}: {rule.name}")
        for one, value in zip(unseen, bench.run(rule, unseen).values, strict=True):
            values[id(one)] = value
    return values, ", ".join(said)


def _splits(
    everyone: Sequence[Thought], mine: Sequence[Thought]
) -> Iterator[tuple[list[Thought], list[Thought]]]:
    others = [one for one in everyone if one.model != mine[0].model]
    if others:
        parts = halves(everyone)
        for here, there in (parts, parts[::-1]):
            seen = [one for one in others if one.problem in here]
            yield seen, [one for one in mine if one.problem in there]
        return
    for data in sorted({one.data for one in mine}):
        unseen = [one for one in mine if one.data == data]
        yield [one for one in mine if one.data != data], unseen


def best_in_hindsight(
    bench: Bench, chosen: Sequence[Thought], draws: Draws, frontier: np.ndarray
) -> tuple[Result, str] | None:
    """Of a grid of rules the one that, on the very data it is judged on, saves most over forced
    truncation with no loss that its interval can tell from zero. No rule that could be shipped."""
    full_accuracy = draws.means(applied(full, chosen).values)[:, 0]
    best: tuple[float, Result, str] | None = None
    for agree, ratio, start, cap in product(
        (4, 5, 6, 7), (1.12, 1.15, 1.2), (1024, 1536, 2048), (0.75, 0.8, 1.0)
    ):
        rule = StopRule("grid", start, 64, ratio, agree, cap=cap)
        result = bench.run(rule, chosen)
        means = draws.means(result.values)
        over = float(at_accuracy(frontier[:1], means[:1, 0])[0])
        if interval(full_accuracy - means[:, 0])[0] <= 0:
            found = means[0, 1] / over
            if best is None or found < best[0]:
                best = found, result, f"agree {agree}, ratio {ratio}, from {start}, cap {cap}"
    return None if best is None else best[1:]


def chains(figures: Figures, data: Path, quick: bool, closed: bool) -> None:
    """All methods on single chains of thought."""
    grades = Grades.read(data, closed)
    everyone = thoughts(data, grades, QUICK_THOUGHTS if quick else None)
    if not everyone:
        sys.exit(f"there are no thoughts in {data}")
    bench = Bench(everyone, grades, RESAMPLES // (4 if quick else 1))
    for model in dict.fromkeys(one.model for one in everyone):
        mine = [one for one in everyone if one.model == model]
        ours, said = calibrated(bench, mine)
        others, rungs = from_others(bench, model)
        by_id = {id(one): value for one, value in zip(mine, ours.values, strict=True)}
        names = list(dict.fromkeys(one.data for one in mine))
        for name in [*names, *(["all"] if len(names) > 1 else [])]:
            chosen = [one for one in mine if name in ("all", one.data)]
            results = methods(bench, chosen, quick)
            results["ours-calibrated"] = Result(np.array([by_id[id(one)] for one in chosen]))
            results["ours-from-others"] = Result(np.array([others[id(one)] for one in chosen]))
            notes = {"ours-calibrated": said, "ours-from-others": rungs}
            draws = Draws.of([one.problem for one in chosen], bench.resamples)
            step = 2 if quick else 1
            budgets = [applied(forced(budget), chosen) for budget in FORCED[::step]]
            frontier = np.stack([draws.means(one.values[:, :2]) for one in budgets], axis=1)
            best = None if quick else best_in_hindsight(bench, chosen, draws, frontier)
            if best is not None:
                results["best-rule-in-hindsight"], notes["best-rule-in-hindsight"] = best
            problems = len({one.problem for one in chosen})
            about = {"model": model, "data": name, "thoughts": len(chosen), "problems": problems}
            report(figures, draws, results, frontier, notes, **about)


def methods(bench: Bench, chosen: Sequence[Thought], quick: bool) -> dict[str, Result]:
    """Every method that needs no calibration."""
    results = {"full": applied(full, chosen)}
    for budget in SHOWN:
        results[f"cut-{budget}"] = applied(cut(budget), chosen)
        results[f"forced-{budget}"] = applied(forced(budget), chosen)
    firsts = [one.record.trials[0].at_tokens for one in chosen if one.record.trials]
    spacing = min(firsts, default=1)
    for effort, (window, every) in EFFORTS.items():
        results[f"dynasor-{effort}"] = bench.run(dynasor(window, max(every, spacing)), chosen)
    if any(trial.logprobs for one in chosen[:100] for trial in one.record.trials):
        results["deer"] = bench.run(deer(), chosen)
    results["ours"] = bench.run(DEFAULT, chosen)
    for rule in () if quick else LADDER:
        results[f"rung-{rule.name}"] = bench.run(rule, chosen)
    results["hindsight"] = applied(hindsight, chosen)
    results["hindsight-correct"] = applied(hindsight_correct, chosen)
    return results


def main() -> None:
    about = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--grading", choices=("strict", "closed"), default="strict")
    options = parser.parse_args()
    data = options.data / "reasoning" if (options.data / "reasoning").is_dir() else options.data
    if path_of(data, "grades") is None:
        sys.exit(
            f"no recorded thoughts in {data}: no grades.csv.gz; give their folder with --data DIR"
        )
    if path_of(data, "trajectories") is None and path_of(data, "rollouts8") is None:
        sys.exit(f"no trajectories.csv.gz and no rollouts8.csv.gz in {data}")
    figures, closed = Figures("certaindex_replay"), options.grading == "closed"
    if path_of(data, "trajectories") is not None:
        chains(figures, data, options.quick, closed)
    if path_of(data, "rollouts8") is not None:
        grades = Grades.read(data, closed)
        rollouts(figures, data, grades, RESAMPLES // (4 if options.quick else 1), options.quick)
    figures.table(f"Stopping early{' (quick)' if options.quick else ''}")


if __name__ == "__main__":
    main()
