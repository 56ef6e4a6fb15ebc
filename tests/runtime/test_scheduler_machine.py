"""Random events to the scheduler's core, under every order and all limits.

After each event the state is consistent, no call is lost or doubled, budgets hold, nothing waits
that could run, and in the end everything is answered.
"""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from tenter.runtime.blocks import blocks_of
from tenter.runtime.scheduler.core import Core
from tenter.runtime.scheduler.events import (
    Abort,
    BlocksGone,
    BlocksHeld,
    CallBegan,
    CallBroke,
    CallEnded,
    CallReady,
    CancelProgram,
    Change,
    Command,
    Continue,
    Dispatch,
    Drain,
    DropCall,
    Event,
    Pause,
    PrefixKnown,
    PrefixOver,
    ProgramArrived,
    ProgramEnded,
    Quit,
    Release,
    Retain,
    SessionEnded,
    SetTimer,
    StartProgram,
    TimerFired,
    ToolEnded,
    ToolProgress,
    ToolStarted,
    WorkerDown,
    WorkerFine,
    WorkerLoad,
    WorkerShare,
    WorkerUp,
)
from tenter.runtime.scheduler.limits import Limit, Limits
from tenter.runtime.scheduler.policies import ORDERS

ORDER_NAMES = (*ORDERS, "fair:fcfs", "fair:shortest-remaining", "fair:deadline")
LIMITS = (
    Limits(),
    Limits(past_future=True),
    Limits(working_set=0.5, acting_s=1.0),
    Limits(models={"m": Limit(max_running=2, max_live=2)}, tenants={"*": Limit(max_live=1)}),
    Limits(tenants={"*": Limit(max_running=1, tokens_per_minute=1300), "a": Limit(max_live=2)}),
    Limits(
        models={"*": Limit(tokens_per_minute=2000, max_running=3)},
        tenants={"b": Limit(max_running=2, tokens_per_minute=1500)},
        working_set=0.8,
        acting_s=0.5,
        past_future=True,
    ),
)


class CoreMachine(RuleBasedStateMachine):
    """Random events; after each the state is consistent and no call is lost or doubled."""

    programs: Bundle[str] = Bundle("programs")

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.alarm_s: float | None = None
        self.count = 0
        self.waiting: dict[str, str] = {}  # call -> program
        self.running: dict[str, str] = {}
        self.ran: dict[str, str] = {}  # call -> the worker that it went to last
        self.aborted: set[str] = set()
        self.asked: dict[str, CallReady] = {}
        self.alive: set[str] = set()
        self.started: set[str] = set()
        self.workers: set[str] = set()
        self.away: set[str] = set()
        self.pinned: set[str] = set()
        self.drained = False
        self.paused = False
        self.history: list[tuple[Event, float, list[Command]]] = []

    @initialize(order=st.sampled_from(ORDER_NAMES), limits=st.sampled_from(LIMITS))
    def begin(self, order: str, limits: Limits) -> None:
        self.order, self.limits = order, limits
        self.core = self.new_core()

    def new_core(self) -> Core:
        return Core(self.order, lambda pause: 1.0, max_programs=4, limits=self.limits)

    def tell(self, event: Event) -> None:
        self.now_s += 0.25
        if self.alarm_s is not None and self.alarm_s <= self.now_s:
            self.handle(TimerFired())
        self.handle(event)

    def handle(self, event: Event) -> None:
        match event:
            case TimerFired():
                self.alarm_s = None
            case CallEnded(call=call):
                self.running.pop(call, None)
            case CallBroke(call=call) if call in self.running:
                self.waiting[call] = self.running.pop(call)
                self.aborted.discard(call)
            case _:
                pass
        commands = self.core.handle(event, self.now_s)
        self.history.append((event, self.now_s, commands))
        for command in commands:
            self.perform(command)

    def perform(self, command: Command) -> None:
        match command:
            case SetTimer(due_s=due_s):
                self.alarm_s = due_s
            case StartProgram(program=program):
                assert program not in self.started and not self.drained and not self.paused
                self.started.add(program)
            case Dispatch(call=call, worker=worker):
                assert worker in self.workers and not self.paused
                self.running[call] = self.waiting.pop(call)
                self.ran[call] = worker
            case DropCall(call=call):
                assert (call in self.waiting) != (call in self.running)
                self.waiting.pop(call, None)
                self.running.pop(call, None)
            case Abort(call=call):
                assert call in self.running and call not in self.aborted
                self.aborted.add(call)
            case Quit(worker=worker, recover=recover):
                self.workers.discard(worker)
                if recover:
                    self.away.add(worker)
                for call in [name for name in self.running if self.ran[name] == worker]:
                    self.waiting[call] = self.running.pop(call)
            case Retain(session=session, worker=worker):
                assert worker in self.workers
                assert session in self.core.sessions or session.startswith("prefix/")
            case Release(worker=worker):
                assert worker in self.workers
            case _:
                pass

    # ---- what may happen ------------------------------------------------------------------------

    @rule(
        target=programs,
        tenant=st.sampled_from(["", "a", "b"]),
        weight=st.sampled_from([0.5, 1.0, 2.0]),
        priority=st.integers(0, 1),
        due_s=st.none() | st.integers(0, 50),
        expected=st.none() | st.integers(0, 9000),
    )
    def arrive(
        self, tenant: str, weight: float, priority: int, due_s: int | None, expected: int | None
    ) -> str:
        self.count += 1
        name = f"p{self.count}"
        self.alive.add(name)
        event = ProgramArrived(
            program=name,
            row=self.count,
            workflow="w",
            tenant=tenant,
            weight=weight,
            priority=priority,
            deadline_s=None if due_s is None else self.now_s + due_s,
            expected_tokens=expected,
        )
        self.tell(event)
        return name

    @rule(
        program=programs,
        prompt=st.integers(1, 600),
        sessions=st.booleans(),
        left=st.none() | st.integers(0, 9000),
    )
    def call(self, program: str, prompt: int, sessions: bool, left: int | None) -> None:
        self.ask(program, prompt, sessions, remaining_tokens=left)

    @rule(program=programs, size=st.integers(2, 4), whole=st.booleans())
    def gang(self, program: str, size: int, whole: bool) -> None:
        group = f"{program}/gang/{self.count}"
        for _ in range(size if whole else size - 1):
            self.ask(program, 20, False, group=group, gang=size)

    @rule(
        program=programs,
        group=st.integers(0, 1),
        leads=st.booleans(),
        key=st.none() | st.integers(0, 9),
        worker=st.none() | st.sampled_from(["m/1", "m/2"]),
    )
    def planned(
        self, program: str, group: int, leads: bool, key: int | None, worker: str | None
    ) -> None:
        leader = f"{program}/{self.count + 1}" if leads else "another"
        hint = {"group": f"prefix/{group}", "leader": leader, "order_key": key, "worker": worker}
        self.ask(program, 150, False, shared_tokens=100, **hint)

    @precondition(lambda self: bool(self.running))
    @rule(data=st.data())
    def call_begins(self, data: st.DataObject) -> None:
        self.tell(CallBegan(call=data.draw(st.sampled_from(sorted(self.running)))))

    @rule(group=st.integers(0, 1), known=st.booleans(), worker=st.none() | st.just("m/1"))
    def group_comes_or_goes(self, group: int, known: bool, worker: str | None) -> None:
        name = f"prefix/{group}"
        if not known:
            self.tell(PrefixOver(session=name))
        elif name not in self.core.kept.prefixes:
            self.tell(PrefixKnown(session=name, model="m", tokens=100, worker=worker))

    def ask(self, program: str, prompt: int, sessions: bool, **more: object) -> None:
        self.count += 1
        call = f"{program}/{self.count}"
        self.waiting[call] = program
        ready = CallReady(
            call=call,
            program=program,
            step="s",
            model="m",
            prompt_tokens=prompt,
            max_tokens=10,
            session=f"{program}/s" if sessions else None,
            deadline_s=self.now_s + 5 if prompt % 7 == 0 else None,
            blocks=blocks_of([prompt % 5] * prompt) if self.core.chooses("m") else (),
            **more,  # type: ignore[arg-type]
        )
        self.asked[call] = ready
        self.tell(ready)
        if program not in self.alive:
            assert call not in self.waiting and call not in self.running

    @precondition(lambda self: bool(self.running))
    @rule(data=st.data(), output=st.integers(0, 12))
    def end_call(self, data: st.DataObject, output: int) -> None:
        call = data.draw(st.sampled_from(sorted(self.running)))
        self.end(call, prompt_tokens=data.draw(st.integers(0, 600)), output_tokens=output)

    def end(self, call: str, **more: int) -> None:
        event = CallEnded(
            call=call,
            program=self.asked[call].program,
            step="s",
            finish="stop",
            prefill_s=0.1,
            decode_s=0.2,
            **more,  # type: ignore[arg-type]
        )
        self.tell(event)

    @precondition(lambda self: bool(self.running))
    @rule(data=st.data(), after_s=st.sampled_from([None, 0.5, 3.0]))
    def break_call(self, data: st.DataObject, after_s: float | None) -> None:
        call = data.draw(st.sampled_from(sorted(self.running)))
        worker = self.core.calls[call].worker
        assert worker is not None
        self.tell(CallBroke(call=call, worker=worker, error="503", after_s=after_s))

    @rule(program=programs, left_s=st.sampled_from([0.0, 0.5, 100.0]))
    def tool_tells(self, program: str, left_s: float) -> None:
        about = {"program": program, "step": "t", "tool": "x", "session": f"{program}/s"}
        self.tell(ToolProgress(**about, left_s=left_s))  # type: ignore[arg-type]

    @rule(program=programs)
    def end_session(self, program: str) -> None:
        self.tell(SessionEnded(program=program, session=f"{program}/s"))

    @rule(program=programs, ends=st.booleans())
    def tool(self, program: str, ends: bool) -> None:
        session = f"{program}/s"
        self.tell(ToolStarted(program=program, step="t", tool="x", session=session))
        if ends:
            self.tell(ToolEnded(program=program, step="t", tool="x", seconds=1.0, ok=True))

    @rule(program=programs, cancel=st.booleans())
    def stop(self, program: str, cancel: bool) -> None:
        self.alive.discard(program)
        if cancel:
            self.tell(CancelProgram(program=program))
        else:
            self.end_program(program)

    def end_program(self, program: str) -> None:
        self.tell(ProgramEnded(program=program, row=0, ok=True))

    @precondition(lambda self: len(self.workers) < 3)
    @rule(slots=st.integers(1, 3), kv=st.integers(300, 900))
    def add_worker(self, slots: int, kv: int) -> None:
        self.count += 1
        self.up(f"m/{self.count}", slots, kv)

    def up(self, name: str, slots: int, kv: int) -> None:
        self.away.discard(name)
        self.workers.add(name)
        joins = kv % 2 == 0
        event = WorkerUp(worker=name, model="m", max_running=slots, kv_tokens=kv, joins=joins)
        self.tell(event)

    @precondition(lambda self: bool(self.away) and len(self.workers) < 3)
    @rule(data=st.data())
    def come_back(self, data: st.DataObject) -> None:
        self.up(data.draw(st.sampled_from(sorted(self.away))), 2, 600)

    @precondition(lambda self: bool(self.workers))
    @rule(data=st.data(), returns=st.booleans())
    def kill_worker(self, data: st.DataObject, returns: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.workers)))
        self.tell(WorkerDown(worker=name, error="gone", returns=returns))

    @precondition(lambda self: bool(self.workers))
    @rule(data=st.data())
    def fine(self, data: st.DataObject) -> None:
        self.tell(WorkerFine(worker=data.draw(st.sampled_from(sorted(self.workers)))))

    @precondition(lambda self: bool(self.workers))
    @rule(data=st.data(), running=st.integers(0, 5), waiting=st.integers(0, 5))
    def load(self, data: st.DataObject, running: int, waiting: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.workers)))
        self.tell(WorkerLoad(worker=name, running=running, waiting=waiting))

    @precondition(lambda self: bool(self.workers))
    @rule(data=st.data(), slots=st.integers(1, 4), kv=st.integers(0, 900))
    def share(self, data: st.DataObject, slots: int, kv: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.workers)))
        self.tell(WorkerShare(worker=name, kv_tokens=kv, max_running=slots))

    @precondition(lambda self: bool(self.workers))
    @rule(data=st.data())
    def others_computed(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.workers)))
        blocks = tuple((block, 64) for block in blocks_of([1] * 64))
        self.tell(BlocksHeld(worker=name, blocks=blocks))

    @precondition(lambda self: bool(self.workers))
    @rule(data=st.data(), some=st.booleans())
    def evict(self, data: st.DataObject, some: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.workers)))
        self.tell(BlocksGone(worker=name, blocks=blocks_of([1] * 64) if some else ()))

    @rule(tokens=st.integers(1, 300))
    def prefix(self, tokens: int) -> None:
        self.count += 1
        self.tell(PrefixKnown(session=f"prefix/{self.count}", model="m", tokens=tokens))

    @rule(after_s=st.sampled_from([0.0, 5.0, 70.0]))
    def timer(self, after_s: float) -> None:
        self.now_s += after_s
        self.handle(TimerFired())

    @rule()
    def pause(self) -> None:
        self.tell(Pause())  # and before it, perhaps, a timer
        self.paused = True

    @precondition(lambda self: self.paused)
    @rule()
    def go_on(self) -> None:
        self.paused = False
        self.tell(Continue())

    @rule(
        order=st.none() | st.sampled_from(ORDER_NAMES),
        retention=st.sampled_from([None, "never", "fixed:3"]),
        programs=st.none() | st.integers(1, 8),
    )
    def change(self, order: str | None, retention: str | None, programs: int | None) -> None:
        self.tell(Change(order=order, retention=retention, max_programs=programs))

    @precondition(lambda self: self.count > 30)
    @rule()
    def drain(self) -> None:
        self.tell(Drain())
        self.drained = True

    # ---- what always holds ----------------------------------------------------------------------

    @invariant()
    def consistent(self) -> None:
        self.core.check()
        assert self.core.calls.keys() == self.waiting.keys() | self.running.keys()

    @invariant()
    def no_pin_waits_for_a_call_that_is_gone(self) -> None:
        for name, session in self.core.sessions.items():
            if session.next_call:
                assert session.retained and session.next_call in self.waiting, name

    @invariant()
    def nothing_waits_beside_an_idle_worker(self) -> None:
        """The first call that no limit, home or gang holds back has no idle worker that it fits."""
        workers = self.core.workers.values()
        idle = [worker for worker in workers if not worker.running and worker.open(self.now_s)]
        head = self.core.first_waiting("m", self.now_s)
        limited = any(limit.max_running or limit.tokens_per_minute for limit in self.model_limits())
        if self.paused or limited or head is None:
            return
        if head.ready.gang or self.now_s < head.home_until_s:
            return
        need = head.ready.prompt_tokens + head.ready.max_tokens
        assert all(need > worker.kv_tokens for worker in idle)

    @invariant()
    def what_waits_will_be_looked_at(self) -> None:
        """No call waits for a limit alone while nothing runs and no timer is set."""
        usable = any(worker.open(self.now_s) for worker in self.core.workers.values())
        if self.paused or self.running or self.alarm_s is not None or not usable:
            return
        largest = max(worker.kv_tokens for worker in self.core.workers.values())
        for name in self.waiting:
            ready = self.asked[name]
            assert ready.gang or ready.prompt_tokens + ready.max_tokens > largest, name

    def model_limits(self) -> list[Limit]:
        return list(self.limits.models.values())

    # ---- in the end -----------------------------------------------------------------------------

    def teardown(self) -> None:
        """With a worker that takes anything, all that waits is answered; a replay agrees."""
        if not hasattr(self, "core"):
            return
        self.finish()
        again = self.new_core()
        for event, now_s, commands in self.history:
            assert again.handle(event, now_s) == commands

    def finish(self) -> None:
        self.paused = False
        self.tell(Continue())
        self.up("m/last", 4, 5000)
        for name in sorted(self.workers):
            self.tell(WorkerLoad(worker=name, running=0, waiting=0))
        for _ in range(2000):
            if self.running:
                self.end(min(self.running), prompt_tokens=20, output_tokens=5)
            elif any(not self.asked[name].gang for name in self.waiting):
                assert self.alarm_s is not None, "calls wait, nothing runs, no timer is set"
                self.now_s = max(self.now_s, self.alarm_s)
                self.handle(TimerFired())
            else:
                break
            self.core.check()
        assert all(self.asked[name].gang for name in self.waiting)
        for program in sorted(self.core.programs):
            self.end_program(program)
        while self.running:
            self.end(min(self.running))
        assert not self.core.programs and not self.core.calls and not self.core.sessions


CoreMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestCoreMachine = CoreMachine.TestCase
