"""Plans carried out over rows, in virtual time: order, groups, pins, and nothing left behind."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from tenter.planner.graph import LLM, Graph, ListOf, Ref, ToolCall
from tenter.planner.optimize import optimize
from tenter.planner.plan import Context
from tenter.planner.prompt import Prompt
from tenter.runtime.backends.fake import FakeBackend
from tenter.runtime.clock import VirtualLoop
from tenter.runtime.journal.base import RowRecord
from tenter.runtime.journal.memory import MemoryJournal, NoJournal
from tenter.runtime.run.control import Control
from tenter.runtime.run.local import open_host
from tenter.runtime.run.placed import turns_on
from tenter.runtime.run.planned import PINNED_PROMPTS, Planned
from tenter.runtime.run.program import Programs
from tenter.runtime.run.rows import Limits, Row, RowRun
from tenter.runtime.scheduler.events import (
    CallReady,
    Deviated,
    Dispatch,
    PrefixKnown,
    PrefixOver,
    Release,
    WorkerDown,
)
from tenter.runtime.scheduler.loop import Scheduler
from tenter.runtime.trace import MemoryTrace
from tenter.runtime.workflow import Input, Workflow
from tenter.tools import Tool

LONG = "the same text for many rows, " * 10


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualLoop}


class Collected:
    held = 0

    def __init__(self) -> None:
        self.values: dict[int, Any] = {}

    def put(self, row: Row, value: Any, error: str | None) -> None:
        assert row.row not in self.values
        self.values[row.row] = value if error is None else f"error: {error}"


def asks(name: str, prompt: str, **more: Any) -> LLM:
    args = tuple((field, Ref(field)) for field in Prompt(prompt).fields)
    return LLM(id=name, prompt=Prompt(prompt), args=args, **more)


def workflow(*steps: Any, **tools: Tool) -> Workflow:
    graph = Graph("w", ("doc", "q"), steps, Ref(steps[-1].id))
    return Workflow("w", (Input("doc"), Input("q")), graph, tools=tools)


READ = workflow(asks("read", "{{ doc }}\n{{ q }}"))


def given(count: int, docs: int = 3) -> list[Row]:
    cells = [{"doc": f"{n % docs} {LONG}", "q": f"question {n}"} for n in range(count)]
    return [Row(n, row, row) for n, row in enumerate(cells)]


class Ran:
    """A run over rows with its plan, and what the trace says of it."""

    def __init__(self) -> None:
        self.trace, self.sink = MemoryTrace(), Collected()
        self.backend = FakeBackend(lambda prompt: f"<{prompt[-12:]}>", 1.0, 4, remember=True)

    async def over(self, flow: Workflow, rows: list[Row], **options: Any) -> str:
        assert flow.graph is not None
        journal = options.pop("journal", None) or MemoryJournal()
        resumed, window = options.pop("resumed", False), options.pop("window_rows", 1000)
        replicas = options.pop("replicas", ())
        backends = {"default": (self.backend, *replicas)}
        async with open_host(
            backends, journal=journal, trace=self.trace, share=True, resumed=resumed
        ) as host:
            plan = optimize(flow.graph, Context())
            if replicas:
                options["pools"] = ["default"]
            free = {"models": host.models} if options.pop("free", False) else {}
            self.planned = host.planned = Planned(plan, host.scheduler, **free, **options)
            limits = Limits(64, window_rows=window)
            run = RowRun(
                Programs(host, flow),
                journal,
                self.sink,
                Control(),
                (),
                limits,
                resumed,
                host.planned,
            )
            status = await run.run(iter(rows))
            host.scheduler.core.check()
            assert not host.scheduler.core.kept.prefixes
        return status

    def records(self, kind: type) -> list[Any]:
        return [record for _, record in self.trace.records if isinstance(record, kind)]

    def left(self) -> list[Any]:
        """What of the plan is still remembered; nothing should be when all rows have ended."""
        planned = self.planned
        states = (planned._placing._spots, planned._groups, planned._of_row, planned._passing)
        return [
            state
            for state in (*states, planned._of_call, planned._variants, planned._placing._shares)
            if state
        ]


async def test_rows_run_by_their_prefixes_and_come_out_whole() -> None:
    ran = Ran()
    ran.backend.capabilities = replace(ran.backend.capabilities, joins=True)
    assert await ran.over(READ, given(30)) == "done"
    assert ran.sink.values == {n: f"<{f'{LONG}{chr(10)}question {n}'[-12:]}>" for n in range(30)}
    first = [prompt[0] for prompt in ran.backend.asked]
    assert first == sorted(first)
    assert not ran.records(Deviated) and not ran.left()


async def test_a_groups_leader_goes_first_and_meanwhile_those_of_others() -> None:
    ran = Ran()
    assert await ran.over(READ, given(30)) == "done"
    assert [prompt[0] for prompt in ran.backend.asked[:3]] == ["0", "1", "2"]
    calls = ran.records(CallReady)
    assert all(call.shared_tokens > len(LONG) - 8 for call in calls)
    sent = [record.call for record in ran.records(Dispatch)]
    for group in groups(calls):
        members = [call.call for call in calls if call.group == group]
        (leader,) = {call.leader for call in calls if call.group == group}
        assert min(members, key=sent.index) == leader
    assert not ran.records(Deviated) and not ran.left()


def groups(calls: list[CallReady]) -> set[str]:
    return {call.group for call in calls if call.group is not None}


async def test_a_large_groups_prefix_is_pinned_until_its_last_row_has_ended() -> None:
    ran = Ran()
    await ran.over(READ, given(PINNED_PROMPTS + 3, docs=1))
    (known,), (over,) = ran.records(PrefixKnown), ran.records(PrefixOver)
    assert known.session == over.session == ran.records(CallReady)[0].group
    assert ran.records(Release)[-1].session == known.session
    kinds = [type(record) for _, record in ran.trace.records]
    assert kinds.index(PrefixOver) > len(kinds) - 5


async def test_windows_share_a_group_and_its_pin() -> None:
    ran = Ran()
    await ran.over(READ, given(96, docs=2), window_rows=48)
    assert len(ran.records(PrefixKnown)) <= 3  # the document between two windows is pinned once
    assert len(ran.sink.values) == 96 and not ran.left()


async def test_prompts_that_begin_with_a_tools_result_are_grouped_as_they_come() -> None:
    async def policy(q: str) -> str:
        return f"Policy {int(q.split()[1]) % 2}: {LONG}"

    tool = Tool("policy", "", "{}", policy, effect="pure")
    step = ToolCall(id="rule", tool="policy", args=(("q", Ref("q")),), effect="pure")
    flow = workflow(step, asks("reply", "{{ rule }}\n{{ q }}"), policy=tool)
    ran = Ran()
    assert await ran.over(flow, given(40)) == "done"
    calls = ran.records(CallReady)
    assert len(groups(calls)) == 2
    assert sum(call.group is not None for call in calls) == 38  # the first of each goes unknown
    assert len(ran.records(PrefixOver)) == 2 and not ran.left()


async def test_what_is_left_out_gives_no_hints() -> None:
    ran = Ran()
    await ran.over(READ, given(9), order=False, group=False)
    asked = [prompt.partition(" ")[0] for prompt in ran.backend.asked]
    assert asked == ["0", "1", "2"] * 3
    assert not groups(ran.records(CallReady)) and not ran.records(PrefixOver)


async def test_a_resumed_run_plans_what_is_left_and_repeats_nothing() -> None:
    journal = MemoryJournal()
    for row in range(0, 12, 2):
        journal.record(RowRecord(row, b'"kept"', None), lambda: None)
    ran = Ran()
    assert await ran.over(READ, given(12), journal=journal, resumed=True) == "done"
    assert [ran.sink.values[row] for row in range(0, 12, 2)] == ["kept"] * 6
    assert len(ran.backend.asked) == 6 and not ran.left()


async def test_rows_that_fail_or_cannot_be_written_into_a_prompt_do_not_stop_a_window() -> None:
    rows = [*given(6), Row(6, {}, {"q": "no document"}), Row(7, {}, problem="bad")]
    ran = Ran()
    assert await ran.over(READ, rows) == "done"
    assert "'doc' is" in ran.sink.values[6] and ran.sink.values[7] == "error: bad"
    assert len(ran.sink.values) == 8 and not ran.left()


async def test_the_mean_length_of_a_steps_answers_is_expected_of_the_next_one() -> None:
    ran = Ran()
    await ran.over(READ, given(80))
    told = [call.expected_tokens for call in ran.records(CallReady)]
    assert told[0] is None and told[-1] == pytest.approx(14, abs=2)


FREE = workflow(asks("read", "Judge.\nQ: {{ q }}\nDoc: {{ doc }}\n", free_fields=("q", "doc")))


async def test_each_row_has_its_free_fields_in_the_order_that_shares_the_most() -> None:
    rows = given(24)
    for row in rows[12:]:  # half of the rows share the question, the others the document
        row.inputs = {"doc": f"document {row.row}", "q": f"{row.row % 2} {LONG}"}
    ran = Ran()
    assert await ran.over(FREE, rows, free=True) == "done"
    begins = [prompt.splitlines()[1][:2] for prompt in ran.backend.asked]
    assert (begins.count("Do"), begins.count("Q:")) == (12, 12)
    assert len(groups(ran.records(CallReady))) == 5 and not ran.left()
    for row in rows:
        fields = f"Doc: {row.inputs['doc']}", f"Q: {row.inputs['q']}"
        assert any(all(field in asked for field in fields) for asked in ran.backend.asked)


async def test_a_resumed_run_writes_the_prompts_that_the_first_attempt_would_have() -> None:
    whole, again, journal = Ran(), Ran(), MemoryJournal()
    await whole.over(FREE, given(40), free=True, window_rows=20)
    for row in range(0, 40, 3):
        journal.record(RowRecord(row, b'"kept"', None), lambda: None)
    rest = {"free": True, "window_rows": 20, "journal": journal, "resumed": True}
    await again.over(FREE, given(40), **rest)
    assert len(again.backend.asked) == 40 - 14
    assert set(again.backend.asked) <= set(whole.backend.asked)


async def test_replicas_share_a_window_out_so_that_each_prefix_is_on_one_of_them() -> None:
    ran = Ran()
    other = FakeBackend(lambda prompt: prompt[-12:], 1.0, 4, remember=True)
    await ran.over(READ, given(48, docs=6), replicas=(other,))
    documents = [{prompt[0] for prompt in backend.asked} for backend in (ran.backend, other)]
    assert documents[0] | documents[1] == set("012345") and len(documents[0]) == 3
    assert documents[0].isdisjoint(documents[1])
    calls, sent = ran.records(CallReady), {r.call: r.worker for r in ran.records(Dispatch)}
    assert all(call.worker == sent[call.call] for call in calls) and not ran.left()


STEPS = (
    asks("draft", "Draft. {{ q }}", model="small"),
    asks("judge", "Judge. {{ draft }}", model="large"),
    asks("title", "Title. {{ q }}", model="small"),
)
TWO_MODELS = Workflow(
    "w",
    (Input("doc"), Input("q")),
    Graph("w", ("doc", "q"), STEPS, ListOf((Ref("judge"), Ref("title")))),
)


async def placed_run(gone: str | None = None) -> tuple[MemoryTrace, Collected]:
    """40 rows through two models of two workers each, by the placement; one worker dies at 3 s."""
    trace, sink = MemoryTrace(), Collected()
    backends = {
        model: [FakeBackend(lambda prompt: prompt[:5], 1.0, 2) for _ in range(2)]
        for model in ("small", "large")
    }
    graph = TWO_MODELS.graph
    assert graph is not None
    async with open_host(backends, trace=trace, share=False) as host:
        plan = optimize(graph, Context())
        turns = turns_on(plan, host.scheduler, host.models, 40)
        pools = ["large", "small"]
        host.planned = Planned(plan, host.scheduler, pools=pools, turns=turns)
        programs = Programs(host, TWO_MODELS)
        about = (NoJournal(), sink, Control(), (), Limits(64))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_die(host.scheduler, gone))
            await RowRun(programs, *about, planned=host.planned).run(iter(given(40)))
        host.scheduler.core.check()
        assert not host.planned._placing._spots
    return trace, sink


async def _die(scheduler: Scheduler, worker: str | None) -> None:
    if worker is not None:
        await asyncio.sleep(3)
        scheduler.send(WorkerDown(worker=worker, error="unplugged", returns=False))


def calls_of(trace: MemoryTrace) -> list[CallReady]:
    return [record for _, record in trace.records if isinstance(record, CallReady)]


async def test_each_steps_rows_have_the_worker_and_the_turn_of_the_placement() -> None:
    trace, sink = await placed_run()
    calls = calls_of(trace)
    assert len(sink.values) == 40 and len(calls) == 120
    for step, model in {"draft": "small", "judge": "large", "title": "small"}.items():
        mine = [call for call in calls if call.step == step]
        assert {call.worker for call in mine} == {f"{model}/0", f"{model}/1"}
        assert all(call.order_key is not None and 0 <= call.order_key <= 40 for call in mine)
    mean = {
        step: sum(call.order_key or 0.0 for call in calls if call.step == step) / 40
        for step in ("draft", "title")
    }
    assert mean["draft"] < mean["title"]  # the large model waits for drafts, nobody for titles


async def test_what_a_dead_worker_was_to_do_others_do_and_the_trace_tells() -> None:
    trace, sink = await placed_run(gone="small/0")
    deviated = [record for _, record in trace.records if isinstance(record, Deviated)]
    assert len(sink.values) == 40 and all("error" not in str(v) for v in sink.values.values())
    assert {(one.planned, one.chosen) for one in deviated} >= {("small/0", "small/1")}
