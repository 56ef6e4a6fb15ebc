"""Thoughts that were recorded at full length with trial answers along the way, and what a strategy
would have made of them: the strategy itself runs, over the record in place of a model."""

import math
import sys
from bisect import bisect_right
from collections.abc import Hashable
from dataclasses import dataclass

from .answers import Equivalence, math_value
from .nouns import Finish, Outcome, Probe, Probed, Think, Thought
from .rules import StopRule, Trial
from .strategy import SUFFIX_TOKENS
from .thought import ChainOfThought


@dataclass(frozen=True, slots=True)
class RecordedTrial:
    """What the probe at `at_tokens` answered, with `tokens` decoded."""

    at_tokens: int
    text: str
    tokens: int
    logprobs: tuple[float, ...] = ()


def recorded(trial: Trial) -> RecordedTrial:
    """A trial as a thought told it; of its probabilities the mean is known."""
    sure = trial.confidence
    logprobs = () if sure is None else (math.log(max(sure, sys.float_info.min)),)
    return RecordedTrial(trial.at_tokens, trial.answer + "}", trial.tokens, logprobs)


@dataclass(frozen=True, slots=True)
class Recorded:
    """One thought to its end: its length, its answer, and whether it ended by itself or was cut.

    `trials` in order of their place. `problem` is what is independent of all others: thoughts
    about one problem, with other seeds, share it.
    """

    problem: Hashable
    tokens: int
    answer: str
    ended: bool
    trials: tuple[RecordedTrial, ...]

    def at(self, tokens: int) -> RecordedTrial | None:
        """The last trial at or before this length; None if there is none."""
        found = bisect_right(self.trials, tokens, key=lambda trial: trial.at_tokens) - 1
        return self.trials[found] if found >= 0 else None


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a rule made of a record: all tokens decoded or prefilled, and those decoded in turn."""

    answer: str | None
    stopped: str
    tokens: int
    sequential_tokens: int
    probes: int


def replay(
    rule: StopRule,
    recorded: Recorded,
    *,
    limit_tokens: int,
    equivalence: Equivalence = math_value,
    suffix_tokens: int = SUFFIX_TOKENS,
    piece_tokens: int = 0,
) -> Replayed:
    """Run `rule` over the record: thought and probe tokens, each probe's suffix included.

    The thought before a probe is in the cache, so a probe prefills its suffix only, and what goes
    on behind one `piece_tokens`; thought and probes take turns, so decoded tokens of both count as
    sequential.
    """
    step = ChainOfThought(
        budget_tokens=1 << 40,
        limit_tokens=limit_tokens,
        equivalence=equivalence,
        extract=str,
        suffix_tokens=suffix_tokens,
        rule=rule,
    )
    outcome, probes, pieces = _drive(step, recorded, suffix_tokens)
    decoded = outcome.thought_tokens + outcome.probe_tokens - probes * suffix_tokens
    spent = decoded + probes * suffix_tokens + (pieces - 1) * piece_tokens
    return Replayed(outcome.answer, outcome.stopped, spent, decoded, probes)


def _drive(
    step: ChainOfThought, recorded: Recorded, suffix_tokens: int
) -> tuple[Outcome, int, int]:
    """The outcome, how many probes it took, and in how many pieces the thought came."""
    position = probes = pieces = 0
    asks = step.begin()
    while True:
        for ask in asks:
            match ask:
                case Finish(outcome):
                    return outcome, probes, pieces
                case Think():
                    pieces += 1
                    room = recorded.tokens - position
                    ended = recorded.ended and room <= ask.max_tokens
                    used = min(room, ask.max_tokens) if recorded.ended else ask.max_tokens
                    position += used
                    text = recorded.answer if ended else ""
                    asks = step.observe(Thought(ask.request, text, used, ended))
                case Probe():
                    probes += 1
                    place = ask.at_tokens or position
                    found = recorded.at(place)
                    if found is None:  # nobody knows, but at the end
                        told = recorded.answer if place >= recorded.tokens else ""
                        found = RecordedTrial(place, told, 0)
                    told = Probed(
                        ask.request, found.text, found.tokens, suffix_tokens, found.logprobs
                    )
                    asks = step.observe(told)
                case _:
                    raise TypeError(f"one thought does not ask for {ask!r}")
