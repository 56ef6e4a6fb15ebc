"""The core's second layer: workers that come, fail and return, and what is due at a time."""

from .attempts import DRAINED, LATE, Attempts
from .events import (
    BlocksGone,
    BlocksHeld,
    Command,
    Quit,
    TimerFired,
    WorkerDown,
    WorkerFine,
    WorkerLoad,
    WorkerShare,
    WorkerUp,
)
from .retry import MAX_LOSSES
from .state import WorkerState


class Upkeep(Attempts):
    """What happens to workers, and what time brings."""

    def _worker_up(self, event: WorkerUp, now_s: float, out: list[Command]) -> None:
        worker = self._fleet.add(event)
        self._outages.up(event)
        for prefix in self.kept.prefixes.values():
            if prefix.model == event.model and prefix.worker in (None, event.worker):
                self.kept.pin_prefix(prefix, worker, out)
        self._waiting.lift_set(event.model)

    def _worker_down(self, event: WorkerDown, now_s: float, out: list[Command]) -> None:
        """Its calls wait again, for another worker or for its return."""
        found = self._fleet.remove(event)
        if found is None:
            return
        model, worker = found
        if worker is not None or event.returns:
            out.append(Quit(worker=event.worker, recover=event.returns))
        if worker is not None:
            for session in self.kept.lost(event.worker):
                self._working.forget(session)
            self._take_back(worker, f"worker {event.worker} died: {event.error}", now_s, out)
            self._waiting.lift_set(model)
        wait = self._outages.wait(model, event, now_s)
        if isinstance(wait, str):
            self._give_up(model, wait, now_s, out)
        elif wait is not None:
            self._timers.add(wait, "patience", model, len(self.calls))

    def _take_back(
        self, worker: WorkerState, reason: str, now_s: float, out: list[Command]
    ) -> None:
        """The calls of a dead worker become ready again, unless they outlived too many."""
        for name in sorted(worker.running, key=lambda name: self.calls[name].sequence):
            call = self.calls[name]
            self._give_back(call, now_s)
            call.losses += 1
            if call.aborting or call.losses >= MAX_LOSSES:
                self._stop_call(name, reason, now_s, out)
            elif self._draining and self._held:  # nothing would start it again
                self._stop_call(name, DRAINED, now_s, out)
            else:
                self._waiting.push(call, now_s)

    def _give_up(self, model: str, reason: str, now_s: float, out: list[Command]) -> None:
        """Nobody will answer calls of `model` any more."""
        self._outages.give_up(model, reason)
        for name in [name for name, call in self.calls.items() if call.ready.model == model]:
            if name in self.calls:
                self._stop_call(name, reason, now_s, out)

    def _worker_fine(self, event: WorkerFine, now_s: float, out: list[Command]) -> None:
        worker = self.workers.get(event.worker)
        if worker is not None:
            worker.suspect_until_s, worker.broken = None, 0
            self._changed.append(worker.model)

    def _worker_load(self, event: WorkerLoad, now_s: float, out: list[Command]) -> None:
        worker = self._fleet.report(event)
        if worker is not None:
            self._changed.append(worker.model)

    def _worker_share(self, event: WorkerShare, now_s: float, out: list[Command]) -> None:
        """A smaller share drops the pins that it has no room for, a larger one lets more in."""
        worker = self._fleet.share(event)
        if worker is None:
            return
        line = self._waiting.line(worker.model)
        self.kept.fit(worker, line, now_s, out)
        for prefix in self.kept.prefixes.values():
            missing = prefix.session not in worker.prefixes
            if missing and prefix.model == worker.model and prefix.worker in (None, worker.name):
                self.kept.pin_prefix(prefix, worker, out)
        self._pause_programs(worker.model, out)
        self._waiting.lift_set(worker.model)

    def _blocks_held(self, event: BlocksHeld, now_s: float, out: list[Command]) -> None:
        worker = self.workers.get(event.worker)
        if worker is not None:
            worker.holds.learn(event.blocks)

    def _blocks_gone(self, event: BlocksGone, now_s: float, out: list[Command]) -> None:
        worker = self.workers.get(event.worker)
        if worker is not None and event.blocks:
            worker.holds.drop(event.blocks)
        elif worker is not None:
            worker.holds.clear()

    # ---- time ---------------------------------------------------------------------------------

    def _timer_fired(self, event: TimerFired, now_s: float, out: list[Command]) -> None:
        for kind, name in self._timers.due(now_s):
            match kind:
                case "deadline":
                    self._stop_call(name, LATE, now_s, out)
                case "retry":
                    call = self.calls[name]
                    if call.resting:
                        call.resting = False
                        self._waiting.push(call, now_s)
                case "group":
                    self._waiting.group_late(name)
                case "home":
                    self._changed.append(self.calls[name].ready.model)
                case "budget":
                    self._waiting.lift_quota(name)
                case "pin" | "acting":
                    pass  # `handle` has counted it out before the event
                case "weigh":
                    self._waiting.weighing.discard(name)
                    self._changed.append(name)
                case "rest":
                    self._changed.append(self.workers[name].model)
                case "suspect":
                    worker = self.workers[name]
                    if worker.suspect_until_s is not None and worker.suspect_until_s <= now_s:
                        error = f"call after call came to nothing for {self._patience_s:g} s"
                        down = WorkerDown(worker=name, error=error, returns=True)
                        self._worker_down(down, now_s, out)
                case "patience":
                    reason = self._outages.over(name, now_s)
                    if reason is not None:
                        self._give_up(name, reason, now_s, out)
