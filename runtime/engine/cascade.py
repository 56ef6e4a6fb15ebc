"""Which rows of a step share how many leading pages: the groups of cascade attention. No torch.

Shared pages are read once for all rows of a group, as one dense product: Hydragen (2402.05099,
section 3) for one common prefix; ChunkAttention (2402.15220, section 3) finds the sharing in a
prefix tree, as done here. A row belongs to one group.
"""

from dataclasses import dataclass
from itertools import pairwise

GROUP_PAGES = 32  # page reads that a group of its own must save: what its operations cost


@dataclass(frozen=True, slots=True)
class Row:
    """A row's page table, and how many of its leading pages every query of the row may see."""

    table: list[int]
    whole: int


@dataclass(frozen=True, slots=True)
class Group:
    """Rows (by index) whose first `shared` pages are the same."""

    shared: int
    rows: tuple[int, ...]


def groups_of(rows: list[Row]) -> list[Group]:
    """Split `rows` so that few pages are read; what gains nothing is one group that shares 0."""
    order = sorted(range(len(rows)), key=lambda i: rows[i].table[: rows[i].whole])
    common = [0] + [_common(rows[a], rows[b]) for a, b in pairwise(order)]
    found: list[Group] = []
    _, groups = _best(rows, order, common, 0, len(order))
    alone = [index for group in groups if not group.shared for index in group.rows]
    if alone:
        found.append(Group(0, tuple(sorted(alone))))
    return found + [group for group in groups if group.shared]


def _best(
    rows: list[Row], order: list[int], common: list[int], start: int, stop: int
) -> tuple[int, list[Group]]:
    """Pages read by the sorted rows from `start` to `stop`, and their groups: the cheaper of one
    group for all, and the best for each branch below what all share."""
    lengths = sum(len(rows[i].table) for i in order[start:stop])
    alone = [Group(0, tuple(order[start:stop]))]
    if stop - start == 1:
        return lengths, alone
    shared = min(common[start + 1 : stop])
    cuts = [i for i in range(start + 1, stop) if common[i] == shared]
    if len(cuts) == stop - start - 1:  # no two rows share more than all do
        branches = lengths, alone
    else:
        parts = [
            _best(rows, order, common, a, b)
            for a, b in zip([start, *cuts], [*cuts, stop], strict=True)
        ]
        branches = sum(cost for cost, _ in parts), [group for _, found in parts for group in found]
    together = lengths - shared * (stop - start - 1) + GROUP_PAGES
    if shared and together < branches[0]:
        return together, [Group(shared, tuple(sorted(order[start:stop])))]
    return branches


def _common(a: Row, b: Row) -> int:
    """Leading pages that two rows share, by halving: slices of lists compare fast."""
    low, high = 0, min(a.whole, b.whole)
    while low < high:
        middle = (low + high + 1) // 2
        if a.table[low:middle] == b.table[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
