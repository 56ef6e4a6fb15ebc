"""From which confidence on a small model's choice may stand for the large one's.

Model cascades with a guarantee on agreement, as in LOTUS (2407.11418), which samples as SUPG does;
here by learn-then-test (2110.01052) with fixed-sequence testing, as for stop rules: thresholds are
tried from careful to bold, each against `bounds.upper_bound`, and the first that fails ends the
search. So with the confidence asked for, over the draw of the sample, the answers of all rows agree
with the large model's in at least the share asked for.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random

from .bounds import problems_needed, upper_bound

# Fixed before anything is seen, as the test wants it. None above the first: nothing is that sure.
THRESHOLDS = (
    *(0.9999, 0.999, 0.995, 0.99, 0.98, 0.97, 0.96, 0.95, 0.925, 0.9, 0.875, 0.85, 0.8),
    *(0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.45, 0.4, 0.3, 0.2, 0.0),
)


TARGETS = (0.999, 0.995, 0.99, 0.98, 0.97, 0.95, 0.925, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5)  # to advise


@dataclass(frozen=True, slots=True)
class Paired:
    """A row that both models answered: how sure the small one was, and whether they agree."""

    confidence: float
    agrees: bool


@dataclass(frozen=True, slots=True)
class Threshold:
    """What a sample tells. `at` None: the large model answers everything.

    `routed` is the share of the sample that the small model would answer, `loss` that which it
    answers otherwise than the large one, `bound` how large that may be of all rows.
    """

    at: float | None
    sampled: int
    needed: int
    routed: float
    loss: float
    bound: float
    message: str


@lru_cache(maxsize=64)
def rows_needed(target: float, confidence: float) -> int:
    """How many rows it takes to vouch for an agreement of `target`, even where all agree."""
    return problems_needed(1 - target, 1 - confidence, 0.0)


@dataclass(frozen=True, slots=True)
class Outlook:
    """Whether a sample can be large enough for what was promised, and what to do if not."""

    enough: bool
    message: str


def outlook(target: float, confidence: float, sample: int, rows: int, window: int) -> Outlook:
    """What a cascade may hope for over a table of `rows` rows in windows of `window`.

    A window's part of the chance of failing is its part of the rows, and at most half of it is
    sampled.
    """
    whole = min(rows, window)
    sure = 1 - (1 - confidence) * whole / rows
    most = whole // 2
    sampled, needed = min(sample, most), rows_needed(target, sure)
    of = f"a sample of {sampled:,} rows" + (f" of each {window:,}" if rows > window else "")
    if sampled >= needed:
        return Outlook(
            True, f"{of} can vouch for {target:.1%}; it takes {needed:,} where all agree"
        )
    why = f"{of} cannot vouch for {target:.1%}, so the large model will answer all: it takes {needed:,}"
    if needed <= most:
        return Outlook(False, f"{why}; raise `sample` to {needed:,} or more")
    reached = next((each for each in TARGETS if rows_needed(each, sure) <= most), None)
    if reached is None:
        return Outlook(False, f"{why}; the table is too small for a cascade")
    return Outlook(False, f"{why}; the table is too small: lower `target` to {reached:g}")


def learn(sample: Sequence[Paired], target: float, confidence: float, seed: int = 0) -> Threshold:
    """The boldest threshold that a sample, drawn evenly from all rows, vouches for."""
    needed, count = rows_needed(target, confidence), len(sample)
    if count < needed:
        why = f"{count} rows cannot vouch for an agreement of {target:.1%}: it takes {needed}"
        return _none(count, needed, f"{why} even where all agree; the large model answers all")
    mixed = list(sample)
    Random(seed).shuffle(mixed)  # the bound depends on the order
    best: Threshold | None = None
    for at in THRESHOLDS:
        losses = [1.0 if row.confidence >= at and not row.agrees else 0.0 for row in mixed]
        loss = math.fsum(losses) / count
        bound = max(loss, upper_bound(losses, 1 - confidence, 0.0))
        if bound > 1 - target:
            break
        routed = sum(row.confidence >= at for row in mixed) / count
        said = (
            f"the small model answers where its confidence is {at:g} or more, {routed:.0%} of "
            f"{count} sampled rows; {1 - loss:.1%} of all answers agree there, and of all rows at "
            f"least {target:.1%} with confidence {100 * confidence:.4g}%"
        )
        best = Threshold(at, count, needed, routed, loss, bound, said)
    if best is None or not best.routed:
        why = f"no threshold keeps an agreement of {target:.1%} on {count} sampled rows"
        return _none(count, needed, f"{why}; the large model answers all")
    return best


def certainty(logprobs: Sequence[float]) -> float:
    """The probability of the likeliest of several choices, by their log-probabilities."""
    most = max(logprobs)
    return 1.0 / math.fsum(math.exp(each - most) for each in logprobs)


def _none(sampled: int, needed: int, message: str) -> Threshold:
    return Threshold(None, sampled, needed, 0.0, 0.0, 0.0, message)
