"""Orders the rows of a table and the free fields of each row so that a cache saves the most tokens.

The objective is what a paged prefix cache saves of the prompts as rendered: whole blocks of tokens,
keys, separators and the text around the row included. GGR (2403.05821 §4) picks one value at a
time by squared length; here a few orders of all fields are found for the table, each row takes the
one in which it shares the most (share.py), and the rows go depth first through the prefixes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .search import (
    Order,
    by_distinct,
    by_saving,
    by_statistics,
    climb,
    closures,
    fixed,
    greedy,
    moves,
    sample,
)
from .share import Game
from .table import Table
from .tree import Work, saved_blocks

# Limits count rows looked at, so that the same table gives the same result on any machine.
SEARCH_ROWS = 1_000_000  # for finding orders: about .2 s on one core
CHOOSE_ROWS = 1_200_000  # times fields, for choosing among them: about .3 s
IMPROVE_ROWS = 1_500_000  # for better ones once all rows have an order; big tables get none
FINALISTS = 2  # orders tried on all rows: the most promising ones, and the best on samples
FEWEST_ORDERS = 3  # to choose among, however big the table
MOST_ORDERS = 8


@dataclass(frozen=True, slots=True)
class Arrangement:
    """The rows in the order to run them, and the order of each row's fields.

    `rows` has row numbers; `choice` has, per row number, the index of its order in `orders`.
    `saved_tokens` of the prompts' `prompt_tokens` are expected in an unlimited cache; with the
    author's order of fields they were `saved_before_tokens`.
    """

    rows: tuple[int, ...]
    orders: tuple[Order, ...]
    choice: tuple[int, ...]
    prompt_tokens: int
    saved_tokens: int
    saved_before_tokens: int

    def order_of(self, row: int) -> Order:
        """The order of a row's fields, as indices into the layout's fields."""
        return self.orders[self.choice[row]]


@dataclass(frozen=True, slots=True)
class _Chosen:
    """Orders in use, the index of each row's, and the blocks saved."""

    orders: tuple[Order, ...]
    choice: list[int]
    saved: int


def arrange(table: Table, orders: Sequence[Order] = (), descending: bool = False) -> Arrangement:
    """The arrangement of a table. `orders`: choose among these, do not search.

    `descending` runs the rows the other way round: the second of two windows then begins where
    the first one ended. The same table gives the same arrangement; no clock is read.
    """
    original = fixed(table, range(table.head, table.tail))
    before = saved_blocks(table, original, Work(0))
    known = list(orders) or find_orders(table, Work(SEARCH_ROWS))
    chosen = _choose(table, known, Work(0))
    if not orders:
        chosen = _improved(table, chosen, Work(IMPROVE_ROWS))
    if chosen.saved < before:
        chosen = _Chosen((original,), [0] * table.rows, before)
    rows = depth_first(table, chosen.orders, chosen.choice)
    if descending:
        rows.reverse()
    shared = table.start_tokens // table.block_tokens * max(0, table.rows - 1)
    return Arrangement(
        tuple(rows),
        chosen.orders,
        tuple(chosen.choice),
        table.prompt_tokens,
        (chosen.saved + shared) * table.block_tokens,
        (before + shared) * table.block_tokens,
    )


def depth_first(table: Table, orders: Sequence[Order], choice: Sequence[int]) -> list[int]:
    """The rows by their fields' values, each in its own order: a walk through the prefixes."""
    columns, many = list[list[int]](), 0
    for column in table.columns:  # codes that differ between columns
        columns.append([many + code for code in column.codes])
        many += len(column.tokens)
    paths = [list(zip(*(columns[column] for column in order), strict=True)) for order in orders]
    if not columns:
        return list(range(table.rows))
    keys = [paths[chosen][row] for row, chosen in enumerate(choice)]
    return sorted(range(table.rows), key=keys.__getitem__)


def find_orders(table: Table, work: Work) -> list[Order]:
    """A few orders of a table's fields: the best for all rows, and others to choose from."""
    if table.tail - table.head < 2 or table.rows < 2:
        return [fixed(table, range(table.head, table.tail))]
    closed = closures(table)
    tried = list(_candidates(table, closed, work))
    ranked = sorted(tried, key=lambda one: -one.saved)
    finalists = list(dict.fromkeys((*tried[:FINALISTS], *ranked[:FINALISTS])))
    finalists.sort(key=lambda one: -saved_blocks(table, one.order, Work(0)))
    best = finalists[0]
    found = [_climbed(table, best, work), by_statistics(table)]
    other = next((one for one in finalists if not set(one.first) & set(best.first)), None)
    if other is not None:
        found.append(_climbed(table, other, work))
    free = found[0][table.head : table.tail]
    found.append(fixed(table, (*free[:-2], free[-1], free[-2])))
    most = max(FEWEST_ORDERS, CHOOSE_ROWS // (table.rows * len(table.columns)))
    return list(dict.fromkeys(found))[:most]


@dataclass(frozen=True, slots=True, eq=False)
class _Candidate:
    """An order of the fields, those it was grown from, and blocks saved per row of a sample."""

    order: Order
    first: Order
    saved: float
    rows: list[int]


def _candidates(table: Table, closed: dict[int, list[int]], work: Work) -> Iterator[_Candidate]:
    """For each free field, an order that begins with it."""
    low = by_distinct(table)
    seen: set[int] = set()
    for column in by_saving(table, closed):
        if column in seen or (seen and 2 * work.done > work.limit):
            continue
        first = closed[column]
        seen.update(first)
        rows = sample(table, [*range(table.head), *first, *low])
        order = fixed(table, greedy(table, first, closed, rows, work))
        saved = saved_blocks(table, order, work, rows) / len(rows)
        yield _Candidate(order, tuple(first), saved, rows)


def _climbed(table: Table, candidate: _Candidate, work: Work) -> Order:
    free = candidate.order[table.head : table.tail]
    return fixed(table, climb(table, free, candidate.rows, work))


def _choose(table: Table, orders: Sequence[Order], work: Work) -> _Chosen:
    """The best order of each row; orders that no row takes are dropped."""
    game = Game(table, orders, work)
    saved = game.play()
    used = sorted(set(game.choice))
    names = {order: index for index, order in enumerate(used)}
    choice = [names[order] for order in game.choice]
    return _Chosen(tuple(orders[order] for order in used), choice, saved)


def _improved(table: Table, chosen: _Chosen, work: Work) -> _Chosen:
    """Adds variants of the orders in use as long as that saves more blocks."""
    cost = table.rows * len(table.columns) * len(chosen.orders)
    tried: set[Order] = set(chosen.orders)
    better = True
    while better and table.tail - table.head > 1:
        better = False
        for variant in _variants(table, chosen.orders):
            if work.done + 2 * cost > work.limit:
                return chosen
            if variant in tried:
                continue
            tried.add(variant)
            found = _choose(table, (*chosen.orders, variant)[-MOST_ORDERS:], work)
            if found.saved > chosen.saved:
                chosen, better = found, True
                break
    return chosen


def _variants(table: Table, orders: Sequence[Order]) -> Iterator[Order]:
    """Each order with one free field moved, the nearest moves of all orders first."""
    free = [moves(order[table.head : table.tail]) for order in orders]
    for several in zip(*free, strict=True):
        for moved in several:
            yield fixed(table, moved)
