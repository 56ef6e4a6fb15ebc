"""The calls that wait, and the decision which of them goes where: a part of the core."""

from collections.abc import Callable, Sequence
from heapq import nsmallest

from ...kvpolicy.state import PREFILL_TOKENS_PER_S
from .events import CallEnded, CallReady, Command, Deviated, Dispatch
from .fair import FairLine
from .fleet import Fleet
from .gangs import Gangs
from .groups import PrefixGroups, hold_reason
from .limits import Limits
from .line import SET, Line
from .placement import OUTPUT_WEIGHT
from .policies import PASSED, Order
from .quota import Quota
from .sessions import Sessions
from .state import CallState, CallView, ProgramState, WorkerState, need
from .tenants import Tenants
from .timers import Timers
from .working_set import WorkingSet

LOOK_PAST = 32  # calls that wait for their own worker or for memory, while others go first
LEAST_WAIT_S = 1e-6  # for a worker: so that a wait is known by its end, at 0 s too
PARK_AT_ONCE = 256  # calls that limits hold back, before other events have their turn
LINGER_S = 0.005  # for the next call of a chain to come, before others get the room of the last


class Waiting:
    """Lines by model. `changed` lists the models whose line or workers have changed."""

    def __init__(
        self,
        order: Order,
        calls: dict[str, CallState],
        programs: dict[str, ProgramState],
        fleet: Fleet,
        kept: Sessions,
        tenants: Tenants,
        quota: Quota,
        working: WorkingSet,
        timers: Timers,
        stop: Callable[[str, str, float, list[Command]], None],
    ) -> None:
        self._order = order
        self._calls = calls
        self._programs = programs
        self._fleet = fleet
        self._kept = kept
        self._tenants = tenants
        self._quota = quota
        self._working = working
        self._timers = timers
        self._stop = stop
        self.limited = quota.any or working.on
        self._lines: dict[str, Line] = {}
        self._pace: dict[str, float] = {}  # model -> seconds per token of work, of late calls
        self.gangs = Gangs()
        self.groups = PrefixGroups()
        self.weighing: set[str] = set()  # models that a timer will have looked at
        self._linger_s: dict[str, float] = {}  # model -> until when nobody goes
        self.changed: list[str] = []

    def line(self, model: str) -> Line:
        """The calls of `model` that wait."""
        line = self._lines.get(model)
        if line is None:
            about = (self._order, model, self._calls, self._look)
            fair = self._order.fair
            line = FairLine(*about, self._tenants.weight) if fair else Line(*about)
            self._lines[model] = line
        return line

    @property
    def models(self) -> list[str]:
        """Those that calls have waited for."""
        return list(self._lines)

    def rank_anew(self, order: Order, now_s: float) -> None:
        """From now on calls go by another order, also those that wait already."""
        self._order = order
        waiting = [call for line in self._lines.values() for call in line.clear()]
        self._lines.clear()
        for call in waiting:
            self.push(call, now_s)

    # ---- calls come and go ----------------------------------------------------------------------

    def join(self, call: CallState, now_s: float) -> None:
        """A new call is ready, and waits for its turn, or for the others of its gang."""
        ready = call.ready
        if self._working.on and ready.session is not None:
            self._working.wait(ready.session)
        if ready.gang > 1:
            leader = self.gangs.join(ready)
            if leader is None:
                return
            call = self._calls[leader]
        self.push(call, now_s)

    def push(self, call: CallState, now_s: float) -> None:
        """A call waits for its turn."""
        self.line(call.ready.model).push(call, now_s)
        self.changed.append(call.ready.model)

    def drop(self, call: CallState, now_s: float) -> None:
        """A call that waits is gone."""
        self.line(call.ready.model).leave(call)
        if call.ready.gang > 1:
            self.gang_without(self.gangs.leave(call.ready), now_s)

    def gang_without(self, leader: str | None, now_s: float) -> None:
        """A gang is complete without one of its members."""
        if leader is not None:
            self.push(self._calls[leader], now_s)

    def over(self, call: CallState, used_tokens: int, context_tokens: int, now_s: float) -> None:
        """A call runs no more, or waits no more; what limits counted of it is free again.

        Before it leaves its worker. It has used `used_tokens`, and its session keeps
        `context_tokens` resident.
        """
        if self._quota.any and call.worker is not None:
            for reason in self._quota.give(call, used_tokens, now_s):
                self._lift(reason)
        if self._working.on:
            self._working.leave(call, context_tokens, now_s)
            self.lift_set(call.ready.model)

    def worked(self, call: CallState, event: CallEnded) -> float:
        """What a call took, in tokens of work; its end tells the pace of its model."""
        computed = event.prompt_tokens - event.cached_tokens
        work = float(computed + OUTPUT_WEIGHT * event.output_tokens)
        took_s, model = event.prefill_s + event.decode_s, call.ready.model
        if work > 0 and took_s > 0:
            pace = self._pace.get(model, took_s / work)
            self._pace[model] = pace + (took_s / work - pace) / 16
        if self._order.fair and call.worker is not None:
            self.line(model).settle(call, work)
        return work

    # ---- limits ---------------------------------------------------------------------------------

    def follow(self, limits: Limits, now_s: float) -> None:
        """Go on with other limits."""
        running = [call for call in self._calls.values() if call.worker is not None]
        for reason in self._quota.follow(limits, running, now_s):
            self._lift(reason)
        self._working.follow(limits)
        self.limited = self._quota.any or self._working.on
        for model in self.models:
            self.lift_set(model)

    def lift_quota(self, reason: str) -> None:
        """It is time to look again at what an account holds back."""
        self._quota.again(reason)
        self._lift(reason)

    def lift_set(self, model: str) -> None:
        """There may be room in the working set of `model`."""
        self.line(model).lift(SET)
        self.changed.append(model)

    def _lift(self, reason: str) -> None:
        kind, _, name = reason.partition(" ")
        if kind == "model":
            self.changed.append(name)
            return
        for model, line in self._lines.items():
            line.lift(reason)
            self.changed.append(model)

    def _held(self, calls: list[CallState], line: Line, now_s: float) -> bool | None:
        """Whether a limit keeps calls from going, alone (they are parked) or with all (None)."""
        first = calls[0]
        if self._quota.any:
            reason = self._quota.holds_back(calls, now_s)
            if reason is not None:
                if reason.startswith("model "):
                    return None
                line.park(first, reason)
                return True
        if self._working.on and not self._working.admits(calls):
            line.park(first, SET)
            return True
        return False

    # ---- whose turn it is -----------------------------------------------------------------------

    def first(self, model: str, now_s: float = 0.0) -> CallState | None:
        """The call of `model` whose turn is next, if any waits."""
        return self.line(model).first(now_s)

    def fill(self, model: str, now_s: float, out: list[Command]) -> None:
        """Dispatch waiting calls of `model` in order, while the first one fits somewhere."""
        if now_s < self._linger_s.get(model, 0.0):
            return
        self._linger_s.pop(model, None)
        line = self._lines.get(model)
        if line is None or not line.calls:
            return
        skipped = parked = 0
        elsewhere: Sequence[CallState] = ()
        limited = self.limited
        while line.calls and skipped <= LOOK_PAST and self._fleet.any_open(model, now_s):
            call = line.first(now_s)
            if call is None:
                break
            ready = call.ready
            if ready.leader is not None and self.groups.waits(ready):
                assert ready.group is not None
                line.park(call, hold_reason(ready.group))
                parked += 1
                if parked < PARK_AT_ONCE:
                    continue
                self._look_again(model, now_s)
                break
            if ready.session is not None or ready.worker is not None or self._fleet.away:
                alone = self._waits_for_one(call, now_s)
            else:
                alone = False
            if alone:
                line.skip(call)
                skipped += 1
                if ready.worker is not None:
                    elsewhere = [*elsewhere, call]
                continue
            calls = self._together(call, now_s) if call.ready.gang else [call]
            if limited:
                held = self._held(calls, line, now_s)
                if held is None:
                    break
                if held:
                    parked += 1
                    if parked < PARK_AT_ONCE:
                        continue
                    self._look_again(model, now_s)
                    break
            if not self._send(calls, line, now_s, out):
                self._let_pass(call, line, now_s, out)
                break
        if skipped:
            line.restore()
            self._deviate(elsewhere, line, now_s, out)

    def linger(self, model: str, now_s: float) -> None:
        """A call was cut that is gone on with at once: let its next one come before others go.

        Others have had their turn since the last time, or nobody would go where cuts are many.
        """
        if self.line(model).calls and model not in self._linger_s:
            self._linger_s[model] = now_s + LINGER_S
            self._timers.add(now_s + LINGER_S, "weigh", model, len(self._calls))

    def _deviate(
        self, calls: Sequence[CallState], line: Line, now_s: float, out: list[Command]
    ) -> None:
        """Calls that wait for the worker of their plan go to one that has nothing else to do."""
        for call in calls:
            if not self._fleet.any_open(call.ready.model, now_s):
                return
            if now_s < call.home_until_s or call.item is None or call.parked:
                continue
            if not self.limited or self._held([call], line, now_s) is False:
                self._send([call], line, now_s, out)

    def _together(self, call: CallState, now_s: float) -> list[CallState]:
        """The call with its gang, unless that is larger than anything could take at once."""
        ready = call.ready
        names = self.gangs.members(ready)
        if not names:
            return [call]
        calls = [self._calls[name] for name in names]
        if self._fleet.could_take(calls) and self._quota.could_take(calls):
            return calls
        self.gangs.dissolve(ready)
        for other in calls[1:]:
            self.push(other, now_s)
        return [call]

    def _send(self, calls: list[CallState], line: Line, now_s: float, out: list[Command]) -> bool:
        """Dispatch the first calls of `line` to one worker; False if they have to wait."""
        fleet, ready = self._fleet, calls[0].ready
        worker = fleet.planned(calls, now_s) if ready.worker is not None else None
        if worker is None:
            worker = fleet.choose(calls, fleet.of(ready.model), now_s)
        if worker is None:
            worker = fleet.make_room(calls, line, now_s, out)
        if worker is None:
            reason = fleet.too_large(ready)
            if reason is not None:
                self._stop(ready.call, reason, now_s, out)
                return True
            if fleet.weigh_again_s is not None:
                self._look_again(ready.model, fleet.weigh_again_s)
            return False
        self._go(calls, worker, line, now_s, out)
        return True

    def _let_pass(self, first: CallState, line: Line, now_s: float, out: list[Command]) -> None:
        """Sessions that a pin keeps need little more memory, and go on beside `first`, which lacks it.

        So what is idle is used, and freed the sooner. No call is passed by more than PASSED others.
        """
        waiting = [
            (call.item, call, home)
            for name, home in self._kept.returned(self._fleet.of(first.ready.model))
            if (call := self._calls[name]).item is not None
            and not call.parked
            and not call.ready.gang
        ]
        for _, call, home in nsmallest(LOOK_PAST, waiting):
            if first.passed >= PASSED:
                return
            if call is first or self._fleet.choose([call], [home], now_s) is None:
                continue
            if not self.limited or self._held([call], line, now_s) is False:
                first.passed += 1
                self._go([call], home, line, now_s, out)

    def _go(
        self,
        calls: list[CallState],
        worker: WorkerState,
        line: Line,
        now_s: float,
        out: list[Command],
    ) -> None:
        """Dispatch waiting calls to `worker`, all at once."""
        first = calls[0].ready
        key = line.take(calls[0])
        if first.gang:
            self.gangs.dissolve(first)
        for call in calls:
            self._take(call, now_s)
            self._fleet.take(call, worker)
            if call.ready.session is not None:
                self._kept.use(call.ready.session, call, worker, now_s, out)
            out.append(Dispatch(call=call.ready.call, worker=worker.name, priority=key))
        if first.leader is not None or first.worker is not None:
            self._follow_plan(first, worker, now_s, out)

    def _follow_plan(
        self, ready: CallReady, worker: WorkerState, now_s: float, out: list[Command]
    ) -> None:
        """A call of a plan goes: perhaps it leads its group; what the plan had otherwise is told."""
        if ready.worker is not None and ready.worker != worker.name:
            chosen = worker.name
            out.append(
                Deviated(call=ready.call, hint="worker", planned=ready.worker, chosen=chosen)
            )
        leader, group = ready.leader, ready.group
        if leader is None or group is None or not self.groups.go(ready, not worker.joins):
            return
        if leader != ready.call:
            out.append(Deviated(call=ready.call, hint="leader", planned=leader, chosen=ready.call))
        if not worker.joins:
            late_s = now_s + 2 * self._fleet.prefix_s(ready)
            self._timers.add(late_s, "group", group, len(self._calls))

    def _look_again(self, model: str, at_s: float) -> None:
        if model not in self.weighing:
            self.weighing.add(model)
            self._timers.add(at_s, "weigh", model, len(self._calls))

    def _take(self, call: CallState, now_s: float) -> None:
        """The call has left the line to run."""
        call.sent_s = now_s
        program = self._programs[call.ready.program]
        program.waited_s += now_s - call.ready_at_s
        if not self.limited:
            return
        if self._quota.any:
            self._quota.take(call, now_s)
        if self._working.on:
            self._working.enter(call, program.arrival)

    # ---- prefix groups of a plan ----------------------------------------------------------------

    def begun(self, call: CallState, there: bool) -> None:
        """What the call's group begins with is in the cache, or its leader came to nothing."""
        if self.groups.begun(call.ready, there) and call.ready.group is not None:
            self._lift(hold_reason(call.ready.group))

    def group_late(self, group: str) -> None:
        """Its followers have waited as long as computing what they share twice would take."""
        self.groups.late(group)
        self._lift(hold_reason(group))

    def group_over(self, group: str) -> None:
        """No more calls of a group will come."""
        self.groups.forget(group)
        self._lift(hold_reason(group))

    def _waits_for_one(self, call: CallState, now_s: float) -> bool:
        """Whether a call waits for one worker alone, so that those behind it may go first.

        For a larger one that is away; or for that of its session, though another one has room. For
        that no longer than it would take to compute the session again: whichever turns out dearer,
        at most twice the better choice is paid. Or for that of its plan, as long as others keep the
        rest busy, and once they do not, until its group's prefix could have been computed there.
        """
        ready = call.ready
        if self._fleet.away and need(ready) > (self._fleet.largest(ready.model) or 0):
            return self._fleet.too_large(ready) is None
        if not self._fleet.chooses(ready.model):
            return False
        if ready.session is not None:
            rebuild_s = self._fleet.full_home(call, now_s)
        elif not self._fleet.up(ready.worker) or self._fleet.planned([call], now_s) is not None:
            return False
        else:
            rebuild_s = self._fleet.prefix_s(ready)
        if rebuild_s is None:
            return False
        if not call.home_until_s:
            call.home_until_s = now_s + max(rebuild_s, LEAST_WAIT_S)
            self._timers.add(call.home_until_s, "home", ready.call, len(self._calls))
        return ready.worker is not None or now_s < call.home_until_s

    # ---- what an order may know -----------------------------------------------------------------

    def _look(self, call: CallState, now_s: float) -> CallView:
        ready = call.ready
        program = self._programs[ready.program]
        output = ready.expected_tokens
        if output is None:
            output = min(ready.max_tokens, self._fleet.outputs.get(ready.model, ready.max_tokens))
        work = ready.prompt_tokens - ready.shared_tokens + OUTPUT_WEIGHT * output
        call.expected_tokens = work
        return CallView(
            now_s=now_s,
            sequence=call.sequence,
            ready_at_s=call.ready_at_s,
            prompt_tokens=ready.prompt_tokens,
            max_tokens=ready.max_tokens,
            work_tokens=work,
            remaining_tokens=ready.remaining_tokens,
            s_per_token=self._pace.get(ready.model, 1 / PREFILL_TOKENS_PER_S),
            program_arrival=program.arrival,
            program_arrived_s=program.arrived_s,
            program_deadline_s=program.deadline_s,
            program_finish=program.finish,
            program_attained_tokens=program.attained_tokens,
            program_path_tokens=call.path_tokens,
            program_waited_s=program.waited_s,
            program_served_s=program.served_s,
            order_key=ready.order_key,
        )

    def refusal(self, ready: CallReady, tenant: str) -> str | None:
        """Why limits will never let a call run; None: they may."""
        return self._quota.refusal(ready, tenant) if self._quota.any else None

    def check(self) -> None:
        """Raise AssertionError where the state contradicts itself."""
        for line in self._lines.values():
            line.check()
        self._quota.check(self._calls)
        self._working.check(self._calls)
