"""The scheduler's core: events in, commands out, and a state that never contradicts itself."""

from collections.abc import Iterator

import pytest

from tenter.kvpolicy import DEFAULT_POLICY, POLICIES, Decision, Pause, Policy
from tenter.runtime.blocks import blocks_of
from tenter.runtime.scheduler.core import Core
from tenter.runtime.scheduler.events import (
    Abort,
    BlocksGone,
    CallBroke,
    CallEnded,
    CallReady,
    CancelProgram,
    Command,
    Dispatch,
    Drain,
    DropCall,
    PinJudged,
    PrefixKnown,
    Probe,
    ProgramArrived,
    ProgramEnded,
    Quit,
    Release,
    Retain,
    SetTimer,
    StartProgram,
    TimerFired,
    ToolEnded,
    ToolStarted,
    Warm,
    WorkerDown,
    WorkerFine,
    WorkerLoad,
    WorkerUp,
)
from tenter.runtime.scheduler.limits import Limits
from tenter.runtime.scheduler.policies import PASSED, call_fcfs, program_fcfs
from tenter.runtime.scheduler.retry import BREAKS, MAX_ATTEMPTS, MAX_LOSSES


def arrived(name: str, row: int = 0) -> ProgramArrived:
    return ProgramArrived(program=name, row=row, workflow="w")


def ended(name: str, row: int = 0) -> ProgramEnded:
    return ProgramEnded(program=name, row=row, ok=True)


def ready(call: str, program: str, **more: object) -> CallReady:
    fields = {"step": "s", "model": "m", "prompt_tokens": 10, "max_tokens": 10} | more
    return CallReady(call=call, program=program, **fields)  # type: ignore[arg-type]


def done(call: str, program: str, **more: object) -> CallEnded:
    return CallEnded(call=call, program=program, step="s", finish="stop", **more)  # type: ignore[arg-type]


def up(worker: str = "m/0", slots: int = 1, kv: int = 1000) -> WorkerUp:
    return WorkerUp(worker=worker, model="m", max_running=slots, kv_tokens=kv)


def dispatched(commands: list[Command]) -> list[str]:
    return [command.call for command in commands if isinstance(command, Dispatch)]


@pytest.fixture
def core() -> Iterator[Core]:
    core = Core(hold=lambda pause: 5.0, patience_s=60.0)
    yield core
    core.check()


def test_a_program_starts_its_call_runs_and_the_next_one_follows(core: Core) -> None:
    assert core.handle(arrived("p"), 0) == [StartProgram(program="p")]
    assert core.handle(up(), 0) == []
    assert core.handle(ready("p/a", "p"), 0) == [Dispatch(call="p/a", worker="m/0", priority=0)]
    assert core.handle(ready("p/b", "p"), 0) == []
    assert dispatched(core.handle(done("p/a", "p"), 1)) == ["p/b"]
    core.handle(done("p/b", "p"), 2)
    core.handle(ended("p"), 2)
    assert not core.programs and not core.calls


def test_calls_wait_until_a_worker_comes(core: Core) -> None:
    core.handle(arrived("p"), 0)
    assert core.handle(ready("p/a", "p"), 0) == []
    assert dispatched(core.handle(up(), 1)) == ["p/a"]


def test_program_fcfs_lets_an_early_programs_late_turn_go_first() -> None:
    for order, first in ((program_fcfs, "a/2"), (call_fcfs, "b/1")):
        core = Core(order)
        core.handle(up(), 0)
        core.handle(arrived("a"), 0)
        core.handle(arrived("b"), 0)
        core.handle(ready("a/1", "a"), 0)
        core.handle(ready("b/1", "b"), 1)
        core.handle(ready("a/2", "a"), 2)
        assert dispatched(core.handle(done("a/1", "a"), 3)) == [first]
        core.check()


def test_no_more_programs_live_than_allowed() -> None:
    core = Core(max_programs=1)
    assert core.handle(arrived("a"), 0) == [StartProgram(program="a")]
    assert core.handle(arrived("b"), 0) == []
    assert core.handle(ended("a"), 1) == [StartProgram(program="b")]
    core.check()


def test_after_a_drain_nothing_new_starts(core: Core) -> None:
    core.handle(Drain(), 0)
    assert core.handle(arrived("a"), 0) == []


def test_kv_capacity_holds_calls_back_and_a_shared_prefix_counts_once(core: Core) -> None:
    core.handle(up(slots=8, kv=100), 0)
    core.handle(arrived("p"), 0)
    big = {"prompt_tokens": 50, "max_tokens": 10}
    assert dispatched(core.handle(ready("p/a", "p", **big), 0)) == ["p/a"]
    assert dispatched(core.handle(ready("p/b", "p", **big), 0)) == []
    assert dispatched(core.handle(ready("p/c", "p", **big, shared_tokens=40), 0)) == []
    assert dispatched(core.handle(done("p/a", "p"), 1)) == ["p/b", "p/c"]


def test_a_call_larger_than_every_worker_is_dropped_with_the_numbers(core: Core) -> None:
    core.handle(up(kv=100), 0)
    core.handle(arrived("p"), 0)
    (drop,) = core.handle(ready("p/a", "p", prompt_tokens=95), 0)
    assert isinstance(drop, DropCall)
    assert "95 prompt tokens plus 10" in drop.reason and "100 KV tokens" in drop.reason


def test_a_session_goes_back_to_the_worker_that_holds_it(core: Core) -> None:
    core.handle(up("m/0", slots=2), 0)
    core.handle(up("m/1", slots=2), 0)
    core.handle(arrived("p"), 0)
    (first,) = core.handle(ready("p/1", "p", session="s"), 0)
    core.handle(ready("p/2", "p"), 0)
    core.handle(done("p/2", "p"), 0)
    core.handle(done("p/1", "p"), 1)
    (again,) = core.handle(ready("p/3", "p", session="s"), 2)
    assert isinstance(first, Dispatch) and isinstance(again, Dispatch)
    assert again.worker == first.worker


def test_a_session_is_pinned_while_its_tool_runs_and_released_at_the_end(core: Core) -> None:
    core.handle(up(), 0)
    core.handle(arrived("p"), 0)
    core.handle(ready("p/1", "p", session="s"), 0)
    core.handle(done("p/1", "p", prompt_tokens=10, output_tokens=5), 1)
    started = ToolStarted(program="p", step="t", tool="search", session="s")
    retain = Retain(session="s", worker="m/0", until_s=7.0)
    assert core.handle(started, 2) == [retain, SetTimer(due_s=7.0)]
    assert core.workers["m/0"].kv_pinned == 15
    tool_ended = ToolEnded(program="p", step="t", tool="search", seconds=1, ok=True, session="s")
    assert core.handle(tool_ended, 3) == []
    core.handle(ready("p/2", "p", session="s"), 3)
    assert core.workers["m/0"].kv_pinned == 0
    core.handle(done("p/2", "p"), 4)
    assert core.handle(ended("p"), 4) == [Release(session="s", worker="m/0")]


def test_pins_take_no_more_than_their_share_of_the_cache(core: Core) -> None:
    core.handle(up(kv=1000), 0)
    core.handle(arrived("p"), 0)
    core.handle(ready("p/1", "p", session="s"), 0)
    core.handle(done("p/1", "p", prompt_tokens=850), 1)
    assert core.handle(ToolStarted(program="p", step="t", tool="x", session="s"), 2) == []


def test_pins_never_wedge_admission() -> None:
    """A call that fits only without the pins gets their room; what is worth least goes first."""
    core = Core(hold=Policy(lambda pause: Decision(None, 1 / (1 + pause.arrival))))
    core.handle(up(slots=2, kv=1000), 0)
    for program in ("a", "b"):
        core.handle(arrived(program), 0)
        core.handle(ready(f"{program}/1", program, session=program), 0)
        core.handle(done(f"{program}/1", program, prompt_tokens=240), 1)
        core.handle(ToolStarted(program=program, step="t", tool="x", session=program), 2)
    commands = core.handle(ready("a/2", "a", prompt_tokens=700), 3)
    assert commands[0] == Release(session="b", worker="m/0")
    assert dispatched(commands) == ["a/2"]
    core.check()


@pytest.mark.parametrize(("seconds", "kept"), [(0.1, True), (3000.0, False)], ids=["short", "long"])
def test_a_pin_gives_way_where_the_queue_is_worth_more(seconds: float, kept: bool) -> None:
    core = Core(hold=POLICIES[DEFAULT_POLICY])
    core.handle(up(slots=8, kv=1000), 0)
    for program in ("a", "b", "c"):
        core.handle(arrived(program), 0)
    for _ in range(200):
        told = ToolEnded(program="a", step="t", tool="x", seconds=seconds, ok=True)
        core.handle(told, 0)
    core.handle(ready("a/1", "a", session="a", prompt_tokens=400), 0)
    core.handle(done("a/1", "a", prompt_tokens=400, prefill_s=0.2), 1)
    commands = core.handle(ToolStarted(program="a", step="t", tool="x", session="a"), 1)
    assert commands == [Retain(session="a", worker="m/0", until_s=None)]  # memory is free
    core.handle(ready("b/1", "b", prompt_tokens=400), 1.01)
    commands = core.handle(ready("c/1", "c", prompt_tokens=400), 1.02)
    if kept:
        assert commands == []
    else:
        assert commands[0] == Release(session="a", worker="m/0")
        assert dispatched(commands) == ["c/1"]
    core.check()


def kept_beside_a_full_worker(core: Core) -> None:
    """`b` runs on 600 of 1000 tokens; `a` has 300 pinned until 7.0; `a`'s tool runs since 2.0."""
    core.handle(up(slots=8, kv=1000), 0)
    for program in ("head", "a", "b"):
        core.handle(arrived(program), 0)
    core.handle(ready("a/1", "a", session="a", prompt_tokens=290), 0)
    core.handle(done("a/1", "a", prompt_tokens=290, output_tokens=10), 1)
    core.handle(ready("b/1", "b", prompt_tokens=590), 1)
    core.handle(ToolStarted(program="a", step="t", tool="x", session="a"), 2)


def test_a_pin_outlasts_its_time_while_the_next_call_waits(core: Core) -> None:
    kept_beside_a_full_worker(core)
    commands = core.handle(ready("a/2", "a", session="a", prompt_tokens=800), 3)
    assert commands[0] == Retain(session="a", worker="m/0", until_s=None)

    core.handle(TimerFired(), 8)

    assert core.workers["m/0"].kv_pinned == 300
    assert dispatched(core.handle(done("b/1", "b"), 9)) == ["a/2"]
    assert core.workers["m/0"].kv_pinned == 0


def test_a_dropped_call_keeps_no_pin_beyond_its_time(core: Core) -> None:
    kept_beside_a_full_worker(core)
    core.handle(ready("a/2", "a", session="a", prompt_tokens=800, deadline_s=5.0), 3)
    dropped, again = core.handle(TimerFired(), 5)[:2]

    assert isinstance(dropped, Retain | DropCall) and isinstance(again, Retain | DropCall)
    assert {type(dropped), type(again)} == {Retain, DropCall}
    assert Retain(session="a", worker="m/0", until_s=7.0) in (dropped, again)
    core.handle(TimerFired(), 7)
    assert core.workers["m/0"].kv_pinned == 0


def test_a_cancelled_program_keeps_no_pin_whose_time_was_over(core: Core) -> None:
    kept_beside_a_full_worker(core)
    core.handle(ready("a/2", "a", session="a", prompt_tokens=800), 3)
    commands = core.handle(CancelProgram(program="a"), 9)

    assert Release(session="a", worker="m/0") in commands
    assert core.workers["m/0"].kv_pinned == 0


def test_sessions_that_bring_their_memory_pass_a_call_that_lacks_it(core: Core) -> None:
    kept_beside_a_full_worker(core)
    assert dispatched(core.handle(ready("head/1", "head", prompt_tokens=700), 3)) == []
    assert dispatched(core.handle(ready("b/2", "b", prompt_tokens=320), 3)) == []

    assert dispatched(core.handle(ready("a/2", "a", session="a", prompt_tokens=320), 4)) == ["a/2"]


def test_no_call_is_passed_for_ever() -> None:
    """Sessions that go round and round beside it give way in the end."""
    core = Core(hold=lambda pause: None)
    kept_beside_a_full_worker(core)
    core.handle(ready("head/1", "head", prompt_tokens=990), 3)
    for turn in range(2, 2 * PASSED):
        call = f"a/{turn}"
        if not dispatched(core.handle(ready(call, "a", session="a", prompt_tokens=320), 4)):
            break
        core.handle(done(call, "a", prompt_tokens=290, output_tokens=10), 4)
        core.handle(ToolStarted(program="a", step="t", tool="x", session="a"), 4)
    assert turn == 2 + PASSED
    assert dispatched(core.handle(done("b/1", "b"), 5)) == ["head/1"]
    core.check()


def test_what_sessions_lose_without_a_pin_is_learned() -> None:
    asked: list[Pause] = []

    def hold(pause: Pause) -> float:
        asked.append(pause)
        return 0.0

    core = Core(hold=hold)
    core.handle(up(slots=8, kv=1000), 0)
    core.handle(arrived("p"), 0)
    for turn in range(100):
        call = f"p/{turn}"
        core.handle(ready(call, "p", session="s", prompt_tokens=100), turn)
        core.handle(done(call, "p", prompt_tokens=100, cached_tokens=75 if turn else 0), turn)
        core.handle(ToolStarted(program="p", step="t", tool="x", session="s"), turn)
        core.check()
    assert asked[0].lost_share == 1.0
    assert asked[-1].lost_share == pytest.approx(0.25)


def test_calls_that_wait_outside_the_working_set_make_memory_dear() -> None:
    asked: list[Pause] = []

    def hold(pause: Pause) -> float:
        asked.append(pause)
        return 0.0

    core = Core(hold=hold, limits=Limits(working_set=0.5))
    core.handle(up(slots=8, kv=1000), 0)
    for program in ("a", "b"):
        core.handle(arrived(program), 0)
    core.handle(ready("a/1", "a", session="a", prompt_tokens=300), 0)
    core.handle(ready("a/2", "a", prompt_tokens=100), 0)
    core.handle(ready("b/1", "b", prompt_tokens=980), 0)
    core.handle(done("a/1", "a", prompt_tokens=300), 1)
    core.handle(ToolStarted(program="a", step="t", tool="x", session="a"), 1)
    assert core.calls["b/1"].worker is None
    assert asked[-1].price.per_token_s > 0
    core.check()


def test_a_known_prefix_is_warmed_and_pinned_on_every_worker(core: Core) -> None:
    core.handle(up("m/0"), 0)
    commands = core.handle(PrefixKnown(session="prefix/s", model="m", tokens=64), 0)
    expected = [Warm(session="prefix/s", worker="m/0")]
    expected.append(Retain(session="prefix/s", worker="m/0", until_s=None))
    assert commands == expected
    assert core.handle(up("m/1"), 1)[0] == Warm(session="prefix/s", worker="m/1")


def test_cancelling_drops_what_waits_and_aborts_what_runs(core: Core) -> None:
    core.handle(up(), 0)
    core.handle(arrived("p"), 0)
    core.handle(ready("p/1", "p"), 0)
    core.handle(ready("p/2", "p"), 0)
    commands = core.handle(CancelProgram(program="p"), 1)
    assert commands == [
        Abort(call="p/1", worker="m/0", reason="its program was cancelled"),
        DropCall(call="p/2", reason="its program was cancelled"),
    ]
    assert core.handle(CancelProgram(program="p"), 1) == []
    assert isinstance(core.handle(ready("p/3", "p"), 1)[0], DropCall)


def test_a_dead_workers_calls_go_to_another_a_bounded_number_of_times(core: Core) -> None:
    core.handle(arrived("p"), 0)
    core.handle(up("m/0"), 0)
    core.handle(ready("p/1", "p"), 0)
    for attempt in range(1, MAX_LOSSES):
        core.handle(up(f"m/{attempt}"), attempt)
        commands = core.handle(WorkerDown(worker=f"m/{attempt - 1}", error="gone"), attempt)
        assert dispatched(commands) == ["p/1"]
    core.handle(up("m/9"), 9)
    _, drop = core.handle(WorkerDown(worker=f"m/{MAX_LOSSES - 1}", error="gone"), 9)
    assert isinstance(drop, DropCall) and "gone" in drop.reason


def test_without_any_worker_left_calls_end_instead_of_hanging(core: Core) -> None:
    core.handle(arrived("p"), 0)
    core.handle(up(), 0)
    core.handle(ready("p/1", "p"), 0)
    core.handle(ready("p/2", "p"), 0)
    commands = core.handle(WorkerDown(worker="m/0", error="gone"), 1)
    assert [type(command) for command in commands] == [Quit, DropCall, DropCall]


def test_a_call_ends_at_its_deadline(core: Core) -> None:
    core.handle(up(), 0)
    core.handle(arrived("p"), 0)
    commands = core.handle(ready("p/1", "p", deadline_s=5.0), 0)
    assert SetTimer(due_s=5.0) in commands
    assert core.handle(ready("p/2", "p", deadline_s=9.0), 0) == []
    assert core.handle(TimerFired(), 5.0) == [
        Abort(call="p/1", worker="m/0", reason="its deadline has passed"),
        SetTimer(due_s=9.0),
    ]
    assert isinstance(core.handle(TimerFired(), 9.0)[0], DropCall)


def broke(call: str, worker: str = "m/0", **more: object) -> CallBroke:
    return CallBroke(call=call, worker=worker, error="503", **more)  # type: ignore[arg-type]


def test_a_broken_attempt_is_repeated_after_a_rest_a_bounded_number_of_times(core: Core) -> None:
    core.handle(up(), 0)
    core.handle(arrived("p"), 0)
    core.handle(ready("p/1", "p"), 0)
    now_s = 0.0
    for attempt in range(1, MAX_ATTEMPTS):
        (timer,) = core.handle(broke("p/1"), now_s)
        assert isinstance(timer, SetTimer) and now_s < timer.due_s < now_s + 2**attempt
        now_s = timer.due_s
        assert dispatched(core.handle(TimerFired(), now_s)) == ["p/1"]
    (drop,) = core.handle(broke("p/1"), now_s)
    assert drop == DropCall(call="p/1", reason="503")


def test_a_call_that_one_worker_turns_away_waits_for_another_that_answers(core: Core) -> None:
    core.handle(up("m/0"), 0)
    core.handle(up("m/1"), 0)
    core.handle(arrived("p"), 0)
    assert core.handle(ready("p/long", "p"), 0)[0] == Dispatch(
        call="p/long", worker="m/0", priority=0
    )
    assert dispatched(core.handle(ready("p/1", "p"), 0)) == ["p/1"]

    def turned_away(now_s: float) -> list[Command]:
        """What comes when it is tried again, 40 s after m/1 has turned it away."""
        commands = core.handle(broke("p/1", worker="m/1", after_s=1.0), now_s)
        assert not any(isinstance(command, DropCall) for command in commands)
        return core.handle(TimerFired(), now_s + 40)

    for number in range(5):  # longer than there is patience with a worker that is gone
        assert Dispatch(call="p/1", worker="m/1", priority=0) in turned_away(number * 41.0)
    core.handle(done("p/long", "p"), 206.0)
    free = Dispatch(call="p/1", worker="m/0", priority=0)
    assert free in turned_away(207.0), "m/1 is as free, and refuses"


@pytest.mark.parametrize(("takes", "most"), [(8, 2 * 300), (0, 64 + 60)])
def test_a_worker_that_turns_calls_away_is_not_overrun(core: Core, takes: int, most: int) -> None:
    """One that takes eight calls at once of 64 slots, and one that takes none for a minute."""
    core.handle(up(slots=64), 0)
    core.handle(arrived("p"), 0)
    sent: list[str] = []
    for index in range(300):
        sent += dispatched(core.handle(ready(f"p/{index}", "p"), 0))
    running: list[str] = []
    now_s, refused, answered = 0.0, 0, 0
    while answered < 300 and now_s < 60:
        now_s += 0.05
        found, sent = sent, []
        for call in found:
            if len(running) < takes:
                running.append(call)
                continue
            refused += 1
            sent += dispatched(core.handle(broke(call, after_s=0.1), now_s))
        if running and not found:
            answered += 1
            sent += dispatched(core.handle(done(running.pop(0), "p"), now_s))
        sent += dispatched(core.handle(TimerFired(), now_s))

    assert refused <= most
    assert answered == (300 if takes else 0)


def test_a_worker_that_asks_for_rest_gets_it_and_another_takes_its_calls(core: Core) -> None:
    core.handle(up("m/0"), 0)
    core.handle(arrived("p"), 0)
    core.handle(ready("p/1", "p"), 0)
    core.handle(ready("p/2", "p"), 0)
    assert dispatched(core.handle(broke("p/1", after_s=9.0), 1)) == []
    assert dispatched(core.handle(up("m/1"), 2)) == ["p/2"]
    core.handle(done("p/2", "p"), 3)
    assert dispatched(core.handle(ready("p/3", "p"), 3)) == ["p/3"]
    assert "p/1" in dispatched(core.handle(TimerFired(), 10.0))


def test_a_worker_that_fails_call_after_call_is_probed_and_keeps_what_it_runs(core: Core) -> None:
    core.handle(up(slots=BREAKS + 1), 0)
    core.handle(arrived("p"), 0)
    for index in range(BREAKS + 1):
        core.handle(ready(f"p/{index}", "p"), 0)
    for index in range(BREAKS - 1):
        core.handle(broke(f"p/{index}"), 1)
    commands = core.handle(broke(f"p/{BREAKS - 1}"), 1)
    assert Probe(worker="m/0") in commands
    assert core.workers["m/0"].running == {f"p/{BREAKS}"}
    assert dispatched(core.handle(TimerFired(), 20)) == []
    assert len(dispatched(core.handle(WorkerFine(worker="m/0"), 21))) == BREAKS
    for index in range(BREAKS):
        core.handle(broke(f"p/{index}"), 22)
    assert Quit(worker="m/0", recover=True) in core.handle(TimerFired(), 90)


def test_calls_wait_for_workers_that_may_return_and_not_for_ever(core: Core) -> None:
    core.handle(up(), 0)
    core.handle(arrived("p"), 0)
    core.handle(ready("p/1", "p"), 0)
    commands = core.handle(WorkerDown(worker="m/0", error="gone", returns=True), 1)
    assert commands == [Quit(worker="m/0", recover=True), SetTimer(due_s=61)]
    assert core.handle(ready("p/2", "p"), 2) == []
    assert dispatched(core.handle(up(), 30)) == ["p/1"]
    core.handle(WorkerDown(worker="m/0", error="gone again", returns=True), 40)
    core.handle(TimerFired(), 61)
    commands = core.handle(TimerFired(), 100)
    assert [type(command) for command in commands] == [DropCall, DropCall]
    assert all("gone again" in command.reason for command in commands)  # type: ignore[union-attr]


def test_a_worker_that_will_never_return_is_not_waited_for(core: Core) -> None:
    core.handle(up(), 0)
    core.handle(arrived("p"), 0)
    core.handle(ready("p/1", "p"), 0)
    core.handle(WorkerDown(worker="m/0", error="gone", returns=True), 1)
    (drop,) = core.handle(WorkerDown(worker="m/0", error="another model", model="m"), 2)
    assert isinstance(drop, DropCall) and "another model" in drop.reason


def test_calls_of_others_take_slots_and_a_waiting_line_takes_all(core: Core) -> None:
    core.handle(up(slots=4), 0)
    core.handle(arrived("p"), 0)
    core.handle(ready("p/1", "p"), 0)
    for now_s in (1, 2):  # one report may be a second old; two agree
        core.handle(WorkerLoad(worker="m/0", running=3, waiting=0), now_s)
    assert dispatched(core.handle(ready("p/2", "p"), 2)) == ["p/2"]
    assert core.handle(ready("p/3", "p"), 2) == []
    core.handle(WorkerLoad(worker="m/0", running=1, waiting=0), 3)
    assert core.workers["m/0"].slots == 4
    core.handle(WorkerLoad(worker="m/0", running=3, waiting=9), 4)
    core.handle(done("p/1", "p"), 5)
    assert core.handle(ready("p/4", "p"), 5) == []
    assert dispatched(core.handle(WorkerLoad(worker="m/0", running=2, waiting=0), 6)) == ["p/4"]


def test_a_gang_enters_together_or_not_at_all(core: Core) -> None:
    core.handle(up(slots=3), 0)
    core.handle(arrived("p"), 0)
    core.handle(ready("p/0", "p"), 0)
    for index in (1, 2):
        assert core.handle(ready(f"p/{index}", "p", group="g", gang=3), 0) == []
    assert core.handle(ready("p/3", "p", group="g", gang=3), 0) == []
    assert dispatched(core.handle(done("p/0", "p"), 1)) == ["p/1", "p/2", "p/3"]


def test_a_gang_larger_than_every_worker_goes_one_by_one(core: Core) -> None:
    core.handle(up(slots=2), 0)
    core.handle(arrived("p"), 0)
    core.handle(ready("p/1", "p", group="g", gang=3), 0)
    core.handle(ready("p/2", "p", group="g", gang=3), 0)
    assert dispatched(core.handle(ready("p/3", "p", group="g", gang=3), 0)) == ["p/1", "p/2"]
    assert dispatched(core.handle(done("p/1", "p"), 1)) == ["p/3"]


def test_a_gang_is_complete_without_a_member_that_was_dropped(core: Core) -> None:
    core.handle(up(slots=2), 0)
    core.handle(arrived("p"), 0)
    core.handle(ready("p/1", "p", group="g", gang=3, deadline_s=1.0), 0)
    core.handle(ready("p/2", "p", group="g", gang=3), 0)
    core.handle(TimerFired(), 1.0)
    assert dispatched(core.handle(ready("p/3", "p", group="g", gang=3), 2)) == ["p/2", "p/3"]


def test_gangs_of_two_programs_do_not_mix_and_a_refused_member_is_not_waited_for(
    core: Core,
) -> None:
    core.handle(up(slots=4, kv=1000), 0)
    for program in ("p", "q"):
        core.handle(arrived(program), 0)
        core.handle(ready(f"{program}/1", program, group="g", gang=3), 0)
    core.handle(ended("q"), 0)
    core.handle(ready("p/2", "p", group="g", gang=3, prompt_tokens=5000), 0)
    assert dispatched(core.handle(ready("p/3", "p", group="g", gang=3), 0)) == ["p/1", "p/3"]


def test_a_pin_of_an_earlier_tool_is_given_back_where_a_later_one_is_not_worth_it() -> None:
    holds = iter([None, 0.0])
    core = Core(hold=lambda pause: next(holds))
    core.handle(up(kv=1000), 0)
    core.handle(arrived("p"), 0)
    started = ToolStarted(program="p", step="t", tool="x", session="s")
    for call in ("p/1", "p/2"):
        core.handle(ready(call, "p", session="s"), 0)
        core.handle(done(call, "p", prompt_tokens=10), 1)
        (last,) = core.handle(started, 2)
    assert last == Release(session="s", worker="m/0")
    core.check()


def test_room_that_a_pin_leaves_is_used_at_once(core: Core) -> None:
    core.handle(up(slots=4, kv=1000), 0)
    for program in ("p", "q"):
        core.handle(arrived(program), 0)
    core.handle(ready("p/1", "p", session="s", prompt_tokens=600), 0)
    core.handle(done("p/1", "p", prompt_tokens=600), 1)
    commands = core.handle(ToolStarted(program="p", step="t", tool="x", session="s"), 1)
    assert SetTimer(due_s=6.0) in commands  # the pin's end
    core.handle(ready("q/1", "q", prompt_tokens=100), 1)
    core.workers["m/0"].weighed_s = 5.99  # weighed just now: the pin is kept
    assert dispatched(core.handle(ready("q/2", "q", prompt_tokens=400), 5.99)) == []
    assert dispatched(core.handle(TimerFired(), 6.0)) == ["q/2"]


def test_a_call_for_a_larger_worker_waits_for_its_return_and_lets_others_pass(core: Core) -> None:
    core.handle(up("m/0", slots=2, kv=1000), 0)
    core.handle(up("m/1", slots=2, kv=9000), 0)
    core.handle(arrived("p"), 0)
    core.handle(WorkerDown(worker="m/1", error="gone", returns=True), 1)
    assert dispatched(core.handle(ready("p/1", "p", prompt_tokens=5000), 2)) == []
    assert dispatched(core.handle(ready("p/2", "p"), 2)) == ["p/2"]
    assert dispatched(core.handle(up("m/1", slots=2, kv=9000), 3)) == ["p/1"]


def fleet(core: Core, workers: int, slots: int = 8, kv: int = 10_000) -> None:
    for index in range(workers):
        core.handle(up(f"m/{index}", slots, kv), 0)
    core.handle(arrived("p"), 0)


def placed(commands: list[Command]) -> list[str]:
    return [command.worker for command in commands if isinstance(command, Dispatch)]


def prompt(call: str, tokens: list[int], **more: object) -> CallReady:
    return ready(call, "p", prompt_tokens=len(tokens), blocks=blocks_of(tokens), **more)


def test_a_call_goes_where_its_prefix_lies(core: Core) -> None:
    fleet(core, 2)
    shared = list(range(640))
    (other,) = placed(core.handle(prompt("p/1", [9] * 640), 0))
    (first,) = placed(core.handle(prompt("p/2", shared), 0))
    assert first != other
    core.handle(done("p/1", "p", prompt_tokens=640), 1)
    core.handle(done("p/2", "p", prompt_tokens=640), 1)
    assert placed(core.handle(prompt("p/3", [*shared, 1, 2, 3]), 2)) == [first]
    core.handle(done("p/3", "p", prompt_tokens=643, cached_tokens=640), 3)
    core.handle(BlocksGone(worker=first), 3)
    core.handle(prompt("p/4", [5] * 64), 4)
    assert core.workers[first].holds.matched_tokens(blocks_of(shared)) == 0


def test_a_shared_system_prompt_does_not_pull_everything_onto_one_worker(core: Core) -> None:
    fleet(core, 2, slots=64, kv=100_000)
    system = list(range(256))
    homes = [
        placed(core.handle(prompt(f"p/{index}", [*system, *[index + 300] * 256]), 0))[0]
        for index in range(40)
    ]
    assert 15 <= homes.count("m/0") <= 25


def test_a_call_waits_for_the_worker_of_its_session_but_not_for_ever(core: Core) -> None:
    fleet(core, 2, slots=1, kv=100_000)
    core.handle(prompt("p/1", [1] * 5000, session="s"), 0)
    core.handle(done("p/1", "p", prompt_tokens=5000, prefill_s=2.0), 2)
    home = core.sessions["s"].worker
    core.handle(prompt("p/2", [2] * 64), 2)
    core.handle(prompt("p/3", [3] * 64), 2)
    other = next(name for name in core.workers if name != home)
    on_other = next(name for name, call in core.calls.items() if call.worker == other)
    core.handle(done(on_other, "p"), 3)
    (timer,) = core.handle(prompt("p/4", [1] * 5100, session="s"), 3)
    assert timer == SetTimer(due_s=5.0)  # computing the session again takes two seconds
    assert placed(core.handle(TimerFired(), 5.0)) == [other]


def test_the_next_turn_tells_whether_a_pin_held(core: Core) -> None:
    core.handle(up(kv=2000), 0)
    core.handle(arrived("p"), 0)

    def turn(call: str, cached: int) -> list[PinJudged]:
        core.handle(ready(call, "p", prompt_tokens=200, session="s"), 0)
        ended = done(call, "p", prompt_tokens=200, cached_tokens=cached, output_tokens=50)
        return [item for item in core.handle(ended, 1) if isinstance(item, PinJudged)]

    assert turn("p/1", 0) == []  # nothing was promised
    core.handle(ToolStarted(program="p", step="t", tool="x", session="s"), 1)
    (verdict,) = turn("p/2", 199)
    assert verdict.held and verdict.promised_tokens == 200 and verdict.cached_tokens == 199
    core.handle(ToolStarted(program="p", step="t", tool="x", session="s"), 1)
    (verdict,) = turn("p/3", 20)
    assert not verdict.held
