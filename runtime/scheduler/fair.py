"""A fair line: tenants take turns by the work that was done for them, whatever they ask for.

Each tenant has a clock of virtual time: the work done for its calls over its weight. The tenant
that is furthest behind goes first, and one that comes back from idling begins where the others
stand, so it neither has saved up nor owes for the time (start-time fair queueing; as a virtual
token counter in 2401.00588; the first of the two levels of UWFQ, 2510.15485). What a call will
take is estimated when it is dispatched and corrected when it ends. A tenant with more programs, or
more calls, gets no more.
"""

import heapq
from collections.abc import Callable

from .line import SPARE, Line, Look, Queue
from .policies import Order
from .state import CallState


class _Tenant:
    """`listed` is the number of its valid place among the tenants whose turn may be next."""

    def __init__(self, queue: Queue, clock: float) -> None:
        self.queue = queue
        self.clock = clock
        self.listed = 0


class FairLine(Line):
    """The calls of one model that wait, by tenant."""

    def __init__(
        self,
        order: Order,
        model: str,
        calls: dict[str, CallState],
        look: Look,
        weight: Callable[[str], float],
    ) -> None:
        super().__init__(order, model, calls, look)
        self._weight = weight
        self._tenants: dict[str, _Tenant] = {}
        self._turns: list[tuple[float, int, str]] = []  # (clock, place, tenant)
        self._places = 0
        self._now = 0.0  # virtual: the clock of the tenant that was served last
        self._many = SPARE

    def first(self, now_s: float) -> CallState | None:
        """The first call of the tenant that is furthest behind."""
        turns = self._turns
        while turns:
            _, place, name = turns[0]
            tenant = self._tenants.get(name)
            if tenant is not None and tenant.listed == place:
                call = tenant.queue.first(now_s)
                assert call is not None, name
                return call
            heapq.heappop(turns)
        return None

    def take(self, call: CallState) -> float:
        """The tenant's clock advances by the work that is expected."""
        tenant = self._tenants[call.tenant]
        self._now = max(self._now, tenant.clock)
        self._advance(call.tenant, tenant, call.expected_tokens)
        key = super().take(call)
        if not tenant.queue:
            tenant.listed = 0
        return key

    def settle(self, call: CallState, work_tokens: float) -> None:
        """The clock goes by the work that there was."""
        tenant = self._tenants.get(call.tenant)
        if tenant is not None:
            self._advance(call.tenant, tenant, work_tokens - call.expected_tokens)

    def _advance(self, name: str, tenant: _Tenant, work_tokens: float) -> None:
        tenant.clock += work_tokens / self._weight(name)
        if tenant.listed:
            self._list(name, tenant)

    def _list(self, name: str, tenant: _Tenant) -> None:
        self._places += 1
        tenant.listed = self._places
        heapq.heappush(self._turns, (tenant.clock, tenant.listed, name))
        if len(self._turns) > SPARE + 2 * len(self._tenants):
            self._turns = sorted(turn for turn in self._turns if self._is(turn))

    def _is(self, turn: tuple[float, int, str]) -> bool:
        tenant = self._tenants.get(turn[2])
        return tenant is not None and tenant.listed == turn[1]

    def _queue_of(self, call: CallState) -> Queue:
        tenant = self._tenants.get(call.tenant)
        if tenant is None:
            queue = Queue(self._order, self._calls, self._look)
            tenant = self._tenants[call.tenant] = _Tenant(queue, self._now)
            if len(self._tenants) > self._many:
                self._forget_idle(call.tenant)
        return tenant.queue

    def _lane(self, call: CallState) -> str:
        return call.tenant

    def _joined(self, call: CallState) -> None:
        tenant = self._tenants[call.tenant]
        if not tenant.listed:
            tenant.clock = max(tenant.clock, self._now)
            self._list(call.tenant, tenant)

    def _step_out(self, call: CallState) -> None:
        super()._step_out(call)
        tenant = self._tenants[call.tenant]
        if not tenant.queue:
            tenant.listed = 0

    def _forget_idle(self, new: str) -> None:
        """Tenants that wait for nothing and owe nothing need not be remembered."""
        for name, tenant in list(self._tenants.items()):
            if name != new and not tenant.queue and tenant.clock <= self._now:
                del self._tenants[name]
        self._many = max(SPARE, 2 * len(self._tenants))
