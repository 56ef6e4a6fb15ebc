"""The calls of one model that wait: who is next, who is held back by a limit, who has aged.

A key is computed when a call joins, and again only where its order says that it will have changed,
so an event costs the logarithm of what waits. Places that nobody holds any more are passed over
when they come to the front, and swept out where they are too many.
"""

import heapq
from collections.abc import Callable

from .policies import PASSED, TURNS, Order
from .state import CallState, CallView, Item, need

SPARE = 64  # places without a call, beside one for each call that waits
PROMOTIONS = 32  # at most, between two decisions
SET = "working set"  # the limit that holds back calls of programs that are not in it
Look = Callable[[CallState, float], CallView]


class Queue:
    """Waiting calls under one order."""

    def __init__(self, order: Order, calls: dict[str, CallState], look: Look) -> None:
        self._order = order
        self._calls = calls
        self._look = look
        self._changing = order.ages or order.promoted_at_s is not None
        self._heap: list[Item] = []
        self._oldest: list[tuple[int, str]] = []  # (sequence, call)
        self._promotions: list[tuple[float, str]] = []
        self._size = 0
        self._turns = 0  # calls that were taken

    def __len__(self) -> int:
        return self._size

    def push(self, call: CallState, now_s: float) -> None:
        """A call that is ready joins."""
        view = self._look(call, now_s)
        ready, order = call.ready, self._order
        item = call.item = (order.key(view), call.priority, call.sequence, ready.call)
        heapq.heappush(self._heap, item)
        self._size += 1
        if not self._changing:
            return
        if order.ages:
            heapq.heappush(self._oldest, (call.sequence, ready.call))
        if call.since < 0:
            call.since = self._turns
        if order.promoted_at_s is not None:
            at_s = order.promoted_at_s(view)
            if at_s is not None:
                heapq.heappush(self._promotions, (at_s, ready.call))

    def back(self, call: CallState, item: Item) -> None:
        """A call that had left comes back to the place that it had."""
        self._place(call, item[0])
        self._size += 1

    def leave(self, call: CallState) -> None:
        """A call waits here no more."""
        call.item = None
        self._size -= 1
        self._trim()

    def _trim(self) -> None:
        bound = SPARE + 2 * self._size
        if len(self._heap) > bound or len(self._promotions) > bound or len(self._oldest) > bound:
            self._sweep()

    def take(self, call: CallState) -> float:
        """The call whose turn it was leaves for good: one decision. Returns its key.

        The key of one that goes first for its age is that of the one that it goes before.
        """
        item, heap = call.item, self._heap
        assert item is not None
        if heap[0] is item:
            heapq.heappop(heap)
            key = item[0]
        else:
            key = min(item[0], heap[0][0])
        call.item = None
        self._size -= 1
        self._turns += 1
        if self._changing:
            self._trim()
        return key

    def first(self, now_s: float) -> CallState | None:
        """The call whose turn is next."""
        if self._changing:
            if self._promotions:
                self._promote(now_s)
            if self._order.ages and self._turns % (PASSED + TURNS) >= PASSED:
                aged = self._aged()
                if aged is not None:
                    return aged
        heap, calls = self._heap, self._calls
        while heap:
            item = heap[0]
            call = calls.get(item[3])
            if call is not None and call.item is item:
                return call
            heapq.heappop(heap)
        return None

    def _place(self, call: CallState, key: float) -> None:
        name = call.ready.call
        priority = call.priority
        item = call.item = (key, priority, call.sequence, name)
        heapq.heappush(self._heap, item)
        if self._order.ages:
            heapq.heappush(self._oldest, (call.sequence, name))

    def _aged(self) -> CallState | None:
        while self._oldest:
            call = self._waiting(self._oldest[0][1])
            if call is not None:
                return call if self._turns - call.since >= PASSED else None
            heapq.heappop(self._oldest)
        return None

    def _promote(self, now_s: float) -> None:
        for _ in range(PROMOTIONS):
            if not self._promotions or self._promotions[0][0] > now_s:
                return
            call = self._waiting(heapq.heappop(self._promotions)[1])
            if call is not None:
                self._place(call, self._order.key(self._look(call, now_s)))

    def _waiting(self, name: str) -> CallState | None:
        """The call of that name, if it waits here."""
        call = self._calls.get(name)
        return call if call is not None and call.item is not None and not call.parked else None

    def _sweep(self) -> None:
        """Take out the places that nobody holds any more."""
        here = {item for item in self._heap if self._is(item)}
        self._heap = sorted(here)
        names = {item[3] for item in here}
        self._oldest = sorted({aged for aged in self._oldest if aged[1] in names})
        self._promotions = sorted({one for one in self._promotions if one[1] in names})

    def _is(self, item: Item) -> bool:
        call = self._calls.get(item[3])
        return call is not None and call.item is item


class _Parked:
    """Calls that one limit holds back, the first of them in front."""

    def __init__(self) -> None:
        self.heap: list[Item] = []
        self.size = 0


class Line:
    """The calls of one model that wait; `calls` and `tokens` count those that no limit holds back,
    and `outside_calls` and `outside_tokens` those that wait for room in the working set.

    A limit that holds the first call back parks it, so that those behind it may go. Of the parked
    ones the first comes back when the limit is lifted, and the next one when that one has left.
    """

    def __init__(self, order: Order, model: str, calls: dict[str, CallState], look: Look) -> None:
        self._order = order
        self._model = model
        self._calls = calls
        self._look = look
        self._queue = Queue(order, calls, look)
        self._fair = order.fair
        self._parked: dict[str, dict[str, _Parked]] = {}  # limit -> lane -> what it holds back
        self._skipped: list[tuple[CallState, Item]] = []
        self.calls = 0
        self.tokens = 0
        self.outside_calls = 0
        self.outside_tokens = 0

    def push(self, call: CallState, now_s: float) -> None:
        """A call is ready."""
        if not call.queued:
            call.queued = True
            self.calls += 1
            self.tokens += call.ready.prompt_tokens + call.ready.max_tokens
            if self._fair:
                self._queue_of(call).push(call, now_s)
                self._joined(call)
            else:
                self._queue.push(call, now_s)

    def first(self, now_s: float) -> CallState | None:
        """The call whose turn is next, if any may go."""
        return self._queue.first(now_s)

    def leave(self, call: CallState) -> None:
        """A call waits no more; a parked one that it stood for comes in its place."""
        if not call.queued:
            return
        call.queued = False
        if call.parked:
            self._unpark(call)
            return
        if call.item is not None:
            self._step_out(call)
        if call.lifted:
            self._lift_next(call)

    def take(self, call: CallState) -> float:
        """The first call is dispatched; its key."""
        call.queued = False
        queue = self._queue_of(call) if self._fair else self._queue
        key = queue.take(call)
        self.calls -= 1
        self.tokens -= call.ready.prompt_tokens + call.ready.max_tokens
        if call.lifted:
            self._lift_next(call)
        return key

    def settle(self, call: CallState, work_tokens: float) -> None:
        """A dispatched call ended, and this is the work that it was."""

    def clear(self) -> list[CallState]:
        """Nobody waits here any more; those that did, in the sequence in which they were ready."""
        mine = [c for c in self._calls.values() if c.queued and c.ready.model == self._model]
        for call in mine:
            call.queued, call.item, call.since = False, None, -1
            call.parked = call.lifted = ""
        return sorted(mine, key=lambda call: call.sequence)

    # ---- those that have to wait longer ---------------------------------------------------------

    def skip(self, call: CallState) -> None:
        """Pass the first call over until `restore`."""
        assert call.item is not None
        self._skipped.append((call, call.item))
        self._step_out(call)

    def restore(self) -> None:
        """Those that were passed over come back to their places."""
        for call, item in self._skipped:
            if call.queued and call.item is None:
                self._back(call, item)
        self._skipped.clear()

    def park(self, call: CallState, reason: str) -> None:
        """Hold a waiting call back until `reason` is lifted.

        What held it back before does so no more: the next of those comes in its place.
        """
        item = call.item
        assert item is not None and not call.parked
        self._step_out(call)
        key, priority, sequence, name = item
        item = call.item = (key, priority, sequence, name)  # a tuple of its own: a new place
        before, call.lifted = call.lifted, ""
        call.parked = reason
        if reason == SET:
            self.outside_calls += 1
            self.outside_tokens += need(call.ready)
        parked = self._parked.setdefault(reason, {}).setdefault(self._lane(call), _Parked())
        parked.size += 1
        heapq.heappush(parked.heap, item)
        if len(parked.heap) > SPARE + 2 * parked.size:
            parked.heap = sorted({one for one in parked.heap if self._holds(one, reason)})
        if before and before != reason:
            self.lift(before)

    def lift(self, reason: str) -> None:
        """What held calls back does so no more: the first of each lane comes back."""
        for parked in list(self._parked.get(reason, {}).values()):
            while parked.heap:
                item = heapq.heappop(parked.heap)
                if self._holds(item, reason):
                    self.unpark(self._calls[item[3]])
                    self._calls[item[3]].lifted = reason
                    break

    def unpark(self, call: CallState) -> None:
        """This one is held back no more."""
        item = call.item
        assert item is not None and call.parked
        self._unpark(call)
        self._back(call, item)

    def _unpark(self, call: CallState) -> None:
        if call.parked == SET:
            self.outside_calls -= 1
            self.outside_tokens -= need(call.ready)
        lanes, lane = self._parked[call.parked], self._lane(call)
        lanes[lane].size -= 1
        if not lanes[lane].size:
            del lanes[lane]
        if not lanes:
            del self._parked[call.parked]
        call.parked, call.item = "", None

    def _back(self, call: CallState, item: Item) -> None:
        self._queue_of(call).back(call, item)
        self._count(call, 1)
        self._joined(call)

    def _lift_next(self, call: CallState) -> None:
        reason, call.lifted = call.lifted, ""
        self.lift(reason)

    def _holds(self, item: Item, reason: str) -> bool:
        call = self._calls.get(item[3])
        return call is not None and call.item is item and call.parked == reason

    def _step_out(self, call: CallState) -> None:
        self._queue_of(call).leave(call)
        self._count(call, -1)

    def _count(self, call: CallState, sign: int) -> None:
        self.calls += sign
        self.tokens += sign * need(call.ready)

    # ---- what a fair line does otherwise --------------------------------------------------------

    def _queue_of(self, call: CallState) -> Queue:
        return self._queue

    def _lane(self, call: CallState) -> str:
        return ""

    def _joined(self, call: CallState) -> None:
        """The call waits in its queue."""

    def check(self) -> None:
        """Raise AssertionError where the state contradicts itself."""
        mine = [c for c in self._calls.values() if c.queued and c.ready.model == self._model]
        waiting = [call for call in mine if not call.parked]
        assert self.calls == len(waiting)
        assert self.tokens == sum(need(call.ready) for call in waiting)
        assert all(call.worker is None and call.item is not None for call in mine)
        assert not self._skipped
        outside = [call for call in mine if call.parked == SET]
        assert self.outside_calls == len(outside)
        assert self.outside_tokens == sum(need(call.ready) for call in outside)
        for reason, lanes in self._parked.items():
            held = sum(1 for call in mine if call.parked == reason)
            assert held == sum(parked.size for parked in lanes.values()), reason
