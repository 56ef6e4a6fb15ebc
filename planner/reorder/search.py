"""Candidate orders of fields for a whole table: few orders, each good for many of its rows.

Orders are tried on samples of whole groups: rows that agree in the first fields are all taken or
none, so that what is shared inside a group is seen as it is.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import compress, count

from .depend import determines
from .table import Table
from .tree import Work, saved_blocks

SAMPLE_ROWS = 2048
_GROUPS = 64  # a sample is drawn from at least so many groups
_HASH = 2654435761  # Knuth's multiplicative hash, so that codes next to each other are split
_SPACE = 2**32

Order = tuple[int, ...]


def fixed(table: Table, free: Sequence[int]) -> Order:
    """All fields, with the free ones in this order."""
    return (*range(table.head), *free, *range(table.tail, len(table.columns)))


def distinct(table: Table, column: int) -> int:
    """How many values a column has."""
    return len(table.columns[column].tokens)


def by_distinct(table: Table) -> list[int]:
    """The free columns, the fewest values first."""
    return sorted(range(table.head, table.tail), key=lambda c: distinct(table, c))


def by_statistics(table: Table) -> Order:
    """The fixed order of GGR's fallback (2403.05821 §4.2), with tokens for characters.

    Columns by mean length squared times how often a value repeats, descending.
    """

    def score(column: int) -> float:
        repeats = table.rows / max(1, distinct(table, column)) - 1
        return mean_tokens(table, column) ** 2 * repeats

    return fixed(table, sorted(range(table.head, table.tail), key=lambda c: -score(c)))


def by_saving(table: Table, closed: dict[int, list[int]]) -> list[int]:
    """The free columns, first those that would save the most tokens in front of all others.

    Each counts with the columns that it determines, since these come along for nothing.
    """

    def score(column: int) -> float:
        repeats = table.rows - distinct(table, column)
        return repeats * sum(mean_tokens(table, other) for other in closed[column])

    return sorted(closed, key=lambda c: -score(c))


def mean_tokens(table: Table, column: int) -> float:
    """The mean tokens of a column's fields."""
    codes, tokens = table.columns[column].codes, table.columns[column].tokens
    return sum(map(tokens.__getitem__, codes)) / max(1, table.rows)


def closures(table: Table) -> dict[int, list[int]]:
    """Each free column, behind the columns that it determines, the fewest values first."""
    columns = by_distinct(table)
    found: dict[int, list[int]] = {}
    for left in columns:
        fixes: list[int] = []
        many = distinct(table, left)
        for right in columns:
            if right == left or distinct(table, right) > many or many * 2 > table.rows:
                continue
            if determines(table.columns[left].codes, table.columns[right].codes) is not None:
                fixes.append(right)
        found[left] = [*fixes, left]
    return found


def sample(table: Table, first: Sequence[int]) -> list[int]:
    """About SAMPLE_ROWS rows: whole groups of rows that agree in the first of these columns."""
    step = -(-table.rows // SAMPLE_ROWS)
    if step <= 1:
        return list(range(table.rows))
    nodes, groups = [0] * table.rows, 1
    for column in first:
        many = distinct(table, column)
        codes = table.columns[column].codes
        pairs = [node * many + code for node, code in zip(nodes, codes, strict=True)]
        ids = dict(zip(dict.fromkeys(pairs), count()))
        nodes, groups = list(map(ids.__getitem__, pairs)), len(ids)
        if groups >= _GROUPS:
            break
    sizes = Counter(nodes)
    taken, rows = [False] * groups, 0
    for group in sorted(range(groups), key=lambda group: group * _HASH % _SPACE):
        if rows + sizes[group] <= 2 * SAMPLE_ROWS:
            taken[group] = True
            rows += sizes[group]
        if rows >= SAMPLE_ROWS:
            break
    found = list(compress(range(table.rows), map(taken.__getitem__, nodes)))
    return found or list(range(0, table.rows, step))


def greedy(
    table: Table, first: Sequence[int], closed: dict[int, list[int]], rows: list[int], work: Work
) -> list[int]:
    """The free columns from `first` on, always the one that saves the most tokens next.

    A column brings those along that it determines. Savings only shrink as the order grows, so one
    that was found small before is not counted again (lazy greedy, Minoux 1978).
    """
    order = list(dict.fromkeys(first))
    nodes = [0] * len(rows)
    for column in order:
        rows, nodes = _below(table, rows, nodes, column)
    left = [c for c in by_distinct(table) if c not in order]
    bounds = dict.fromkeys(left, float("inf"))
    while left and rows and not work.over:
        best = _best(table, rows, nodes, left, bounds, work)
        for column in closed[best]:
            if column in left:
                left.remove(column)
                order.append(column)
                rows, nodes = _below(table, rows, nodes, column)
    return order + left


def _best(
    table: Table,
    rows: list[int],
    nodes: list[int],
    left: list[int],
    bounds: dict[int, float],
    work: Work,
) -> int:
    fresh: set[int] = set()
    while True:
        best = max(left, key=lambda c: bounds[c])
        if best in fresh:
            return best
        fresh.add(best)
        work.done += len(rows)
        bounds[best] = _saved_tokens(table, rows, nodes, best)


def _pairs(table: Table, rows: list[int], nodes: list[int], column: int) -> list[int]:
    many = distinct(table, column)
    values = map(table.columns[column].codes.__getitem__, rows)
    return [node * many + value for node, value in zip(nodes, values, strict=True)]


def _saved_tokens(table: Table, rows: list[int], nodes: list[int], column: int) -> int:
    tokens = table.columns[column].tokens
    many = len(tokens)
    counts = Counter(_pairs(table, rows, nodes, column))
    return sum((n - 1) * tokens[pair % many] for pair, n in counts.items() if n > 1)


def _below(
    table: Table, rows: list[int], nodes: list[int], column: int
) -> tuple[list[int], list[int]]:
    """The rows that still share a prefix with another one after `column`, and their nodes."""
    pairs = _pairs(table, rows, nodes, column)
    ids = dict(zip((pair for pair, n in Counter(pairs).items() if n > 1), count()))
    kept = list(map(ids.__contains__, pairs))
    return list(compress(rows, kept)), list(map(ids.__getitem__, compress(pairs, kept)))


def climb(table: Table, free: Sequence[int], rows: list[int], work: Work) -> Order:
    """The order improved by moving one field at a time, as long as that saves blocks on `rows`."""
    best = tuple(free)
    saved = saved_blocks(table, fixed(table, best), work, rows)
    improved = True
    while improved:
        improved = False
        for moved in moves(best):
            if work.over:
                return best
            found = saved_blocks(table, fixed(table, moved), work, rows)
            if found > saved:
                best, saved, improved = moved, found, True
    return best


def moves(order: Order) -> Iterator[Order]:
    """The order with one field moved, by one place first, then by more."""
    for far in range(1, len(order)):
        for at in range(len(order) - far):
            yield (*order[:at], *order[at + 1 : at + 1 + far], order[at], *order[at + 1 + far :])
            if far > 1:
                to = at + far
                yield (*order[:at], order[to], *order[at:to], *order[to + 1 :])
