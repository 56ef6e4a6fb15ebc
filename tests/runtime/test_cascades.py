"""Cascades: a small model answers what it is sure of, as far as a sample vouches for it."""

import math
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from row_sink import RowSink

from tenter.planner.explain import explain as explain_plan
from tenter.planner.optimize import optimize
from tenter.planner.plan import Context, Expected
from tenter.planner.stats import ColumnStats, TableStats
from tenter.runtime import each, llm, workflow
from tenter.runtime.api import WorkflowHandle
from tenter.runtime.backends.fake import ByteTokenizer, FakeBackend
from tenter.runtime.calls import Chunk, Message, Request, ToolSpec, Usage
from tenter.runtime.clock import VirtualLoop, now
from tenter.runtime.errors import InvalidWorkflow
from tenter.runtime.journal.memory import MemoryJournal
from tenter.runtime.predict import Learned
from tenter.runtime.report.analysis import Analyst
from tenter.runtime.report.explained import analysis_text
from tenter.runtime.run.cascades import Cascades, window_share
from tenter.runtime.run.control import Control
from tenter.runtime.run.local import llm_steps, open_host
from tenter.runtime.run.planned import Planned
from tenter.runtime.run.program import Programs
from tenter.runtime.run.rows import Limits, Row, RowRun
from tenter.runtime.scheduler.events import CascadeLearned
from tenter.runtime.spec import dump, loads

CHOICES = ["even", "odd"]


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualLoop}


def asked_of(request: Request) -> int:
    return int(ByteTokenizer().decode(list(request.token_ids)).rsplit(maxsplit=1)[-1])


class Chooser(FakeBackend):
    """Says whether a number is even; small ones below `sure_from` are guessed, without conviction."""

    def __init__(self, sure_from: int = 0, latency_s: float = 1.0, **more: Any) -> None:
        super().__init__(latency_s=latency_s, remember=True, **more)
        self._sure_from = sure_from

    async def generate(self, request: Request) -> Any:
        async for _ in super().generate(request):
            pass
        number = asked_of(request)
        sure = number >= self._sure_from
        even = number % 2 == 0 if sure else True
        share = 0.97 if sure else 0.55
        scores = (share, 1 - share) if even else (1 - share, share)
        yield Chunk(
            finish="stop",
            usage=Usage(prompt_tokens=len(request.token_ids)),
            choice_logprobs=tuple(math.log(score) for score in scores),
        )


def flow(**settings: Any) -> WorkflowHandle:
    cascade = {"model": "small", "sample": 100, **settings}
    parity = llm("Even or odd: {{ n }}", choices=CHOICES, name="parity", cascade=cascade)

    @workflow
    def numbers(n: str) -> str:
        return parity(n=n)

    return numbers


async def run(
    workflow: WorkflowHandle,
    small: FakeBackend,
    large: FakeBackend,
    rows: int = 1000,
    journal: MemoryJournal | None = None,
    analyst: Analyst | None = None,
    concurrency: int = 256,
    resumed: bool = False,
    window_rows: int = 16_384,
    cells: Callable[[int], dict[str, str]] = lambda n: {"n": str(n)},
    control: Control | None = None,
    known: bool = True,
) -> dict[int, Any]:
    journal, sink = journal or MemoryJournal(), RowSink()
    backends = {"small": small, "default": large}
    async with open_host(backends, journal=journal, trace=analyst, resumed=resumed) as host:
        graph = workflow.workflow.graph
        assert graph is not None
        plan = optimize(graph)
        steps = {step.id: step.step for step in plan.steps if step.cascaded}
        total = rows if known else None
        host.cascades = Cascades(host, steps, total)  # type: ignore[arg-type]
        host.planned = Planned(plan, host.scheduler, cascades=host.cascades)
        runs = RowRun(
            Programs(host, workflow.workflow),
            journal,
            sink,
            control or Control(),
            limits=Limits(concurrency, window_rows=window_rows),
            planned=host.planned,
            resumed=resumed,
        )
        await runs.run(iter([Row(n, {}, cells(n)) for n in range(rows)]))
    return sink.values


def agreement(values: dict[int, Any]) -> float:
    return sum(value == CHOICES[row % 2] for row, value in values.items()) / len(values)


async def test_rows_that_it_is_sure_of_stay_with_the_small_model() -> None:
    small, large, analyst = Chooser(sure_from=400), Chooser(), Analyst()
    values = await run(flow(), small, large, analyst=analyst)

    assert len(values) == 1000
    assert agreement(values) == 1.0
    assert len(small.asked) == 1000
    assert 400 <= len(large.asked) < 550  # the sample, and what the small one guesses
    (step,) = analyst.analysis().steps
    assert step.shared["small-model"] == 1000 - len(large.asked)
    assert "cascade parity: the small model answers where" in analysis_text(analyst.analysis())


async def test_what_disagrees_stays_within_the_share_that_the_author_allows() -> None:
    """A small model that always says even, and is as sure of it for every tenth number."""

    class Careless(Chooser):
        async def generate(self, request: Request) -> Any:
            async for chunk in super().generate(request):
                number = asked_of(request)
                even = number % 2 == 0 or number % 50 == 1
                scores = (0.9, 0.1) if even else (0.1, 0.9)
                yield Chunk(
                    finish="stop",
                    usage=chunk.usage,
                    choice_logprobs=tuple(math.log(score) for score in scores),
                )

    values = await run(flow(target=0.95, sample=300), Careless(latency_s=0), Chooser(latency_s=0))
    assert 0.97 < agreement(values) < 1.0

    large = Chooser(latency_s=0)
    strict = await run(flow(target=0.995, sample=300), Careless(latency_s=0), large)
    assert agreement(strict) == 1.0
    assert len(large.asked) == 1000, "300 rows cannot vouch for so much"


async def test_too_small_a_table_is_answered_by_the_large_model(
    caplog: pytest.LogCaptureFixture,
) -> None:
    small, large = Chooser(), Chooser()
    values = await run(flow(), small, large, rows=80)

    assert agreement(values) == 1.0
    assert len(large.asked) == 80
    assert "40 rows cannot vouch for an agreement of 95.0%: it takes 60" in caplog.text


async def test_few_programs_at_once_are_enough() -> None:
    small, large = Chooser(), Chooser()
    assert agreement(await run(flow(), small, large, rows=300, concurrency=2)) == 1.0
    assert len(large.asked) == 100


async def test_rows_do_not_wait_for_ever_for_the_sample() -> None:
    small, large = Chooser(latency_s=1000.0), Chooser()
    assert agreement(await run(flow(), small, large, rows=300)) == 1.0
    assert len(large.asked) == 300


async def test_each_window_of_rows_is_sampled_anew() -> None:
    small, large = Chooser(latency_s=0), Chooser(latency_s=0)
    await run(flow(), small, large, rows=1000, window_rows=500)
    assert len(large.asked) == 200


async def test_a_small_model_that_fails_leaves_everything_to_the_large_one() -> None:
    small, large = FakeBackend(lambda prompt: "?"), Chooser(latency_s=0)
    small.capabilities = large.capabilities

    async def none(request: Request) -> Any:
        yield Chunk(finish="stop", text="?")

    small.generate = none  # type: ignore[method-assign]
    assert agreement(await run(flow(), small, large, rows=300)) == 1.0
    assert len(large.asked) == 300


async def test_a_small_model_whose_template_refuses_leaves_it_to_the_large_one() -> None:
    class Refusing(ByteTokenizer):
        def chat(self, messages: list[Message], tools: tuple[ToolSpec, ...] = ()) -> list[int]:
            if int(messages[0].content.rsplit(maxsplit=1)[-1]) % 10 == 0:
                raise ValueError("the template refuses")
            return super().chat(messages, tools)

    small, large = Chooser(latency_s=0), Chooser(latency_s=0)
    small.tokenizer = Refusing()
    values = await run(flow(), small, large, rows=300)
    assert (len(values), agreement(values)) == (300, 1.0)
    assert len(large.asked) < 150


class Timed(Chooser):
    """A chooser whose texts, the halves of a number, take some time."""

    def __init__(self, text_s: Callable[[int], float]) -> None:
        super().__init__(latency_s=0.1)
        self._text_s = text_s

    async def generate(self, request: Request) -> Any:
        if request.choices is not None:
            async for chunk in super().generate(request):
                yield chunk
            return
        number = asked_of(request)
        await anyio.sleep(self._text_s(number))
        yield Chunk(finish="stop", text=str(number // 2), usage=Usage(prompt_tokens=1))


async def test_nobody_waits_for_the_sampled_row_that_waits_for_an_equal_one() -> None:
    """Of two equal rows, that of the odd number is there first, and is often not sampled."""
    half = llm("Half: {{ n }}", name="half")
    cascade = {"model": "small", "sample": 100}
    parity = llm("Even or odd: {{ h }}", choices=CHOICES, name="parity", cascade=cascade)

    @workflow
    def numbers(n: str) -> str:
        return parity(h=half(n=n))

    small, large = (Timed(lambda n: 0.1 if n % 2 else 5.0) for _ in range(2))
    values = await run(numbers, small, large, rows=400, concurrency=400)
    assert all(value == CHOICES[row // 2 % 2] for row, value in values.items())
    assert len(large.asked) <= 100
    assert now() < 30


async def test_an_answer_counts_before_its_row_has_come_to_its_end() -> None:
    """Equal rows are asked once, and what comes behind the choice takes long."""
    half = llm("Half: {{ p }} {{ n }}", name="half")
    cascade = {"model": "small", "sample": 100}
    even = llm("Even or odd: {{ n }}", choices=CHOICES, name="parity", cascade=cascade)

    @workflow
    def numbers(n: str, m: str) -> str:
        return half(p=even(n=n), n=m)

    small, large = (Timed(lambda n: 500.0) for _ in range(2))
    await run(
        numbers,
        small,
        large,
        rows=400,
        concurrency=400,
        cells=lambda n: {"n": str(n // 2), "m": str(n)},
    )
    assert len(large.asked) <= 100


async def test_a_resumed_run_asks_nothing_again() -> None:
    journal = MemoryJournal()
    await run(flow(), Chooser(latency_s=0), Chooser(latency_s=0), journal=journal)
    recorded = await journal.steps(0, 999)
    assert len([path for _, path in recorded if path == "parity"]) == 1000

    small, large = Chooser(), Chooser()
    values = await run(flow(), small, large, journal=journal, resumed=True)
    assert (len(values), small.asked, large.asked) == (1000, [], [])


class Stops(Chooser):
    """Has the run stop after so many calls."""

    def __init__(self, control: Control, after: int) -> None:
        super().__init__()
        self._control, self._after = control, after

    async def generate(self, request: Request) -> Any:
        async for chunk in super().generate(request):
            yield chunk
        if len(self.asked) >= self._after:
            self._control.drain()


async def test_a_sample_that_was_cut_short_is_taken_anew() -> None:
    journal, control = MemoryJournal(), Control()
    stops = Stops(control, 30)
    begun = await run(flow(), stops, Chooser(), journal=journal, control=control, concurrency=16)
    assert 0 < len(begun) < 100
    assert not any("cascade" in path for _, path in await journal.steps(0, 0))
    large = Chooser()
    values = await run(flow(), Chooser(), large, journal=journal, resumed=True)
    assert len(values) == 1000 and len(large.asked) == 100


async def test_a_resumed_run_keeps_what_its_sample_has_told() -> None:
    journal, control = MemoryJournal(), Control()
    small, large = Stops(control, 300), Chooser()
    begun = await run(flow(), small, large, journal=journal, control=control, concurrency=16)
    assert 300 <= len(begun) < 400 and len(large.asked) == 100
    (told,) = [s for (_, path), s in (await journal.steps(0, 0)).items() if "cascade" in path]
    assert b'"sampled":100' in told.value

    small, large, analyst = Chooser(), Chooser(), Analyst()
    values = await run(flow(), small, large, journal=journal, resumed=True, analyst=analyst)
    assert len(values) == 1000 and len(small.asked) == 1000 - len(begun)
    assert large.asked == [] and not analyst.analysis().cascades, "nothing is sampled again"


async def test_a_compacted_journal_keeps_what_the_sample_has_told() -> None:
    """Of rows that are done it keeps what has a signature (`tenter journal compact`)."""
    journal, control = MemoryJournal(), Control()
    small, large = Stops(control, 300), Chooser()
    begun = await run(flow(), small, large, journal=journal, control=control, concurrency=16)
    assert 0 in begun
    compacted = MemoryJournal()
    for step in (await journal.steps(0, 999)).values():
        if step.signature is not None:
            compacted.record(step)
    for row in (await journal.rows(0, 999)).values():
        compacted.record(row)
    large = Chooser()
    await run(flow(), Chooser(), large, journal=compacted, resumed=True)
    assert large.asked == [], "nothing is sampled again"


async def test_a_promise_is_shared_out_over_windows() -> None:
    told = Analyst()
    small, large = Chooser(latency_s=0), Chooser(latency_s=0)
    await run(flow(), small, large, rows=1000, window_rows=250, analyst=told)
    assert "with confidence 97.5%" in told.analysis().cascades["parity"]
    small, large, analyst = Chooser(latency_s=0), Chooser(latency_s=0), Analyst()
    await run(flow(), small, large, rows=200, analyst=analyst, known=False)
    assert "with confidence 95%" in analyst.analysis().cascades["parity"]


def test_all_windows_together_have_no_more_than_the_chance_that_was_allowed() -> None:
    assert sum(window_share(n, 250, 1000) for n in range(1, 5)) == 1.0
    assert sum(window_share(n, 250, None) for n in range(1, 1000)) < 1.0


# ---- plans and texts ----------------------------------------------------------------------------


def test_the_plan_says_that_answers_may_change_and_by_how_much() -> None:
    graph = flow().graph
    assert graph is not None
    stats = Context(TableStats(100, {"n": ColumnStats(100, 2.0)}))
    plan = optimize(graph, stats)

    told = explain_plan(plan)
    assert "parity = llm default choice(n) [shared] [small first]" in told
    assert "about 50% of the rows; at least 95.0% agree with model default" in told
    assert plan.steps[0].estimate.calls_per_row == 1.5
    without = optimize(graph, Context(stats.stats, without=frozenset({"cascade"})))
    assert without.notes == () and not without.steps[0].cascaded


def test_what_stayed_with_the_small_model_is_what_is_expected_of_it() -> None:
    learned = Learned()
    record = CascadeLearned(step="parity", threshold=0.9, sampled=100, routed=0.8, message="")
    learned.observe(record)
    share = learned.mean_routed("parity")
    assert share == pytest.approx(0.8)
    graph = flow().graph
    assert graph is not None
    plan = optimize(graph, Context(expected=Expected(routed={"parity": share})))
    assert "about 80% of the rows" in explain_plan(plan)
    assert plan.steps[0].estimate.calls_per_row == pytest.approx(1.2)


def test_a_step_in_a_loop_is_left_to_the_large_model() -> None:
    parity = llm("Even or odd: {{ n }}", choices=CHOICES, cascade="small")

    @workflow
    def many(ns: list[str]) -> list[str]:
        return each(ns, lambda n: parity(n=n))

    assert many.graph is not None
    assert "first]" not in explain_plan(optimize(many.graph))


def test_the_small_model_is_opened_too() -> None:
    graph = flow().graph
    assert graph is not None
    assert [step.model for step in llm_steps(graph.steps)] == ["default", "small"]


def test_it_reads_back_from_yaml_as_itself() -> None:
    made = flow(target=0.9, confidence=0.99).workflow
    text = dump(made)
    again = loads(text)

    assert again.graph == made.graph
    assert again.fingerprint == made.fingerprint


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"cascade": "default"}, "its cascade names its own model 'default'"),
        ({"cascade": {"target": 0.9}}, "a cascade is a model's name or a dict"),
        ({"cascade": {"model": "small", "sample": 1.5}}, "a cascade is a model's name or a dict"),
        ({"cascade": {"model": "small", "target": 1}}, "target of its cascade is 1; it must be ab"),
        ({"cascade": {"model": "small", "sample": 0}}, "sample of its cascade is 0"),
        ({"cascade": "small", "choices": None}, "a cascade is for choices"),
        ({"cascade": "small", "pack": 4}, "it has a cascade and a pack; keep one of them"),
    ],
)
def test_what_can_be_wrong_with_it(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidWorkflow, match=told):
        step = llm("Even or odd: {{ n }}", **{"choices": CHOICES, **settings})

        @workflow
        def numbers(n: str) -> str:
            return step(n=n)

        _ = numbers.graph
