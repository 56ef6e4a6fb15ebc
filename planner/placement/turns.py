"""A placement as turns: which worker takes a row of a stage, and how early, in windows of any size.

Rows are named by their share of the window: 0 is its first row, 1 the end of its last.
"""

from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

from .problem import Placement


class Turn(NamedTuple):
    """A row's worker for one stage, and the share of the makespan at which its turn comes."""

    worker: str
    at: float


class _Range(NamedTuple):
    """Neighbouring rows of one visit: where they begin, and how much later each next one is."""

    first: float
    worker: str
    at: float
    slope: float


class Turns:
    """The turns of `placement`."""

    def __init__(self, placement: Placement) -> None:
        found: dict[str, list[_Range]] = {}
        for stage, each in _ranges(placement):
            found.setdefault(stage, []).append(each)
        self._ranges = {stage: sorted(ranges) for stage, ranges in found.items()}

    def of(self, stage: str, share: float) -> Turn | None:
        """The turn of the row at `share`; None for a stage that needs no worker."""
        ranges = self._ranges.get(stage)
        if not ranges:
            return None
        here = ranges[max(0, bisect_right(ranges, share, key=lambda each: each.first) - 1)]
        return Turn(here.worker, here.at + (share - here.first) * here.slope)


def _ranges(placement: Placement) -> Iterator[tuple[str, _Range]]:
    rows, whole_s = placement.rows, placement.makespan_s or 1.0
    for worker, visits in placement.visits.items():
        for visit in visits:
            count = sum(last - first for first, last in visit.rows)
            per_row = (visit.end_s - visit.start_s) / whole_s / count
            at = visit.start_s / whole_s
            for first, last in visit.rows:
                yield visit.stage, _Range(first / rows, worker, at, per_row * rows)
                at += per_row * (last - first)
