"""The frame of every strategy: what is asked is booked, what comes back is matched to it.

A strategy of one's own is a subclass with two methods: `start`, and `heed`, which is told one
event and the sample it is about. Both call `think`, `probe`, `score`, `cancel` and `finish`. The
frame keeps the promises, whatever the two methods do: no more tokens are asked for than the budget
has, every request is answered or cancelled before the end, every finished sample is in the
outcome, and a strategy with nothing under way has ended.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from . import answers
from .answers import Equivalence, Key
from .certainty import leader
from .nouns import (
    Ask,
    Cancel,
    Event,
    Failed,
    Finish,
    Finished,
    Outcome,
    Probe,
    Probed,
    Score,
    Scored,
    Think,
    Thought,
)
from .scorer import checked

MAX_TEXT_CHARS = 1_000_000

# Dynasor's suffix (2412.20993), shortened: it ends inside the box, so that an answer must follow.
SUFFIX = (
    "\n\n... Oh, I suddenly got the answer to the whole problem, **Final Answer**\n\n\\[ \\boxed{"
)
SUFFIX_TOKENS = 20


def _nobody(tokens: int) -> int:
    return 0


@dataclass(slots=True)
class Branch:
    """What is known of one sample."""

    sample: int
    parent: int | None = None
    text: str = ""
    tokens: int = 0
    own_tokens: int = 0
    ended: bool = False
    reward: float | None = None


@dataclass(slots=True)
class Step:
    """Common settings and books of one reasoning step.

    `budget_tokens` bounds all tokens the step may decode and, for probes, prefill: thoughts,
    probes and their suffixes; what is computed again of the thought before is counted beside it
    (`thought_again_tokens`, `probe_again_tokens`). A cancelled request stays charged in full: what
    it had decoded by then is not known here. `limit_tokens` bounds one sample. `seed` is that of
    the first sample; others count up from it. `equivalence` groups answers and `extract` finds the
    answer in the text of a finished sample. `lend` is asked for tokens beyond the budget, such as a
    `Pool` has; it gives as many as it says.
    """

    budget_tokens: int
    limit_tokens: int
    seed: int = 0
    equivalence: Equivalence = answers.math_value
    extract: Callable[[str], str] = answers.extract
    suffix: str = SUFFIX
    suffix_tokens: int = SUFFIX_TOKENS
    answer_tokens: int = 32
    lend: Callable[[int], int] = field(default=_nobody, init=False, repr=False)
    branches: dict[int, Branch] = field(default_factory=dict[int, Branch], init=False)
    finished: list[Finished] = field(default_factory=list[Finished], init=False)
    done: bool = field(default=False, init=False)
    stopped: str = field(default="", init=False)  # why, as in the outcome
    pieces: int = field(default=0, init=False)  # in which thoughts went on
    thought_again_tokens: int = field(default=0, init=False)
    probe_again_tokens: int = field(default=0, init=False)
    _open: dict[int, Ask] = field(default_factory=dict[int, Ask], init=False)
    _asks: list[Ask] = field(default_factory=list[Ask], init=False)
    _charged: int = field(default=0, init=False)
    _thought_tokens: int = field(default=0, init=False)
    _probe_tokens: int = field(default=0, init=False)
    _next: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        for name in ("budget_tokens", "limit_tokens", "answer_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 1 or more")

    # For a driver.

    def begin(self) -> tuple[Ask, ...]:
        """What to do first."""
        self.start()
        return self._flush()

    def observe(self, event: Event) -> tuple[Ask, ...]:
        """What to do next, now that `event` is known. Unknown and late events change nothing."""
        ask = None if self.done else self._open.pop(event.request, None)
        if not isinstance(ask, Think | Probe | Score):
            return ()
        event = checked(event)
        self._book(ask, event)
        self.heed(event, self.branches[ask.sample])
        return self._flush()

    def grant(self, tokens: int) -> None:
        """Add to the budget what a settled step left over."""
        self.budget_tokens += max(0, tokens)

    @property
    def left_tokens(self) -> int:
        """Budget that is neither spent nor asked for."""
        return self.budget_tokens - self._charged

    @property
    def open_requests(self) -> tuple[int, ...]:
        """The requests that were asked for and are neither answered nor cancelled."""
        return tuple(self._open)

    @property
    def spent_tokens(self) -> int:
        """Tokens of what has been answered: thoughts, probes and their suffixes."""
        return self._thought_tokens + self._probe_tokens

    def forecast_tokens(self) -> int:
        """About how many tokens this step will still decode: the order key of
        shortest-remaining-first. Never more than its budget has left."""
        left = self.budget_tokens - self.spent_tokens
        return 0 if self.done else max(0, min(math.ceil(self.foresee()), left))

    def grain_tokens(self) -> int | None:
        """How long a piece of a thought may be at most, for those who ask samples under way."""
        return None

    def full_tokens(self) -> int:
        """About what thinking to the end would take, for the account: samples of the typical
        length, as many as were to be drawn."""
        whole = [sample.tokens for sample in self.finished]
        typical = sum(whole) / len(whole) if whole else self.limit_tokens
        return round(typical * getattr(self, "n", 1))

    # For an author.

    def start(self) -> None:
        """Ask for the first samples."""
        raise NotImplementedError

    def heed(self, event: Event, branch: Branch) -> None:
        """Decide what the event about `branch` changes."""
        raise NotImplementedError

    def foresee(self) -> float:
        """The tokens that are still to be decoded, for `forecast_tokens`: here, samples that have
        not ended go on to the typical length."""
        return sum(self.rest_tokens(branch) for branch in self.branches.values())

    def rest_tokens(self, branch: Branch) -> float:
        """What `branch` will still take: up to the mean of the samples that ended and were longer,
        or up to its limit."""
        if branch.ended:
            return 0.0
        longer = [each.tokens for each in self.finished if each.tokens > branch.tokens]
        end = sum(longer) / len(longer) if longer else self.limit_tokens
        return max(0.0, end - branch.tokens)

    def settle(self, stopped: str) -> None:
        """End with what there is: the leader of the finished samples. A subclass may know better."""
        found = leader([f.answer for f in self.finished], self.equivalence)
        self.finish(found.answer if found else None, stopped if found else "failed")

    def think(
        self,
        sample: int | None = None,
        max_tokens: int | None = None,
        *,
        parent: int | None = None,
        instruction: str = "",
        until: str = "",
    ) -> int | None:
        """Go on with `sample`, or begin one; its id, or None if budget or limit leave no token."""
        branch = self._branch(sample, parent)
        room = self.limit_tokens - branch.tokens
        wanted = room if max_tokens is None else min(room, max_tokens)
        granted = 0 if branch.ended else min(wanted, self.afford(wanted))
        if granted < 1:
            return None
        self.branches[branch.sample] = branch
        self._charged += granted
        self._ask(
            Think(
                self._number(),
                branch.sample,
                granted,
                self.seed + branch.sample,
                branch.parent if branch.own_tokens == 0 else None,
                instruction,
                until,
            )
        )
        return branch.sample

    def probe(self, sample: int, at_tokens: int | None = None, least_tokens: int = 0) -> bool:
        """Ask `sample` for its trial answer, now or as of an earlier length, if it has come to
        `least_tokens`; False if the budget has no room for it."""
        cost = self.answer_tokens + self.suffix_tokens
        if cost > self.afford(cost):
            return False
        self._charged += cost
        number = self._number()
        ask = Probe(number, sample, self.suffix, self.answer_tokens, at_tokens, least_tokens)
        self._ask(ask)
        return True

    def score(self, sample: int, part: str = "") -> None:
        """Ask for the reward of `sample`, or of a `part` of what it planned."""
        self._ask(Score(self._number(), sample, part))

    def afford(self, tokens: int) -> int:
        """How many of `tokens` the budget has, with what is lent where it runs short."""
        if tokens > self.left_tokens:
            self.grant(self.lend(tokens - self.left_tokens))
        return min(tokens, self.left_tokens)

    def cancel(self, request: int) -> None:
        """Abort `request` if it is under way."""
        if self._open.pop(request, None) is not None:
            self._asks.append(Cancel(request))

    def finish(self, answer: str | None, stopped: str, certainty: float | None = None) -> None:
        """Decide; whatever is still under way is cancelled. Only the first decision counts."""
        if self.done:
            return
        for request in tuple(self._open):
            self.cancel(request)
        self.done, self.stopped = True, stopped
        rewards = {b.sample: b.reward for b in self.branches.values()}
        kept = tuple(replace(f, reward=rewards[f.sample]) for f in self.finished)
        self._asks.append(
            Finish(
                Outcome(answer, stopped, kept, certainty, self._thought_tokens, self._probe_tokens)
            )
        )

    def key(self, answer: str) -> Key | None:
        """The key of an answer under this step's equivalence."""
        return self.equivalence(answer)

    def thinking(self) -> list[Branch]:
        """The samples whose next tokens are under way, by their number."""
        ids = {ask.sample for ask in self._open.values() if isinstance(ask, Think)}
        return [self.branches[sample] for sample in sorted(ids)]

    # The books.

    def _branch(self, sample: int | None, parent: int | None) -> Branch:
        if sample is not None:
            return self.branches[sample]
        number = len(self.branches)
        if parent is None:
            return Branch(number)
        origin = self.branches[parent]
        return Branch(number, parent, origin.text, origin.tokens)

    def _number(self) -> int:
        self._next += 1
        return self._next

    def _ask(self, ask: Think | Probe | Score) -> None:
        if self.done:
            raise RuntimeError("the step has finished; nothing more can be asked for")
        self._open[ask.request] = ask
        self._asks.append(ask)

    def _book(self, ask: Think | Probe | Score, event: Event) -> None:
        branch = self.branches[ask.sample]
        match ask, event:
            case Think(), Thought():
                used = max(0, min(event.tokens, ask.max_tokens))
                self._charged += used - ask.max_tokens
                self._thought_tokens += used
                self.pieces += branch.tokens > 0
                self.thought_again_tokens += event.again_tokens
                branch.tokens += used
                branch.own_tokens += used
                branch.text = (branch.text + event.text)[-MAX_TEXT_CHARS:]
                if event.ended:
                    branch.ended = True
                    answer = self.extract(branch.text)
                    self.finished.append(Finished(branch.sample, answer, branch.tokens))
            case Probe(), Probed():
                used = max(0, min(event.tokens, self.answer_tokens))
                used += max(0, min(event.suffix_tokens, self.suffix_tokens))
                self._charged += used - self.answer_tokens - self.suffix_tokens
                self._probe_tokens += used
                self.probe_again_tokens += event.again_tokens
            case Score(), Scored():
                branch.reward = event.reward
            case (Think() | Probe(), Failed()):
                cost = ask.max_tokens + (self.suffix_tokens if isinstance(ask, Probe) else 0)
                self._charged -= cost
            case Score(), Failed():
                pass
            case _:
                raise TypeError(f"request {ask.request} is a {type(ask).__name__}, not {event!r}")

    def _flush(self) -> tuple[Ask, ...]:
        if not self._open and not self.done:
            self.settle("ended" if self.left_tokens > 0 else "limit")
        if not self.done and not self._open:
            self.finish(None, "failed")
        asks, self._asks = tuple(self._asks), []
        return asks
