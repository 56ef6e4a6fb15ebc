"""GGR as published (2403.05821 §4), to compare with: greedy group recursion by squared length.

The best value of a field and the fields it fixes go first on its rows; then those rows without
these fields, and the other rows with all. Past the depth limits, or under a score of 0.1 M, a
fixed order by mean squared length and repetition, and the rows sorted.

The paper measures values in characters and merges columns by hand; here the caller says how long
values are, and the columns are what they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

ROW_DEPTH, FIELD_DEPTH, LEAST_SCORE = 4, 2, 100_000


@dataclass(slots=True)
class Ggr:
    """Fills `order` and `rows` for a table's columns."""

    columns: Sequence[Sequence[int]]
    orders: dict[int, tuple[int, ...]]
    rows: list[int]

    @classmethod
    def solve(cls, columns: Sequence[Sequence[int]], lengths: list[list[int]]) -> "Ggr":
        """`columns`: codes of values; `lengths`: each value's length, both per field and row."""
        many = len(columns[0])
        solver = cls(columns, {}, [])
        solver._recurse(list(range(many)), (), tuple(range(len(columns))), 0, 0, lengths)
        return solver

    def _recurse(
        self,
        rows: list[int],
        done: tuple[int, ...],
        fields: tuple[int, ...],
        row_depth: int,
        field_depth: int,
        lengths: list[list[int]],
    ) -> None:
        while rows:
            best = None
            if fields and row_depth < ROW_DEPTH and field_depth < FIELD_DEPTH:
                best = self._best(rows, fields, lengths)
            if best is None or best[0] < LEAST_SCORE:
                self._fixed(rows, done, fields, lengths)
                return
            _, field, value, fixed = best
            column = self.columns[field]
            group = [row for row in rows if column[row] == value]
            first = (field, *fixed)
            left = tuple(other for other in fields if other not in first)
            self._recurse(group, done + first, left, row_depth, field_depth + 1, lengths)
            rows = [row for row in rows if column[row] != value]
            row_depth += 1

    def _best(
        self, rows: list[int], fields: tuple[int, ...], lengths: list[list[int]]
    ) -> tuple[float, int, int, tuple[int, ...]] | None:
        """The highest hit count: (score, field, value, the fields that the field fixes)."""
        best: tuple[float, int, int, tuple[int, ...]] | None = None
        for field in fields:
            fixed = tuple(g for g in fields if g != field and self._fixes(rows, field, g))
            groups: dict[int, list[int]] = {}
            column = self.columns[field]
            for row in rows:
                groups.setdefault(column[row], []).append(row)
            for value, group in groups.items():
                own = lengths[field][group[0]] ** 2
                if len(group) < 2:
                    continue
                others = sum(sum(lengths[g][row] ** 2 for row in group) / len(group) for g in fixed)
                score = (own + others) * (len(group) - 1)
                if best is None or score > best[0]:
                    best = score, field, value, fixed
        return best

    def _fixes(self, rows: list[int], field: int, other: int) -> bool:
        first: dict[int, int] = {}
        left, right = self.columns[field], self.columns[other]
        for row in rows:
            if first.setdefault(left[row], right[row]) != right[row]:
                return False
        return len(first) < len(rows)

    def _fixed(
        self,
        rows: list[int],
        done: tuple[int, ...],
        fields: tuple[int, ...],
        lengths: list[list[int]],
    ) -> None:
        def score(field: int) -> float:
            mean = sum(lengths[field][row] for row in rows) / len(rows)
            return mean**2 * (len(rows) / len({self.columns[field][row] for row in rows}) - 1)

        order = sorted(fields, key=lambda field: -score(field))
        rows = sorted(rows, key=lambda row: [self.columns[field][row] for field in order])
        self.rows += rows
        self.orders.update(dict.fromkeys(rows, (*done, *order)))
