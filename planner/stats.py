"""What is known of a table before it runs: how often values repeat and how long they are.

Read in one pass with bounded memory: distinct values are counted exactly up to a limit, then
estimated from the smallest hashes (Bar-Yossef et al., "Counting distinct elements in a data
stream", RANDOM 2002; the k-minimum-values sketch).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from heapq import heappush, heapreplace
from typing import Any

EXACT = 4096  # hashes kept per column: an error of about 1.6 % beyond
_SPACE = 2**64


@dataclass(frozen=True, slots=True)
class ColumnStats:
    """One column: about how many values differ, and their mean length as text."""

    distinct: int
    mean_chars: float


@dataclass(frozen=True, slots=True)
class TableStats:
    """A table's columns. `sampled`: only the first `rows` rows were read."""

    rows: int
    columns: Mapping[str, ColumnStats] = field(default_factory=dict[str, ColumnStats])
    sampled: bool = False


def collect(
    rows: Iterable[Mapping[str, Any]], columns: Sequence[str], limit: int | None = None
) -> TableStats:
    """The statistics of `columns`, from the first `limit` rows at most."""
    counters = {name: _Column() for name in columns}
    count, sampled = 0, False
    for row in rows:
        if count == limit:
            sampled = True
            break
        count += 1
        for name, counter in counters.items():
            counter.add(str(row.get(name)))
    found = {name: counter.stats(count) for name, counter in counters.items()}
    return TableStats(count, found, sampled)


class _Column:
    """The smallest hashes of a column's values, and the length of all."""

    __slots__ = ("chars", "heap", "kept")

    def __init__(self) -> None:
        self.chars = 0
        self.kept: set[int] = set()
        self.heap: list[int] = []  # the kept hashes negated: the largest is on top

    def add(self, text: str) -> None:
        self.chars += len(text)
        digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        value = int.from_bytes(digest, "big")
        if value in self.kept:
            return
        if len(self.heap) < EXACT:
            heappush(self.heap, -value)
            self.kept.add(value)
        elif value < -self.heap[0]:
            self.kept.discard(-heapreplace(self.heap, -value))
            self.kept.add(value)

    def stats(self, rows: int) -> ColumnStats:
        mean_chars = self.chars / rows if rows else 0.0
        if len(self.heap) < EXACT:
            return ColumnStats(len(self.heap), mean_chars)
        estimate = round((EXACT - 1) * _SPACE / (-self.heap[0] + 1))
        return ColumnStats(max(EXACT, min(rows, estimate)), mean_chars)
