"""This process among those that share workers: it beats, and the scheduler hears of its shares."""

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress

from ..clock import now
from ..scheduler.demand import demands
from ..scheduler.events import WorkerShare
from ..scheduler.loop import Scheduler
from .lease import KEEP_S, Lease
from .ledger import Ask, Ledger, LedgerAway
from .shares import Amount

BEAT_S = 0.5
LEAVE_S = 1.0  # for giving shares back at the end
NEWS = 64  # a share that grows by less than this fraction of a worker is not worth an event

_log = logging.getLogger(__name__)


class Membership:
    """Leases on the workers of one scheduler. `places` names them as all processes do."""

    def __init__(
        self, scheduler: Scheduler, places: Mapping[str, str], ledger: Ledger, shown: str
    ) -> None:
        self._scheduler = scheduler
        self._places = places
        self._ledger = ledger
        self._shown = shown
        self._leases = {worker: Lease(now()) for worker in places}
        self._told: dict[str, Amount] = {}
        self._away_since_s: float | None = None
        self._stopped = False

    async def begin(self) -> None:
        """The first beat, before anything is dispatched."""
        await self.beat()

    async def keep(self) -> None:
        """Beat until `stop`."""
        while not self._stopped:
            await asyncio.sleep(BEAT_S)
            await self.beat()

    def stop(self) -> None:
        """No more beats."""
        self._stopped = True

    async def beat(self) -> None:
        """Tell what this process needs of each worker, and take what it is granted."""
        core = self._scheduler.core
        wanted = demands(core.workers, core.calls, core.sessions)
        there = [(worker, self._leases[worker]) for worker in self._places if worker in wanted]
        try:
            for worker, lease in there:
                await self._renew(worker, lease, Amount(*wanted[worker]))
        except LedgerAway as away:
            self._stay(there, away)
        else:
            self._back()
        for worker, lease in there:
            if lease.share is not None:
                self._tell(worker, lease.share)

    async def close(self) -> None:
        """Give all shares back."""
        with suppress(LedgerAway, TimeoutError):
            async with asyncio.timeout(LEAVE_S):
                for worker, lease in self._leases.items():
                    if lease.token:
                        await self._ledger.leave(self._places[worker], lease.token)

    async def _renew(self, worker: str, lease: Lease, need: Amount) -> None:
        """One beat; a second one where the first has told what it would have to ask for."""
        place = self._places[worker]
        for _ in range(2):
            ask = self._asked(worker, lease, need)
            answer = await self._ledger.beat(place, ask)
            if answer is None:
                _log.warning("worker %s: this process was thought dead; it leases anew", worker)
                lease.refused()
                answer = await self._ledger.beat(place, self._asked(worker, lease, need))
            if answer is None:
                return
            lease.told(answer, now())
            if lease.ask(ask.whole, need, ask.used).want == ask.want:
                return

    def _asked(self, worker: str, lease: Lease, need: Amount) -> Ask:
        """What to ask for. What is not asked for any more is not used any more from here on."""
        whole = self._whole(worker)
        want = lease.ask(whole, need, Amount()).want
        known = self._told.get(worker)
        if known is not None:
            self._tell(worker, Amount(min(want.tokens, known.tokens), min(want.slots, known.slots)))
        return lease.ask(whole, need, self._used(worker))

    def _whole(self, worker: str) -> Amount:
        state = self._scheduler.core.workers.get(worker)
        return Amount() if state is None else Amount(state.kv_tokens, state.max_running)

    def _used(self, worker: str) -> Amount:
        state = self._scheduler.core.workers.get(worker)
        if state is None:
            return Amount()
        return Amount(state.kv_reserved + state.kv_pinned, len(state.running))

    def _tell(self, worker: str, share: Amount) -> None:
        """Let the scheduler know, unless the share is about what it was."""
        known = self._told.get(worker)
        if known is not None:
            grown = share.tokens - known.tokens
            if 0 <= grown <= self._whole(worker).tokens // NEWS and share.slots == known.slots:
                return
        self._told[worker] = share
        told = WorkerShare(worker=worker, kv_tokens=share.tokens, max_running=share.slots)
        self._scheduler.send(told)

    # ---- while nobody answers -------------------------------------------------------------------

    def _stay(self, there: list[tuple[str, Lease]], away: LedgerAway) -> None:
        if self._away_since_s is None:
            self._away_since_s = now()
            _log.warning(
                "%s does not answer (%s): shares of workers stay as they are for %g s",
                self._shown,
                away,
                KEEP_S,
            )
        for worker, lease in there:
            split = lease.split
            lease.away(self._whole(worker), now())
            if lease.split and not split:
                _log.warning(
                    "worker %s: an even share, by the number of processes known last: %d",
                    worker,
                    lease.processes,
                )

    def _back(self) -> None:
        if self._away_since_s is not None:
            away_s, self._away_since_s = now() - self._away_since_s, None
            _log.warning("%s answers again after %.0f s", self._shown, away_s)
