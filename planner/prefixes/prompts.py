"""Prompts by column: distinct segments once, and one number per prompt and column.

A table of a million prompts over ten thousand documents holds ten thousand documents. Sorting
ranks the segments first and the prompts by their ranks, so that no prompt is ever spelled out.
"""

import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

TOKEN_BYTES = 4


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompt i is the segments `columns[0][i]`, `columns[1][i]`, ... one behind the other.

    A segment is a run of tokens, four bytes each, the high one first: bytes compare as their
    tokens do. Or it is text: then `unit` is 1, and a token stands for a character everywhere. Two
    prompts are taken to share whole segments, and the beginning of the first that differs.
    """

    segments: Sequence[bytes] | Sequence[str]
    columns: tuple[Sequence[int], ...]
    unit: int = TOKEN_BYTES  # bytes of a token

    def __len__(self) -> int:
        return len(self.columns[0]) if self.columns else 0

    @classmethod
    def of_tokens(cls, prompts: Iterable[Sequence[int]]) -> "Prompts":
        """Prompts given as token ids, as one column."""
        return cls.of_rows((tokens,) for tokens in prompts)

    @classmethod
    def of_rows(cls, rows: Iterable[Sequence[Sequence[int]]]) -> "Prompts":
        """Prompts given as segments of token ids, equally many in each.

        Raises ValueError where the number of segments changes, and for ids that are no uint32.
        """
        known, columns = _coded(map(packed, row) for row in rows)
        return cls(known, columns)

    @classmethod
    def of_texts(cls, rows: Iterable[Sequence[str]]) -> "Prompts":
        """Prompts given as segments of text, whose tokens are characters.

        Raises ValueError where the number of segments changes.
        """
        known, columns = _coded(rows)
        return cls(known, columns, unit=1)

    def lengths(self) -> "array[int]":
        """The tokens of each prompt."""
        sizes = [len(segment) // self.unit for segment in self.segments]
        return array(
            "Q", map(sum, zip(*(map(sizes.__getitem__, c) for c in self.columns), strict=True))
        )

    def sorted(self) -> "tuple[array[int], array[int]]":
        """The prompts in the order of their tokens, and the tokens that each shares with the one
        before it (0 for the first)."""
        ranks = array("I", [0]) * len(self.segments)
        by_text = sorted(range(len(self.segments)), key=self.segments.__getitem__)
        for rank, segment in enumerate(by_text):
            ranks[segment] = rank
        keys = list(zip(*(map(ranks.__getitem__, c) for c in self.columns), strict=True))
        order = array("I", sorted(range(len(keys)), key=keys.__getitem__))
        return order, array("Q", self.shared(order))

    def shared(self, order: Sequence[int]) -> Iterator[int]:
        """The tokens that each prompt shares with the one before it in `order`."""
        sizes = [len(segment) // self.unit for segment in self.segments]
        if order:
            yield 0
        for a, b in pairwise(order):
            tokens = 0
            for column in self.columns:
                one, other = column[a], column[b]
                if one != other:
                    tokens += common(self.segments[one], self.segments[other], self.unit)
                    break
                tokens += sizes[one]
            yield tokens


def packed(tokens: Sequence[int]) -> bytes:
    """Token ids as bytes that compare as the ids do."""
    try:
        words = array("I", tokens)
    except (OverflowError, TypeError) as error:
        raise ValueError(f"a prompt has token ids that are no uint32: {error}") from None
    if sys.byteorder == "little":
        words.byteswap()
    return words.tobytes()


def common(one: bytes | str, other: bytes | str, unit: int = TOKEN_BYTES) -> int:
    """The tokens that two segments begin with alike, found by halving."""
    low, high = 0, min(len(one), len(other)) // unit
    while low < high:
        middle = (low + high + 1) // 2
        if one[unit * low : unit * middle] == other[unit * low : unit * middle]:
            low = middle
        else:
            high = middle - 1
    return low


Segment = TypeVar("Segment", bytes, str)


def _coded(rows: Iterable[Iterable[Segment]]) -> "tuple[list[Segment], tuple[array[int], ...]]":
    """The distinct segments, and per column the number of each prompt's."""
    known: dict[Segment, int] = {}
    columns: list[array[int]] = []
    for number, row in enumerate(rows):
        found = list(row)
        if number == 0:
            columns = [array("I") for _ in found]
        elif len(found) != len(columns):
            raise ValueError(f"prompt {number} has {len(found)} segments, not {len(columns)}")
        for column, segment in zip(columns, found, strict=True):
            column.append(known.setdefault(segment, len(known)))
    return list(known), tuple(columns)
