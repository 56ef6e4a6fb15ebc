"""A reduce over more items than fit a prompt: folded in batches that fit, then the folds folded.

Known as hierarchical or tree reduce (DocETL, 2410.12189, folds in batches; "tree summarize"
elsewhere). Batches are runs of neighbours, as long as they fit: they depend on the items alone,
never on which answer came first.
"""

from collections.abc import Callable, Iterator
from math import ceil, floor

MOST_LEVELS = 32  # of a tree; one that halves its items in each has had four thousand million


class DoesNotFit(ValueError):
    """An item is too long for a prompt by itself. `index` counts from 0."""

    def __init__(self, index: int) -> None:
        self.index = index
        super().__init__(f"item {index} does not fit by itself")


def batches(count: int, fits: Callable[[int, int], bool]) -> Iterator[tuple[int, int]]:
    """`count` items in runs (first, behind the last), each as long as `fits(first, last)` holds.

    A longer run is thought to fit less. The length of one run is where the search for the next one
    begins, so that few are looked at. Raises `DoesNotFit`.
    """
    first, guess = 0, 1
    while first < count:
        guess = _longest(min(guess, count - first), count - first, first, fits)
        yield first, first + guess
        first += guess


def _longest(guess: int, most: int, first: int, fits: Callable[[int, int], bool]) -> int:
    """The length of the longest run from `first` that fits, looked for around `guess`."""
    low, high = 0, most + 1  # `low` fits, `high` does not
    step, size = 1, guess
    while high - low > 1:
        if fits(first, first + size):
            low = size
        else:
            high = size
        if low and high <= most:
            size = (low + high) // 2
        else:  # on in one direction, in growing steps
            size = min(low + step, most) if low else max(high - step, 1)
            step *= 2
            size = min(max(size, low + 1), high - 1)
    if not low:
        raise DoesNotFit(first)
    return low


def expected_calls(
    items: float, item_tokens: float, answer_tokens: float, fixed_tokens: float, limit: float
) -> tuple[int, ...]:
    """How many calls each level of a tree is expected to take; () where it would never end.

    `fixed_tokens` of each prompt are no items, and `limit` tokens are the longest prompt.
    """
    found: list[int] = []
    for _ in range(MOST_LEVELS):
        together = max(1, floor((limit - fixed_tokens) / max(item_tokens, 1.0)))
        calls = max(1, ceil(items / together))
        if found and calls >= items:
            return ()
        found.append(calls)
        if calls == 1:
            return tuple(found)
        items, item_tokens = calls, answer_tokens
    return ()
