"""Which of a few orders each row takes: a game in which rows share the cost of what they share.

A prefix costs its blocks once, and the rows that use it split them. Rows begin spread over all
orders and settle as a temperature falls, so that no order looks deserted before the game has begun
(mean-field annealing of a congestion game, Rosenthal 1973). In the end a row moves only where that
saves blocks in all.

Sums along a row's path are kept per node, from the root down, so that a row looks up one number.
"""

from collections.abc import Iterator, Sequence
from itertools import compress
from math import exp
from operator import gt

from .search import Order
from .table import Table
from .tree import Level, Work, levels

TEMPERATURES = (0.25, 0.25, 0.1)  # blocks
ROUNDS = 2

_Name = tuple[Order, int]  # the fields of a level, and the field ahead


class Game:
    """The trees of a few orders in one numbering, parents before children.

    `leaves` has, per order and row, the deepest node of the row's path; `alone`, per order, the
    blocks saved where all rows take it.
    """

    def __init__(self, table: Table, orders: Sequence[Order], work: Work) -> None:
        self.rows = table.rows
        self.work = work
        self.weights: list[int] = []
        self.parents: list[int] = []
        self.leaves: list[list[int]] = []
        self.alone: list[int] = []
        self.choice: list[int] = [0] * table.rows
        known: dict[_Name, int] = {}
        for order in orders:
            leaves, alone, above = [0] * table.rows, 0, -1
            for depth, level in enumerate(levels(table, order, work)):
                ahead = order[depth] if depth < len(order) else -1
                above = self._add(level, leaves, known, (order[:depth], ahead), above)
                alone += level.saved
            self.leaves.append(leaves)
            self.alone.append(alone)

    def _add(
        self, level: Level, leaves: list[int], known: dict[_Name, int], name: _Name, above: int
    ) -> int:
        """Takes in a level and returns its first node; orders that begin alike share nodes."""
        base = known.setdefault(name, len(self.weights))
        if base == len(self.weights):
            self.weights.extend(level.weights)
            self.parents.extend(max(-1, above + parent) for parent in level.parents)
        for row, node in zip(level.rows, level.nodes, strict=True):
            leaves[row] = base + node
        return base

    def play(self) -> int:
        """Settles `choice`, the order of each row; the blocks found in an unlimited cache."""
        best = max(self.alone)
        saved = self._settle(self._anneal()) if len(self.leaves) > 1 else best
        if saved <= best:
            self.choice = [self.alone.index(best)] * self.rows
            return best
        return saved

    def _anneal(self) -> list[list[float]]:
        """Each row's share in each order, per order, once the game has cooled."""
        many = len(self.leaves)
        shares = [[1 / many] * self.rows for _ in range(many)]
        for temperature in TEMPERATURES:
            self.work.done += self.rows * many
            users = self._users(shares)
            worth = self._summed(
                [w - w / (n + 0.5) for w, n in zip(self.weights, users, strict=True)]
            )
            gains = [list(map(worth.__getitem__, leaves)) for leaves in self.leaves]
            shares = _softmax(gains, temperature)
        return shares

    def _users(self, shares: Sequence[Sequence[float]]) -> list[float]:
        """How many rows use each node, given how much of each row takes each order."""
        users = [0.0] * len(self.weights)
        for leaves, mine in zip(self.leaves, shares, strict=True):
            for leaf, share in zip(leaves, mine, strict=True):
                users[leaf] += share
        for node in range(len(users) - 1, -1, -1):
            parent = self.parents[node]
            if parent >= 0:
                users[parent] += users[node]
        return users

    def _summed(self, values: list[float]) -> list[float]:
        """The sum of values on the path from the root to each node."""
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                values[node] += values[parent]
        return values

    def _settle(self, shares: list[list[float]]) -> int:
        """Each row takes its likeliest order, then moves where that saves blocks in all."""
        self.choice = [row.index(max(row)) for row in zip(*shares, strict=True)]
        users = [0] * len(self.weights)
        for row, mine in enumerate(self.choice):
            self._enter(users, row, mine, 1)
        for _ in range(ROUNDS):
            if not self._round(users):
                break
        return sum(w * (n - 1) for w, n in zip(self.weights, users, strict=True) if n > 1)

    def _path(self, row: int, order: int) -> Iterator[int]:
        """A row's nodes in an order, the deepest first."""
        node = self.leaves[order][row]
        while node >= 0:
            yield node
            node = self.parents[node]

    def _enter(self, users: list[int], row: int, order: int, by: int) -> None:
        for node in self._path(row, order):
            users[node] += by

    def _round(self, users: list[int]) -> bool:
        """Lets each row move once that would gain by it; whether one did."""
        weights = self.weights
        self.work.done += self.rows * len(self.leaves)
        kept = self._summed([w if n > 1 else 0.0 for w, n in zip(weights, users, strict=True)])
        found = self._summed([w if n else 0.0 for w, n in zip(weights, users, strict=True)])
        own = [kept[self.leaves[order][row]] for row, order in enumerate(self.choice)]
        moved = False
        for order, leaves in enumerate(self.leaves):
            hopes = map(gt, map(found.__getitem__, leaves), own)
            for row in compress(range(self.rows), hopes):
                mine = self.choice[row]
                if mine == order:
                    continue
                self._enter(users, row, mine, -1)
                loss = sum(weights[node] for node in self._path(row, mine) if users[node])
                gain = sum(weights[node] for node in self._path(row, order) if users[node])
                if gain > loss:
                    self.choice[row] = order
                    moved = True
                self._enter(users, row, self.choice[row], 1)
        return moved


def _softmax(gains: list[list[float]], temperature: float) -> list[list[float]]:
    """Shares that grow with the gain, per row; the colder, the more the best takes."""
    scale = 1 / temperature
    most = list(map(max, *gains))
    odds = [
        [exp((gain - top) * scale) for gain, top in zip(mine, most, strict=True)] for mine in gains
    ]
    totals = list(map(sum, zip(*odds, strict=True)))
    return [[odd / total for odd, total in zip(mine, totals, strict=True)] for mine in odds]
