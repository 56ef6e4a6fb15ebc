"""How certain a step can be of its answer: by agreement, by entropy, by reward, by confidence."""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from .answers import Equivalence, Key


@dataclass(frozen=True, slots=True)
class Leader:
    """The answer with the most weight, in its most frequent spelling.

    `share` is its part of all the weight that was given, answers that are none included.
    """

    key: Key
    answer: str
    weight: float
    share: float


def leader(
    given: Sequence[str], equivalence: Equivalence, weights: Sequence[float] | None = None
) -> Leader | None:
    """The weighted plurality of `given`; the earliest of equals; None if none is an answer."""
    weights = [1.0] * len(given) if weights is None else weights
    total: dict[Key, float] = {}
    for answer, weight in zip(given, weights, strict=True):
        key = equivalence(answer)
        if key is not None:
            total[key] = total.get(key, 0.0) + weight
    if not total:
        return None
    best = max(total, key=lambda key: total[key])
    share = total[best] / sum(weights) if sum(weights) > 0 else 0.0
    return Leader(best, spelling(given, best, equivalence), total[best], share)


def spelling(given: Sequence[str], key: Key, equivalence: Equivalence) -> str:
    """The most frequent text with this key, the latest of equals; "" if there is none."""
    counts = Counter(answer for answer in reversed(given) if equivalence(answer) == key)
    return counts.most_common(1)[0][0] if counts else ""


def entropy(keys: Sequence[Hashable]) -> float:
    """Entropy of the shares of `keys`, in nats; None counts as an answer of its own each time."""
    n = len(keys)
    counts = Counter(key for key in keys if key is not None)
    alone = n - sum(counts.values())
    parts = [count / n for count in counts.values()] + [1 / n] * alone
    return -sum(p * math.log(p) for p in parts)


def certaindex(keys: Sequence[Hashable]) -> float:
    """(log n - H) / log n: 0 if all answers differ, 1 if all agree (2412.20993, 4.1).

    One answer says nothing about agreement: 0.
    """
    if len(keys) < 2:
        return 0.0
    return max(0.0, min(1.0, 1 - entropy(keys) / math.log(len(keys))))


def agreement(keys: Sequence[Hashable], window: int) -> float:
    """The share of the last `window` keys that equal the last one; 0 if that is no answer."""
    last = keys[-window:]
    if not last or last[-1] is None:
        return 0.0
    return last.count(last[-1]) / window


def confidence(logprobs: Sequence[float]) -> float | None:
    """The geometric mean of the probabilities of the answer's tokens (DEER, 2504.15895)."""
    if not logprobs:
        return None
    return math.exp(min(0.0, math.fsum(logprobs) / len(logprobs)))


def reward_certainty(rewards: Sequence[float], kind: str = "mean") -> float:
    """The mean reward (best-of-n, MCTS) or the highest (REBASE); 0 of none (2412.20993, 4.1)."""
    if not rewards:
        return 0.0
    match kind:
        case "mean":
            return math.fsum(rewards) / len(rewards)
        case "max":
            return max(rewards)
        case _:
            raise ValueError(f'kind is {kind!r}; it must be "mean" or "max"')
