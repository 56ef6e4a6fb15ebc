"""The core's first layer: its parts, and calls from ready to their end, attempt by attempt."""

from math import inf
from random import Random

from ...kvpolicy import Hold, Policy
from .admission import Forecast
from .events import (
    Abort,
    CallBegan,
    CallBroke,
    CallEnded,
    CallReady,
    Command,
    DropCall,
    Probe,
)
from .fleet import Fleet
from .limits import Limits
from .outages import Outages
from .policies import Key, Order, as_order
from .quota import Quota
from .retry import BREAKS, MAX_ATTEMPTS, backoff_s
from .sessions import Sessions
from .state import CallState, ProgramState, WorkerState, need
from .tenants import Tenants
from .timers import Kind, Timers
from .waiting import Waiting
from .working_set import WorkingSet

DRAINED = "the run drains"  # the reason why a call was dropped
LATE = "its deadline has passed"
PATIENCE_S = 180.0  # for how long calls wait for a worker to come back
LONGEST_REFUSED_S = 1200.0  # for one that turns a call away again and again, and answers others
SOON_S = 0.05  # a server's own clock for a deadline and ours may differ by so much
NO_LIMITS = Limits()


class Attempts:
    """The state of a core, and what happens to its calls."""

    def __init__(
        self,
        order: str | Order | Key,
        hold: Hold | Policy | None,
        max_programs: int,
        patience_s: float,
        limits: Limits,
        random: Random | None,
    ) -> None:
        ranked = as_order(order)
        forecast = Forecast(random or Random(0)) if limits.past_future else None
        self._max_programs = max_programs
        self._patience_s = patience_s
        self.programs: dict[str, ProgramState] = {}
        self.calls: dict[str, CallState] = {}
        self.workers: dict[str, WorkerState] = {}
        self._timers = Timers(self._matters)
        self.kept = Sessions(self.workers, self.programs, hold)
        self._fleet = Fleet(self.workers, self.kept, forecast)
        self._outages = Outages(self._fleet, patience_s)
        self._tenants = Tenants(limits, ranked.fair, self.programs)
        self._quota = Quota(limits, self._budget_due)
        self._working = WorkingSet(
            limits, self._fleet.kv_tokens, self._fleet.tiered, self.kept.pinned, self._context_due
        )
        self._waiting = Waiting(
            ranked,
            self.calls,
            self.programs,
            self._fleet,
            self.kept,
            self._tenants,
            self._quota,
            self._working,
            self._timers,
            self._stop_call,
        )
        self._changed: list[str] = self._waiting.changed
        self._live = 0
        self._arrivals = 0
        self._sequence = 0
        self._draining = False
        self._pausing = False
        self._held = False  # nothing may start, since it is paused or its budget is spent
        self.used_tokens = 0  # by calls that have ended: prompts and answers
        self._budget_tokens: int | None = None

    @property
    def spent(self) -> bool:
        """Whether calls have used up the token budget."""
        return self._budget_tokens is not None and self.used_tokens >= self._budget_tokens

    def _call_ready(self, event: CallReady, now_s: float, out: list[Command]) -> None:
        program = self.programs.get(event.program)
        if program is None or program.cancelled or self._draining:
            ended = program is None or program.cancelled
            reason = "its program has ended" if ended else DRAINED
            out.append(DropCall(call=event.call, reason=reason))
            return
        refused = self._outages.refusal(event)
        if refused is None and self._waiting.limited:
            refused = self._waiting.refusal(event, program.tenant)
        if refused is not None:
            out.append(DropCall(call=event.call, reason=refused))
            if event.gang > 1:
                self._waiting.gang_without(self._waiting.gangs.refuse(event), now_s)
            return
        sequence = self._sequence
        if event.chain is not None:
            sequence = program.chains.setdefault(event.chain, sequence)
        call = CallState(
            event,
            sequence,
            now_s,
            0,
            tenant=program.tenant,
            priority=program.priority,
            path_tokens=program.path_tokens,
        )
        self._sequence += 1
        self.calls[event.call] = call
        program.calls.add(event.call)
        if event.deadline_s is not None:
            self._timers.add(event.deadline_s, "deadline", event.call, len(self.calls))
        self.kept.come_back(call, out)
        self._waiting.join(call, now_s)

    def _call_began(self, event: CallBegan, now_s: float, out: list[Command]) -> None:
        call = self.calls.get(event.call)
        if call is not None:
            self._waiting.begun(call, there=True)

    def _call_ended(self, event: CallEnded, now_s: float, out: list[Command]) -> None:
        self.used_tokens += event.prompt_tokens + event.output_tokens
        if self._budget_tokens is not None:
            self._held = self._pausing or self.spent
        call = self.calls.get(event.call)
        if call is None:
            return
        if call.ready.leader is not None:
            self._waiting.begun(call, there=event.finish in ("stop", "length"))
        self._fleet.learn(call, event)
        work = self._waiting.worked(call, event)
        context = event.prompt_tokens + event.output_tokens
        program = self.programs.get(event.program)
        if program is not None:
            program.attained_tokens += int(work)
            program.path_tokens = max(program.path_tokens, call.path_tokens + work)
            program.served_s += now_s - call.sent_s
            if self._tenants.fair:
                self._tenants.worked(program, work)
            if call.ready.session is not None:
                self.kept.grow(call, event, out)
        if call.ready.chain is not None and event.finish == "length":
            self._waiting.linger(call.ready.model, now_s)
        # what was not told may be all that it might have taken
        used = context if event.prompt_tokens else need(call.ready)
        self._end_call(call, used, context if program is not None else 0, now_s, out)
        self._pause_programs(call.ready.model, out)

    def _call_broke(self, event: CallBroke, now_s: float, out: list[Command]) -> None:
        """Another attempt, after a while; a worker that fails call after call is probed first.

        Where all turn calls away they are waited for like those that are gone, longer while they
        answer others.
        """
        call = self.calls.get(event.call)
        worker = self.workers.get(event.worker)
        mine = call is not None and call.worker == event.worker
        if call is not None and mine and now_s + SOON_S >= (call.ready.deadline_s or inf):
            self._give_back(call, now_s)  # no fault of the worker's
            self._stop_call(event.call, LATE, now_s, out)
            return
        if worker is not None:
            if not event.after_s:
                worker.broken += 1
            else:  # overloaded, and well enough to say so
                worker.refused(event.after_s, now_s)
                self._timers.add(worker.rest_until_s, "rest", worker.name, len(self.calls))
        if call is not None and mine:
            self._give_back(call, now_s)
            call.breaks += 1
            call.refusals += bool(event.after_s)
            if call.aborting or self._tired(call, worker, now_s):
                self._stop_call(event.call, event.error, now_s, out)
            elif self._draining and self._held:  # nothing would start it again
                self._stop_call(event.call, DRAINED, now_s, out)
            else:
                call.resting = True
                wait_s = max(event.after_s or 0.0, backoff_s(event.call, call.breaks))
                self._timers.add(now_s + wait_s, "retry", event.call, len(self.calls))
        if worker is not None and worker.broken >= BREAKS and not worker.suspect:
            worker.suspect_until_s = now_s + self._patience_s
            out.append(Probe(worker=worker.name))
            self._timers.add(worker.suspect_until_s, "suspect", worker.name, len(self.calls))

    def _tired(self, call: CallState, worker: WorkerState | None, now_s: float) -> bool:
        """Whether a call was tried often enough, or was turned away often and for long enough."""
        if call.breaks - call.refusals >= MAX_ATTEMPTS:
            return True
        if call.refusals < MAX_ATTEMPTS or worker is None or worker.refused_s is None:
            return False
        call.refused_s = now_s if call.refused_s is None else call.refused_s
        since = [inf if w.refused_s is None else w.refused_s for w in self._fleet.of(worker.model)]
        return now_s >= min(max(since) + self._patience_s, call.refused_s + LONGEST_REFUSED_S)

    def _give_back(self, call: CallState, now_s: float) -> None:
        """An attempt is over without an answer; what it used of a token budget is not known."""
        if call.ready.leader is not None:
            self._waiting.begun(call, there=False)
        self._waiting.over(call, need(call.ready), 0, now_s)
        self._fleet.leave(call)
        self._changed.append(call.ready.model)

    def _end_call(
        self, call: CallState, used_tokens: int, context: int, now_s: float, out: list[Command]
    ) -> None:
        """A call is over for good: answered, dropped, or broken too often."""
        ready = call.ready
        del self.calls[ready.call]
        program = self.programs.get(ready.program)
        if program is not None:
            program.calls.discard(ready.call)
        if self._waiting.limited:
            keeps = context if ready.session is not None else 0
            self._waiting.over(call, used_tokens, keeps, now_s)
        if call.worker is not None:
            self._fleet.leave(call)
        else:
            self._waiting.drop(call, now_s)
            self.kept.stay_away(call, now_s, out)
        self._changed.append(ready.model)

    def _stop_call(self, name: str, reason: str, now_s: float, out: list[Command]) -> None:
        """Abort a running call (its end will be reported), drop a waiting one."""
        call = self.calls[name]
        if call.worker is None:
            self._end_call(call, 0, 0, now_s, out)
            out.append(DropCall(call=name, reason=reason))
        elif not call.aborting:
            call.aborting = True
            out.append(Abort(call=name, worker=call.worker, reason=reason))

    def _pause_programs(self, model: str, out: list[Command]) -> None:
        """Where contexts have outgrown the working set, the last programs that idle leave it."""
        while self._working.on and (name := self._working.to_pause(model)) is not None:
            program = self.programs[name]
            for session in sorted(program.sessions):
                state = self.kept.by_name[session]
                if self._working.forget(session) is not None and state.retained:
                    self.kept.release(session, out)
            self._waiting.lift_set(model)

    # ---- time ---------------------------------------------------------------------------------

    def _budget_due(self, reason: str, at_s: float) -> None:
        self._timers.add(at_s, "budget", reason, len(self.calls))

    def _context_due(self, at_s: float) -> None:
        self._timers.add(at_s, "acting", "", len(self.calls) + len(self.programs))

    def _matters(self, kind: Kind, name: str) -> bool:
        """Whether a timer still stands for something."""
        match kind:
            case "rest" | "suspect":
                return name in self.workers
            case "patience":
                return self._outages.absent(name)
            case "pin":
                state = self.kept.by_name.get(name)
                return state is not None and state.retained
            case "budget":
                return self._quota.holds(name)
            case "weigh" | "acting":
                return True
            case "group":
                return self._waiting.groups.computing(name)
            case "deadline" | "retry" | "home":
                return name in self.calls

    # ---- for tests ----------------------------------------------------------------------------

    def check(self) -> None:
        """Raise AssertionError where the state contradicts itself."""
        for name, call in self.calls.items():
            program = self.programs.get(call.ready.program)
            assert call.aborting if program is None else name in program.calls, name
        assert not self.workers.keys() & self._fleet.away.keys()
        self._fleet.check(self.calls)
        self._waiting.check()
        self.kept.check()
        self._tenants.check(self.programs)
        live = sum(1 for program in self.programs.values() if program.started)
        assert live == self._live
