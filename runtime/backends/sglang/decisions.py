"""What is still to be told of pins: kept until a request has brought it to the server."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ...calls import SessionId

GATHER_S = 0.02  # how long a decision waits for a request to ride on
FIRST_RETRY_S, LAST_RETRY_S = 0.25, 10.0  # pauses between requests that fail
CARRIED = 14  # decisions on one request; the plugin reads 16 actions
MAX_WAITING = 4096  # as many pins as the plugin holds


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """What becomes of a session's pin: another end (None: none), or the end at once."""

    session: SessionId
    made_s: float
    until_s: float | None
    priority: int
    release: bool = False


class Decisions:
    """Of each session the newest one, in the order in which they were made.

    `carry` is called when no request has come by to ride on: at first soon, and after a request
    that failed later and later, until one succeeds. Beyond 4096 the oldest are dropped.
    """

    def __init__(self, carry: Callable[[], None]) -> None:
        self._carry = carry
        self._waiting: dict[SessionId, Decision] = {}
        self._under_way: dict[SessionId, Decision] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._pause_s = GATHER_S
        self._stopped = False

    def __bool__(self) -> bool:
        """Whether any waits for a request."""
        return bool(self._waiting)

    @property
    def failing(self) -> bool:
        """Whether the last request that was to bring some has failed."""
        return self._pause_s > GATHER_S

    def put(self, decision: Decision) -> None:
        """It is to be told, in place of an older one of its session."""
        self._under_way.pop(decision.session, None)
        self._waiting.pop(decision.session, None)
        self._wait(decision)

    def take(self) -> list[Decision]:
        """Those that go with a request now; its fate is to be told, by `confirm` or `put_back`."""
        sessions = list(self._waiting)[:CARRIED]
        taken = [self._waiting.pop(session) for session in sessions]
        self._under_way.update((decision.session, decision) for decision in taken)
        if not self._waiting:
            self._stop_timer()
        return taken

    def confirm(self, taken: Iterable[Decision]) -> None:
        """Their request has been answered."""
        for decision in taken:
            self._pause_s = GATHER_S
            self._has_arrived(decision)
        if self._waiting:
            self._stop_timer()
            self._start_timer()

    def put_back(self, taken: Iterable[Decision]) -> None:
        """Their request has failed, or nobody knows."""
        failed = [decision for decision in taken if self._has_arrived(decision)]
        if failed:
            self._pause_s = min(max(2 * self._pause_s, FIRST_RETRY_S), LAST_RETRY_S)
        for decision in failed:
            self._wait(decision)

    def stop(self) -> None:
        """Have nothing carried any more but what is taken."""
        self._stopped = True
        self._stop_timer()

    def _has_arrived(self, decision: Decision) -> bool:
        """It is under way no more; False where a newer one has taken its place."""
        mine = self._under_way.get(decision.session) is decision
        if mine:
            del self._under_way[decision.session]
        return mine

    def _wait(self, decision: Decision) -> None:
        self._waiting[decision.session] = decision
        if len(self._waiting) > MAX_WAITING:
            del self._waiting[next(iter(self._waiting))]
        self._start_timer()

    def _start_timer(self) -> None:
        if self._timer is None and not self._stopped:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._pause_s, self._due)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _due(self) -> None:
        self._timer = None
        self._carry()
