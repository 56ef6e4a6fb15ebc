"""Prompts by column: distinct segments once, and one number per prompt and column.

A table of a million prompts over ten thousand documents holds ten thousand documents. Sorting
ranks the segments first and the prompts by their ranks, so that no prompt is ever spelled out.
"""

import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

TOKEN_BYTES = 4


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompt i is the segments `columns[0][i]`, `columns[1][i]`, ... one behind the other.

    A segment is a run of tokens, four bytes each, the high one first: bytes compare as their
    tokens do. Two prompts are taken to share whole segments, and the beginning of the first that
    differs.
    """

    segments: Sequence[bytes]
    columns: tuple[Sequence[int], ...]

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
        known: dict[bytes, int] = {}
        columns: list[array[int]] = []
        for number, row in enumerate(rows):
            if number == 0:
                columns = [array("I") for _ in row]
            elif len(row) != len(columns):
                raise ValueError(f"prompt {number} has {len(row)} segments, not {len(columns)}")
            for column, tokens in zip(columns, row, strict=True):
                column.append(known.setdefault(packed(tokens), len(known)))
        return cls(list(known), tuple(columns))

    def lengths(self) -> "array[int]":
        """The tokens of each prompt."""
        sizes = [len(segment) // TOKEN_BYTES for segment in self.segments]
        return array(
            "Q", map(sum, zip(*(map(sizes.__getitem__, c) for c in self.columns), strict=True))
        )

    def sorted(self) -> "tuple[array[int], array[int]]":
        """The prompts in the order of their tokens, and the tokens that each shares with the one
        before it (0 for the first)."""
        ranks = array("I", bytes(TOKEN_BYTES * len(self.segments)))
        by_text = sorted(range(len(self.segments)), key=self.segments.__getitem__)
        for rank, segment in enumerate(by_text):
            ranks[segment] = rank
        keys = list(zip(*(map(ranks.__getitem__, c) for c in self.columns), strict=True))
        order = array("I", sorted(range(len(keys)), key=keys.__getitem__))
        return order, array("Q", self._shared(order))

    def _shared(self, order: "array[int]") -> Iterator[int]:
        sizes = [len(segment) // TOKEN_BYTES for segment in self.segments]
        if order:
            yield 0
        for a, b in pairwise(order):
            tokens = 0
            for column in self.columns:
                one, other = column[a], column[b]
                if one != other:
                    tokens += common(self.segments[one], self.segments[other])
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


def common(one: bytes, other: bytes) -> int:
    """The tokens that two segments begin with alike, found by halving."""
    low, high = 0, min(len(one), len(other)) // TOKEN_BYTES
    while low < high:
        middle = (low + high + 1) // 2
        if (
            one[TOKEN_BYTES * low : TOKEN_BYTES * middle]
            == other[TOKEN_BYTES * low : TOKEN_BYTES * middle]
        ):
            low = middle
        else:
            high = middle - 1
    return low
