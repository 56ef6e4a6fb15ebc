"""Workflows back to YAML, so that reading it again gives an equal graph."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, cast

import yaml

from ...planner.graph import (
    LLM,
    Args,
    Compute,
    Const,
    DictOf,
    Each,
    Expr,
    ListOf,
    Loop,
    Reduce,
    Ref,
    Repeat,
    Sampling,
    Select,
    Step,
    ToolCall,
    Value,
)
from ...tools import Tool
from ..api.source import literal, quote, source_of
from ..errors import InvalidInput
from ..reasoning.named import SAMPLING
from ..workflow import Input, ModelSpec, Workflow
from .check import Notes
from .reader import Item, Reader
from .types import is_schema, read_type

_OTHER_LINE_ENDS = frozenset("\x85\u2028\u2029")
_DEFAULTS = Sampling()
_TOOL_DEFAULTS = Tool("", "", "", print)


def dump(workflow: Workflow) -> str:
    """The YAML text of a workflow with a graph; raises InvalidInput where YAML cannot say it."""
    graph = workflow.graph
    if graph is None:
        raise InvalidInput(f"{workflow.name!r} is an `async def` workflow: only graphs become YAML")
    top: dict[str, Any] = {"version": 1, "name": workflow.name}
    if workflow.inputs:
        top["inputs"] = {each.name: _input(each) for each in workflow.inputs}
    if workflow.models:
        top["models"] = {name: _model(spec) for name, spec in workflow.models.items()}
    if workflow.tools:
        top["tools"] = {name: _tool(tool) for name, tool in workflow.tools.items()}
    scheduling = {k: v for k, v in asdict(workflow.scheduling).items() if v}
    if scheduling:
        top["scheduling"] = scheduling
    if workflow.cache:
        top["cache"] = True
    top["steps"] = {step.id: _step(step) for step in graph.steps}
    top["output"] = _value(graph.result)
    return yaml.dump(
        top,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=100,
        default_flow_style=False,
    )


class _Dumper(yaml.SafeDumper):
    """Writes long texts as blocks, and quotes what our reader would take for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    readable = "'" in text and text[0] in "{'" and not set(text) & {'"', "\\", "\n"}
    if readable or set(text) & _OTHER_LINE_ENDS:
        style = '"'
    node = yaml.ScalarNode("tag:yaml.org,2002:str", text, style=style)
    if style is None and _misread(text):
        node = yaml.ScalarNode("tag:yaml.org,2002:str", text, style="'")
    return node


def _misread(text: str) -> bool:
    """Whether our reader would not take the plain text for itself."""
    reader = Reader()
    item = Item("scalar", 0, 0)
    return reader.plain(text, item) != text or bool(reader.problems)


_Dumper.add_representer(str, _text)


# ---- parts ----------------------------------------------------------------------------------------


def _input(each: Input) -> Any:
    schema = _type(json.loads(each.schema), f"input {each.name!r}")
    if each.required:
        return schema
    if isinstance(schema, str):
        schema = {} if schema == "any" else {"type": schema}
    return {**schema, "default": each.default}


def _model(spec: ModelSpec) -> Any:
    return {"backend": spec.backend, **spec.options}


def _tool(tool: Tool) -> dict[str, Any]:
    if not tool.origin:
        raise InvalidInput(
            f"tool {tool.name!r} is not a function of a module, so YAML cannot name it: "
            "define it at the top of a module, in a function that calls it if need be"
        )
    if tool.origin.startswith("{"):
        return json.loads(tool.origin)
    limits = ("timeout_s", "retries", "max_concurrency", "eta_s")
    changed = {
        name: getattr(tool, name)
        for name in limits
        if getattr(tool, name) != getattr(_TOOL_DEFAULTS, name)
    }
    return {"python": tool.origin, "effect": tool.effect, **changed}


def _type(schema: Any, what: str) -> Any:
    """A JSON Schema as it is, or as a type's name; it must read back as itself."""
    if schema == {}:
        return "any"
    if list(schema) == ["type"] and isinstance(schema["type"], str):
        return schema["type"]
    notes = Notes("")
    item = Reader().read(yaml.dump(schema, Dumper=_Dumper, sort_keys=False))
    if not is_schema(item) or read_type(item, notes) != schema or notes.problems:
        raise InvalidInput(f"{what} has a schema that YAML cannot say: {json.dumps(schema)}")
    return schema


def _step(step: Step) -> dict[str, Any]:
    match step:
        case LLM():
            made = _llm(step)
        case ToolCall():
            made = {"tool": step.tool, **_with(step.args, implicit=False)}
        case Select():
            made = {
                "select": _expression(step.condition),
                "then": _value(step.then),
                "else": _value(step.otherwise),
            }
        case Compute():
            made = {"value": _value(step.value)}
        case Each():
            made = {
                "each": _expression(step.items),
                "as": step.item,
                "steps": {inside.id: _step(inside) for inside in step.body},
                "result": _value(step.result),
            }
        case Repeat():
            made = {
                "repeat": _value(step.start),
                "as": step.item,
                "steps": {inside.id: _step(inside) for inside in step.body},
                "result": _value(step.result),
                "until": _expression(step.until),
                "max_iterations": step.max_iterations,
                "on_limit": step.on_limit,
            }
    if step.when is not None:
        made["when"] = _expression(step.when)
    return made


def _llm(step: LLM) -> dict[str, Any]:
    loop, reasoning = step.loop, step.reasoning
    kind = "agent" if loop is not None else "llm" if reasoning is None else "reason"
    kind = "reduce" if step.reduce is not None else kind
    made: dict[str, Any] = {kind: step.prompt.source}
    if loop is not None:
        made |= _loop(loop)
    if step.reduce is not None:
        made |= _reduce(step.reduce)
    if reasoning is not None:
        made["strategy"] = reasoning.strategy
        made |= {"settings": json.loads(reasoning.settings)} if reasoning.settings != "{}" else {}
        if reasoning.scorer is not None:
            made["scorer"] = reasoning.scorer
        elif reasoning.judge is not None:
            made["scorer"] = _llm(reasoning.judge)
    if step.system is not None:
        made["system"] = step.system.source
    made |= _with(step.args, implicit=True)
    if step.choices:
        made["choices"] = list(step.choices)
    if step.free_fields:
        made["free_fields"] = list(step.free_fields)
    if step.cascade is not None:
        made["cascade"] = asdict(step.cascade)
    if step.pack is not None:
        made |= {"pack": step.pack.rows, "votes": step.pack.votes}
    if step.schema is not None:
        made["output"] = _type(json.loads(step.schema), f"step {step.id!r}")
    if step.model != "default":
        made["model"] = step.model
    for name in ("max_tokens", "temperature", "top_k", "top_p", "stop", "seed", "ignore_eos"):
        value = getattr(step.sampling, name)
        if value != getattr(_DEFAULTS if reasoning is None else SAMPLING, name):
            key = "turn_tokens" if name == "max_tokens" and loop is not None else name
            made[key] = list(value) if name == "stop" else value
    return made


def _loop(loop: Loop) -> dict[str, Any]:
    """What makes a step an agent, as far as it is not the default."""
    made = {
        "tools": list(loop.tools),
        "max_turns": loop.max_turns if loop.max_turns != Loop().max_turns else None,
        "max_tokens": loop.max_tokens,
        "allow": list(loop.allow),
        "approve": loop.approve,
        "speculate": loop.speculate,
    }
    return {key: value for key, value in made.items() if value}


def _reduce(reduce: Reduce) -> dict[str, Any]:
    """What makes a step a reduce, as far as it is not the default."""
    made: dict[str, Any] = {"over": reduce.over}
    if reduce.merge is not None:
        made["merge"] = reduce.merge.source
    if reduce.batch_tokens is not None:
        made["batch_tokens"] = reduce.batch_tokens
    return made if reduce.tree else {**made, "tree": False}


def _with(args: Args, *, implicit: bool) -> Mapping[str, Any]:
    given = {name: _value(value) for name, value in args if not (implicit and value == Ref(name))}
    return {"with": given} if given else {}


# ---- values ----------------------------------------------------------------------------------------


def _value(value: Value) -> Any:
    """A value as YAML data with {{ expressions }}."""
    match value:
        case Const(text):
            return _data(json.loads(text))
        case ListOf(items):
            return [_value(item) for item in items]
        case DictOf(items):
            return {name: _value(item) for name, item in items}
        case Ref() | Expr():
            return "{{ " + source_of(value) + " }}"


def _data(data: Any) -> Any:
    """Constant data; texts that look like templates are written as expressions."""
    match data:
        case str() if any(mark in data for mark in ("{{", "{%", "{#")):
            return "{{ " + quote(data) + " }}"
        case list():
            items = cast("list[Any]", data)
            return [_data(item) for item in items]
        case dict():
            pairs = cast("dict[str, Any]", data)
            return {name: _data(item) for name, item in pairs.items()}
        case _:
            return data


def _expression(value: Value) -> Any:
    """A condition or a list to loop over."""
    match value:
        case Ref() | Expr():
            return source_of(value)
        case Const(text) if isinstance(json.loads(text), bool | list):
            return _value(value)
        case Const(text):
            return literal(json.loads(text))
        case ListOf() | DictOf():
            return _value(value)
