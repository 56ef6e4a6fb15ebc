"""A tool tells its end: that counts for more than what was learned, in every part of its pause."""

import pytest

from tenter.kvpolicy import DEFAULT_POLICY, POLICIES
from tenter.kvpolicy.shadow_price import SLACK
from tenter.runtime.scheduler.core import Core
from tenter.runtime.scheduler.events import (
    CallEnded,
    CallReady,
    Command,
    Dispatch,
    ProgramArrived,
    Release,
    Retain,
    SessionEnded,
    ToolEnded,
    ToolProgress,
    ToolStarted,
    WorkerUp,
)
from tenter.runtime.scheduler.limits import Limits


class Bench:
    """A worker of 1000 tokens, and program `a`, whose session holds 400 of them at 1.0."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.core = Core(hold=POLICIES[DEFAULT_POLICY], limits=limits or Limits())
        self.tell(0, WorkerUp(worker="m/0", model="m", max_running=8, kv_tokens=1000))
        for name in ("a", "b", "c"):
            self.tell(0, ProgramArrived(program=name, row=0, workflow="w"))
        self.ask(0, "a/1", session="a/s")
        end = CallEnded(
            call="a/1", program="a", step="s", finish="stop", prompt_tokens=400, prefill_s=0.2
        )
        self.tell(1, end)

    def tell(self, now_s: float, event: object) -> list[Command]:
        commands = self.core.handle(event, now_s)  # type: ignore[arg-type]
        self.core.check()
        return commands

    def ask(self, now_s: float, call: str, session: str | None = None) -> list[Command]:
        return self.tell(
            now_s,
            CallReady(
                call=call,
                program=call[0],
                step="s",
                model="m",
                prompt_tokens=390,
                max_tokens=10,
                session=session,
            ),
        )

    def learn(self, seconds: float) -> None:
        for _ in range(200):
            self.tell(1, ToolEnded(program="b", step="t", tool="x", seconds=seconds, ok=True))

    def start(self, now_s: float, tool: str = "x", eta_s: float | None = None) -> list[Command]:
        return self.tell(
            now_s, ToolStarted(program="a", step="t", tool=tool, session="a/s", eta_s=eta_s)
        )

    def progress(self, now_s: float, left_s: float, tool: str = "x") -> list[Command]:
        return self.tell(
            now_s, ToolProgress(program="a", step="t", tool=tool, left_s=left_s, session="a/s")
        )

    def crowd(self, now_s: float) -> list[Command]:
        """One more call fits beside the pin; the other one wants its room."""
        return [*self.ask(now_s, "b/1"), *self.ask(now_s, "c/1")]


RELEASE = Release(session="a/s", worker="m/0")


@pytest.mark.parametrize(
    ("learned_s", "told_s", "kept"), [(0.1, 3000.0, False), (3000.0, 0.2, True)], ids=str
)
def test_what_a_tool_tells_overrides_what_was_learned(
    learned_s: float, told_s: float, kept: bool
) -> None:
    bench = Bench()
    bench.learn(learned_s)
    bench.start(1)
    bench.progress(1.01, told_s)
    commands = bench.crowd(1.02)
    assert (RELEASE in commands) is not kept
    assert ("c/1" in [c.call for c in commands if isinstance(c, Dispatch)]) is not kept


def test_an_authors_hint_overrides_what_was_learned() -> None:
    bench = Bench()
    bench.learn(0.1)
    bench.start(1, eta_s=3000.0)
    assert RELEASE in bench.crowd(1.02)


def test_under_pressure_a_told_end_gives_the_pin_up_or_sets_its_time() -> None:
    bench = Bench()
    bench.learn(0.1)
    bench.start(1)
    assert RELEASE not in bench.crowd(1.02)

    (renewed, *_) = bench.progress(1.05, 0.2)
    assert isinstance(renewed, Retain)
    assert renewed.until_s == pytest.approx(1.05 + 0.2 * (1 + SLACK))
    released, sent, *_ = bench.progress(1.1, 3000.0)
    assert released == RELEASE
    assert isinstance(sent, Dispatch) and sent.call == "c/1", "its room goes to what waits"
    assert bench.progress(1.2, 0.1) == [], "the worker has forgotten it: there is nothing to keep"


def test_a_session_waits_for_the_tool_that_tells_the_latest_end() -> None:
    bench = Bench()
    bench.start(1)
    bench.start(1, "y")
    bench.progress(1.01, 3000.0, "y")
    bench.progress(1.01, 0.2)
    assert RELEASE in bench.crowd(1.02)


def test_of_one_that_ended_its_word_counts_no_more() -> None:
    bench = Bench()
    bench.start(1)
    bench.start(1, "y")
    bench.progress(1.01, 3000.0, "y")
    bench.progress(1.01, 0.2)
    bench.tell(1.02, ToolEnded(program="a", step="t", tool="y", seconds=0, ok=True, session="a/s"))
    assert RELEASE not in bench.crowd(1.03)


def test_a_tool_of_the_last_turn_has_no_say() -> None:
    bench = Bench()
    bench.start(1)
    bench.ask(2, "a/2", session="a/s")
    assert bench.progress(2.5, 3000.0) == []


class TestSessionEnded:
    def test_its_pin_is_given_up_and_it_is_forgotten(self) -> None:
        bench = Bench()
        bench.start(1)
        ended = SessionEnded(program="a", session="a/s")
        assert bench.tell(1.1, ended) == [RELEASE]
        assert bench.core.sessions == {}
        assert bench.core.workers["m/0"].kv_pinned == 0
        assert bench.tell(1.2, ended) == []

    def test_its_room_goes_to_what_waits(self) -> None:
        bench = Bench()
        bench.learn(0.1)
        bench.start(1)
        bench.crowd(1.02)
        commands = bench.tell(1.1, SessionEnded(program="a", session="a/s"))
        assert [c.call for c in commands if isinstance(c, Dispatch)] == ["c/1"]

    def test_it_leaves_the_working_set(self) -> None:
        bench = Bench(Limits(working_set=0.9))
        bench.ask(1, "b/1", session="b/s")
        assert not bench.ask(1, "c/1", session="c/s"), (
            "400 of a's context and 400 of b's are all but 100"
        )
        commands = bench.tell(1.1, SessionEnded(program="a", session="a/s"))
        assert [c.call for c in commands if isinstance(c, Dispatch)] == ["c/1"]

    def test_one_with_a_call_under_way_ends_with_its_program(self) -> None:
        bench = Bench()
        bench.ask(2, "a/2", session="a/s")
        assert bench.tell(2.1, SessionEnded(program="a", session="a/s")) == []
        assert "a/s" in bench.core.sessions
