"""A small network that ranks the calls of one step by the length of their answers.

A score says which of two answers is longer, not how long they are (vllm-ltr, 2408.15792); per step,
a monotone line through held-back calls gives it a length. Only the steps are ranked on which the
network has shown on other held-back calls that it does better than their history (`fit`).
"""

from base64 import b64decode, b64encode
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from math import isfinite, log1p
from typing import TYPE_CHECKING, Any
from zlib import crc32

import msgspec

from .asked import CLASSES, Asked
from .known import Judged

if TYPE_CHECKING:
    import numpy

    Floats = numpy.ndarray[Any, numpy.dtype[numpy.float32]]

NUMBERS = 11
STEPS_TOLD = 16  # steps are told apart by a hash
FEATURES = NUMBERS + STEPS_TOLD + CLASSES
HIDDEN = 24
CLIP = 5.0  # standard deviations
SIZES = (FEATURES, FEATURES, FEATURES * HIDDEN, HIDDEN, HIDDEN, FEATURES)

_LOGS = [log1p(count) for count in range(256)]


def features(asked: Asked) -> list[float]:
    """A call as FEATURES numbers: of its prompt, its step, its program."""
    calls, told = asked.calls, [0.0] * STEPS_TOLD
    told[crc32(asked.step.encode()) % STEPS_TOLD] = 1.0
    numbers = [
        log1p(asked.prompt_tokens),
        log1p(asked.own_tokens),
        log1p(asked.max_tokens),
        log1p(asked.usual_tokens),
        log1p(calls),
        log1p(asked.program_tokens),
        log1p(asked.last_tokens),
        log1p(asked.program_tokens / calls) if calls else 0.0,
        float(calls > 0),
        float(asked.schema),
        float(asked.session),
    ]
    classes = asked.classes if len(asked.classes) == CLASSES else bytes(CLASSES)
    return numbers + told + [_LOGS[count] for count in classes]


class StepRank(msgspec.Struct, frozen=True):
    """How scores of one step are read, and what was measured on its held-back calls.

    `cuts` part the scores into groups of calls that are taken to be alike; `scores` and `tokens`
    are the line from scores to lengths.
    """

    cuts: list[float]
    scores: list[float]
    tokens: list[float]
    tau: float
    tau_history: float

    def tokens_at(self, score: float) -> float:
        """The length that goes with a score."""
        at = bisect_left(self.scores, score)
        if at == 0 or at == len(self.scores):
            return self.tokens[min(at, len(self.scores) - 1)]
        low, high = self.scores[at - 1], self.scores[at]
        share = (score - low) / (high - low)
        return self.tokens[at - 1] + share * (self.tokens[at] - self.tokens[at - 1])


class _Data(msgspec.Struct):
    """A ranker as plain data. `weights`: float32, little-endian, base64; of the sizes in SIZES."""

    name: str
    weights: str
    steps: dict[str, StepRank]


class Ranker:
    """Scores calls with `weights`: means and scales of the features, then the network's.

    Raises ValueError for weights of another size, or not finite.
    """

    def __init__(self, name: str, weights: bytes, steps: Mapping[str, StepRank]) -> None:
        import numpy

        found = numpy.frombuffer(weights, dtype="<f4")
        if found.size != sum(SIZES) or not numpy.isfinite(found).all():
            raise ValueError(f"a ranker has {sum(SIZES)} finite weights, this one {found.size}")
        ends = numpy.cumsum(SIZES)[:-1]
        self._mean, self._scale, into, self._bias, self._out, self._through = numpy.split(
            found, ends
        )
        self._into = into.reshape(FEATURES, HIDDEN)
        self._numpy = numpy
        self._weights = weights
        self.name = name  # of this fit: keys of another one's groups mean other calls
        self.steps = dict(steps)

    def scores(self, rows: Sequence[Asked]) -> "Floats":
        """The scores of calls; a higher one is of a longer answer."""
        numpy = self._numpy
        given = numpy.array([features(asked) for asked in rows], dtype=numpy.float32)
        given = ((given - self._mean) * self._scale).clip(-CLIP, CLIP)
        hidden = numpy.tanh(given @ self._into + self._bias)
        return hidden @ self._out + given @ self._through

    def judge(self, asked: Asked) -> Judged | None:
        """What is expected of a call; None for a step that it does not rank."""
        step = self.steps.get(asked.step)
        if step is None:
            return None
        score = float(self.scores((asked,))[0])
        group = bisect_right(step.cuts, score)
        return Judged(f"{self.name}.{group}", step.tokens_at(score))

    def data(self) -> Mapping[str, Any]:
        """It as plain data for JSON."""
        return msgspec.to_builtins(
            _Data(self.name, b64encode(self._weights).decode(), dict(self.steps))
        )


def restored(data: Mapping[str, Any]) -> Ranker | None:
    """The ranker that `data` has written; None where numpy is not installed.

    Raises ValueError for anything else.
    """
    try:
        kept = msgspec.convert(data, _Data)
        if not all(map(_sound, kept.steps.values())):
            raise ValueError("a line from scores to lengths has as many of both, ascending")
        return Ranker(kept.name, b64decode(kept.weights, validate=True), kept.steps)
    except ImportError:
        return None
    except (msgspec.ValidationError, ValueError) as error:
        raise ValueError(f"this is not a ranker: {error}") from None


def _sound(step: StepRank) -> bool:
    numbers = (*step.scores, *step.tokens, *step.cuts)
    rising = all(low < high for low, high in zip(step.scores, step.scores[1:], strict=False))
    same = 0 < len(step.scores) == len(step.tokens)
    return same and rising and all(map(isfinite, numbers)) and min(step.tokens) >= 0
