"""Calls of one chain, such as the pieces of a thought: a turn and a room that the next one keeps."""

import pytest

from tenter.runtime.scheduler.core import Core
from tenter.runtime.scheduler.events import (
    CallEnded,
    CallReady,
    Command,
    Dispatch,
    ProgramArrived,
    TimerFired,
    WorkerUp,
)
from tenter.runtime.scheduler.waiting import LINGER_S


def ready(call: str, chain: str | None = None) -> CallReady:
    program = call.partition("/")[0]
    return CallReady(call, program, "s", "m", prompt_tokens=10, max_tokens=10, chain=chain)


def cut(call: str, finish: str = "length") -> CallEnded:
    program = call.partition("/")[0]
    return CallEnded(call, program, "s", finish)  # type: ignore[arg-type]


def dispatched(commands: list[Command]) -> list[str]:
    return [command.call for command in commands if isinstance(command, Dispatch)]


@pytest.fixture
def core() -> Core:
    """One slot, and two programs."""
    core = Core()
    core.handle(WorkerUp(worker="m/0", model="m", max_running=1, kv_tokens=1000), 0)
    for program in ("p", "q"):
        core.handle(ProgramArrived(program=program, row=0, workflow="w"), 0)
    return core


def test_a_thought_that_is_cut_goes_on_before_a_later_program_gets_its_room(core: Core) -> None:
    assert dispatched(core.handle(ready("p/1", "a"), 0)) == ["p/1"]
    core.handle(ready("q/1", "a"), 0)
    assert dispatched(core.handle(cut("p/1"), 1)) == []
    assert dispatched(core.handle(ready("p/2", "a"), 1)) == []
    assert dispatched(core.handle(TimerFired(), 1 + LINGER_S)) == ["p/2"]
    core.check()


def test_room_that_nobody_goes_on_in_is_free_an_instant_later(core: Core) -> None:
    core.handle(ready("p/1", "a"), 0)
    core.handle(ready("q/1", "a"), 0)
    assert dispatched(core.handle(cut("p/1"), 1)) == []
    assert dispatched(core.handle(TimerFired(), 1 + LINGER_S)) == ["q/1"]


def test_a_thought_that_has_ended_leaves_its_room_at_once(core: Core) -> None:
    core.handle(ready("p/1", "a"), 0)
    core.handle(ready("q/1", "a"), 0)
    assert dispatched(core.handle(cut("p/1", "stop"), 1)) == ["q/1"]


def test_nothing_lingers_where_nobody_waits(core: Core) -> None:
    core.handle(ready("p/1", "a"), 0)
    core.handle(cut("p/1"), 1)
    assert dispatched(core.handle(ready("p/2", "a"), 1)) == ["p/2"]


def test_samples_of_one_program_do_not_take_turns_at_room_for_some_of_them(core: Core) -> None:
    core.handle(ready("p/a1", "a"), 0)
    core.handle(ready("p/b1", "b"), 0)
    for piece in range(1, 4):
        core.handle(cut(f"p/a{piece}"), piece)
        core.handle(ready(f"p/a{piece + 1}", "a"), piece)
        assert dispatched(core.handle(TimerFired(), piece + LINGER_S)) == [f"p/a{piece + 1}"]
    assert dispatched(core.handle(cut("p/a4", "stop"), 9)) == ["p/b1"]


def test_whoever_lingers_again_holds_up_others_for_an_instant_only(core: Core) -> None:
    core.handle(ready("q/1"), 0)
    core.handle(ready("p/1", "a"), 0)
    core.handle(ready("q/2"), 0)
    core.handle(cut("q/1", "stop"), 1)
    core.handle(cut("p/1"), 2)
    assert dispatched(core.handle(TimerFired(), 2 + LINGER_S)) == ["q/2"]
    core.check()


def test_cuts_that_follow_each_other_closely_hold_up_nobody_for_ever() -> None:
    """The timer is late, as in a busy process, so that each cut comes before it."""
    core = Core()
    core.handle(WorkerUp(worker="m/0", model="m", max_running=16, kv_tokens=1000), 0)
    for program in ("p", "q"):
        core.handle(ProgramArrived(program=program, row=0, workflow="w"), 0)
    for sample in range(16):
        core.handle(ready(f"p/{sample}", f"{sample}"), 0)
    core.handle(ready("q/1"), 0)
    gone: list[str] = []
    for sample in range(8):
        gone += dispatched(core.handle(cut(f"p/{sample}"), 1 + 1.01 * LINGER_S * sample))
    assert "q/1" in gone
    core.check()
