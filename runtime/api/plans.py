"""Plans that a model writes, run inside `async def` workflows."""

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Any, Literal

from pydantic import BaseModel

from ...planner.graph import LLM, Sampling
from ...planner.prompt import Prompt
from ...tools import Tool
from ..run.context import HasTool, Program, current_program
from ..run.dynamic import DynamicGraph, Revise
from ..run.plans import MAX_STEPS, Known, Means
from .agents import tools_by_name
from .handles import LLMStep
from .places import refuse
from .types import to_json


class PlanStep(BaseModel):
    """One step of a `Plan`: its `kind` says which of `prompt`, `tool` and `step` it has."""

    id: str
    kind: Literal["llm", "tool", "step"]
    prompt: str | None = None
    tool: str | None = None
    step: str | None = None
    args: dict[str, Any] = {}
    needs: list[str] = []


class Plan(BaseModel):
    """What a planner says: `llm(..., output=Plan)` holds a model to this shape.

    A step starts when those that it `needs` have ended. `llm` asks a model `prompt`, below which
    the results of `needs` are written. `tool` and `step` are called with `args`, in which
    {"from": "id"} stands for a result.
    """

    steps: list[PlanStep]


def open_plan(
    plan: Any,
    *,
    tools: Iterable[Tool | HasTool] = (),
    steps: Mapping[str, LLMStep] | None = None,
    allow: Iterable[str] = (),
    model: str | None = "default",
    max_tokens: int = 256,
    max_steps: int = MAX_STEPS,
) -> DynamicGraph:
    """The plan as a graph that may be run, and edited where nothing has started.

    `plan` is a `Plan`, the same as data, or JSON text. It may use `tools`, and `steps` of the
    author's by name, and ask `model` (None: it may not). A plan is written by a model: tools that
    have an effect or are sensitive are refused unless `allow` names them. Raises OutputInvalid with
    all that is wrong; the message is made to be read by the planner, too.
    """
    program = current_program.get()
    if program is None:
        raise refuse("a plan belongs in an `async def` workflow, while it runs")
    sampling = Sampling(max_tokens=max_tokens)
    means = Means(
        use=partial(_use, program),
        tools=tools_by_name(tools),
        steps={name: _known(name, step) for name, step in (steps or {}).items()},
        prompt=None if model is None else partial(_ask, program, model, sampling),
        allow=frozenset(allow),
        max_steps=max_steps,
    )
    given = plan.model_dump(exclude_defaults=True) if isinstance(plan, Plan) else plan
    return DynamicGraph(given, means)


async def plan_and_run(
    plan: Any,
    *,
    tools: Iterable[Tool | HasTool] = (),
    steps: Mapping[str, LLMStep] | None = None,
    allow: Iterable[str] = (),
    model: str | None = "default",
    max_tokens: int = 256,
    max_steps: int = MAX_STEPS,
    revise: Revise | None = None,
) -> dict[str, Any]:
    """Run a plan, each step as soon as what it needs is there; the JSON results by step id.

    As `open_plan`, and `run` of what it gives: `revise(id, result, graph)` may edit the plan after
    each step.
    """
    graph = open_plan(
        plan,
        tools=tools,
        steps=steps,
        allow=allow,
        model=model,
        max_tokens=max_tokens,
        max_steps=max_steps,
    )
    return await graph.run(revise)


def _known(name: str, step: LLMStep) -> Known:
    result: str | None = "string"
    if step.step.schema is not None:
        named = json.loads(step.step.schema).get("type")
        result = named if isinstance(named, str) else None
    return Known(step.fields, _plain(name, step), result)


def _plain(name: str, step: LLMStep) -> Callable[..., Awaitable[Any]]:
    async def run(**values: Any) -> Any:
        return to_json(await step(**values), name)

    return run


async def _use(program: Program, name: str, tool: Tool, values: Mapping[str, Any]) -> Any:
    return await program.use(tool, values, name)


async def _ask(program: Program, model: str, sampling: Sampling, name: str, text: str) -> Any:
    step = LLM(id=name, prompt=Prompt.literal(text), model=model, sampling=sampling)
    return await program.llm(step, {})
