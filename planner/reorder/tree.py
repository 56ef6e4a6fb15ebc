"""The prefix tree of rows whose fields stand in some order, and what a cache saves by it.

A node is a prefix of whole fields that at least two rows share. Its weight is the number of cache
blocks that end inside it: those that a row must share it to find. Blocks that end inside the text
which all values of the next field share count with the node before.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import compress

from .table import Table


@dataclass(frozen=True, slots=True)
class Level:
    """The nodes at one depth: for each row that shares its node with another one, the node.

    Per node: `weights` in blocks, `counts` of rows, `ends` in tokens up to the end of its last
    field, and `parents`, its node in the level above.
    """

    rows: list[int]
    nodes: list[int]
    weights: list[int]
    counts: list[int]
    ends: list[int]
    parents: list[int]

    @property
    def saved(self) -> int:
        """The blocks that all rows but a node's first find in the cache."""
        return sum(
            weight * (rows - 1) for weight, rows in zip(self.weights, self.counts, strict=True)
        )


@dataclass(slots=True)
class Work:
    """What a search has done, in rows looked at; it ends at a limit that no clock decides."""

    limit: float
    done: int = field(default=0)

    @property
    def over(self) -> bool:
        return self.done >= self.limit


def levels(
    table: Table, order: Sequence[int], work: Work, rows: list[int] | None = None
) -> Iterator[Level]:
    """The levels of the tree for one order of fields, the root first, as deep as any rows share."""
    rows = list(range(table.rows)) if rows is None else rows
    start = table.start_tokens
    blocks = [(start + lead(table, order, 0)) // table.block_tokens]
    shared = blocks[0] - start // table.block_tokens
    level = Level(rows, [0] * len(rows), [shared], [len(rows)], [start], [-1])
    for depth, column in enumerate(order):
        yield level
        work.done += len(level.rows)
        level, blocks = below(table, level, blocks, column, lead(table, order, depth + 1))
        if not level.rows:
            return
    yield level


def lead(table: Table, order: Sequence[int], depth: int) -> int:
    """The tokens that all rows share after the first `depth` fields."""
    return (
        table.columns[order[depth]].lead_tokens if depth < len(order) else max(0, table.end_tokens)
    )


def below(
    table: Table, above: Level, blocks: list[int], column: int, lead_tokens: int
) -> tuple[Level, list[int]]:
    """The level below by the values of `column`, and the blocks that are full at its nodes."""
    tokens, codes = table.columns[column].tokens, table.columns[column].codes
    many = len(tokens)
    values = map(codes.__getitem__, above.rows)
    pairs = [node * many + value for node, value in zip(above.nodes, values, strict=True)]
    ids: dict[int, int] = {}
    level, full = Level([], [], [], [], [], []), list[int]()
    for pair, rows in Counter(pairs).items():
        if rows > 1:
            node, value = divmod(pair, many)
            ids[pair] = len(full)
            end = above.ends[node] + tokens[value]
            block = (end + lead_tokens) // table.block_tokens
            level.ends.append(end)
            level.counts.append(rows)
            level.parents.append(node)
            level.weights.append(block - blocks[node])
            full.append(block)
    kept = list(map(ids.__contains__, pairs))
    level.rows.extend(compress(above.rows, kept))
    level.nodes.extend(map(ids.__getitem__, compress(pairs, kept)))
    return level, full


def saved_blocks(
    table: Table, order: Sequence[int], work: Work, rows: list[int] | None = None
) -> int:
    """The blocks that the rows find in an unlimited cache, all in one order of fields.

    Not counted: the blocks that end before the first field, which all rows share in any order.
    """
    return sum(level.saved for level in levels(table, order, work, rows))
