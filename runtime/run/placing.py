"""Where the rows of a plan stand: their turn, and the worker that is to have their calls.

By default the workers of each pool share a window's rows out, and a row's calls have the turn of
its place in the order. With a placement (`planner.placement`) each step of a row has its own.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ...planner.placement import Turn, Turns
from ...planner.shards import cut_shards, in_turns, row_tokens
from ...planner.window import Lead, WindowPlan

WorkersOf = Callable[[str], Sequence[str]]


class _Spot(NamedTuple):
    """A row's place in the window that begins at place `start` of the run, `size` rows long."""

    start: int
    size: int
    place: int

    @property
    def share(self) -> float:
        return self.place / self.size


class Placing:
    """The places of rows that have not ended.

    `workers_of` gives the workers of each of `pools`. With `turns` they follow that placement.
    """

    def __init__(
        self, workers_of: WorkersOf, pools: Iterable[str] = (), turns: Turns | None = None
    ) -> None:
        self._workers_of = workers_of
        self._pools: dict[str, Sequence[str]] = dict.fromkeys(pools, ())
        self._turns = turns
        self._size = 0  # of the latest window
        self._started = 0  # rows that were given a place
        self._spots: dict[int, _Spot] = {}
        self._shares: dict[int, int] = {}  # per row, which of several workers is to have it

    def share_out(
        self,
        rows: Sequence[int],
        found: WindowPlan,
        leads: Sequence[Lead],
        inputs: Sequence[Mapping[str, Any]],
    ) -> WindowPlan:
        """The plan of a window for the workers that there are now: shares of about as many tokens,
        cut where a group begins. A placement has shares of its own."""
        self._pools = {pool: self._workers_of(pool) for pool in self._pools}
        most = max(map(len, self._pools.values()), default=1)
        if most < 2 or self._turns is not None:
            return found
        shards = cut_shards(found, row_tokens(found, leads, inputs), most)
        for number, shard in enumerate(shards):
            self._shares.update((rows[index], number) for index in shard)
        return replace(found, order=in_turns(shards))

    def add(self, rows: Sequence[int], order: Sequence[int]) -> None:
        """The next window's rows, given by number, have their places in `order`."""
        for place, index in enumerate(order):
            self._spots[rows[index]] = _Spot(self._started, len(rows), place)
        self._size = len(rows)
        self._started += len(rows)

    def ended(self, row: int) -> None:
        """A row's program has ended: no more calls of it will come."""
        self._spots.pop(row, None)
        self._shares.pop(row, None)

    @property
    def follows(self) -> bool:
        """Whether a placement has a worker for all calls, not just for those that share a prefix."""
        return self._turns is not None

    def key(self, row: int, step: str) -> float | None:
        """A row's turn at a step, in rows since the run began."""
        spot = self._spots.get(row)
        if spot is None:
            return None
        turn = self._turn(spot, step)
        return float(spot.start + (spot.place if turn is None else turn.at * spot.size))

    def worker(self, row: int, step: str, pool: str) -> str | None:
        """The worker that is to have a row's call, where there are several."""
        workers = self._pools.get(pool, ())
        if len(workers) < 2:
            return None
        if self._turns is None:
            share = self._shares.get(row)
            return None if share is None else workers[share % len(workers)]
        spot = self._spots.get(row)
        turn = None if spot is None else self._turn(spot, step)
        return None if turn is None else turn.worker

    def home(self, rows: Sequence[int], step: str) -> str | None:
        """The worker of all these rows, since they share a prefix: that of the first, if they are
        few and a placement cuts without regard to them."""
        workers = max(map(len, self._pools.values()), default=1)
        if self._turns is None or len(rows) > self._size / (4 * workers):
            return None
        turn = self._turn(self._spots[rows[0]], step)
        return None if turn is None else turn.worker

    def _turn(self, spot: _Spot, step: str) -> Turn | None:
        return None if self._turns is None else self._turns.of(step, spot.share)
