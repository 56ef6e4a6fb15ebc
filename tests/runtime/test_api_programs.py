"""Workflows as `async def`: what the handles do while a program runs."""

import asyncio
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from pydantic import BaseModel

from tenter.planner.graph import LLM, Ref, ToolCall
from tenter.runtime import llm, session, tool, workflow
from tenter.runtime.api import WorkflowHandle
from tenter.runtime.errors import InvalidInput, InvalidWorkflow, OutputInvalid
from tenter.runtime.run.context import current_program
from tenter.runtime.workflow import Workflow
from tenter.tools import Tool, call


class Reply(BaseModel):
    subject: str
    size: int = 0


kind = llm("Which team?\n{{ ticket }}", choices=["billing", "bug"])
reply = llm("Answer {{ ticket }} {{ extra | tojson }}", output=Reply)
_sizes = llm("{{ x }}", output=list[int])


@tool(effect="pure")
def shout(text: str, times: int = 1) -> str:
    """Say it louder."""
    return whisper(text).upper() * times


@tool
def whisper(text: str) -> str:
    """Say it quietly."""
    return text.lower()


@tool
async def later(text: str) -> str:
    """Call another tool directly."""
    return whisper(text)


@workflow
def static(ticket: str, tone: str = "polite") -> Reply:
    return reply(ticket=ticket, extra=tone)


@workflow
async def solve(ticket: str, most: int = 3, like: Reply | None = None) -> Reply:
    found = await kind(ticket=ticket)
    texts = await asyncio.gather(*(shout(ticket, times=n) for n in range(most)))
    if found == "bug":
        return await static(ticket, tone=texts[-1])
    return like or Reply(subject=found)


@dataclass
class FakeProgram:
    """Answers steps from a script and notes what it was asked."""

    answers: dict[str, Any] = field(default_factory=dict[str, Any])
    asked: list[tuple[str, Mapping[str, Any]]] = field(
        default_factory=list[tuple[str, Mapping[str, Any]]]
    )
    steps: list[Any] = field(default_factory=list[Any])

    async def llm(self, step: LLM, values: Mapping[str, Any]) -> Any:
        self.steps.append(step)
        self.asked.append((step.id, values))
        await asyncio.sleep(0)
        return self.answers[step.id]

    async def tool(self, step: ToolCall, values: Mapping[str, Any]) -> Any:
        raise AssertionError("tools are handed over by `use`")

    async def use(self, tool: Tool, values: Mapping[str, Any], step: str | None = None) -> Any:
        self.asked.append((step or tool.name, values))
        return await call(tool, values)

    async def workflow(self, workflow: Workflow, values: Mapping[str, Any]) -> Any:
        self.asked.append((workflow.name, values))
        if workflow.program is not None:
            return await workflow.program(**values)
        return self.answers[workflow.name]

    def session(self, system: str | None = None, model: str = "default", trust: Any = None) -> Any:
        return (system, model)


@contextmanager
def running(program: FakeProgram) -> Any:
    token = current_program.set(program)
    try:
        yield
    finally:
        current_program.reset(token)


async def run(flow: WorkflowHandle, program: FakeProgram, **inputs: Any) -> Any:
    assert flow.workflow.program is not None
    with running(program):
        return await flow.workflow.program(**inputs)


async def test_a_program_awaits_models_tools_and_workflows() -> None:
    program = FakeProgram({"kind": "bug", "static": {"subject": "done", "size": 2}})

    result = await run(solve, program, ticket="Help")

    assert result == {"subject": "done", "size": 2}
    assert program.asked == [
        ("kind", {"ticket": "Help"}),
        ("shout", {"text": "Help", "times": 0}),
        ("shout", {"text": "Help", "times": 1}),
        ("shout", {"text": "Help", "times": 2}),
        ("static", {"ticket": "Help", "tone": "HELPHELP"}),
    ]


async def test_inputs_become_what_the_annotations_say() -> None:
    program = FakeProgram({"kind": "billing"})

    result = await run(solve, program, ticket="x", most="0", like={"subject": "given", "size": 1})

    assert result == {"subject": "given", "size": 1}
    with pytest.raises(InvalidInput, match="solve: most: Input should be a valid integer"):
        await run(solve, program, ticket="x", most="many")


async def test_an_output_becomes_its_model() -> None:
    program = FakeProgram({"reply": {"subject": "a"}, "sizes": [1, 2]})
    with running(program):
        made = await reply(ticket="x", extra=Reply(subject="like this"))
        sizes = await _sizes(x=1)

    assert made == Reply(subject="a", size=0)
    assert sizes == [1, 2]
    assert program.asked[0] == (
        "reply",
        {"ticket": "x", "extra": {"subject": "like this", "size": 0}},
    )
    assert [step.id for step in program.steps] == ["reply", "sizes"]


async def test_an_output_that_does_not_fit() -> None:
    with running(FakeProgram({"reply": {"size": "x"}})), pytest.raises(OutputInvalid) as caught:
        await reply(ticket="x", extra=1)

    assert caught.value.step == "reply"
    assert "subject: Field required" in str(caught.value)


async def test_a_step_is_the_same_object_each_time() -> None:
    program = FakeProgram({"kind": "bug"})
    with running(program):
        await kind(ticket="a")
        await kind(ticket="b")

    first, second = program.steps
    assert first is second
    assert first.args == (("ticket", Ref("ticket")),)


async def test_values_that_are_no_json() -> None:
    with running(FakeProgram()):
        with pytest.raises(InvalidInput, match="kind: ticket is a object, not JSON data"):
            await kind(ticket=object())
        with pytest.raises(InvalidInput, match="whisper: text is a float, not JSON data"):
            await whisper(float("nan"))


async def test_wrong_arguments_are_told_at_the_call() -> None:
    with running(FakeProgram()):
        with pytest.raises(InvalidWorkflow, match="no field 'tiket'; did you mean 'ticket'"):
            kind(tiket="x")
        with pytest.raises(InvalidWorkflow, match="missing a required argument: 'text'"):
            whisper()
        with pytest.raises(
            InvalidInput, match="'static' has no input 'tiket'; did you mean 'ticket'"
        ):
            static(tiket="x")


async def test_inside_a_tool_other_tools_are_functions() -> None:
    with running(FakeProgram()):
        assert await shout("Ab") == "AB"
        assert await later("Ab") == "ab"
        assert current_program.get() is not None


async def test_programs_call_programs() -> None:
    @workflow
    async def inner(n: int) -> list[int]:
        return [n, n + 1]

    @workflow
    async def outer(n: int = 2) -> Literal[5]:
        first, second = await asyncio.gather(inner(n), inner(n=n))
        assert first == second == [2, 3]
        return sum(first)  # pyright: ignore

    assert await run(outer, FakeProgram(), n=2) == 5
    assert outer.workflow.convert is not None
    assert outer.workflow.convert(5) == 5


async def test_a_result_that_is_no_json() -> None:
    @workflow
    async def broken(n: int) -> Any:
        return {"x": object()}

    with pytest.raises(InvalidInput, match="the result of 'broken' is a dict, not JSON data"):
        await run(broken, FakeProgram(), n=2)


async def test_sessions_are_the_programs() -> None:
    with running(FakeProgram()):
        assert session("Be kind.", model="big") == ("Be kind.", "big")
    with pytest.raises(InvalidWorkflow, match="belongs in an `async def` workflow"):
        session()


class ToolsOnly(FakeProgram):
    """What `run_workflow` gives, without a backend."""

    async def workflow(self, workflow: Workflow, values: Mapping[str, Any]) -> Any:
        return {"subject": values["ticket"], "size": self.answers["size"]}


@pytest.mark.parametrize("size", [1, "x"])
async def test_run_gives_what_the_annotation_promises(
    size: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run_workflow(workflow: Workflow, inputs: Mapping[str, Any], **options: Any) -> Any:
        assert options == {"seed": 3}
        assert inputs["tone"] == "polite"
        return await ToolsOnly({"size": size}).workflow(workflow, inputs)

    monkeypatch.setattr("tenter.runtime.run.local.run_workflow", run_workflow)
    if size == 1:
        made = await static.arun({"seed": 3}, ticket="x")
        assert made == Reply(subject="x", size=1)
    else:
        with pytest.raises(OutputInvalid, match="the result of 'static': size: Input should be"):
            await static.arun({"seed": 3}, ticket="x")


async def test_run_checks_its_inputs_first() -> None:
    with pytest.raises(InvalidInput, match="'solve' has no input 'tiket'; did you mean 'ticket'"):
        await solve.arun(tiket="x")
    with pytest.raises(InvalidInput, match="solve: most: Input should be a valid integer"):
        await solve.arun(ticket="x", most="many")


def test_a_program_has_no_graph() -> None:
    assert solve.workflow.graph is None
    with pytest.raises(
        InvalidInput, match="'solve' is an `async def` workflow, which has no graph"
    ):
        _ = solve.graph


def test_a_program_knows_the_tools_that_it_can_reach() -> None:
    assert set(solve.workflow.tools) == {"shout"}
    assert static.workflow.tools == {}


# ---- identity ------------------------------------------------------------------------------------

SOURCE = """
from tenter.runtime import llm, tool, workflow

ask = llm("Answer {{ x }}", max_tokens=TOKENS)

@tool(effect="pure")
def look(x: str) -> str:
    return x + "MARK"

def helper(x):
    return "HELP" + x

class Flow:
    pass

@workflow
async def flow(x: str) -> str:
    def inside(y):
        return helper(y)

    return await ask(x=inside(await look(x)))
"""


def fingerprint(folder: Any, name: str, **changes: str) -> str:
    import importlib.util

    text = SOURCE.replace("TOKENS", changes.pop("TOKENS", "10"))
    for old, new in changes.items():
        text = text.replace(old, new)
    file = folder / f"{name}.py"
    file.write_text(text)
    spec = importlib.util.spec_from_file_location("flow_module", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.flow.workflow.fingerprint


def test_the_fingerprint_of_a_program_changes_with_what_it_uses(tmp_path: Any) -> None:
    same = fingerprint(tmp_path, "same")

    assert fingerprint(tmp_path, "again") == same
    assert fingerprint(tmp_path, "class", Flow="Other") == same
    changes = [{"TOKENS": "11"}, {"MARK": "MORK"}, {"HELP": "HOLP"}, {"inside": "within"}]
    others = [
        fingerprint(tmp_path, f"changed_{number}", **change)
        for number, change in enumerate(changes)
    ]
    assert len({same, *others}) == 5


def test_the_fingerprint_of_a_graph_is_that_of_what_determines_answers() -> None:
    def made(text: str, tokens: int, default: int) -> str:
        step = llm(text, max_tokens=tokens, name="step")

        @workflow
        def flow(x: str, n: int = default) -> str:
            return step(x=x, n=n)

        return flow.workflow.fingerprint

    one = made("{{ x }} {{ n }}", 5, 1)
    assert made("{{ x }} {{ n }}", 5, 1) == one
    others = [("{{ n }} {{ x }}", 5, 1), ("{{ x }} {{ n }}", 6, 1), ("{{ x }} {{ n }}", 5, 2)]
    assert len({one, *(made(*other) for other in others)}) == 4
