"""Functional dependencies found in the data: columns whose values fix those of other columns."""

from collections.abc import Sequence
from dataclasses import dataclass

_PROBE = 256  # rows that show most columns independent


@dataclass(frozen=True, slots=True)
class Dependency:
    """Rows that agree in `left` mostly agree in `right`.

    `error`: the least share of rows to leave out for it to hold without exception (the g3 measure,
    Kivinen and Mannila, "Approximate inference of functional dependencies from relations", 1995).
    """

    left: str
    right: str
    error: float = 0.0


def determines(left: Sequence[int], right: Sequence[int], most: int = 0) -> int | None:
    """How many rows break "equal codes in `left`, equal codes in `right`"; None if above `most`."""
    first: dict[int, int] = {}
    if not most:
        for one, other in zip(left[:_PROBE], right[:_PROBE], strict=True):
            if first.setdefault(one, other) != other:
                return None
        pairs = set(zip(left, right, strict=True))
        return 0 if len(pairs) == len(set(left)) else None
    counts: dict[int, dict[int, int]] = {}
    for one, other in zip(left, right, strict=True):
        inner = counts.setdefault(one, {})
        inner[other] = inner.get(other, 0) + 1
    broken = len(left) - sum(max(inner.values()) for inner in counts.values())
    return broken if broken <= most else None


def dependencies(
    columns: Sequence[tuple[str, Sequence[int], int]], error: float = 0.0
) -> list[Dependency]:
    """The dependencies between columns, given as (name, codes, distinct codes).

    A column that hardly repeats determines everything and tells nothing, so it is left out, and
    so is one whose value never changes on the right.
    """
    found: list[Dependency] = []
    for name, codes, distinct in columns:
        rows = len(codes)
        if distinct * 2 > rows:
            continue
        for other, others, fewer in columns:
            if other == name or fewer < 2 or fewer > distinct * (1 + error):
                continue
            broken = determines(codes, others, int(error * rows))
            if broken is not None:
                found.append(Dependency(name, other, broken / rows))
    return found
