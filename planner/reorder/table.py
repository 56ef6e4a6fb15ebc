"""A table as the solver sees it: codes for values and tokens for codes, no text.

Values are tokenised once each, within the text that is written around them. Tokens are counted per
segment and added up; a tokenizer that merges across the cut between two segments makes the sum
differ from the prompt's own count, and `error_of_sums` says by how much.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any

from ..errors import PlannerError
from .fields import Layout

CountTokens = Callable[[Sequence[str]], Sequence[int]]
BLOCK_TOKENS = 16  # what a paged KV cache shares at once
_EDGE_ROWS = 9  # prompts tokenised whole, to learn what joining segments changes at the ends


@dataclass(frozen=True, slots=True)
class Column:
    """A column: each row's code, the tokens of each code's segment, and how many all share."""

    codes: list[int]
    tokens: list[int]
    lead_tokens: int


@dataclass(frozen=True, slots=True)
class Table:
    """A table's columns in the layout's order, and what is written around them.

    `start_tokens` come before the first field, `end_tokens` after the last, less what joining the
    segments takes away. The columns from `head` to before `tail` are free to change places.
    """

    rows: int
    columns: tuple[Column, ...]
    start_tokens: int
    end_tokens: int
    head: int
    tail: int
    block_tokens: int = BLOCK_TOKENS

    @property
    def prompt_tokens(self) -> int:
        """The tokens of all prompts."""
        around = self.rows * (self.start_tokens + self.end_tokens)
        return around + sum(sum(map(c.tokens.__getitem__, c.codes)) for c in self.columns)


def encode(
    rows: Iterable[Sequence[Any]],
    layout: Layout,
    count_tokens: CountTokens,
    block_tokens: int = BLOCK_TOKENS,
) -> Table:
    """The table of `rows`, whose values stand in the order of the layout's fields.

    Rows are read once and not kept. Raises `PlannerError` where one has more or fewer values.
    """
    known: list[dict[str, int]] = [{} for _ in layout.fields]
    codes: list[list[int]] = [[] for _ in layout.fields]
    written = [field.written for field in layout.fields]
    few: list[Sequence[Any]] = []
    for number, row in enumerate(rows):
        if len(row) != len(codes):
            raise PlannerError(
                f"row {number} has {len(row)} values; the layout has {len(codes)} fields"
            )
        if len(few) < _EDGE_ROWS:
            few.append(row)
        for value, write, seen, column in zip(row, written, known, codes, strict=True):
            column.append(seen.setdefault(write(value), len(seen)))
    columns = tuple(
        _column(index, layout, codes[index], known[index], count_tokens)
        for index in range(len(layout.fields))
    )
    free = layout.free
    head, tail = (free[0], free[-1] + 1) if free else (len(columns), len(columns))
    start, end = _edges(few, layout, count_tokens)
    return Table(len(codes[0]) if codes else 0, columns, start, end, head, tail, block_tokens)


def _edges(
    rows: Sequence[Sequence[Any]], layout: Layout, count_tokens: CountTokens
) -> tuple[int, int]:
    """The tokens before the first field and after the last, beyond those of the segments."""
    if not rows or not layout.fields:
        return sum(count_tokens([layout.before + layout.after])), 0
    first = layout.fields[0].before
    whole, own = count_tokens([layout.before + first, _own(layout, 0)])
    prompts = count_tokens([layout.render(row) for row in rows])
    sums = _sums(rows, layout, count_tokens)
    around = sorted(prompt - tokens for prompt, tokens in zip(prompts, sums, strict=True))
    start = whole - own
    return start, around[len(around) // 2] - start


def _own(layout: Layout, index: int) -> str:
    """What a field's segment has before its value."""
    return layout.segment(index, "\0").partition("\0")[0]


def _sums(rows: Sequence[Sequence[Any]], layout: Layout, count_tokens: CountTokens) -> list[int]:
    """The tokens of each row's segments, added up."""
    fields = layout.fields
    return [
        sum(count_tokens([layout.segment(i, fields[i].written(v)) for i, v in enumerate(row)]))
        for row in rows
    ]


def _column(
    index: int, layout: Layout, codes: list[int], known: dict[str, int], count_tokens: CountTokens
) -> Column:
    """A column whose codes are in the order of its texts, so that texts that begin alike meet."""
    texts = sorted(known)
    rank = [0] * len(texts)
    for place, text in enumerate(texts):
        rank[known[text]] = place
    tokens = list(count_tokens([layout.segment(index, text) for text in texts]))
    lead = _lead(index, layout, texts, count_tokens, min(tokens, default=0))
    return Column(list(map(rank.__getitem__, codes)), tokens, lead)


def _lead(
    index: int, layout: Layout, texts: list[str], count_tokens: CountTokens, shortest: int
) -> int:
    """The tokens with which all segments of a column begin.

    The last token of a text that goes on may be another one, so it counts only at the end of a
    field's own `before`, where words usually end.
    """
    if not texts:
        return 0
    shared = commonprefix([texts[0], texts[-1]])
    own = _own(layout, index)
    found = count_tokens([own, own + shared])
    lead = max(found[0], found[1] - 1) if shared else found[0]
    return min(lead, shortest)


def error_of_sums(
    rows: Sequence[Sequence[Any]], layout: Layout, count_tokens: CountTokens
) -> float:
    """How far the sums of segments are from whole prompts: the mean difference per token."""
    start, end = _edges(rows[:_EDGE_ROWS], layout, count_tokens)
    prompts = count_tokens([layout.render(row) for row in rows])
    sums = (start + end + tokens for tokens in _sums(rows, layout, count_tokens))
    off = sum(abs(one - other) for one, other in zip(sums, prompts, strict=True))
    return off / max(sum(prompts), 1)
