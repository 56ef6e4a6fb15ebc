"""The arguments of a step in YAML: given under `with`, or of the same name."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from ...planner.graph import Args, Ref, Value
from ...planner.prompt import Prompt
from ...tools import Tool
from ..api.places import did_you_mean
from .reader import Item
from .values import Scope, line_of_field

Pairs = Mapping[str, Item]
_PROMPTS = ("system", "llm", "agent", "reason", "reduce", "merge")


def args_of_prompts(scope: Scope, pairs: Pairs, prompts: Mapping[str, Prompt]) -> Args:
    """A value for each field of an LLM step's prompts; those that do not parse are not there."""
    where: dict[str, Item] = {}
    for what in _PROMPTS:
        if what in prompts:
            where.update((f, pairs[what]) for f in prompts[what].fields if f not in where)
    given = _given(pairs)
    if all(what in prompts for what in _PROMPTS if what in pairs):
        _check_spare(scope, pairs, where, "the prompt reads no")
    args: list[tuple[str, Value]] = []
    for name, at in where.items():
        if name in given:
            args.append((name, scope.value(given[name])))
        else:
            scope.read(name, at, line_of_field(at, name))
            args.append((name, Ref(name)))
    return tuple(args)


def bound_args(
    scope: Scope, pairs: Pairs, names: Iterable[str], required: Iterable[str], what: str
) -> dict[str, Value]:
    """Values of the parameters of a tool or a workflow; only required ones bind by their name.

    `what` begins the message about a name that is no parameter.
    """
    names, given = list(names), _given(pairs)
    _check_spare(scope, pairs, names, what)
    bound: dict[str, Value] = {}
    at = next(pairs[kind] for kind in ("tool", "workflow") if kind in pairs)
    for name in names:
        if name in given:
            bound[name] = scope.value(given[name])
        elif name in required and name in scope.names:
            scope.read(name, at)
            bound[name] = Ref(name)
        elif name in required:
            scope.notes.add(f"{name!r} has no value: give it one under `with`", at)
    return bound


def parameters(tool: Tool) -> tuple[list[str], list[str]]:
    """The names of a tool's parameters, and those that it needs."""
    schema: dict[str, Any] = json.loads(tool.parameters)
    return list(schema.get("properties", {})), list(schema.get("required", ()))


def _given(pairs: Pairs) -> Pairs:
    return pairs["with"].pairs if "with" in pairs else {}


def _check_spare(scope: Scope, pairs: Pairs, known: Iterable[str], what: str) -> None:
    names = list(known)
    for name, value in _given(pairs).items():
        if name not in names:
            cure = did_you_mean(name, names, "it takes")
            scope.notes.add(f"{what} {name!r}{cure}", pairs["with"].keys[name])
            scope.look([value])
