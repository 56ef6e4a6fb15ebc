"""When one chain of thought may stop: where it is probed, and how long its answer must stand.

The rule is data: it is stored with the workflow as JSON, calibrated (`calibrate`), and watched
(`shadow`). Probes are spaced in a ratio of the thought's length, since how long an answer will
stand goes by how long it has stood: `agree` agreeing probes, each `ratio` times as far as the one
before, say that it has stood for 1 - ratio^-(agree - 1) of the whole thought.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, cast

from .answers import Key
from .certainty import agreement

VERSION = 1
MIN_STEP_TOKENS = 8
_MOST_PROBES = 4_096


@dataclass(frozen=True, slots=True)
class Trial:
    """A trial answer at a length of the thought; key None is no answer. What it took: tokens that
    were decoded, and prefilled."""

    at_tokens: int
    answer: str
    key: Key | None
    confidence: float | None = None
    tokens: int = 0
    prefill_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Vouch:
    """What calibration can say for a rule: with probability `level`, a loss below `bound`.

    `loss` is the one measured, positive for correct answers lost, over `problems` problems.
    `against` is "labels" or "full length".
    """

    method: str
    against: str
    budget: float
    level: float
    problems: int
    loss: float
    bound: float
    saved: float


@dataclass(frozen=True, slots=True)
class StopRule:
    """Probe from `start_tokens` on, each time after `ratio` times the length and at least
    `step_tokens`; stop when `share` of the last `agree` trials agree with the last one.

    Trials that are no answer neither agree nor disagree, unless `strict`. `confidence`: the last
    trial's token probability must reach it too, where the backend gives one; a rule that asks for
    it does not stop without. `cap` is the part of the sample's limit beyond which the thought is
    cut and its answer forced; with `cut_tokens` it is cut there, if that is sooner. `agree` 0 never
    stops. A `lazy` rule probes backwards: first where the thought has come to, then the places
    before, only as far as they agree; it decides as if it had probed them all, for fewer tokens.
    """

    name: str = "stands-6-cap"
    start_tokens: int = 1536
    step_tokens: int = 64
    ratio: float = 1.15
    agree: int = 6
    share: float = 1.0
    confidence: float | None = None
    cap: float = 0.8
    cut_tokens: int | None = None
    strict: bool = False
    lazy: bool = True
    vouch: Vouch | None = None

    def __post_init__(self) -> None:
        wanted = {
            "start_tokens": self.start_tokens >= 1,
            "step_tokens": self.step_tokens >= 1,
            "ratio": 1.0 <= self.ratio <= 100.0,
            "agree": 0 <= self.agree <= _MOST_PROBES,
            "share": 0.0 < self.share <= 1.0,
            "confidence": self.confidence is None or 0.0 <= self.confidence <= 1.0,
            "cap": 0.0 < self.cap <= 1.0,
            "cut_tokens": self.cut_tokens is None or self.cut_tokens >= 1,
        }
        for name, good in wanted.items():
            if not good:
                raise ValueError(f"a stop rule's {name} is {getattr(self, name)!r}: out of range")

    @property
    def stops(self) -> bool:
        """Whether the rule can stop a thought before its cap."""
        return self.agree > 0

    def next_probe(self, at_tokens: int) -> int:
        """The length at which to probe next, for a thought last probed at `at_tokens`.

        A multiple of `step_tokens` (above `start_tokens`): chunks of whole cache pages.
        """
        if at_tokens < self.start_tokens:
            return self.start_tokens
        wanted = max(at_tokens * self.ratio, at_tokens + self.step_tokens)
        return round(wanted / self.step_tokens) * self.step_tokens

    def next_check(self, at_tokens: int) -> int:
        """The next length at which the rule could stop, or would learn what it must know."""
        place = self.next_probe(at_tokens)
        if self.lazy:
            return max(place, self._first_check())
        return place

    def places(self, at_tokens: int) -> list[int]:
        """All lengths up to `at_tokens` at which there may be a trial, in order."""
        found = list[int]()
        place = self.next_probe(0)
        while place <= at_tokens:
            found.append(place)
            place = self.next_probe(place)
        return found

    def wanted(self, trials: Sequence[Trial], at_tokens: int) -> int | None:
        """Where to probe before deciding at `at_tokens`; None if enough is known.

        From the last place backwards, up to the first trial that disagrees.
        """
        known = {trial.at_tokens: trial for trial in trials}
        last, agreeing = known.get(at_tokens), 0
        if last is None:
            return at_tokens
        if last.key is None or not self.lazy:
            return None
        for place in reversed(self.places(at_tokens)):
            trial = known.get(place)
            if trial is None:
                return place
            agreeing += trial.key == last.key
            apart = trial.key != last.key and (trial.key is not None or self.strict)
            if agreeing >= self.agree or (apart and self.share == 1.0):
                return None
        return None

    def _first_check(self) -> int:
        place = 0
        for _ in range(max(1, self.agree)):
            place = self.next_probe(place)
        return place

    def cap_tokens(self, limit_tokens: int) -> int:
        """Where a thought that may have `limit_tokens` is cut."""
        cap = max(1, math.floor(limit_tokens * self.cap))
        return cap if self.cut_tokens is None else min(cap, self.cut_tokens)

    def scaled(self, scale: float) -> "StopRule":
        """The rule for thoughts that are `scale` times as long."""
        step = max(MIN_STEP_TOKENS, round(self.step_tokens * scale))
        cut = self.cut_tokens and max(1, round(self.cut_tokens * scale))
        start = max(step, round(self.start_tokens * scale))
        return replace(self, start_tokens=start, step_tokens=step, cut_tokens=cut)

    def settled(self, trials: Sequence[Trial]) -> Trial | None:
        """The trial whose answer has settled by this rule, or None."""
        counted = trials if self.strict else [t for t in trials if t.key is not None]
        if not self.stops or len(counted) < self.agree or not trials or trials[-1].key is None:
            return None
        last = trials[-1]
        if agreement([t.key for t in counted[-self.agree :]], self.agree) < self.share:
            return None
        if self.confidence is not None and (last.confidence or 0.0) < self.confidence:
            return None
        return last

    def to_json(self) -> str:
        """One line that `from_json` reads."""
        return json.dumps({"version": VERSION, **asdict(self)}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "StopRule":
        """The rule of `to_json`; ValueError names what is unknown, missing or out of range."""
        try:
            raw = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"a stop rule must be JSON: {error}") from None
        found = _object(raw, "a stop rule")
        version = found.pop("version", None)
        if version != VERSION:
            raise ValueError(f"a stop rule of version {version!r}; this release reads {VERSION}")
        vouch = found.pop("vouch", None)
        checked = _typed(cls, found, "a stop rule")
        return cls(**checked, vouch=None if vouch is None else _vouch(vouch))


def _vouch(raw: Any) -> Vouch:
    found = _object(raw, "vouch")
    missing = {field.name for field in fields(Vouch)} - found.keys()
    if missing:
        raise ValueError(f"vouch lacks {', '.join(sorted(missing))}")
    return Vouch(**_typed(Vouch, found, "vouch"))


def _object(raw: Any, what: str) -> dict[str, Any]:
    if isinstance(raw, dict):
        return {str(name): value for name, value in cast(dict[Any, Any], raw).items()}
    raise ValueError(f"{what} must be a JSON object")


_KINDS: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "int | None": (int, type(None)),
    "float": (int, float),
    "str": (str,),
    "bool": (bool,),
    "float | None": (int, float, type(None)),
}


def _typed(cls: type[StopRule] | type[Vouch], found: dict[str, Any], what: str) -> dict[str, Any]:
    kinds = {
        field.name: field.type if isinstance(field.type, str) else _named(field.type)
        for field in fields(cls)
    }
    for name, value in found.items():
        kind = kinds.get(name)
        if kind not in _KINDS:
            raise ValueError(f"{what} has no {name!r}; it has {', '.join(sorted(kinds))}")
        right = isinstance(value, _KINDS[kind]) and (kind == "bool" or not isinstance(value, bool))
        if not right or (isinstance(value, float) and not math.isfinite(value)):
            raise ValueError(f"{what}: {name} is {value!r}; it must be {kind}")
    return found


def _named(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind)


NEVER = StopRule(name="full length", agree=0, cap=1.0)
DEFAULT = StopRule()

# From careful to bold: the order in which calibration tries them. Where the answer must stand
# longest, and from the latest start, comes first; a cut of hopeless thoughts comes with boldness.
LADDER = (
    replace(DEFAULT, name="stands-8", agree=8, start_tokens=2048, cap=1.0),
    replace(DEFAULT, name="stands-7", agree=7, cap=1.0),
    replace(DEFAULT, name="stands-6", cap=1.0),
    DEFAULT,
    replace(DEFAULT, name="stands-5-cap", agree=5),
    replace(DEFAULT, name="stands-5-early", agree=5, start_tokens=1024),
    replace(DEFAULT, name="stands-4-early", agree=4, start_tokens=1024),
    replace(DEFAULT, name="stands-4-first", agree=4, start_tokens=768),
)


def dynasor(window: int, every_tokens: int) -> StopRule:
    """The published rule: the last `window` certain answers agree, probed every `every_tokens`."""
    name = f"dynasor-{window}-{every_tokens}"
    return StopRule(name, every_tokens, every_tokens, 1.0, window, cap=1.0, strict=True, lazy=False)


def deer(confidence: float = 0.95, every_tokens: int = 512) -> StopRule:
    """DEER's: one trial answer of enough probability (2504.15895; ours probes by length)."""
    return StopRule("deer", every_tokens, every_tokens, 1.0, 1, confidence=confidence, cap=1.0)


EFFORTS = {"mild": (8, 64), "low": (5, 64), "mid": (3, 64), "high": (2, 64), "crazy": (2, 32)}
