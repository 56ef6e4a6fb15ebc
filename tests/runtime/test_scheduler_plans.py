"""A plan's hints in the scheduler's core: leaders, followers, turns, workers, and what it tells."""

from collections.abc import Iterator

import pytest

from tenter.runtime.scheduler.core import Core
from tenter.runtime.scheduler.events import (
    CallBegan,
    CallBroke,
    CallEnded,
    CallReady,
    Command,
    Deviated,
    Dispatch,
    PrefixKnown,
    PrefixOver,
    ProgramArrived,
    Release,
    Retain,
    SetTimer,
    TimerFired,
    Warm,
    WorkerUp,
)


@pytest.fixture
def core() -> Iterator[Core]:
    core = Core()
    for name in "abcdef":
        core.handle(ProgramArrived(program=name, row=0, workflow="w"), 0)
    yield core
    core.check()


def up(
    core: Core, name: str = "m/0", *, joins: bool = False, slots: int = 8, kv: int = 9000
) -> None:
    event = WorkerUp(worker=name, model="m", max_running=slots, kv_tokens=kv, joins=joins)
    core.handle(event, 0)


def ready(program: str, **more: object) -> CallReady:
    about = {"step": "s", "model": "m", "prompt_tokens": 1000, "max_tokens": 10} | more
    return CallReady(call=f"{program}/s", program=program, **about)  # type: ignore[arg-type]


def member(program: str, leader: str = "a/s", **more: object) -> CallReady:
    return ready(program, group="g", shared_tokens=900, leader=leader, **more)


def done(program: str, finish: str = "stop") -> CallEnded:
    return CallEnded(call=f"{program}/s", program=program, step="s", finish=finish)  # type: ignore[arg-type]


def sent(commands: list[Command]) -> list[str]:
    return [command.call for command in commands if isinstance(command, Dispatch)]


def told(commands: list[Command]) -> list[Deviated]:
    return [command for command in commands if isinstance(command, Deviated)]


def test_followers_wait_for_the_leaders_first_token_and_others_do_not(core: Core) -> None:
    up(core)
    assert sent(core.handle(member("a"), 0)) == ["a/s"] and core.leads("a/s")
    assert sent(core.handle(member("b"), 0)) == []
    assert sent(core.handle(member("c"), 0)) == []
    assert sent(core.handle(ready("d"), 0)) == ["d/s"]
    assert sent(core.handle(CallBegan(call="a/s"), 0.01)) == ["b/s", "c/s"]
    assert sent(core.handle(member("e"), 0.02)) == ["e/s"]


def test_where_calls_share_what_they_compute_nobody_waits(core: Core) -> None:
    up(core, joins=True)
    assert [sent(core.handle(member(name), 0)) for name in "abc"] == [["a/s"], ["b/s"], ["c/s"]]


def test_followers_wait_no_longer_than_computing_it_twice_takes(core: Core) -> None:
    up(core)
    (_, timer) = core.handle(member("a"), 0)
    core.handle(member("b"), 0)
    assert isinstance(timer, SetTimer) and 0 < timer.due_s < 1
    assert sent(core.handle(TimerFired(), timer.due_s)) == ["b/s"]


def test_a_leader_that_comes_to_nothing_is_followed_by_another_one(core: Core) -> None:
    up(core)
    core.handle(member("a"), 0)
    core.handle(member("b"), 0)
    core.handle(member("c"), 0)
    commands = core.handle(CallBroke(call="a/s", worker="m/0", error="cut"), 0.01)
    assert sent(commands) == ["b/s"] and core.leads("b/s")
    (deviation,) = told(commands)
    assert (deviation.hint, deviation.planned, deviation.chosen) == ("leader", "a/s", "b/s")
    assert sent(core.handle(done("b"), 0.02)) == ["c/s"]


def test_what_a_group_begins_with_takes_memory_once(core: Core) -> None:
    up(core, joins=True, kv=1500)
    assert [sent(core.handle(member(name), 0)) for name in "abcd"] == [
        ["a/s"],
        ["b/s"],
        ["c/s"],
        ["d/s"],
    ]
    assert sent(core.handle(member("e"), 0)) == []  # 900 + 5 * 110 tokens are too many
    assert core.workers["m/0"].kv_reserved == 900 + 4 * 110
    assert sent(core.handle(done("a"), 1)) == ["e/s"]


def test_a_plans_turn_goes_before_the_arrival_of_programs(core: Core) -> None:
    up(core, slots=1)
    core.handle(ready("a"), 0)
    core.handle(ready("b"), 0)
    core.handle(ready("c", order_key=0.5), 0)
    assert sent(core.handle(done("a"), 1)) == ["c/s"]


def test_the_planned_worker_is_waited_for_a_moment_and_then_another_one_taken(core: Core) -> None:
    for name in ("m/0", "m/1"):
        up(core, name, slots=1, joins=True)
    to = {"worker": "m/1"}
    first = core.handle(ready("a", **to), 0)
    assert first[0] == Dispatch(call="a/s", worker="m/1", priority=0)
    commands = core.handle(member("b", **to), 0)
    assert sent(commands) == [] and isinstance(commands[-1], SetTimer)
    late = core.handle(TimerFired(), commands[-1].due_s)
    assert sent(late) == ["b/s"]
    assert {(one.hint, one.planned, one.chosen) for one in told(late)} == {
        ("worker", "m/1", "m/0"),
        ("leader", "a/s", "b/s"),
    }


def test_a_wait_that_begins_at_0_s_for_a_call_that_shares_nothing_ends(core: Core) -> None:
    for name in ("m/0", "m/1"):
        up(core, name, slots=1)
    core.handle(ready("a", worker="m/1"), 0)
    commands = core.handle(ready("b", worker="m/1"), 0)
    assert sent(commands) == [] and 0 < commands[-1].due_s < 0.001
    assert sent(core.handle(TimerFired(), commands[-1].due_s)) == ["b/s"]


def test_a_prefix_is_pinned_where_it_is_wanted_and_let_go_when_it_is_over(core: Core) -> None:
    up(core, "m/0")
    up(core, "m/1")
    known = PrefixKnown(session="g", model="m", tokens=900, worker="m/1")
    assert core.handle(known, 0) == [
        Warm(session="g", worker="m/1"),
        Retain(session="g", worker="m/1", until_s=None),
    ]
    assert core.workers["m/1"].kv_pinned == 900
    assert core.handle(PrefixOver(session="g"), 1) == [Release(session="g", worker="m/1")]
    assert core.workers["m/1"].kv_pinned == 0
    assert core.handle(PrefixOver(session="g"), 1) == []


def test_a_group_that_is_over_holds_nobody_back(core: Core) -> None:
    up(core)
    core.handle(member("a"), 0)
    core.handle(member("b"), 0)
    assert sent(core.handle(PrefixOver(session="g"), 0.01)) == ["b/s"]


def test_a_call_waits_for_its_worker_while_others_keep_the_rest_busy(core: Core) -> None:
    for name in ("m/0", "m/1"):
        up(core, name, slots=1, joins=True)
    for program, worker in zip("abcd", ("m/0", "m/1", "m/1", "m/0"), strict=True):
        core.handle(ready(program, worker=worker), 0)
    assert sent(core.handle(done("a"), 9)) == ["d/s"]
    assert sent(core.handle(done("b"), 10)) == ["c/s"]
    assert {call: state.worker for call, state in core.calls.items()} == {
        "c/s": "m/1",
        "d/s": "m/0",
    }
