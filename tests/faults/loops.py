"""The event loop of one life: virtual time, counted turns, and things that happen between them."""

import asyncio
import heapq
from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING, Any

from tenter.runtime.clock import VirtualLoop

if TYPE_CHECKING:
    from .lives import Life

MOST_TURNS = 8_000  # of one life: whatever needs more does not end
LONGEST_S = 400_000.0  # of virtual time, clock jumps included


class Stopped(SystemExit):
    """The process stops here and now; asyncio lets it through to whoever runs the loop."""


class Endless(SystemExit):
    """The job goes on for ever."""


class FaultLoop(VirtualLoop):
    """A virtual loop that belongs to a life and runs `at[turn]` before the callback of its place.

    What is given to a thread is done on the spot: a thread would be another source of order.
    """

    def __init__(self, life: "Life") -> None:
        super().__init__()
        self.life = life
        self.turn = 0
        self._stops = self._clears = False
        self.at: dict[int, list[tuple[int, Callable[[], None]]]] = {}

    def _run_once(self) -> None:
        self.turn += 1
        for place, action in self.at.get(self.turn, ()):
            self._ready.insert(min(place, len(self._ready)), _handle(action, self))
        if not self._clears and (self.turn > MOST_TURNS or self.time() > LONGEST_S):
            raise Endless(f"after {self.turn} turns and {self.time():,.0f} s it still runs")
        super()._run_once()  # pyright: ignore[reportAttributeAccessIssue]

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        """`func(*args)`, done already."""
        done = self.create_future()
        try:
            done.set_result(func(*args))
        except Exception as error:  # noqa: BLE001  whoever waits for it gets it
            done.set_exception(error)
        return done

    @property
    def next_s(self) -> float:
        """When its next callback is due; infinite if there is none."""
        if self._ready:
            return self.time()
        while self._scheduled and self._scheduled[0]._cancelled:
            self._timer_cancelled_count -= 1
            heapq.heappop(self._scheduled)._scheduled = False
        return max(self.time(), self._scheduled[0]._when) if self._scheduled else inf

    def step(self) -> None:
        """Go on to its next callbacks, and do them."""
        self._selector_clock.now_s = self.next_s
        self.stop()
        self.run_forever()

    def stop_now(self) -> None:
        """Run no further callback."""
        self._ready.appendleft(_handle(self._stop, self))
        self._stops = True

    def clear_up(self) -> None:
        """Run on after all, to end what is left."""
        self._stops, self._clears = False, True

    def _stop(self) -> None:
        if self._stops:
            self._stops = False
            raise Stopped

    def skip(self, seconds: float) -> None:
        """The clock goes on, and nothing else does."""
        self._selector_clock.now_s += seconds


def _handle(action: Callable[[], None], loop: asyncio.AbstractEventLoop) -> asyncio.Handle:
    return asyncio.Handle(action, (), loop)


def life() -> "Life":
    """The life that the running loop belongs to."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, FaultLoop)
    return loop.life


def life_here() -> "Life | None":
    """The same, or None outside of a life."""
    loop = asyncio._get_running_loop()
    return loop.life if isinstance(loop, FaultLoop) else None
