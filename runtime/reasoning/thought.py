"""One chain of thought, probed as it grows, stopped when its answer stands (ALGORITHMS 7)."""

from bisect import insort
from dataclasses import dataclass, field

from . import answers
from .certainty import certaindex, confidence, spelling
from .nouns import Event, Failed, Probed, Thought
from .rules import DEFAULT, StopRule, Trial
from .strategy import Branch, Step

MAX_TRIES = 3


@dataclass(slots=True)
class ChainOfThought(Step):
    """Think to where the rule may stop, probe, and stop when `rule` says that the answer has settled.

    The answer is then the trial answer, in the spelling most frequent among the trials. A thought
    that its limit cuts is asked once more, and answers with that trial. With `stop` false the rule
    is only noted (`would_stop`: where it would have stopped or cut, and with which answer) and the
    thought runs to its end: a shadow run.
    """

    rule: StopRule = DEFAULT
    stop: bool = True
    trials: list[Trial] = field(default_factory=list[Trial], init=False)
    would_stop: Trial | None = field(default=None, init=False)
    _failures: int = field(default=0, init=False)
    _cut: bool = field(default=False, init=False)
    _place: int = field(default=0, init=False)  # of the probe that is under way

    def start(self) -> None:
        self._think_on(None)

    def heed(self, event: Event, branch: Branch) -> None:
        match event:
            case Failed():
                self._try_again(branch)
            case Thought(ended=True):
                self.finish(self.finished[-1].answer, "ended")
            case Thought():
                if branch.tokens >= self._limit(branch):
                    self._force(branch)
                elif not self._ask_trial(branch):
                    self._think_on(branch)
            case Probed():
                self._take(event, branch)
            case _:
                pass

    def settle(self, stopped: str) -> None:
        """The last trial that was an answer."""
        told = next((trial for trial in reversed(self.trials) if trial.key is not None), None)
        said = told or (self.trials[-1] if self.trials else None)
        if said is None:
            self.finish(None, "failed")
            return
        given = [trial.answer for trial in self.trials]
        best = spelling(given, said.key, self.equivalence) if said.key is not None else said.answer
        self.finish(best, stopped, self.certainty())

    def certainty(self) -> float:
        """The certaindex of the trials that the rule looks at."""
        return certaindex([trial.key for trial in self.trials[-max(2, self.rule.agree) :]])

    def foresee(self) -> float:
        """To where the answer would have stood for long enough, should it stand from now on; the
        agreement of the last trials says how far that is. Without a rule, to the end."""
        at = self.branches[0].tokens if self.branches else 0
        cap = self.rule.cap_tokens(self.limit_tokens) if self.stop else self.limit_tokens
        if not (self.rule.stops and self.stop):
            return float(max(0, cap - at))
        place, probes = at, self.rule.agree - self._agreeing()
        while probes > 0 and place < cap:
            place, probes = self.rule.next_probe(place), probes - 1
        return max(0, min(place, cap) - at) + self._forced_tokens

    def _agreeing(self) -> int:
        """How many of the last trials are one and the same answer."""
        keys = [trial.key for trial in self.trials]
        count = 0
        while count < len(keys) and keys[-1] is not None and keys[-1 - count] == keys[-1]:
            count += 1
        return count

    def _limit(self, branch: Branch) -> int:
        """Where the thought is cut: by its rule, or where the budget must do for the answer."""
        cap = self.rule.cap_tokens(self.limit_tokens) if self.stop else self.limit_tokens
        goal = min(cap, self.rule.next_check(branch.tokens)) if self.rule.stops else cap
        room = self.afford(max(0, goal - branch.tokens) + self._forced_tokens)
        return min(cap, branch.tokens + max(0, room - self._forced_tokens))

    @property
    def _forced_tokens(self) -> int:
        return self.answer_tokens + self.suffix_tokens

    def _think_on(self, branch: Branch | None) -> None:
        at = branch.tokens if branch else 0
        until = self._limit(branch or Branch(0))
        cap = self.rule.cap_tokens(self.limit_tokens)
        if at < cap:
            until = min(until, cap)
        if self.rule.stops:
            until = min(until, self.rule.next_check(at))
        if self.think(branch.sample if branch else None, max(1, until - at)) is None:
            self.settle("limit")

    def _ask_trial(self, branch: Branch) -> bool:
        """Probe where the rule wants to know more; False if it does not, or the budget is out."""
        wanted = self._wanted(branch)
        if wanted is None or not self.probe(branch.sample, wanted):
            return False
        self._place = wanted
        return True

    def _wanted(self, branch: Branch) -> int | None:
        """Where the rule would know more; a shadow run asks where a cut would have."""
        if self.rule.stops:
            return self.rule.wanted(self.trials, branch.tokens)
        noting = not self.stop and branch.tokens >= self.rule.cap_tokens(self.limit_tokens)
        return branch.tokens if noting and not self.trials else None

    def _force(self, branch: Branch) -> None:
        self._cut = True
        self._place = branch.tokens
        if not self.probe(branch.sample):
            self.settle("limit")

    def _take(self, event: Probed, branch: Branch) -> None:
        self._failures = 0
        answer = answers.trial(event.text)
        trial = Trial(
            self._place,
            answer,
            self.key(answer),
            confidence(event.logprobs),
            event.tokens,
            event.suffix_tokens + event.again_tokens,
        )
        insort(self.trials, trial, key=lambda trial: trial.at_tokens)
        if self._cut:
            self.settle("limit")
            return
        if self._ask_trial(branch):
            return
        known = self.rule.wanted(self.trials, branch.tokens) is None
        settled = self.rule.settled(self.trials) if known else None
        if self.would_stop is None:
            cut = branch.tokens >= self.rule.cap_tokens(self.limit_tokens)
            self.would_stop = settled or (self.trials[-1] if cut else None)
        if settled is not None and self.stop:
            self.settle("settled")
        else:
            self._think_on(branch)

    def _try_again(self, branch: Branch) -> None:
        self._failures += 1
        if self._failures > MAX_TRIES or self._cut:
            self.settle("failed")
        else:
            self._think_on(branch)
