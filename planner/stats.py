"""What is known of a table before it runs: lengths, repeats, dependencies, in one pass.

Memory is bounded. Distinct values are counted exactly up to a limit, then estimated from the
smallest hashes (Bar-Yossef et al., "Counting distinct elements in a data stream", RANDOM 2002; the
k-minimum-values sketch). Tokens and dependencies come from a sample of rows spread evenly over
what was read; the sample's distinct values are tokenised once each.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import blake2b
from heapq import heappush, heapreplace
from itertools import count, pairwise
from os.path import commonprefix
from typing import Any, cast

from .errors import PlannerError
from .reorder.depend import Dependency, dependencies

EXACT = 4096  # hashes kept per column: an error of about 1.6 % beyond
SAMPLE_ROWS = 4096
SAMPLE_CHARS = 4_000_000
DEPENDENCY_ERROR = 0.02  # the share of sampled rows that may break a dependency
_SPACE = 2**64
_VERSION = 4

CountTokens = Callable[[Sequence[str]], Sequence[float]]


@dataclass(frozen=True, slots=True)
class ColumnStats:
    """One column: about how many values differ, and their mean length as text.

    `mean_tokens` is None where no tokenizer was given. `lead_chars`: the text with which all
    values begin. `same_as_last`: the share of rows whose value is that of the row before.
    `overlap_chars`: how far a sampled value begins like its neighbour in sorted order, on average.
    `mean_items`: of a list, 0 where no value is one.
    """

    distinct: int
    mean_chars: float
    mean_tokens: float | None = None
    lead_chars: int = 0
    same_as_last: float = 0.0
    overlap_chars: float = 0.0
    mean_items: float = 0.0


@dataclass(frozen=True, slots=True)
class TableStats:
    """A table's columns. `sampled`: only `rows` of its rows were looked at.

    `dependencies` were found in a sample: something to plan with, not to rely on. `content` is a
    hash of what was read, under which the statistics may be kept. About `distinct_rows` differ in
    some column; None: not counted.
    """

    rows: int
    columns: Mapping[str, ColumnStats] = field(default_factory=dict[str, ColumnStats])
    sampled: bool = False
    dependencies: tuple[Dependency, ...] = ()
    content: str = ""
    distinct_rows: int | None = None

    def to_json(self) -> str:
        """The statistics as text; `from_json` reads it back."""
        return json.dumps({"version": _VERSION, **asdict(self)}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "TableStats":
        """Statistics that `to_json` wrote. Raises `PlannerError` for any other text."""
        try:
            data = json.loads(text)
            if data.pop("version") != _VERSION:
                raise ValueError("of another version")
            columns = {name: ColumnStats(**column) for name, column in data.pop("columns").items()}
            found = tuple(Dependency(**each) for each in data.pop("dependencies"))
            return cls(**data, columns=columns, dependencies=found)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise PlannerError(f"these are no statistics of a table: {error}") from None


def collect(
    rows: Iterable[Mapping[str, Any]],
    columns: Sequence[str],
    limit: int | None = None,
    count_tokens: CountTokens | None = None,
) -> TableStats:
    """The statistics of `columns`, from the first `limit` rows at most.

    `count_tokens` gives the tokens of each of several texts.
    """
    counters = {name: _Column() for name in columns}
    sample, whole = _Sample(), _Column()
    content = blake2b(digest_size=16)
    number, sampled = 0, False
    for row in rows:
        if number == limit:
            sampled = True
            break
        number += 1
        values = [row.get(name) for name in counters]
        if list in map(type, values):
            _count_items(counters.values(), values)
        texts = [str(value) for value in values]
        digests = b"".join(map(_Column.add, counters.values(), texts))
        content.update(digests)
        whole.add(digests.hex())
        sample.add(texts)
    found = {name: counter.stats(number) for name, counter in counters.items()}
    found = dict(zip(found, _with_sample(found.values(), sample, count_tokens), strict=True))
    depend = tuple(dependencies(sample.coded(columns), DEPENDENCY_ERROR))
    distinct_rows = whole.stats(number).distinct
    return TableStats(number, found, sampled, depend, content.hexdigest(), distinct_rows)


def _count_items(counters: Iterable["_Column"], values: Iterable[Any]) -> None:
    for counter, value in zip(counters, values, strict=True):
        if isinstance(value, list):
            counter.items += len(cast("list[Any]", value))


class _Sample:
    """Every n-th row, where n doubles whenever the rows kept are too many or too long."""

    __slots__ = ("chars", "number", "rows", "step")

    def __init__(self) -> None:
        self.rows: list[list[str]] = []
        self.chars = self.number = 0
        self.step = 1

    def add(self, texts: list[str]) -> None:
        if self.number % self.step == 0:
            self.rows.append(texts)
            self.chars += sum(map(len, texts))
            while len(self.rows) > 1 and (
                len(self.rows) > SAMPLE_ROWS or self.chars > SAMPLE_CHARS
            ):
                del self.rows[1::2]
                self.step *= 2
                self.chars = sum(len(text) for row in self.rows for text in row)
        self.number += 1

    def coded(self, columns: Sequence[str]) -> list[tuple[str, list[int], int]]:
        """Each column's name, its codes in the sample, and how many differ."""
        found: list[tuple[str, list[int], int]] = []
        for name, texts in zip(columns, zip(*self.rows, strict=True), strict=False):
            codes = dict(zip(dict.fromkeys(texts), count(), strict=False))
            found.append((name, list(map(codes.__getitem__, texts)), len(codes)))
        return found


def _with_sample(
    columns: Iterable[ColumnStats], sample: _Sample, count_tokens: CountTokens | None
) -> Iterable[ColumnStats]:
    """The columns with what the sample tells: mean tokens, and how values begin alike."""
    texts_of = list(zip(*sample.rows, strict=True))
    for index, column in enumerate(columns):
        texts: tuple[str, ...] = texts_of[index] if texts_of else ()
        distinct = list(dict.fromkeys(texts))
        mean = None
        if count_tokens is not None:
            known = dict(zip(distinct, count_tokens(distinct), strict=True)) if distinct else {}
            chars, tokens = sum(map(len, texts)), sum(map(known.__getitem__, texts))
            exact = sample.step == 1 or not chars
            mean = tokens / max(1, len(texts)) if exact else tokens / chars * column.mean_chars
        yield replace(column, mean_tokens=mean, overlap_chars=_overlap(distinct))


def _overlap(values: list[str]) -> float:
    """The mean length of the beginning that neighbours in sorted order share."""
    pairs = list(pairwise(sorted(values)))
    return sum(len(commonprefix(pair)) for pair in pairs) / len(pairs) if pairs else 0.0


class _Column:
    """The smallest hashes of a column's values, and the length of all."""

    __slots__ = ("chars", "heap", "items", "kept", "last", "lead", "same")

    def __init__(self) -> None:
        self.chars = self.same = self.items = 0
        self.kept: set[int] = set()
        self.heap: list[int] = []  # the kept hashes negated: the largest is on top
        self.last: bytes = b""
        self.lead: str | None = None

    def add(self, text: str) -> bytes:
        """Takes in a value and returns its hash."""
        self.chars += len(text)
        digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        if digest == self.last:
            self.same += 1
            return digest
        self.last = digest
        if self.lead is None:
            self.lead = text
        elif not text.startswith(self.lead):
            self.lead = commonprefix([self.lead, text])
        value = int.from_bytes(digest, "big")
        if value in self.kept:
            return digest
        if len(self.heap) < EXACT:
            heappush(self.heap, -value)
            self.kept.add(value)
        elif value < -self.heap[0]:
            self.kept.discard(-heapreplace(self.heap, -value))
            self.kept.add(value)
        return digest

    def stats(self, rows: int) -> ColumnStats:
        distinct = len(self.heap)
        if distinct >= EXACT:
            estimate = round((EXACT - 1) * _SPACE / (-self.heap[0] + 1))
            distinct = max(EXACT, min(rows, estimate))
        return ColumnStats(
            distinct,
            self.chars / rows if rows else 0.0,
            lead_chars=len(self.lead or ""),
            same_as_last=self.same / rows if rows else 0.0,
            mean_items=self.items / rows if rows else 0.0,
        )
