"""What determines a workflow's answers, as canonical text for its fingerprint."""

import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from ...planner.graph import LLM, NOWHERE, Compute, Graph, Ref, canonical
from ...tools import Tool
from ...tools.python import source_of
from ..run.trust import Toolbox
from ..workflow import Input, Workflow
from .tracing import closure_of


def graph_identity(workflow: Workflow) -> str:
    """The identity of a workflow with a graph: equal for equal graphs, inputs and tools."""
    assert workflow.graph is not None
    parts = {
        "graph": json.loads(canonical(workflow.graph)),
        "inputs": _inputs(workflow.inputs),
        "tools": _tools(workflow.tools),
    }
    return _text(parts)


def program_identity(name: str, function: Callable[..., Any], inputs: Sequence[Input]) -> str:
    """The identity of an `async def` workflow: its source and that of what it uses."""
    used = [_described(name, thing) for name, thing in sorted(_reached(function).items())]
    parts = {"name": name, "source": source_of(function), "inputs": _inputs(inputs), "uses": used}
    return _text(parts)


def tools_of(function: Callable[..., Any]) -> dict[str, Tool]:
    """The tools that a function and the author's functions that it uses can name."""
    found: dict[str, Tool] = {}
    for _, thing in sorted(_reached(function).items()):
        tool = getattr(thing, "tool", None)
        if isinstance(tool, Tool):
            found.setdefault(tool.name, tool)
    return found


def _text(parts: Mapping[str, Any]) -> str:
    return json.dumps(parts, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def _inputs(inputs: Sequence[Input]) -> list[Any]:
    return [[each.name, each.schema, each.required, each.default] for each in inputs]


def _tools(tools: Mapping[str, Tool]) -> list[Any]:
    return [
        [name, tool.effect, tool.parameters, tool.source_hash]
        for name, tool in sorted(tools.items())
    ]


def _described(name: str, thing: Any) -> list[Any]:
    """What of a used thing determines answers."""
    step = getattr(thing, "step", None)
    tool = getattr(thing, "tool", None)
    if isinstance(step, LLM):
        toolbox = getattr(thing, "toolbox", None)
        tools = [_tools(toolbox.tools)] if isinstance(toolbox, Toolbox) else []
        return [name, _alone(name, step), *tools]
    if isinstance(tool, Tool):
        return [name, _tools({tool.name: tool})]
    wrapped = getattr(thing, "__wrapped__", thing)
    return [name, source_of(wrapped) if isinstance(wrapped, FunctionType) else repr(thing)]


def step_identity(name: str, step: LLM, tools: Mapping[str, Tool]) -> str:
    """The identity of a step by itself, with the tools that it may call."""
    return _text({"step": _alone(name, step), "tools": _tools(tools)})


def _alone(name: str, step: LLM) -> str:
    graph = Graph(name, (), (step, Compute(id="_", value=Ref("_"), place=NOWHERE)), Ref("_"))
    return canonical(graph)


def _reached(function: Callable[..., Any]) -> dict[str, Any]:
    """Handles and functions of the author's that `function` names, and those that these name."""
    home = Path(inspect.unwrap(function).__code__.co_filename).parent
    found: dict[str, Any] = {}
    waiting = [inspect.unwrap(function)]
    seen = set(waiting)
    while waiting:
        at = waiting.pop()
        for name, thing in _named(at):
            wrapped = getattr(thing, "__wrapped__", thing)
            is_function = isinstance(wrapped, FunctionType)
            if not (is_function or isinstance(getattr(thing, "step", None), LLM)):
                continue
            if is_function and not _is_near(wrapped, home):
                continue
            found[f"{at.__module__}.{at.__qualname__}.{name}"] = thing
            if is_function and wrapped not in seen and not hasattr(thing, "tool"):
                seen.add(wrapped)
                waiting.append(wrapped)
    return found


def _is_near(function: FunctionType, home: Path) -> bool:
    """Whether a function is the author's: in the folder of the workflow or below it."""
    return Path(function.__code__.co_filename).is_relative_to(home)


def _named(function: Callable[..., Any]) -> Iterator[tuple[str, Any]]:
    """What the names in a function's code stand for, `module.name` too."""
    known = {**getattr(function, "__globals__", {}), **closure_of(function)}
    names = list(_names_in(function.__code__))
    for name in names:
        thing = known.get(name)
        if isinstance(thing, ModuleType):
            inside = vars(thing)
            yield from ((f"{name}.{each}", inside[each]) for each in names if each in inside)
        elif thing is not None:
            yield name, thing


def _names_in(code: CodeType) -> Iterator[str]:
    yield from dict.fromkeys((*code.co_names, *code.co_freevars))
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)
