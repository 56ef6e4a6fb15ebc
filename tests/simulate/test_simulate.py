"""Workloads on simulated engines with the real core: what comes out, and that it is the same twice."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import anyio
import pytest

from tenter.kvpolicy import named
from tenter.planner.graph import Sampling
from tenter.runtime.backends.replica import Draw, Replica
from tenter.runtime.backends.sim import SimulatedBackend
from tenter.runtime.blocks import block_end
from tenter.runtime.calls import CallId, Chunk, Request, SessionId
from tenter.runtime.clock import VirtualLoop, now
from tenter.runtime.errors import InvalidConfig, InvalidInput
from tenter.runtime.replay import (
    Pause,
    Program,
    Span,
    Turn,
    Workload,
    fitting,
    swe_bench,
    token_ids,
    traced,
    write_workload,
)
from tenter.runtime.scheduler.core import Core
from tenter.runtime.scheduler.events import (
    Command,
    Event,
    ProgramArrived,
    ProgramEnded,
    Retain,
    StartProgram,
    ToolEnded,
    ToolStarted,
)
from tenter.runtime.scheduler.loop import Answer, Scheduler
from tenter.runtime.scheduler.policies import ORDERS
from tenter.runtime.simulate import Result, Setup, Stalled, drive, load, simulate, survey
from tenter.runtime.simulate.stock import Stock
from tenter.runtime.simulate.text import Text, blocks, sequence_of, write
from tenter.runtime.trace import TraceWriter

TIGHT = 0.15  # of the memory: programs push each other out


def programs(*made: Program) -> Workload:
    return Workload("made", lambda: iter(made))


def chat(name: str, stream: int, turns: int, pause_s: float, at_s: float = 0.0) -> Program:
    """A conversation: each prompt is the last one, its answer of 20 tokens, and 180 new tokens."""

    def turn(index: int) -> tuple[Turn]:
        pause = Pause(pause_s, "tool", "bash", "git") if index < turns - 1 else None
        return (Turn((Span(stream, 0, 2000 + 200 * index),), 20, pause),)

    return Program(at_s, name, tuple(turn(index) for index in range(turns)))


@pytest.mark.parametrize("policy", ["stock", "shadow-price", "continuum"])
def test_a_program_alone_takes_its_calls_and_its_pauses(policy: str) -> None:
    result = simulate(programs(chat("a", 1, 4, 5.0)), Setup(policy=policy, page_tokens=16))
    assert result.programs == 1 and result.calls == 4 and result.failed == 0
    # Three pauses, the time to compute 2,000 and 3 x 180 tokens, and 80 steps of 7 ms.
    assert 15.0 + 0.5 < result.mean_s < 15.0 + 1.0
    assert result.span_s == pytest.approx(result.mean_s)
    assert result.output_tokens == 80 and result.prompt_tokens == 2000 + 2200 + 2400 + 2600


def test_answers_are_found_in_the_cache_by_the_next_turn() -> None:
    result = simulate(programs(chat("a", 1, 4, 5.0)), Setup(page_tokens=16))
    # Of each earlier prompt and answer all but the last token drawn and what fills no page.
    assert result.cached_tokens >= 2020 + 2220 + 2420 - 3 * 17
    assert result.computed_tokens == result.prompt_tokens - result.cached_tokens
    assert result.recomputed_tokens <= 3 * 17


def test_turns_side_by_side_are_waited_for_together() -> None:
    def turn(stream: int, output: int, pause_s: float) -> Turn:
        return Turn((Span(stream, 0, 500),), output, Pause(pause_s))

    parallel = Program(0.0, "p", ((turn(1, 10, 1.0), turn(2, 10, 8.0)), (turn(3, 10, 60.0),)))
    result = simulate(programs(parallel), Setup())
    assert 8.0 < result.mean_s < 9.0  # the longer pause, and not the one after the last answer
    assert result.calls == 3


def tight(seed: int = 1) -> Workload:
    return fitting(swe_bench(30, 0.2, seed), Setup(kv_share=TIGHT).context_tokens)


def trace_of(path: Path, policy: str, seed: int = 1) -> tuple[Result, bytes]:
    writer = TraceWriter(path)
    setup = Setup(policy=policy, kv_share=TIGHT, replicas=2)
    result = simulate(tight(seed), setup, writer)
    writer.close()
    return result, path.read_bytes()


@pytest.mark.parametrize("policy", ["stock", "shadow-price", "continuum", "clairvoyant"])
def test_the_same_workload_gives_the_same_trace_byte_for_byte(tmp_path: Path, policy: str) -> None:
    one, other = trace_of(tmp_path / "one", policy), trace_of(tmp_path / "other", policy)
    assert one[1] == other[1] and len(one[1]) > 50_000
    assert one[0].record() == other[0].record()


@pytest.mark.slow
def test_another_seed_gives_another_trace(tmp_path: Path) -> None:
    one, other = (trace_of(tmp_path / f"{seed}", "stock", seed)[1] for seed in (1, 2))
    assert one != other


def test_a_simulated_trace_is_a_workload_again(tmp_path: Path) -> None:
    trace_of(tmp_path / "trace.jsonl", "stock")
    again = load(str(tmp_path))
    known = {program.name: program for program in tight()}
    assert {program.name for program in again} == known.keys()
    for program in traced(tmp_path / "trace.jsonl"):
        drawn = known[program.name]
        assert len(program.stages) == len(drawn.stages)
        assert program.arrival_s == pytest.approx(drawn.arrival_s)


@pytest.mark.slow
def test_keeping_kv_saves_recomputation_where_memory_is_short() -> None:
    workload = swe_bench(60, 0.2, 3)
    results = {
        policy: simulate(
            workload, Setup(policy=policy, kv_share=0.5, page_tokens=256, working_set=None)
        )
        for policy in ("stock", "never", "forever")
    }
    assert all(result.programs == 60 for result in results.values())
    assert results["forever"].recomputed_tokens < results["never"].recomputed_tokens / 2
    assert results["forever"].mean_s < results["never"].mean_s < results["stock"].mean_s
    assert results["forever"].hit_rate > results["stock"].hit_rate


def test_a_host_tier_brings_back_what_was_evicted() -> None:
    workload = swe_bench(40, 0.2, 3)
    bare = simulate(workload, Setup(policy="stock", kv_share=0.5, page_tokens=256))
    host = simulate(workload, Setup(policy="stock", kv_share=0.5, page_tokens=256, host_gb=500))
    assert bare.loaded_tokens == 0 < host.loaded_tokens
    assert host.recomputed_tokens < bare.recomputed_tokens / 10
    assert host.mean_s < bare.mean_s


@pytest.mark.slow
def test_with_a_host_tier_the_default_does_not_lose_to_keeping_nothing() -> None:
    """Losing a session then costs a copy, not its computation; memory kept idle costs as before."""
    workload = swe_bench(40, 0.25, 3)
    kept, never = (
        simulate(workload, Setup(policy=policy, kv_share=0.4, page_tokens=256, host_gb=500)).mean_s
        for policy in ("shadow-price", "never")
    )
    assert kept < 1.03 * never


class Retained:
    """A trace that notes until when pins were taken."""

    def __init__(self) -> None:
        self.until_s: list[float | None] = []

    def write(self, at_s: float, record: object) -> None:
        if isinstance(record, Retain):
            self.until_s.append(record.until_s)


def test_an_ingredient_can_be_left_out() -> None:
    workload = swe_bench(30, 0.25, 3)
    full = Setup(kv_share=0.4, page_tokens=256)
    whole, unpriced = Retained(), Retained()
    simulate(workload, full, whole)
    simulate(workload, replace(full, without=("price",)), unpriced)
    assert any(until_s is not None for until_s in whole.until_s)
    assert unpriced.until_s and all(until_s is None for until_s in unpriced.until_s)


def test_steps_may_have_a_price_of_their_own() -> None:
    def cost(rows: int, tokens: int, context: int, pairs: float) -> float:
        return 0.5 * rows + 0.001 * tokens

    class Priced(Setup):
        def replica(self, draw: Draw) -> Replica:
            pages = self.page_tokens
            return Replica(*self.presets, self.kv_tokens, draw, page_tokens=pages, step_cost=cost)

    turn = Turn((Span(1, 0, 100),), 5)
    result = simulate(programs(Program(0.0, "a", ((turn,),))), Priced())
    # One step computes the prompt and draws a token, four more draw one each.
    assert result.mean_s == pytest.approx(0.6 + 4 * 0.501)


@pytest.mark.slow
def test_more_replicas_take_more_and_cost_more() -> None:
    workload = swe_bench(40, 0.2, 3)
    one, two = (simulate(workload, Setup(replicas=n, page_tokens=256)) for n in (1, 2))
    assert two.mean_s < one.mean_s
    assert two.gpu_s == pytest.approx(2 * two.span_s)
    assert two.dollars == pytest.approx(2.80 * two.gpu_s / 3600)
    four = Setup(hardware="4xh100", model="llama-3.1-70b")
    assert simulate(programs(chat("a", 1, 2, 1.0)), four).gpu_s > 4.0


def test_a_program_that_does_not_fit_fails_and_the_others_go_on() -> None:
    large = Program(0.0, "large", ((Turn((Span(9, 0, 200_000),), 20),),))
    for policy in ("stock", "shadow-price"):
        workload = programs(large, chat("a", 1, 2, 1.0))
        result = simulate(workload, Setup(policy=policy, kv_share=0.3))
        assert (result.programs, result.failed) == (1, 1)
        assert "200" in result.why_failed


def test_who_waits_for_ever_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stock, "handle", lambda self, event, now_s: [])
    with pytest.raises(Stalled, match=r"2 live programs: a, b wait to be admitted.*free tokens"):
        simulate(programs(chat("a", 1, 2, 1.0), chat("b", 2, 2, 1.0)), Setup(policy="stock"))


def test_calls_that_wait_for_ever_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def only_admits(self: Stock, event: Event, now_s: float) -> list[Command]:
        return [StartProgram(event.program)] if isinstance(event, ProgramArrived) else []

    monkeypatch.setattr(Stock, "handle", only_admits)
    with pytest.raises(Stalled, match=r"none wait to be admitted; a/0, b/0 wait for a worker"):
        simulate(programs(chat("a", 1, 2, 1.0), chat("b", 2, 2, 1.0)), Setup(policy="stock"))
    monkeypatch.undo()
    monkeypatch.setattr(Replica, "start", lambda self, now_s: None)
    with pytest.raises(Stalled, match=r"a/0 wait in an engine; sim-0 has .* and 1 waiting calls"):
        simulate(programs(chat("a", 1, 2, 1.0)), Setup(policy="stock"))


def test_programs_that_are_no_conversations_keep_nothing() -> None:
    workload = programs(*(chat(f"p{index}", index, 4, 3.0, index / 2) for index in range(9)))
    assert simulate(workload, Setup(policy="forever", kv_share=TIGHT)).pins > 0
    assert simulate(workload, Setup(policy="forever", kv_share=TIGHT, sessions=False)).pins == 0


def test_no_more_programs_are_in_memory_than_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drive, "MOST_LIVE", 3)
    made: list[int] = []

    def batch() -> Iterator[Program]:
        for index in range(20):
            made.append(index)
            yield chat(f"p{index}", index, 2, 1.0)

    ahead: list[int] = []
    workload = Workload("batch", batch)
    result = simulate(workload, Setup(), on_progress=lambda done: ahead.append(len(made) - done))
    assert result.programs == 20 and max(ahead) <= 3 + 1
    assert max(result.completion_s) == pytest.approx(result.span_s)  # from 0, when all were there


def test_progress_counts_programs() -> None:
    told: list[int] = []
    simulate(programs(chat("a", 1, 2, 1.0), chat("b", 2, 2, 1.0)), Setup(), on_progress=told.append)
    assert told == [1, 2]


def test_a_text_has_the_keys_of_its_whole_pages() -> None:
    """The cache asks for keys at once; cut out of the tokens one by one, they are the same."""
    turn = Turn((Span(1, 0, 100), Span(2, 7, 60)), 30)
    sequence = sequence_of("a", turn, 16, 0, 0.0, 0.0)
    text = cast(Text, sequence.tokens)
    cut = [text[start : start + 16] for start in range(0, 153 - 15, 16)]
    assert text.page_keys(100) == cut and text.page_keys(3) == cut[:3]
    write(sequence, 7)
    assert len(text.page_keys(100)) == 10


# ---- the same programs on the live loop -----------------------------------------------------------


class Call:
    """A call of a replayed program, as the live runtime would submit it."""

    model, step, shared_tokens, gang = "m", "turn", 0, 0

    def __init__(self, program: Program, index: int) -> None:
        turn = program.stages[index][0]
        self.program = program.name
        self.request = Request(
            CallId(f"{program.name}/{index}"),
            tuple(token_ids(turn.prompt)),
            Sampling(max_tokens=1024),
            session=SessionId(program.name),
        )
        self.answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def heard(self, chunk: Chunk) -> None: ...

    def lost(self) -> None: ...

    def done(self, answer: Answer) -> None:
        self.answer.set_result(answer)


async def live(workload: Workload, policy: str, kv_tokens: int) -> dict[str, float]:
    """Completion times of `workload` with tasks, the scheduler's loop and a simulated backend."""
    turns = {
        f"{program.name}/{index}": stage[0]
        for program in workload
        for index, stage in enumerate(program.stages)
    }

    def answer(request: Request) -> list[int]:
        return token_ids((turns[request.call].answer,))

    took_s: dict[str, float] = {}
    backend = SimulatedBackend(kv_tokens=kv_tokens, answer=answer, chunk_tokens=2048)
    core = Core(ORDERS["fcfs"], named(policy))
    async with backend, Scheduler(core, {"w": backend}, {"w": "m"}) as scheduler:

        async def run(row: int, program: Program) -> None:
            await anyio.sleep(program.arrival_s - now())
            name, started = program.name, asyncio.Event()
            scheduler.arrive(name, row, "", started.set)
            await started.wait()
            for index, stage in enumerate(program.stages):
                call = Call(program, index)
                scheduler.submit(call)
                assert (await call.answer).error is None
                if (pause := stage[0].pause) is not None:
                    about = {"program": name, "step": "tool", "tool": "bash", "session": name}
                    scheduler.send(ToolStarted(**about))
                    await anyio.sleep(pause.seconds)
                    scheduler.send(ToolEnded(**about, seconds=pause.seconds, ok=True))
            scheduler.send(ProgramEnded(program=name, row=row, ok=True))
            took_s[name] = now() - program.arrival_s

        async with anyio.create_task_group() as tasks:
            for row, program in enumerate(workload):
                tasks.start_soon(run, row, program)
    return took_s


@pytest.mark.parametrize("policy", ["never", "forever", "continuum"])
def test_the_heap_agrees_with_the_live_loop(policy: str) -> None:
    """Tasks hear of an answer when the next step has begun: a step per call is the difference."""
    workload = programs(*(chat(f"p{i}", i, 5, 0.3 + i % 4, 0.1 * i) for i in range(12)))
    setup = Setup(policy=policy, kv_share=0.06, page_tokens=16, chunk_tokens=2048)
    found = simulate(workload, setup)
    expected = anyio.run(
        live, workload, policy, setup.kv_tokens, backend_options={"loop_factory": VirtualLoop}
    )
    assert sorted(found.completion_s) == pytest.approx(sorted(expected.values()), rel=0.05)
    assert found.mean_s == pytest.approx(sum(expected.values()) / 12, rel=0.02)


# ---- what can be wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"hardware": "tpu"}, "no hardware 'tpu'; there is a100, h100"),
        ({"model": "gpt-9"}, "no model 'gpt-9'; there is codellama"),
        ({"policy": "best"}, "no retention policy 'best'; known: .*stock"),
        ({"order": "random"}, "no order 'random'; there is fcfs"),
        ({"without": ("luck",)}, "'luck' is none of price, elapsed"),
        ({"model": "llama-3.1-70b"}, r"leaves 0 tokens of KV on h100.*4xh100"),
        ({"replicas": 0}, "replicas must be positive, not 0"),
        ({"host_gb": -1.0}, "host_gb must be 0 or more, not -1"),
    ],
    ids=lambda given: next(iter(given)) if isinstance(given, dict) else "",
)
def test_a_wrong_setup_is_named(given: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        Setup(**given)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("name", "rate", "message"),
    [
        ("swe-bench:many", 1.0, "write how many programs: swe-bench:200"),
        ("swe-bench:0", 1.0, "write how many programs"),
        ("swe-bench:10", None, "give a rate: --rate 0.1"),
        ("swe-bench:10", -1.0, "must be positive, not -1 per second"),
        ("nothing.jsonl", None, "there is no workload 'nothing.jsonl'; give a JSONL workload"),
        ("swe:10", 1.0, "there is no workload 'swe:10'.*swe-bench:200, bfcl-web:200"),
    ],
)
def test_a_wrong_workload_is_named(name: str, rate: float | None, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        load(name, rate)


def test_workloads_by_name(tmp_path: Path) -> None:
    assert load("bfcl-web:7", 0.5, seed=3).programs == 7
    path = tmp_path / "mine.jsonl"
    write_workload(programs(*timed()), path)
    assert [program.arrival_s for program in load(str(path))] == [1.0, 2.0, 9.0]
    assert [program.arrival_s for program in load(str(path), 0.5)] == pytest.approx([0, 0.5, 4.0])
    write_workload(programs(chat("a", 1, 2, 1.0), chat("b", 2, 2, 1.0)), path)
    arrivals = [program.arrival_s for program in load(str(path), 0.5, seed=1)]
    assert 0 < arrivals[0] < arrivals[1]  # it has no times of its own


def timed() -> Iterator[Program]:
    for index, at_s in enumerate((1.0, 2.0, 9.0)):
        yield chat(f"p{index}", index, 2, 1.0, at_s)


def test_a_survey_says_what_an_author_would_set() -> None:
    seen = survey(programs(chat("a", 1, 3, 1.0)))
    assert (seen.programs, seen.calls, seen.longest_answer) == (1, 3, 20)
    assert seen.limit_tokens == 1024 and seen.page_tokens == 16
    long = Turn((Span(1, 0, 40_000),), 5_000)
    seen = survey(programs(Program(0.0, "p", ((long,),))))
    assert seen.limit_tokens == 8192 and seen.page_tokens == 128


def test_blocks_name_the_beginnings_that_the_live_runtime_hashes() -> None:
    prompt = (Span(0, 0, 1000), Span(7, 0, 5000))
    names = blocks(prompt)
    assert block_end(len(names) - 1) <= 6000 < block_end(len(names))
    assert len(set(names)) == len(names)
    longer, other = (*prompt, Span(8, 0, 3000)), (Span(0, 0, 1000), Span(9, 0, 5000))
    assert blocks(longer)[: len(names)] == names
    shared = sum(a == b for a, b in zip(names, blocks(other), strict=True))
    assert block_end(shared - 1) <= 1000 < block_end(shared)
