"""Limits of models and tenants, token budgets, the working set, and Past-Future's admission."""

from random import Random

import pytest
from msgspec.structs import replace

from tenter.runtime.errors import InvalidConfig
from tenter.runtime.scheduler.core import Core
from tenter.runtime.scheduler.events import (
    CallEnded,
    CallReady,
    Change,
    Command,
    Dispatch,
    DropCall,
    ProgramArrived,
    ProgramEnded,
    Release,
    SetTimer,
    StartProgram,
    TimerFired,
    ToolStarted,
    WorkerUp,
)
from tenter.runtime.scheduler.limits import Limit, Limits


class Bench:
    """A core with one worker."""

    def __init__(
        self,
        limits: Limits,
        slots: int = 8,
        kv: int = 10_000,
        seed: int = 0,
        tiered: bool = False,
        hold_s: float | None = None,
        joins: bool = False,
    ) -> None:
        self.core = Core(hold=lambda pause: hold_s, limits=limits, random=Random(seed))
        self.now_s = 0.0
        up = WorkerUp(worker="m/0", model="m", max_running=slots, kv_tokens=kv, tiered=tiered)
        self.tell(replace(up, joins=joins))

    def tell(self, event: object) -> list[Command]:
        commands = self.core.handle(event, self.now_s)  # type: ignore[arg-type]
        self.core.check()
        return commands

    def program(self, name: str, tenant: str = "") -> list[Command]:
        return self.tell(ProgramArrived(program=name, row=0, workflow="w", tenant=tenant))

    def ask(self, call: str, prompt: int = 100, output: int = 20, **more: object) -> list[str]:
        ready = CallReady(
            call=call,
            program=call.partition("/")[0],
            model="m",
            prompt_tokens=prompt,
            max_tokens=output,
            **{"step": "s", **more},  # type: ignore[arg-type]
        )
        return sent(self.tell(ready))

    def end(
        self, call: str, prompt: int = 100, output: int = 20, step: str = "s", decode_s: float = 0.1
    ) -> list[str]:
        program = call.partition("/")[0]
        usage = {"prompt_tokens": prompt, "output_tokens": output, "decode_s": decode_s}
        return sent(
            self.tell(CallEnded(call=call, program=program, step=step, finish="stop", **usage))  # type: ignore[arg-type]
        )

    def answered(self, step: str, output: int, decode_s: float = 0.1) -> None:
        """Forty answers of this length, one after the other."""
        for index in range(40):
            self.ask(f"p/{step}{index}", 100, 900, step=step)
            self.end(f"p/{step}{index}", 100, output, step, decode_s)


def sent(commands: list[Command]) -> list[str]:
    return [command.call for command in commands if isinstance(command, Dispatch)]


def test_a_tenant_at_its_limit_lets_others_pass() -> None:
    bench = Bench(Limits(tenants={"a": Limit(max_running=1)}))
    bench.program("p", "a")
    bench.program("q", "b")
    assert bench.ask("p/1") == ["p/1"]
    assert bench.ask("p/2") == [] and bench.ask("p/3") == []
    assert bench.ask("q/1") == ["q/1"] and bench.ask("q/2") == ["q/2"]
    assert bench.end("p/1") == ["p/2"]
    assert bench.end("p/2") == ["p/3"]


def test_a_limit_for_all_holds_for_each_that_is_not_named() -> None:
    bench = Bench(Limits(tenants={"*": Limit(max_running=1), "b": Limit(max_running=2)}))
    for name in ("a", "b", "c"):
        bench.program(name, name)
    ran = [call for name in "abc" for index in range(3) for call in bench.ask(f"{name}/{index}")]
    assert ran == ["a/0", "b/0", "b/1", "c/0"]


def test_a_model_runs_no_more_calls_than_its_limit() -> None:
    bench = Bench(Limits(models={"m": Limit(max_running=2)}))
    bench.program("p")
    assert [bench.ask(f"p/{index}") for index in range(3)] == [["p/0"], ["p/1"], []]
    assert bench.end("p/0") == ["p/2"]


def test_a_gang_larger_than_a_limit_goes_one_by_one() -> None:
    bench = Bench(Limits(tenants={"*": Limit(max_running=2)}))
    bench.program("p")
    gang = {"group": "g", "gang": 3}
    assert bench.ask("p/1", **gang) == [] and bench.ask("p/2", **gang) == []
    assert bench.ask("p/3", **gang) == ["p/1", "p/2"]
    assert bench.end("p/1") == ["p/3"]


def test_live_programs_of_a_tenant_are_bounded() -> None:
    bench = Bench(Limits(tenants={"a": Limit(max_live=1)}))
    assert bench.program("a1", "a") == [StartProgram(program="a1")]
    assert bench.program("a2", "a") == []
    assert bench.program("b1", "b") == [StartProgram(program="b1")]
    ended = bench.tell(ProgramEnded(program="a1", row=0, ok=True))
    assert ended == [StartProgram(program="a2")]


@pytest.mark.parametrize("kind", ["models", "tenants"])
def test_a_token_budget_fills_evenly_and_what_was_not_used_comes_back(kind: str) -> None:
    name = {"models": "m", "tenants": "a"}[kind]
    bench = Bench(Limits(**{kind: {name: Limit(tokens_per_minute=600)}}))  # type: ignore[arg-type]
    bench.program("p", "a")
    assert bench.ask("p/1", 100, 400) == ["p/1"]  # 100 are left
    commands = bench.tell(ready_of("p/2", 200, 100))
    assert commands == [SetTimer(due_s=20.0)]  # ten a second
    bench.now_s = 10.0
    assert bench.end("p/1", 100, 50) == ["p/2"]  # 350 were not used
    bench.now_s = 11.0
    assert bench.ask("p/3", 500, 100) == []
    bench.now_s = 20.0  # the alarm that was set
    (timer,) = bench.tell(TimerFired())
    assert isinstance(timer, SetTimer)
    bench.now_s = timer.due_s
    assert sent(bench.tell(TimerFired())) == ["p/3"]


def ready_of(call: str, prompt: int, output: int) -> CallReady:
    program = call.partition("/")[0]
    return CallReady(
        call=call, program=program, step="s", model="m", prompt_tokens=prompt, max_tokens=output
    )


def test_a_call_larger_than_a_budget_is_refused_with_the_numbers() -> None:
    bench = Bench(Limits(tenants={"a": Limit(tokens_per_minute=100)}))
    bench.program("p", "a")
    (drop,) = bench.tell(ready_of("p/1", 90, 20))
    assert isinstance(drop, DropCall)
    assert drop.reason == (
        "it needs 90 prompt tokens plus 20 for the answer, more than the 100 tokens per minute of "
        "tenant 'a'"
    )


def test_a_large_call_is_not_passed_by_small_ones_of_its_tenant() -> None:
    bench = Bench(Limits(tenants={"*": Limit(tokens_per_minute=600)}))
    bench.program("p")
    bench.ask("p/1", 500, 50)
    assert bench.ask("p/2", 300, 0) == []
    for index in range(3, 9):
        bench.now_s += 4.0
        assert bench.ask(f"p/{index}", 10, 0) == []
    bench.now_s = 25.0
    assert sent(bench.tell(TimerFired()))[0] == "p/2"


# ---- the working set ----------------------------------------------------------------------------


def turn(bench: Bench, program: str, number: int, prompt: int, session: bool = True) -> list[str]:
    more = {"session": f"{program}/s"} if session else {}
    return bench.ask(f"{program}/{number}", prompt, 20, **more)


def test_a_program_that_would_not_fit_waits_as_a_whole_and_members_go_on() -> None:
    bench = Bench(Limits(working_set=0.5, acting_s=100.0), kv=2_000)
    for name in ("a", "b", "c"):
        bench.program(name)
    assert turn(bench, "a", 1, 500) == ["a/1"]
    assert turn(bench, "b", 1, 400) == ["b/1"]
    assert turn(bench, "c", 1, 300) == []  # a thousand tokens is the bound
    assert bench.end("a/1", 500) == []
    bench.tell(ToolStarted(program="a", step="t", tool="x", session="a/s"))
    assert turn(bench, "a", 2, 540) == ["a/2"]  # a member, though it has outgrown the bound
    bench.end("a/2", 540)
    assert "c/1" in sent(bench.tell(ProgramEnded(program="a", row=0, ok=True)))


def test_contexts_that_outgrow_the_set_pause_the_program_that_came_last() -> None:
    bench = Bench(Limits(working_set=0.5, acting_s=100.0), kv=2_000)
    for name in ("a", "b"):
        bench.program(name)
        turn(bench, name, 1, 400)
    bench.end("b/1", 400)
    bench.tell(ToolStarted(program="b", step="t", tool="x", session="b/s"))
    usage = {"prompt_tokens": 700, "output_tokens": 20}
    ended = CallEnded(call="a/1", program="a", step="s", finish="stop", **usage)  # type: ignore[arg-type]
    assert Release(session="b/s", worker="m/0") in bench.tell(ended)
    assert turn(bench, "a", 2, 720) == ["a/2"]
    assert turn(bench, "b", 2, 420) == []
    assert bench.end("a/2", 720) == ["b/2"]  # nobody computes any more


def test_a_long_tool_holds_nobody_up() -> None:
    bench = Bench(Limits(working_set=0.5, acting_s=5.0), kv=2_000, hold_s=0.0)
    for name in ("a", "b", "c"):
        bench.program(name)
    turn(bench, "a", 1, 500)
    turn(bench, "b", 1, 300)
    bench.end("a/1", 500)
    assert turn(bench, "c", 1, 400) == []
    bench.now_s = 5.0
    assert sent(bench.tell(TimerFired())) == ["c/1"]


def test_where_no_member_computes_anybody_may_enter() -> None:
    bench = Bench(Limits(working_set=0.1, acting_s=1e6), kv=2_000)
    for name in ("a", "b"):
        bench.program(name)
    assert turn(bench, "a", 1, 900) == ["a/1"]
    assert turn(bench, "b", 1, 900) == []
    assert bench.end("a/1", 900) == ["b/1"]


def test_a_program_that_holds_nothing_costs_nothing() -> None:
    bench = Bench(Limits(models={"m": Limit(max_live=1)}))
    for name in ("a", "b"):
        bench.program(name)
    assert turn(bench, "a", 1, 100, session=False) == ["a/1"]
    assert turn(bench, "b", 1, 100, session=False) == []
    assert bench.end("a/1") == ["b/1"]


def test_a_pinned_context_counts_for_as_long_as_it_is_pinned() -> None:
    bench = Bench(Limits(working_set=0.5, acting_s=5.0), kv=2_000, hold_s=12.0)
    for name in ("a", "b", "c"):
        bench.program(name)
    turn(bench, "a", 1, 500)
    turn(bench, "b", 1, 300)
    bench.end("a/1", 500)
    bench.tell(ToolStarted(program="a", step="t", tool="x", session="a/s"))
    assert turn(bench, "c", 1, 400) == []
    for bench.now_s in (5.0, 10.0):
        assert sent(bench.tell(TimerFired())) == []
    bench.now_s = 15.0
    assert sent(bench.tell(TimerFired())) == ["c/1"]


@pytest.mark.parametrize(
    ("limits", "tiered", "enters"),
    [
        (Limits(), False, []),
        (Limits(), True, ["c/1"]),  # what is evicted comes back cheaply
        (Limits(working_set=None), False, ["c/1"]),
        (Limits(working_set=1.0), True, []),
    ],
    ids=["default", "a tier below", "off", "asked for"],
)
def test_by_default_contexts_may_fill_the_memory_where_there_is_no_tier_below(
    limits: Limits, tiered: bool, enters: list[str]
) -> None:
    bench = Bench(limits, kv=1_000, tiered=tiered, hold_s=0.0)
    for name in ("a", "b", "c"):
        bench.program(name)
    turn(bench, "a", 1, 400)
    turn(bench, "b", 1, 300)
    bench.end("a/1", 400)
    assert turn(bench, "c", 1, 400) == enters


def test_calls_without_a_session_are_never_held_for_the_working_set() -> None:
    bench = Bench(Limits(), kv=1_000)
    for name in ("a", "b", "c"):
        bench.program(name)
    turn(bench, "a", 1, 400)
    turn(bench, "b", 1, 400)
    bench.end("a/1", 400)
    assert turn(bench, "c", 1, 300, session=False) == ["c/1"]


def test_an_answer_that_breaks_off_may_have_taken_all_it_might() -> None:
    bench = Bench(Limits(models={"m": Limit(tokens_per_minute=600)}))
    bench.program("p")
    assert bench.ask("p/1", 100, 400) == ["p/1"]
    broken = CallEnded(call="p/1", program="p", step="s", finish="error", error="no finish")

    assert sent(bench.tell(broken)) == []
    assert bench.ask("p/2", 100, 400) == []


# ---- what is expected to fit --------------------------------------------------------------------


def test_past_future_admits_by_late_lengths_and_a_seed_decides() -> None:
    def admitted(past_future: bool, seed: int = 0) -> int:
        bench = Bench(Limits(past_future=past_future), slots=64, kv=4_000, seed=seed)
        bench.program("p")
        bench.answered("s", 50)
        return sum(len(bench.ask(f"p/{index}", 100, 900)) for index in range(40))

    assert admitted(False) == 3
    assert 20 <= admitted(True) <= 30  # 150 tokens each, of 3,800
    assert admitted(True, 1) == admitted(True, 1)


def test_answers_of_one_step_are_not_expected_of_another() -> None:
    def admitted(step: str) -> int:
        bench = Bench(Limits(), slots=64, kv=4_000)
        bench.program("p")
        bench.answered("note", 50)
        bench.answered("think", 850)
        return sum(len(bench.ask(f"p/{index}", 100, 900, step=step)) for index in range(40))

    assert admitted("think") == 4  # 950 tokens each, of 3,800
    assert 20 <= admitted("note") <= 30  # 150 tokens each
    assert 4 <= admitted("new") < 15, "a step without answers: those of all"


def test_calls_that_take_longer_than_all_before_keep_what_they_have_taken() -> None:
    bench = Bench(Limits(), slots=64, kv=4_000)
    bench.program("p")
    bench.answered("s", 50, decode_s=5.0)  # ten tokens a second
    assert sum(len(bench.ask(f"p/{index}", 100, 900)) for index in range(12)) == 12

    bench.now_s += 20.0  # 200 tokens each, and no answer has been so long: 900 may come
    assert bench.ask("p/late", 100, 900) == []


def test_answers_that_took_no_time_tell_no_pace() -> None:
    bench = Bench(Limits(), slots=64, kv=4_000)
    bench.program("p")
    bench.answered("s", 50)
    for index in range(400):  # one-token answers, as of choices: no time passes between tokens
        bench.ask(f"p/tick{index}", 100, 900, step="tick")
        bench.end(f"p/tick{index}", 100, 1 + index % 2, "tick", decode_s=0.0)
    admitted = 0
    for index in range(40):
        bench.now_s += 0.001
        admitted += len(bench.ask(f"p/{index}", 100, 900))
    assert 20 <= admitted <= 30


def test_a_call_that_takes_for_ever_holds_no_more_than_it_may() -> None:
    def admitted(now_s: float) -> int:
        bench = Bench(Limits(), slots=64, kv=4_000)
        bench.program("p")
        bench.answered("s", 50)
        assert bench.ask("p/slow", 100, 900) == ["p/slow"]
        bench.now_s = now_s
        return sum(len(bench.ask(f"p/{index}", 100, 900)) for index in range(40))

    assert 17 <= admitted(1000.0) <= admitted(0.0)


def test_what_a_group_begins_with_is_expected_once() -> None:
    def admitted(group: str | None) -> int:
        bench = Bench(Limits(), slots=64, kv=4_000, joins=True)
        bench.program("p")
        bench.answered("s", 50)
        shared = {"group": group, "leader": "p/0", "shared_tokens": 900} if group else {}
        return sum(len(bench.ask(f"p/{index}", 1_000, 900, **shared)) for index in range(40))

    assert admitted(None) == 3  # 1,050 tokens each, of 3,800
    assert 15 <= admitted("g") <= 19  # 150 each, beside 900


# ---- as settings --------------------------------------------------------------------------------


def test_limits_are_read_from_plain_values() -> None:
    data = {"models": {"m": {"tokens_per_minute": 9}}, "tenants": {"*": {"max_live": 2}}}
    expected = Limits(
        models={"m": Limit(tokens_per_minute=9)}, tenants={"*": Limit(max_live=2)}, working_set=0.9
    )
    assert Limits.read(data | {"working_set": 0.9}) == expected


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"model": {}}, "limits: there is no 'model'; known: models, tenants"),
        ({"tenants": {"a": {"max": 1}}}, "limits.tenants.a: there is no 'max'; known: max_running"),
        ({"tenants": {"a": 3}}, "limits.tenants.a: there must be a mapping with max_running"),
        ({"tenants": ["a"]}, "tenants maps names to limits, and is no list"),
        ({"models": {"m": {"max_live": 0}}}, "limits.models.m: max_live must be .* not 0"),
        ({"models": {"m": {"max_live": True}}}, "max_live must be a whole number .* not True"),
        ({"working_set": 1.5}, "working_set must be above 0 and at most 1, .* not 1.5"),
        ({"working_set": "all"}, "\"auto\", or null .no bound., not 'all'"),
        ({"acting_s": -1}, "acting_s must be 0 or more seconds, not -1"),
        ({"past_future": "yes"}, "past_future is true or false, not 'yes'"),
    ],
    ids=str,
)
def test_a_wrong_limit_is_named(data: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        Limits.read(data)


def test_what_waits_behind_a_call_that_another_limit_holds_back_has_its_turn() -> None:
    """Found by changing limits at random: nothing had those behind it looked at again."""
    bench = Bench(Limits(tenants={"a": Limit(max_running=1)}, working_set=0.1))
    for name in ("p", "q", "r"):
        bench.program(name, "b" if name == "r" else "a")
    assert bench.ask("p/1") == ["p/1"]
    assert bench.ask("r/1", 700, session="r") == ["r/1"]
    assert bench.ask("q/1", 700, session="q") == bench.ask("p/2") == []
    assert bench.end("p/1") == ["p/2"]  # q does not fit into the working set beside r
    assert bench.end("r/1", 700) == []
    assert bench.end("p/2") == ["q/1"]


# ---- limits that change --------------------------------------------------------------------------


def change(bench: Bench, **limits: object) -> list[str]:
    """What is sent when these are the limits."""
    return sent(bench.tell(Change(limits={"working_set": None, **limits})))


@pytest.mark.parametrize("group", ["models", "tenants"])
def test_a_limit_of_calls_is_raised_lowered_and_taken_away(group: str) -> None:
    bench = Bench(Limits(), slots=16)
    bench.program("p", "m")
    assert len([call for n in range(3) for call in bench.ask(f"p/{n}")]) == 3
    assert change(bench, **{group: {"m": {"max_running": 2}}}) == []  # what runs goes on
    assert [bench.ask(f"p/{n}") for n in range(3, 9)] == [[]] * 6
    assert bench.end("p/0") == []
    assert bench.end("p/1") == ["p/3"]
    assert bench.end("p/2") == ["p/4"]
    assert change(bench, **{group: {"*": {"max_running": 4}}}) == ["p/5", "p/6"]
    assert change(bench) == ["p/7", "p/8"]


def test_a_limit_of_programs_changes() -> None:
    bench = Bench(Limits(tenants={"a": Limit(max_live=1)}))
    started = [type(c) for name in "pqrs" for c in bench.program(name, "a")].count(StartProgram)
    assert started == 1
    commands = bench.tell(Change(limits={"tenants": {"a": {"max_live": 3}}}))
    assert [c.program for c in commands if isinstance(c, StartProgram)] == ["q", "r"]
    assert bench.tell(Change(limits={"tenants": {"a": {"max_live": 2}}})) == []
    assert bench.tell(ProgramEnded(program="p", row=0, ok=True)) == []
    (start,) = bench.tell(ProgramEnded(program="q", row=0, ok=True))
    assert start == StartProgram(program="s")


def test_a_minute_that_was_spent_stays_spent_when_its_budget_changes() -> None:
    bench = Bench(Limits(models={"m": Limit(tokens_per_minute=240)}))
    bench.program("p")
    assert bench.ask("p/1") and bench.ask("p/2") and bench.ask("p/3") == []
    assert change(bench, models={"m": {"tokens_per_minute": 1200}}) == []
    bench.now_s = 6.0  # .1 of 1200
    assert "p/3" in sent(bench.tell(TimerFired()))


def test_a_budget_that_begins_counts_what_runs() -> None:
    bench = Bench(Limits())
    bench.program("p")
    assert bench.ask("p/1") and bench.ask("p/2")
    change(bench, models={"m": {"tokens_per_minute": 300}})
    assert bench.ask("p/3") == []


def test_a_call_that_waits_and_is_too_large_for_new_limits_is_refused() -> None:
    bench = Bench(Limits(models={"m": Limit(max_running=1)}))
    bench.program("p")
    assert bench.ask("p/1") and bench.ask("p/2") == []
    (drop,) = bench.tell(Change(limits={"models": {"m": {"tokens_per_minute": 50}}}))
    assert isinstance(drop, DropCall) and "more than the 50 tokens per minute" in drop.reason


def test_limits_change_at_random_and_every_call_has_its_turn() -> None:
    for seed in range(40):
        draw = Random(seed)
        bench = Bench(Limits(), slots=6)
        for name in "abc":
            bench.program(name, name)
        running: list[str] = []
        for number in range(120):
            match draw.randrange(4):
                case 0 | 1:
                    running += bench.ask(f"{draw.choice('abc')}/{number}")
                case 2 if running:
                    running += bench.end(running.pop(draw.randrange(len(running))))
                case _:
                    running += change(bench, **_drawn(draw))
            bench.now_s += draw.random()
        for _ in range(400):
            while running:
                running += bench.end(running.pop())
            bench.now_s += 10.0
            running += sent(bench.tell(TimerFired()))
        assert not bench.core.calls


def _drawn(draw: Random) -> dict[str, object]:
    bounds = [{"max_running": 1}, {"max_running": 3}, {"tokens_per_minute": 600}, {"max_live": 1}]
    return {
        "models": {"m": draw.choice(bounds)} if draw.random() < 0.5 else {},
        "tenants": {name: draw.choice(bounds[:3]) for name in "ab*" if draw.random() < 0.4},
        "working_set": draw.choice([None, 0.5]),
    }
