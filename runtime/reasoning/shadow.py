"""Shadow runs: a sampled share thinks to the end, and shows whether the rule still keeps its word.

A pure monitor. The evidence against the rule is a wealth that bets that the loss is above what was
allowed; it may be looked at after every run (Ville's inequality), so drift is reported as soon as
it is certain, and a rule that keeps its word is widened with probability `alpha` at most.
"""

import hashlib
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from .families import safer
from .rules import NEVER, StopRule

_MOST_BET = 0.5
MONITORS = 200  # steps of a workflow that are watched
FRESH = 2_000  # shadow runs between two saves


def is_shadow(program: str, share: float, seed: int = 0) -> bool:
    """Whether this program runs to its end; the same answer in a resumed run."""
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"share is {share}; it must be from 0 to 1")
    digest = hashlib.blake2b(f"{seed}:{program}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) < share * 2**64


@dataclass(frozen=True, slots=True)
class Drift:
    """The rule lost more than was allowed: what it was, what replaces it, and the evidence."""

    left: StopRule
    rule: StopRule
    runs: int
    loss: float
    allowed: float

    def __str__(self) -> str:
        return (
            f"shadow runs: {self.left.name} loses {self.loss:.1%} of {self.runs} answers, "
            f"more than the {self.allowed:.1%} allowed; now {self.rule.name}"
        )


@dataclass(slots=True)
class Shadow:
    """What the shadow runs of one workflow's rule have shown.

    `allowed` is the loss that calibration allowed, in the same coin: with labels the share of
    correct answers lost, without them the share of answers that full length changes.
    """

    rule: StopRule  # now; `asked` is the one that it began with
    allowed: float
    alpha: float = 0.05
    runs: int = field(default=0, init=False)
    loss: float = field(default=0.0, init=False)
    drifts: list[Drift] = field(default_factory=list[Drift], init=False)
    wealth: float = field(default=1.0, init=False)
    asked: StopRule = field(init=False)

    def __post_init__(self) -> None:
        self.asked = self.rule
        if not 0.0 < self.allowed < 1.0 or not 0.0 < self.alpha < 1.0:
            raise ValueError("allowed and alpha must lie between 0 and 1")

    @property
    def mean_loss(self) -> float:
        """The loss of the present rule so far; 0 before the first run."""
        return self.loss / self.runs if self.runs else 0.0

    def observe(self, loss: float) -> Drift | None:
        """Note one run to the end: `loss` in [-1, 1] between where the rule would have stopped and
        the end. A drift if the evidence is enough; `rule` is then a more careful one."""
        if not -1.0 <= loss <= 1.0:
            raise ValueError(f"loss is {loss}; it must lie in [-1, 1]")
        bet = min(_MOST_BET, max(0.05, self.mean_loss - self.allowed))
        self.wealth *= 1 + bet * (loss - self.allowed)
        self.runs += 1
        self.loss += loss
        if self.wealth < 1 / self.alpha:
            return None
        return self.widen()

    def verdict(self) -> str:
        """One line for the summary."""
        if not self.runs:
            return f"{self.rule.name}: no shadow runs yet"
        return (
            f"{self.rule.name}: {self.runs} shadow runs, loss {self.mean_loss:+.1%} "
            f"(allowed {self.allowed:.1%})"
        )

    def widen(self) -> Drift:
        """Leave the rule for the next more careful one, whose evidence begins anew."""
        drift = Drift(self.rule, safer(self.rule), self.runs, self.mean_loss, self.allowed)
        self.drifts.append(drift)
        self.rule, self.runs, self.loss, self.wealth = drift.rule, 0, 0.0, 1.0
        return drift

    def state(self) -> "State":
        """What `restored` goes on from."""
        asked, rule = self.asked.to_json(), self.rule.to_json()
        return State(asked, rule, self.allowed, self.runs, self.loss, self.wealth)


class State(NamedTuple):
    """A monitor between runs: the rules as JSON, and the evidence so far."""

    asked: str
    rule: str
    allowed: float
    runs: int
    loss: float
    wealth: float


def restored(state: State) -> Shadow:
    """The monitor of `state`; ValueError where it is damaged."""
    shadow = Shadow(StopRule.from_json(state.asked), state.allowed)
    shadow.rule = StopRule.from_json(state.rule)
    sound = 0.0 <= state.wealth < math.inf and abs(state.loss) <= state.runs
    if not sound:
        raise ValueError(f"a shadow run's evidence is out of range: {state[2:]}")
    shadow.runs, shadow.loss, shadow.wealth = state.runs, state.loss, state.wealth
    return shadow


class Loss(NamedTuple):
    """One shadow run: the step, its rule as JSON, what was allowed, the rule in force, the loss."""

    step: str
    asked: str
    allowed: float
    rule: str
    loss: float


@dataclass(slots=True)
class Shadows:
    """The monitors of a workflow's reasoning steps. `fresh` are the runs since the last save."""

    monitors: dict[str, Shadow] = field(default_factory=dict[str, Shadow])
    fresh: deque[Loss] = field(default_factory=lambda: deque[Loss](maxlen=FRESH))

    def monitor(self, step: str, asked: StopRule, allowed: float) -> Shadow:
        """The monitor of a step; a new one where its author has changed the rule or the loss."""
        name = _name(step, asked.to_json(), allowed)
        found = self.monitors.get(name)
        if found is None:
            found = self.monitors[name] = Shadow(asked, allowed)
            while len(self.monitors) > MONITORS:
                del self.monitors[next(iter(self.monitors))]
        return found

    def observe(self, run: Loss) -> Drift | None:
        """Note a shadow run; one that began under a rule that was left since says nothing."""
        found = self.monitors.get(_name(run.step, run.asked, run.allowed))
        if found is None or found.rule.name != run.rule:
            return None
        self.fresh.append(run)
        return found.observe(run.loss)

    def heed(self, other: "Shadows") -> None:
        """Leave the rules that another process has left, whatever the evidence here says of them."""
        for name, theirs in other.monitors.items():
            if not theirs.drifts:
                continue
            mine = self.monitors.setdefault(name, Shadow(theirs.asked, theirs.allowed))
            while _is_safer(theirs.rule, mine.rule):
                mine.widen()

    def add(self, runs: Sequence[Loss]) -> None:
        """Add what another process has seen."""
        for run in runs:
            self.monitor(run.step, StopRule.from_json(run.asked), run.allowed)
            self.observe(run)


def _is_safer(rule: StopRule, other: StopRule) -> bool:
    """Whether `rule` is among those that come when `other` is left."""
    while other.name != NEVER.name:
        other = safer(other)
        if other.name == rule.name:
            return True
    return False


def _name(step: str, asked: str, allowed: float) -> str:
    digest = hashlib.blake2b(f"{asked} {allowed!r}".encode(), digest_size=6).hexdigest()
    return f"{step} {digest}"
