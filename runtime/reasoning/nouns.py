"""What a strategy asks for, what it is told, and what it hands back.

A *sample* is one chain of thought: a branch of the step's session. A *request* is one piece of
work on a sample; the strategy numbers both. Everything is a value: a driver performs the asks on
whatever has sessions that can be forked, and the replay benchmark on recorded thoughts.
"""

from dataclasses import dataclass, field
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Think:
    """Generate up to `max_tokens` more tokens of `sample`.

    A sample that is new begins at the prompt, or at the present end of `parent` (fork its
    session). `instruction` is text to append before generating, `until` a text to stop behind.
    """

    request: int
    sample: int
    max_tokens: int
    seed: int = 0
    parent: int | None = None
    instruction: str = ""
    until: str = ""


@dataclass(frozen=True, slots=True)
class Probe:
    """Fork `sample`, append `suffix`, decode up to `max_tokens`, drop the fork.

    The fork is taken where the sample stands, or where it stood after `at_tokens` tokens: its
    context is in the cache at any length up to the present one. The sample does not see it.
    Short: let it overtake thoughts, and batch it with other probes. A sample that has not come to
    `least_tokens` is not asked: `Failed`.
    """

    request: int
    sample: int
    suffix: str
    max_tokens: int
    at_tokens: int | None = None
    least_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Score:
    """Ask the step's scorer for the reward of `sample` as it stands, or of a `part` of its plan."""

    request: int
    sample: int
    part: str = ""


@dataclass(frozen=True, slots=True)
class Cancel:
    """Abort `request` now; no event about it is expected, and a late one is ignored."""

    request: int


@dataclass(frozen=True, slots=True)
class Finished:
    """A sample that ended by itself: its answer, the tokens it took, its reward if it was scored."""

    sample: int
    answer: str
    tokens: int
    reward: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the step decided, and the finished samples it rests on.

    `stopped` says why: "settled" (a rule decided), "ended" (all that was asked for has ended),
    "limit" (the budget ran out), "failed" (nothing to answer with).
    """

    answer: str | None
    stopped: str
    finished: tuple[Finished, ...] = ()
    certainty: float | None = None
    thought_tokens: int = 0
    probe_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Finish:
    """The last ask: here is the outcome; nothing of the step is running any more."""

    outcome: Outcome


Ask: TypeAlias = Think | Probe | Score | Cancel | Finish


@dataclass(frozen=True, slots=True)
class Thought:
    """Tokens of a Think came: `ended` if the model ended by itself, else it reached `max_tokens`
    or `until` (then `at_stop`). `again_tokens` of what it goes on from were computed again."""

    request: int
    text: str
    tokens: int
    ended: bool = False
    at_stop: bool = False
    again_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Probed:
    """The answer of a Probe, its decoded tokens, the suffix's tokens that had to be computed, and
    the log-probabilities of the decoded tokens where the backend gives them. `again_tokens` of the
    thought before the suffix were computed again: the end of a page, or what was evicted."""

    request: int
    text: str
    tokens: int
    suffix_tokens: int = 0
    logprobs: tuple[float, ...] = field(default=())
    again_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Scored:
    """The scorer's reward."""

    request: int
    reward: float


@dataclass(frozen=True, slots=True)
class Failed:
    """The request came to nothing; its sample is as it was before it."""

    request: int
    message: str = ""


Event: TypeAlias = Thought | Probed | Scored | Failed
