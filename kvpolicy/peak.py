"""How much KV the running calls will hold at the most: Past-Future's estimate (2507.10150).

Calls grow by a token per step and free all they hold at their end. So memory peaks just before some
call ends, and the lengths of late answers say when that may be.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random

from .window import Window

OUTPUTS = 200  # late answers that tell of the next ones


@dataclass(frozen=True, slots=True)
class Running:
    """A call that runs, in tokens: what it holds now, has produced, and may produce in all."""

    used_tokens: int
    produced_tokens: int
    max_tokens: int


def outputs_seen(lengths: Iterable[float] = ()) -> Window:
    """A window of the last 200 output lengths, in tokens."""
    return Window(OUTPUTS, lengths)


def sample_left(call: Running, ordered: Sequence[float], random: Random) -> int:
    """The tokens that a call still produces: drawn from the lengths above what it has produced.

    `ordered` are late output lengths, ascending. Where none was longer, all it may produce.
    """
    most = max(0, call.max_tokens - call.produced_tokens)
    longer = bisect_right(ordered, call.produced_tokens)
    if longer == len(ordered):
        return most
    drawn = ordered[longer + int(random.random() * (len(ordered) - longer))]
    return min(most, int(drawn) - call.produced_tokens)


def peak_tokens(calls: Iterable[tuple[int, int]]) -> int:
    """The most KV tokens held at once by calls given as (used, left) tokens.

    Sorted by what is left, descending, the first i calls all still run when the i-th one ends, each
    longer by that call's rest: max over i of left_i * i + the used tokens of the first i.
    """
    peak = used = 0
    by_left = sorted(calls, key=lambda call: call[1], reverse=True)
    for count, (own, left) in enumerate(by_left, 1):
        used += own
        peak = max(peak, left * count + used)
    return peak


def future_peak_tokens(
    calls: Sequence[Running], ordered: Sequence[float], random: Random, samples: int = 3
) -> int:
    """The worst of a few sampled futures of the running calls, in KV tokens."""
    return max(
        peak_tokens((call.used_tokens, sample_left(call, ordered, random)) for call in calls)
        for _ in range(samples)
    )
