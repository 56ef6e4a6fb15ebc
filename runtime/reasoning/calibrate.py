"""The boldest stop rule whose loss of accuracy a calibration split can vouch for.

Learn-then-test (2110.01052) with fixed-sequence testing: the rules are tried from careful to bold,
each against the bound of `bounds.upper_bound`, and the first that fails ends the search; so all
that passed hold at once, with the level of one. Conformal risk control (2208.02814) bounds the
expected loss instead, and needs fewer problems. Where nothing passes the answer is `NEVER`.
"""

import math
import random
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

from .answers import Equivalence, math_value
from .bounds import problems_needed, upper_bound
from .families import Family
from .recorded import Recorded, replay
from .rules import LADDER, NEVER, StopRule, Vouch
from .strategy import SUFFIX_TOKENS

# What "no measurable loss" means: not above zero by the interval, and less than this by its bound.
UNMEASURABLE = 0.02
LEVEL = 0.9


@dataclass(frozen=True, slots=True)
class Cost:
    """One problem under one rule: the loss against full length, and the tokens of both, means over
    its thoughts. A loss is 1 for a correct answer lost, -1 for one gained."""

    problem: Hashable
    loss: float
    tokens: float
    full_tokens: float


@dataclass(frozen=True, slots=True)
class Trialled:
    """How one candidate fared."""

    rule: StopRule
    loss: float
    bound: float
    saved: float
    passed: bool


@dataclass(frozen=True, slots=True)
class Calibration:
    """The rule to store with the workflow, why, and how every candidate fared."""

    rule: StopRule
    tried: tuple[Trialled, ...]
    problems: int
    needed: int
    message: str

    @property
    def enough_data(self) -> bool:
        """Whether so few problems could have vouched for any rule at all."""
        return self.problems >= self.needed


def costs(
    rule: StopRule,
    records: Sequence[Recorded],
    correct: Callable[[Recorded, str | None], float] | None,
    *,
    limit_tokens: int,
    equivalence: Equivalence = math_value,
    probe_tokens: int = SUFFIX_TOKENS,
    piece_tokens: int = 0,
) -> list[Cost]:
    """What `rule` costs on each problem; without `correct`, disagreement with full length counts.

    A probe prefills `probe_tokens`, and a thought that goes on behind one `piece_tokens`.
    """
    by_problem: dict[Hashable, list[tuple[float, int, int]]] = {}
    for record in records:
        done = replay(
            rule,
            record,
            limit_tokens=limit_tokens,
            equivalence=equivalence,
            suffix_tokens=probe_tokens,
            piece_tokens=piece_tokens,
        )
        if correct is not None:
            loss = correct(record, record.answer) - correct(record, done.answer)
        else:
            same = done.answer is not None and (
                done.answer == record.answer
                or equivalence(done.answer) == equivalence(record.answer) is not None
            )
            loss = 0.0 if same else 1.0
        by_problem.setdefault(record.problem, []).append((loss, done.tokens, record.tokens))
    return [Cost(name, *_means(found)) for name, found in by_problem.items()]


def calibrate(
    cost_of: Callable[[StopRule], Sequence[Cost]],
    *,
    budget: float | None = None,
    level: float = LEVEL,
    families: Sequence[Family] = (Family("standing", LADDER),),
    method: str = "ltt",
    labelled: bool = True,
    seed: int = 0,
) -> Calibration:
    """The rule of `families` that saves most and that the costs vouch for.

    `budget` is the share of answers that may be lost, None for none that is measurable. `method`
    is "ltt" (with probability `level` over the draw of the problems) or "crc" (in expectation). A
    rule that gains accuracy over full length sets the measure: none is chosen that is worse than it
    by more than the budget.
    """
    if method not in ("ltt", "crc"):
        raise ValueError(f'method is {method!r}; it must be "ltt" or "crc"')
    if method == "crc" and len(families) > 1:
        raise ValueError("risk control in expectation holds for one family of rules")
    allowed = UNMEASURABLE if budget is None else budget
    low = -1.0 if labelled else 0.0
    delta = 1 - level
    weights = sum(family.weight for family in families)
    shares = [delta * family.weight / weights for family in families]
    needed = min(_needed(allowed, share, low, method) for share in shares)
    tried, problems = list[Trialled](), 0
    for family, share in zip(families, shares, strict=True):
        for rule in family.rules:
            found = _shuffled(cost_of(rule), seed)
            problems = len(found)
            losses = [cost.loss for cost in found]
            bound = _bound(losses, share, low, method)
            clear = budget is not None or _not_above_zero(losses, delta, low)
            passed = bool(losses) and bound <= allowed and clear
            tried.append(Trialled(rule, _mean(losses), bound, _saved(found), passed))
            if not passed:
                break
    return _choose(tried, allowed, level, method, labelled, problems, needed)


def _choose(
    tried: Sequence[Trialled],
    allowed: float,
    level: float,
    method: str,
    labelled: bool,
    problems: int,
    needed: int,
) -> Calibration:
    passed = [one for one in tried if one.passed and one.saved > 0]
    against = "labels" if labelled else "full length"
    if not passed:
        why = (
            f"{problems} problems cannot vouch for a loss below {allowed:.2%}: "
            f"it takes {needed} even where nothing is lost"
            if problems < needed
            else "no rule that saves tokens keeps within the budget"
        )
        return Calibration(NEVER, tuple(tried), problems, needed, f"{why}; full length is kept")
    least = min(one.loss for one in passed)
    best = max((one for one in passed if one.loss <= least + allowed), key=lambda one: one.saved)
    vouch = Vouch(
        method, against, allowed, level, problems, best.loss, min(1.0, best.bound), best.saved
    )
    said = (
        f"{best.rule.name}: saves {best.saved:.1%}, loses {best.loss:+.2%} against {against} "
        f"on {problems} problems, below {best.bound:.2%} with confidence {level:.0%}"
    )
    return Calibration(replace(best.rule, vouch=vouch), tuple(tried), problems, needed, said)


def _bound(losses: Sequence[float], delta: float, low: float, method: str) -> float:
    if not losses:
        return math.inf
    if method == "crc":
        n = len(losses)
        return (n * _mean(losses) + 1.0) / (n + 1)
    return upper_bound(losses, delta, low)


def _needed(allowed: float, delta: float, low: float, method: str) -> int:
    if allowed <= 0:
        raise ValueError(f"a budget of {allowed} cannot be vouched for; leave it out for no loss")
    return math.ceil(1 / allowed) - 1 if method == "crc" else problems_needed(allowed, delta, low)


def _not_above_zero(losses: Sequence[float], delta: float, low: float) -> bool:
    if low == 0.0 or not losses:
        return True  # disagreement is never negative: its bound says all
    return -upper_bound([-loss for loss in losses], delta, -1.0) <= 0.0


def _shuffled(found: Sequence[Cost], seed: int) -> list[Cost]:
    mixed = sorted(found, key=lambda cost: repr(cost.problem))
    random.Random(seed).shuffle(mixed)
    return mixed


def _means(found: Sequence[tuple[float, int, int]]) -> tuple[float, float, float]:
    loss, tokens, full = (_mean([float(row[at]) for row in found]) for at in range(3))
    return loss, tokens, full


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


def _saved(found: Sequence[Cost]) -> float:
    full = math.fsum(cost.full_tokens for cost in found)
    return 1 - math.fsum(cost.tokens for cost in found) / full if full > 0 else 0.0
