"""Many samples, one answer: self-consistency, first-finish, best-of-n."""

import math
from collections import Counter
from dataclasses import dataclass, field

from . import answers
from .certainty import Leader, certaindex, leader, reward_certainty
from .nouns import Event, Failed, Finished, Probed, Scored, Thought
from .strategy import Branch, Step

GRAINS, LEAST_GRAIN = 8, 32  # pieces of a sample that may be asked under way; tokens of one


@dataclass(slots=True)
class Vote(Step):
    """Self-consistency (2203.11171): `n` samples at once, the plurality answers.

    With `threshold`, stop as soon as the certaindex of the finished answers reaches it, from
    `check_from` answers on (2412.20993, table 1: .7 from 5).
    """

    n: int = 8
    threshold: float | None = None
    check_from: int = 5

    def __post_init__(self) -> None:
        Step.__post_init__(self)
        if self.n < 1:
            raise ValueError(f"n is {self.n}; it must be 1 or more")

    def start(self) -> None:
        for _ in range(self.n):
            self.think(max_tokens=max(1, self.budget_tokens // self.n))

    def heed(self, event: Event, branch: Branch) -> None:
        if isinstance(event, Thought) and not event.ended:
            self.think(branch.sample)
        if self.threshold is None or len(self.finished) < self.check_from:
            return
        keys = [self.key(sample.answer) for sample in self.finished]
        if certaindex(keys) >= self.threshold:
            self.settle("settled")


@dataclass(slots=True)
class FirstFinish(Step):
    """The first `k` of `n` samples to finish decide, by plurality (First-Finish, 2505.18149)."""

    n: int = 8
    k: int = 1

    def __post_init__(self) -> None:
        Step.__post_init__(self)
        if not 1 <= self.k <= self.n:
            raise ValueError(f"k is {self.k}; it must be from 1 to n, which is {self.n}")

    def start(self) -> None:
        for _ in range(self.n):
            self.think(max_tokens=max(1, self.budget_tokens // self.n))

    def heed(self, event: Event, branch: Branch) -> None:
        if isinstance(event, Thought) and not event.ended:
            self.think(branch.sample)
        if len(self.finished) >= self.k:
            self.settle("settled")


@dataclass(slots=True)
class SelfConsistency(Step):
    """Race a few samples; stop when a finished answer is agreed to; widen only if it is not.

    `first` samples start. Each time one finishes, the others are asked for a trial answer, if they
    have come to `ripe` of the mean length of those that finished: before, they guess. When the
    leading finished answer is `agree` votes ahead of every other, finished and trial answers
    counted, the step is decided, long before the slowest would end.
    When the wave is over without a decision, `wave` more samples start, up to `n`. A sample is cut
    at `cap` of its limit and its forced answer kept as a trial: it counts only if nobody finished.
    """

    n: int = 8
    first: int = 4
    wave: int = 4
    agree: int = 2
    cap: float = 0.75
    ripe: float = 0.5
    forced: list[str] = field(default_factory=list[str], init=False)
    _trials: dict[int, str] = field(default_factory=dict[int, str], init=False)
    _asked: dict[int, bool] = field(default_factory=dict[int, bool], init=False)

    def __post_init__(self) -> None:
        Step.__post_init__(self)
        if not 1 <= self.first <= self.n or self.wave < 1 or self.agree < 1:
            raise ValueError(
                f"first {self.first}, wave {self.wave}, agree {self.agree} with n {self.n}: "
                "each must be 1 or more, and first at most n"
            )
        if not 0.0 < self.cap <= 1.0:
            raise ValueError(f"cap is {self.cap}; it must be in (0, 1]")
        if not 0.0 <= self.ripe <= 1.0:
            raise ValueError(f"ripe is {self.ripe}; it must be in [0, 1]")
        self.limit_tokens = max(1, int(self.limit_tokens * self.cap))

    def start(self) -> None:
        self._widen(self.first)

    def heed(self, event: Event, branch: Branch) -> None:
        match event:
            case Thought(ended=True):
                self._asked = {}
                self._trials = {}
                self._decide()
                if not self.done:
                    self._ask_others()
            case Thought() if branch.tokens < self.limit_tokens:
                self.think(branch.sample)
            case Thought():
                self._asked[branch.sample] = True
                self.probe(branch.sample)
            case Probed():
                self._note(answers.trial(event.text), branch)
                self._decide()
            case _:
                pass
        if not self.done and not self.open_requests:
            self._widen(self.wave)

    def settle(self, stopped: str) -> None:
        """The leader of the finished samples; of the forced answers if there are none."""
        found = leader([sample.answer for sample in self.finished], self.equivalence)
        found = found or leader(self.forced, self.equivalence)
        if found is None:
            self.finish(None, "failed")
        else:
            self.finish(found.answer, stopped, found.share)

    def _widen(self, count: int) -> None:
        room = self.n - len(self.branches)
        for _ in range(min(count, room)):
            share = self.left_tokens // max(1, self.n - len(self.branches))
            self.think(max_tokens=share or None)  # None: what may be lent

    def grain_tokens(self) -> int:
        """Pieces of thoughts that may be short are short, too: a sample is asked where one ended."""
        return max(LEAST_GRAIN, self.limit_tokens // GRAINS)

    def _ask_others(self) -> None:
        typical = sum(sample.tokens for sample in self.finished) / len(self.finished)
        for branch in self.thinking():
            if self.probe(branch.sample, least_tokens=math.ceil(typical * self.ripe)):
                self._asked[branch.sample] = False

    def _note(self, answer: str, branch: Branch) -> None:
        if self._asked.pop(branch.sample, False):
            self.forced.append(answer)
        else:
            self._trials[branch.sample] = answer

    def _decide(self) -> None:
        best = self._best()
        if best is None:
            return
        given = [*(sample.answer for sample in self.finished), *self._trials.values()]
        votes = Counter(key for answer in given if (key := self.key(answer)) is not None)
        if votes.pop(best.key) - max(votes.values(), default=0) >= self.agree:
            self.settle("settled")

    def _best(self) -> Leader | None:
        return leader([sample.answer for sample in self.finished], self.equivalence)


@dataclass(slots=True)
class BestOfN(Step):
    """`n` samples, each scored when it ends; the highest reward answers.

    With `enough`, stop at the first sample whose reward reaches it.
    """

    n: int = 8
    enough: float | None = None

    def __post_init__(self) -> None:
        Step.__post_init__(self)
        if self.n < 1:
            raise ValueError(f"n is {self.n}; it must be 1 or more")

    def start(self) -> None:
        for _ in range(self.n):
            self.think(max_tokens=max(1, self.budget_tokens // self.n))

    def heed(self, event: Event, branch: Branch) -> None:
        match event:
            case Thought(ended=True):
                self.score(branch.sample)
            case Thought():
                self.think(branch.sample)
            case Scored() if self.enough is not None and event.reward >= self.enough:
                self.settle("settled")
            case Failed() | Scored() | _:
                pass

    def settle(self, stopped: str) -> None:
        """The answer with the highest reward; of samples without one, the plurality."""
        scored = [(b.reward, f) for f, b in self._ended() if b.reward is not None]
        if not scored:
            Step.settle(self, stopped)
            return
        best = max(scored, key=lambda pair: pair[0])[1]
        self.finish(best.answer, stopped, reward_certainty([reward for reward, _ in scored]))

    def _ended(self) -> list[tuple[Finished, Branch]]:
        return [(sample, self.branches[sample.sample]) for sample in self.finished]
