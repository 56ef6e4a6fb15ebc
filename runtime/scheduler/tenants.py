"""Tenants: whose programs are live, who starts next, and how far each tenant's virtual time is.

Programs start in the order of their arrival, or where the order is fair, that of the tenant with
the fewest live programs for its weight first. A tenant's virtual time advances by the work done
for it, shared out over its live programs; a program that needs so much work would be done when its
tenant's time has advanced by as much (UWFQ, 2510.15485, the level of programs).
"""

import heapq
from collections import deque
from dataclasses import dataclass, field

from .limits import Limits
from .state import ProgramState

WORK_TOKENS = 16_384.0  # of a program, until one has ended
SPARE = 64  # places that are stale, beside a few for each tenant
LATE = 16  # programs whose mean work the next one is expected to take


@dataclass(slots=True)
class _Tenant:
    weight: float = 1.0
    live: int = 0
    before: int = 0  # of them, when limits were last changed
    time: float = 0.0  # virtual
    arrived: deque[tuple[int, str]] = field(default_factory=deque[tuple[int, str]])


class Tenants:
    """All tenants that have a program, by name."""

    def __init__(self, limits: Limits, fair: bool, programs: dict[str, ProgramState]) -> None:
        self._limits = limits
        self._programs = programs
        self.fair = fair
        self._tenants: dict[str, _Tenant] = {}
        self._next: list[tuple[float, int, str]] = []  # (rank, arrival, tenant); some are stale
        self._work_tokens = WORK_TOKENS
        self._limited = bool(limits.tenants)

    def take_turns(self, fair: bool) -> None:
        """Whether the tenant with the fewest live programs for its weight starts the next one."""
        self.fair = fair
        self._sort()

    def follow(self, limits: Limits) -> None:
        """Go on with other limits; programs beyond them go on."""
        self._limits, self._limited = limits, bool(limits.tenants)
        for tenant in self._tenants.values():
            tenant.before = tenant.live
        self._sort()

    def weight(self, name: str) -> float:
        """The share of a tenant, beside others."""
        tenant = self._tenants.get(name)
        return tenant.weight if tenant is not None else 1.0

    def arrive(self, name: str, program: ProgramState) -> None:
        """A program waits to be started."""
        tenant = self._tenants.get(program.tenant)
        if tenant is None:
            tenant = self._tenants[program.tenant] = _Tenant()
        tenant.weight = program.weight
        tenant.arrived.append((program.arrival, name))
        if len(tenant.arrived) == 1:
            self._list(program.tenant, tenant)

    def start(self) -> str | None:
        """The program that starts next; None: none may."""
        while self._next:
            rank, arrival, name = self._next[0]
            tenant = self._tenants.get(name)
            if tenant is None or not tenant.arrived or tenant.arrived[0][0] != arrival:
                heapq.heappop(self._next)
            elif rank != self._rank(tenant):
                heapq.heapreplace(self._next, (self._rank(tenant), arrival, name))
            elif self._full(name, tenant):
                heapq.heappop(self._next)  # `ended` lists it again
            else:
                _, program = tenant.arrived.popleft()
                heapq.heappop(self._next)
                self._list(name, tenant)
                state = self._programs.get(program)
                if state is not None and not state.cancelled:
                    return program
                self._forget_idle(name)
        return None

    def started(self, program: ProgramState) -> None:
        """The program is live."""
        tenant = self._tenants[program.tenant]
        tenant.live += 1
        work = program.expected_tokens
        program.finish = tenant.time + (self._work_tokens if work is None else work)
        self._relist(program.tenant, tenant)

    def over(self, program: ProgramState) -> None:
        """The program has ended, having been live or not."""
        if program.started:
            tenant = self._tenants[program.tenant]
            tenant.live -= 1
            if program.attained_tokens:
                self._work_tokens += (program.attained_tokens - self._work_tokens) / LATE
            self._relist(program.tenant, tenant)
        self._forget_idle(program.tenant)

    def worked(self, program: ProgramState, work_tokens: float) -> None:
        """Work was done for a live program."""
        tenant = self._tenants[program.tenant]
        tenant.time += work_tokens / max(1, tenant.live)

    def _full(self, name: str, tenant: _Tenant) -> bool:
        most = self._limits.of_tenant(name).max_live if self._limited else None
        return most is not None and tenant.live >= most

    def _rank(self, tenant: _Tenant) -> float:
        return tenant.live / tenant.weight if self.fair else 0.0

    def _relist(self, name: str, tenant: _Tenant) -> None:
        if self.fair or self._limited:
            self._list(name, tenant)

    def _list(self, name: str, tenant: _Tenant) -> None:
        if tenant.arrived:
            heapq.heappush(self._next, (self._rank(tenant), tenant.arrived[0][0], name))
        if len(self._next) > SPARE + 4 * len(self._tenants):
            self._sort()

    def _sort(self) -> None:
        waiting = [(name, one) for name, one in self._tenants.items() if one.arrived]
        self._next = sorted((self._rank(one), one.arrived[0][0], name) for name, one in waiting)

    def _forget_idle(self, name: str) -> None:
        tenant = self._tenants.get(name)
        if tenant is not None and not tenant.live and not tenant.arrived:
            del self._tenants[name]

    def check(self, programs: dict[str, ProgramState]) -> None:
        """Raise AssertionError where the state contradicts itself."""
        live: dict[str, int] = {}
        for program in programs.values():
            live[program.tenant] = live.get(program.tenant, 0) + program.started
        for name, tenant in self._tenants.items():
            assert tenant.live == live.get(name, 0), name
            most = self._limits.of_tenant(name).max_live
            assert most is None or tenant.live <= max(most, tenant.before), name
        assert all(name in self._tenants for name, count in live.items() if count)
