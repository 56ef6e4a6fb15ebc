"""Whose turn it is, under each order; none starves a call. Times are virtual."""

import pytest

from tenter.runtime.scheduler.core import Core
from tenter.runtime.scheduler.events import (
    CallEnded,
    CallReady,
    Command,
    Dispatch,
    ProgramArrived,
    ProgramEnded,
    StartProgram,
    WorkerUp,
)
from tenter.runtime.scheduler.policies import BETA, ORDERS, PASSED, TURNS, as_order, ordered


class Bench:
    """A core with one worker of one slot; every call that is dispatched takes a second."""

    def __init__(self, order: str, slots: int = 1) -> None:
        self.core = Core(order)
        self.now_s = 0.0
        self.sent: list[str] = []
        self.tell(WorkerUp(worker="m/0", model="m", max_running=slots, kv_tokens=10**6))

    def tell(self, event: object) -> list[Command]:
        commands = self.core.handle(event, self.now_s)  # type: ignore[arg-type]
        self.sent += [command.call for command in commands if isinstance(command, Dispatch)]
        self.core.check()
        return commands

    def program(self, name: str, **more: object) -> None:
        self.tell(ProgramArrived(program=name, row=0, workflow="w", **more))  # type: ignore[arg-type]

    def ask(self, call: str, **more: object) -> None:
        fields = {"step": "s", "model": "m", "prompt_tokens": 10, "max_tokens": 10} | more
        self.tell(CallReady(call=call, program=call.partition("/")[0], **fields))  # type: ignore[arg-type]

    def end(self, call: str, output: int = 5, prompt: int = 10, seconds: float = 1.0) -> None:
        self.now_s += seconds
        self.tell(
            CallEnded(
                call=call,
                program=call.partition("/")[0],
                step="s",
                finish="stop",
                prompt_tokens=prompt,
                output_tokens=output,
                prefill_s=seconds / 2,
                decode_s=seconds / 2,
            )
        )

    def run(self, limit: int = 100) -> list[str]:
        """End what runs, one by one, until nothing does; the calls in the order of their dispatch."""
        ended = 0
        while ended < len(self.sent) and ended < limit:
            self.end(self.sent[ended])
            ended += 1
        return self.sent


def test_least_attained_counts_the_longest_chain_and_not_the_sum() -> None:
    bench = Bench("least-attained", slots=8)
    for name in ("wide", "deep", "x"):
        bench.program(name)
    for index in range(4):
        bench.ask(f"wide/{index}")
    for index in range(4):
        bench.end(f"wide/{index}", output=4_000, seconds=0.01)
    for index in range(4):
        bench.ask(f"deep/{index}")
        bench.end(f"deep/{index}", output=4_000, seconds=0.01)
    for index in range(8):
        bench.ask(f"x/{index}")
    bench.ask("deep/9")
    bench.ask("wide/9")
    bench.end("x/0", seconds=0.01)
    assert bench.sent[-1] == "wide/9"


def test_least_attained_promotes_who_has_waited_too_long() -> None:
    bench = Bench("least-attained")
    bench.program("old")
    bench.ask("old/1")
    bench.end("old/1", output=9_000, seconds=2.0)
    bench.program("x")
    bench.ask("x/0")
    bench.ask("old/2")
    for index in range(40):  # newcomers all the time, each ahead of the old one
        bench.program(f"new{index}")
        bench.ask(f"new{index}/1")
        bench.end(bench.sent[-1])
        if "old/2" in bench.sent:
            break
    assert 2.0 + BETA * 2.0 <= bench.now_s <= 2.0 + BETA * 2.0 + 2.0


def test_shortest_remaining_believes_predictions_and_else_what_was_done() -> None:
    bench = Bench("shortest-remaining")
    for name in ("long", "short", "unknown", "x"):
        bench.program(name)
    bench.ask("x/0")
    bench.ask("long/1", remaining_tokens=9_000.0)
    bench.ask("unknown/1", expected_tokens=100.0)
    bench.ask("short/1", remaining_tokens=100.0)
    assert bench.run() == ["x/0", "short/1", "unknown/1", "long/1"]


def test_deadlines_share_out_what_is_left_over_the_stages() -> None:
    bench = Bench("deadline")
    bench.program("x")
    bench.ask("x/0")
    bench.program("tight", deadline_s=30.0)  # as much of its work comes after this step
    bench.program("loose", deadline_s=40.0)
    bench.program("never")
    bench.ask("never/1", remaining_tokens=90.0)
    bench.ask("loose/1", remaining_tokens=90.0 * 4)  # a quarter of its time is for this one
    bench.ask("tight/1", remaining_tokens=90.0)
    assert bench.run() == ["x/0", "loose/1", "tight/1", "never/1"]


@pytest.mark.parametrize("base", ["fair", "fair:fcfs", "fair:shortest-remaining", "fair:deadline"])
def test_a_tenant_with_more_programs_gets_no_more(base: str) -> None:
    bench = Bench(base)
    bench.program("x", tenant="x")
    bench.ask("x/0")
    for index in range(40):
        bench.program(f"many{index}", tenant="many")
        bench.ask(f"many{index}/1")
    for index in range(10):
        bench.program(f"few{index}", tenant="few")
        bench.ask(f"few{index}/1")
    first = bench.run()[1:21]
    assert sum(call.startswith("few") for call in first) == 10


def test_weights_are_shares() -> None:
    bench = Bench("fair:fcfs")
    bench.program("x", tenant="x")
    bench.ask("x/0")
    for index in range(60):
        for tenant, weight in (("a", 1.0), ("b", 3.0)):
            bench.program(f"{tenant}{index}", tenant=tenant, weight=weight)
            bench.ask(f"{tenant}{index}/1")
    first = bench.run(41)[1:41]
    assert sum(call.startswith("b") for call in first) == pytest.approx(30, abs=1)


def test_who_idled_has_saved_up_nothing() -> None:
    bench = Bench("fair:fcfs")
    for name in ("a", "b"):
        bench.program(name, tenant=name)
    for index in range(50):
        bench.ask(f"a/{index}")
    bench.run(30)
    for index in range(50, 60):
        bench.ask(f"b/{index}")
    sent = len(bench.sent)
    for index in range(sent - 1, sent + 9):
        bench.end(bench.sent[index])
    assert sum(call.startswith("b") for call in bench.sent[sent : sent + 10]) <= 6


def test_what_a_call_took_corrects_what_was_expected() -> None:
    bench = Bench("fair:fcfs")
    for name in ("a", "b"):
        bench.program(name, tenant=name)
        for index in range(30):
            bench.ask(f"{name}/{index}", max_tokens=50)
    for index in range(30):
        call = bench.sent[index]
        bench.end(call, output=40 if call.startswith("a") else 10)
    of_a = sum(call.startswith("a") for call in bench.sent)
    assert 5 <= of_a <= 10  # it takes four times as much for each of its calls


def test_programs_of_tenants_start_in_turns_where_the_order_is_fair() -> None:
    for order, tenant in (("fcfs", "a"), ("fair:fcfs", "b")):
        core = Core(order, max_programs=2)
        started: list[str] = []
        for index in range(5):
            event = ProgramArrived(program=f"a{index}", row=0, workflow="w", tenant="a")
            core.handle(event, 0)
        core.handle(ProgramArrived(program="b0", row=0, workflow="w", tenant="b"), 0)
        for command in core.handle(ProgramEnded(program="a0", row=0, ok=True), 1):
            assert isinstance(command, StartProgram)
            started.append(command.program)
        assert [name[0] for name in started] == [tenant]
        core.check()


def test_priority_breaks_ties_and_then_the_sequence() -> None:
    bench = Bench("shortest-remaining")
    bench.program("x")
    bench.ask("x/0")
    for name, priority in (("a", 1), ("b", 0), ("c", 0)):
        bench.program(name, priority=priority)
        bench.ask(f"{name}/1", remaining_tokens=50.0)
    assert bench.run() == ["x/0", "b/1", "c/1", "a/1"]


@pytest.mark.parametrize("order", [*ORDERS, "fair:least-attained", "fair:deadline"])
def test_nobody_starves(order: str) -> None:
    """A call that every newcomer goes before is answered all the same."""
    bench = Bench(order)
    bench.program("x", tenant="t")
    bench.ask("x/0")
    bench.program("last", tenant="t", priority=9, deadline_s=1e9, expected_tokens=1e9)
    bench.tell(CallEnded(call="none", program="last", step="s", finish="stop"))
    bench.core.programs["last"].path_tokens = 1e9
    bench.ask("last/1", remaining_tokens=1e9)
    for index in range(2 * (PASSED + TURNS)):
        name = f"n{index}"
        bench.program(name, tenant="t", deadline_s=bench.now_s, expected_tokens=1.0)
        bench.ask(f"{name}/1", remaining_tokens=1.0)
        bench.end(bench.sent[-1])
        if "last/1" in bench.sent:
            return
    raise AssertionError("it was passed over all the time")


def test_aging_is_a_share_of_the_decisions() -> None:
    """While it lasts, those that were passed over go first, the oldest first."""
    bench = Bench("shortest-remaining")
    bench.program("x")
    bench.ask("x/0")
    for index in range(30):
        bench.program(f"old{index}")
        bench.ask(f"old{index}/1", remaining_tokens=1e6 - index)
    for index in range(PASSED + TURNS + 5):
        bench.program(f"new{index}")
        bench.ask(f"new{index}/1", remaining_tokens=1.0)
        bench.end(bench.sent[-1])
    old = [call for call in bench.sent if call.startswith("old")]
    assert TURNS - 1 <= len(old) <= TURNS
    assert old == [f"old{index}/1" for index in range(len(old))]


@pytest.mark.parametrize("name", ["best", "fair:best", "fair:fair", "fcfs:fair"])
def test_an_unknown_order_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"no order '{name}'; there is fcfs, .*fair:ORDER"):
        ordered(name)


def test_a_bare_key_is_an_order() -> None:
    core = Core(lambda call: -call.sequence)
    core.handle(WorkerUp(worker="m/0", model="m", max_running=1, kv_tokens=100), 0)
    assert as_order("fcfs") is ORDERS["fcfs"]
    assert as_order(lambda call: 0.0).ages
