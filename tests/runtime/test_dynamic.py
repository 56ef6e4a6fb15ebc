"""Plans that a model writes: what is refused, what runs at once, what may still be changed."""

import json
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from tenter.runtime import Plan, agent, llm, open_plan, plan_and_run, run_workflow, tool, workflow
from tenter.runtime.backends.fake import FakeBackend
from tenter.runtime.clock import VirtualLoop
from tenter.runtime.errors import InvalidWorkflow, OutputInvalid, StepFailed
from tenter.runtime.journal.memory import MemoryJournal
from tenter.runtime.run.plans import MAX_CHARS, Known, Means, check, filled, read_steps
from tenter.runtime.scheduler.events import CallShared
from tenter.runtime.trace import MemoryTrace

from .one_row import rows


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualLoop}


class Pair(BaseModel):
    left: str
    right: str


short = llm("Shorten: {{ text }}")
pair = llm("Make a pair of {{ text }}", output=Pair)


@tool(effect="pure")
async def look(place: str, count: int = 1) -> str:
    """Look at a place."""
    await anyio.sleep(count)
    return f"{place} x{count}"


@tool(effect="once")
async def send(to: str) -> str:
    """Send it."""
    return to


def echo() -> FakeBackend:
    return FakeBackend(lambda prompt: f"<{prompt}>", remember=True)


async def perform(plan: Any, backend: FakeBackend | None = None, **options: Any) -> Any:
    given = {"tools": [look, send], "steps": {"short": short, "pair": pair}, **options}
    trace = given.pop("trace", None)
    journal = given.pop("journal", None)

    @workflow
    async def program() -> Any:
        return await plan_and_run(plan, **given)

    backends = {"default": backend or echo()}
    return await run_workflow(
        program.workflow, {}, backends=backends, trace=trace, journal=journal or MemoryJournal()
    )


def looks(name: str, place: str, *needs: str, count: int = 1) -> dict[str, Any]:
    args = {"place": place, "count": count}
    return {"id": name, "kind": "tool", "tool": "look", "args": args, "needs": list(needs)}


async def test_results_flow_to_those_that_need_them() -> None:
    plan = {
        "steps": [
            {"id": "end", "kind": "llm", "prompt": "Sum up {{ 7 * 7 }}:", "needs": ["a", "b"]},
            looks("a", "here"),
            {"id": "b", "kind": "step", "step": "short", "args": {"text": {"from": "a"}}},
        ]
    }
    found = await perform(plan)
    assert found == {
        "a": "here x1",
        "b": "<Shorten: here x1>",
        "end": "<Sum up {{ 7 * 7 }}:\n\na:\nhere x1\n\nb:\n<Shorten: here x1>>",
    }
    assert list(found) == ["a", "b", "end"]


async def test_what_needs_nothing_of_each_other_runs_at_once() -> None:
    wide = [looks(f"s{n}", f"p{n}", count=5) for n in range(30)]
    began = anyio.current_time()
    await perform([*wide, looks("last", "x", *(step["id"] for step in wide), count=2)])
    assert anyio.current_time() - began == pytest.approx(7, abs=0.1)


async def test_a_step_does_not_wait_for_its_whole_level() -> None:
    plan = [looks("slow", "a", count=50), looks("fast", "b"), looks("next", "c", "fast")]
    assert list(await perform(plan)) == ["fast", "next", "slow"]


async def test_it_comes_as_text_as_data_or_as_a_model() -> None:
    steps = [looks("a", "here")]
    for plan in (json.dumps({"steps": steps}), json.dumps(steps), Plan(steps=steps)):  # pyright: ignore
        assert await perform(plan) == {"a": "here x1"}


async def test_equal_work_of_two_steps_is_done_once() -> None:
    trace = MemoryTrace()
    await perform([looks("a", "here"), looks("b", "here")], trace=trace)
    assert [item.how for _, item in trace.records if isinstance(item, CallShared)] == ["joined"]


async def test_an_agent_may_be_a_step() -> None:
    expert = agent("{{ task }}")
    plan = [{"id": "a", "kind": "step", "step": "expert", "args": {"task": "go"}}]
    assert await perform(plan, steps={"expert": expert}) == {"a": "<go>"}


async def test_a_failure_stops_the_rest_and_is_told() -> None:
    @tool(effect="pure")
    async def fail() -> str:
        raise ValueError("no such thing")

    began = anyio.current_time()
    plan = [{"id": "bad", "kind": "tool", "tool": "fail"}, looks("long", "a", count=100)]
    with pytest.raises(StepFailed, match="step 'bad': .*no such thing"):
        await perform(plan, tools=[fail, look])
    assert anyio.current_time() - began < 1


class TestEdits:
    async def test_what_has_not_started_may_be_changed(self) -> None:
        def revise(name: str, value: Any, graph: Any) -> None:
            if name == "a":
                graph.edit(
                    add=[looks("d", "new")], change=[looks("c", "other", "b")], remove=["gone"]
                )

        plan = [
            looks("a", "x"),
            looks("b", "y", count=3),
            looks("c", "z", "b"),
            looks("gone", "w", "b"),
        ]
        assert await perform(plan, revise=revise) == {
            "a": "x x1",
            "d": "new x1",
            "b": "y x3",
            "c": "other x1",
        }

    @pytest.mark.parametrize(
        ("edit", "error", "said"),
        [
            ({"remove": ["b"]}, ValueError, "'b' has started"),
            ({"change": [looks("a", "q")]}, ValueError, "'a' has started"),
            ({"change": [looks("e", "q")]}, ValueError, "no step 'e'"),
            ({"add": [looks("b", "q")]}, OutputInvalid, "two steps are called 'b'"),
            ({"add": [looks("e", "q", "f")]}, OutputInvalid, "no step; there is|which is no step"),
            ({"change": [looks("c", "q", "c")]}, OutputInvalid, "wait for each other: c"),
            ({"remove": ["c"], "add": [looks("e", "q", "c")]}, OutputInvalid, "which is no step"),
        ],
    )
    async def test_else_nothing_changes(self, edit: Any, error: Any, said: str) -> None:
        async def revise(name: str, value: Any, graph: Any) -> None:
            if name == "a":
                before = graph.steps
                with pytest.raises(error, match=said):
                    graph.edit(**edit)
                assert graph.steps == before

        plan = [looks("a", "x"), looks("b", "y", count=3), looks("c", "z", "b")]
        assert set(await perform(plan, revise=revise)) == {"a", "b", "c"}

    async def test_another_task_may_edit_while_it_runs(self) -> None:
        @workflow
        async def program() -> Any:
            graph = open_plan([looks("a", "x", count=5)], tools=[look])

            async def later() -> None:
                await anyio.sleep(1)
                graph.edit(add=[looks("b", "y")])

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(later)
                return list(await graph.run())

        assert await run_workflow(program.workflow, {}, backends={}) == ["b", "a"]


async def test_a_resumed_plan_repeats_nothing() -> None:
    journal, acted = MemoryJournal(), list[str]()

    @tool(effect="once")
    async def act(place: str) -> str:
        acted.append(place)
        return place

    @workflow
    async def program(x: str) -> Any:
        plan = [
            {"id": "a", "kind": "tool", "tool": "act", "args": {"place": "a"}},
            {"id": "b", "kind": "llm", "prompt": "go", "needs": ["a"]},
            looks("c", "c", "b", count=50),
            {"id": "d", "kind": "tool", "tool": "act", "args": {"place": "d"}, "needs": ["c"]},
        ]
        return await plan_and_run(plan, tools=[act, look], allow=["act"])

    backend = echo()
    with anyio.move_on_after(20):
        await rows(program.workflow, backend, journal)
    assert (acted, len(backend.asked)) == (["a"], 1)
    found = await rows(program.workflow, backend, journal, resumed=True)
    assert found == {0: {"a": "a", "b": "<go\n\na:\na>", "c": "c x50", "d": "d"}}
    assert (acted, len(backend.asked)) == (["a", "d"], 1)


# ---- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ("nothing", "it is not JSON"),
        ('{"steps": [NaN]}', "NaN is not a number"),
        ("[" * 100_000, "it is not JSON"),
        ({"steps": [], "more": 1}, "no other key"),
        (3, "are a list, not int"),
        ([looks(f"s{n}", "x") for n in range(65)], "65 steps; at most 64"),
        ([{"id": "a"}], "missing required field `kind`"),
        ([{"id": "a", "kind": "shell"}], "Invalid enum value 'shell'"),
        ([{"id": "a", "kind": "llm", "prompt": "x", "code": "y"}], "unknown field `code`"),
        ([{"id": "a", "kind": "llm", "prompt": 3}], "Expected `str"),
        ([{"id": "a", "kind": "llm", "prompt": "x" * MAX_CHARS}], "longer than 200,000"),
        ([{"id": "a b", "kind": "llm", "prompt": "x"}], "'a b' is no name"),
        ([{"id": "../a", "kind": "llm", "prompt": "x"}], "is no name"),
        ([{"id": "a", "kind": "llm", "prompt": "\ud800"}], "it is not JSON"),
        ([{"id": "a", "kind": "llm", "prompt": " "}], "its prompt is empty"),
        ([{"id": "a", "kind": "llm", "tool": "look"}], "of kind 'llm' has a 'prompt'"),
        ([{"id": "a", "kind": "llm", "prompt": "x", "tool": "y"}], "kind 'llm' has no 'tool'"),
        ([{"id": "a", "kind": "llm", "prompt": "x", "args": {"b": 1}}], "a prompt has no args"),
        ([looks("a", "x"), looks("a", "y")], "two steps are called 'a'"),
        ([looks("a", "x", "b"), looks("b", "x", "a"), looks("c", "x")], "each other: a, b"),
        ([looks("a", "x", "a")], "wait for each other: a"),
        ([looks("a", "x", "c")], "it needs 'c', which is no step"),
        ([{"id": "a", "kind": "tool", "tool": "lok"}], "no tool 'lok'; did you mean 'look'"),
        ([{"id": "a", "kind": "step", "step": "long"}], "no step 'long'; there is pair, short"),
        ([{"id": "a", "kind": "tool", "tool": "look"}], "'place' has no value"),
        (
            [{"id": "a", "kind": "tool", "tool": "look", "args": {"plce": "x"}}],
            "takes no 'plce'; did you mean 'place'",
        ),
        ([looks("a", 3)], "place: 3 is not of type 'string'"),  # pyright: ignore
        ([looks("a", "x", count="many")], "count: 'many' is not"),  # pyright: ignore
        (
            [
                {"id": "p", "kind": "step", "step": "pair", "args": {"text": "x"}},
                looks("a", {"from": "p"}),  # pyright: ignore
            ],
            "place: it is of type string, and 'p' gives object",
        ),
        (
            [{"id": "a", "kind": "tool", "tool": "send", "args": {"to": "eve"}}],
            "allow=\\['send'\\]",
        ),
        ([{"id": "a", "kind": "step", "step": "short"}], "'text' has no value"),
    ],
)
async def test_a_plan_that_cannot_be_run_says_why(plan: Any, said: str) -> None:
    backend = echo()
    with pytest.raises(OutputInvalid, match=said):
        await perform(plan, backend)
    assert backend.asked == []


async def test_deep_data_is_refused() -> None:
    deep: Any = "x"
    for _ in range(30):
        deep = [deep]
    with pytest.raises(OutputInvalid, match="nested deeper"):
        await perform([{"id": "a", "kind": "tool", "tool": "look", "args": {"place": deep}}])


async def test_an_allowed_effect_is_run() -> None:
    plan = [{"id": "a", "kind": "tool", "tool": "send", "args": {"to": "ann"}}]
    assert await perform(plan, allow=["send"]) == {"a": "ann"}


async def test_a_plan_may_be_kept_from_models() -> None:
    with pytest.raises(OutputInvalid, match="may not ask a model"):
        await perform([{"id": "a", "kind": "llm", "prompt": "x"}], model=None)


@pytest.mark.parametrize("needs", [["a"] * 2000, ["a"]])
async def test_a_short_plan_does_not_blow_up_a_long_result(needs: list[str]) -> None:
    plan = [looks("a", "x" * 1000), {"id": "b", "kind": "llm", "prompt": "Read", "needs": needs}]
    if len(needs) == 1:
        assert list(await perform(plan)) == ["a", "b"]
        return
    with pytest.raises(OutputInvalid, match="'b' takes 2,006,000 characters of results; at most"):
        await perform(plan)


async def test_it_belongs_in_a_program() -> None:
    with pytest.raises(InvalidWorkflow, match="async def"):
        open_plan([])


async def nothing(*_: Any, **__: Any) -> Any:
    return None


MEANS = Means(
    use=nothing, tools={"look": look.tool}, steps={"short": Known(("text",), nothing)}, max_steps=8
)
names = st.sampled_from(["a", "b", "c", "look", "short", "from", "", "é"])
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | names
data = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(names | st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=12,
)
steps = st.fixed_dictionaries(
    {"id": names, "kind": st.sampled_from(["llm", "tool", "step"])},
    optional={
        "prompt": names,
        "tool": names | data,
        "step": names,
        "args": st.dictionaries(names, data, max_size=3),
        "needs": st.lists(names, max_size=3),
    },
)


@settings(max_examples=200, deadline=None)
@given(st.lists(steps | data, max_size=9) | data | st.text(max_size=40))
def test_whatever_a_model_says_is_run_as_a_dag_or_refused(said: Any) -> None:
    try:
        plan = read_steps(said, MEANS)
        check(plan, MEANS)
    except OutputInvalid as error:
        assert len(str(error)) < 20_000
        return
    assert len(plan) <= MEANS.max_steps
    done: dict[str, Any] = {}
    while len(done) < len(plan):
        ready = [s for s in plan if s.id not in done and all(n in done for n in s.after)]
        assert ready, "it goes in a circle"
        for step in ready:
            filled(step.args, done)
            done[step.id] = None
