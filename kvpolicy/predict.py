"""How much is left: output tokens of a call, turns of a program, as calibrated quantiles.

A history says how far amounts of a (workflow, step) went; shrinkage and drift make its quantiles
wrong by an unknown amount, so they are corrected by how they have done. Each new amount is first
scored: the share of the distribution, as predicted before it was seen, that lies up to it. For a
quantile that is to cover a share p, the raw distribution is asked for the ceil((m + 1) p)-th
smallest of the last m scores instead of for p. Where amounts are exchangeable that covers at least p
(distributional conformal prediction, Chernozhukov, Wüthrich and Zhu, 1909.07889); the window of
scores slides, so that it follows drift. Coverage holds over all keys together, not for each one.

Many amounts are equal: answers of one token, programs of four turns. The score of such an amount is
spread over the share that its equals hold (the randomised probability integral transform, here with
a Weyl sequence, so that nothing is random): else one step of constant answers would have the
quantiles of all other steps corrected.
"""

from collections.abc import Iterable, Mapping
from math import ceil
from typing import Any, Self

from .history import History
from .window import Window

SCORES = 1_000
SCORED_FROM = 32  # amounts seen; a distribution of fewer is too coarse for a score to tell
_STEP = (5**0.5 - 1) / 2  # of the Weyl sequence: the golden ratio's is the most even one


class Predictor:
    """Quantiles of what is left, conditional on what has come already. Keys as in `history`."""

    def __init__(self) -> None:
        self._history = History()
        self._scores = Window(SCORES)
        self._spread = 0.5

    def observe(self, key: str, amount: float) -> None:
        """An amount in full: the length of an answer that ended, the turns of a program."""
        if self._history.count() >= SCORED_FROM and amount >= 0:
            below, most = self._history.place(key, amount)
            self._spread = (self._spread + _STEP) % 1.0
            self._scores.add(below + self._spread * (most - below))
        self._history.observe(key, amount)

    def count(self, key: str | None = None) -> int:
        """How many amounts are kept, of one key or of all."""
        return self._history.count(key)

    def left(self, key: str, share: float, so_far: float = 0.0) -> float | None:
        """How much more it is at most, in `share` of the cases, for what has come to `so_far`.

        None where nothing is known: nothing was seen, or nothing that came as far.
        """
        below = self._history.share(key, so_far) if so_far > 0 else 0.0
        if below >= 1.0:
            return None
        raw = self._corrected(share, below)
        if raw <= below:
            return self._history.quantile(key, share, so_far)
        return self._history.quantile(key, (raw - below) / (1.0 - below), so_far)

    def mean_left(self, key: str, so_far: float = 0.0) -> float | None:
        """The mean of what is still to come, as the history has it; None where nothing is known."""
        return self._history.mean_left(key, so_far)

    def _corrected(self, share: float, below: float) -> float:
        """The raw share to ask for, so that `share` of those above `below` are covered."""
        scores = self._scores.ordered
        if not scores:
            few = 1.0 + 1.0 / max(1, self._history.count())
            return min(1.0, below + share * (1.0 - below) * few)
        passed = self._scores.up_to(below) if below > 0 else 0
        rank = ceil(passed + share * (len(scores) + 1 - passed) - 1e-9)
        return scores[rank - 1] if rank <= len(scores) else 1.0

    # ---- as data --------------------------------------------------------------------------------

    def snapshot(self) -> dict[str, Any]:
        """What was learned as plain data for JSON."""
        return {"history": self._history.snapshot(), "scores": list(self._scores.recent)}

    def merge(self, data: Mapping[str, Any]) -> None:
        """Learn from a snapshot too; its amounts count as older than those already here."""
        try:
            scores = [min(1.0, max(0.0, float(score))) for score in data["scores"]]
            history = data["history"]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"this is not a snapshot of a predictor, which has a history and scores: {error!r}"
            ) from None
        self._history.merge(history)
        self._scores = self._scores.merged(scores)

    @classmethod
    def restore(cls, data: Mapping[str, Any]) -> Self:
        """What `snapshot` has written. Raises ValueError for anything else."""
        predictor = cls()
        predictor.merge(data)
        return predictor


def coverage(
    predictor: Predictor,
    held_back: Iterable[tuple[str, float]],
    share: float,
    so_far: float = 0.0,
) -> float | None:
    """The share of amounts that came out at most as predicted for `share`; it is to be as high.

    `held_back` are keys and amounts that the predictor has not seen; nothing is learned from them.
    Those that ended by `so_far` are left out. None where nothing is left to judge.
    """
    judged = [(key, amount) for key, amount in held_back if amount > so_far or so_far <= 0]
    covered = 0
    for key, amount in judged:
        left = predictor.left(key, share, so_far)
        covered += left is not None and amount <= so_far + left + 1e-9
    return covered / len(judged) if judged else None
