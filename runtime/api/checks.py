"""Type checks of a graph: parts that a result does not have, loops over what is no list, choices
that are never given, arguments of another shape than the tool's."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, cast

from ...planner.errors import PromptError
from ...planner.graph import (
    LLM,
    Args,
    Compute,
    Const,
    DictOf,
    Each,
    Expr,
    Graph,
    ListOf,
    Reduce,
    Ref,
    Repeat,
    Select,
    Step,
    ToolCall,
    Value,
)
from ...planner.prompt import Field
from ...planner.template import environment
from ...tools import Tool
from ..workflow import Input, Workflow
from .places import did_you_mean

Schema = Mapping[str, Any]
Types = dict[str, Schema]  # what is known of each name; {} is nothing

_UNKNOWN: Schema = {}
_SCALARS = ("string", "integer", "number", "boolean")
_SHAPES = {**dict.fromkeys(_SCALARS, "a single value"), "array": "a list", "object": "a mapping"}


def type_problems(
    graph: Graph, inputs: Sequence[Input], tools: Mapping[str, Tool]
) -> Iterator[tuple[Step | None, str]]:
    """Steps with what is wrong with the types in them; None for the result."""
    types: Types = {each.name: cast("Schema", json.loads(each.schema)) for each in inputs}
    yield from _steps(graph.steps, types, tools)
    for message in _value(graph.result, types):
        yield None, message


def result_schema(workflow: Workflow) -> str:
    """A JSON Schema of the result: what the author declared, or what the graph tells if that says
    more about its parts."""
    graph, declared = workflow.graph, workflow.result_schema
    if graph is None or "properties" in json.loads(declared):
        return declared
    types: Types = {g.name: cast("Schema", json.loads(g.schema)) for g in workflow.inputs}
    for _ in _steps(graph.steps, types, workflow.tools):
        pass  # what is wanted is what it learns of the types
    found = _plain(infer(graph.result, types))
    return json.dumps(found) if "properties" in found or declared == "{}" else declared


def _plain(schema: Schema) -> Schema:
    """A schema without references that would lead out of it, one level deep."""
    parts = cast("Mapping[str, Schema]", schema.get("properties", {}))
    resolved = {name: _resolved(part) for name, part in parts.items()}
    return {**schema, "properties": resolved} if resolved else schema


def _steps(
    steps: Sequence[Step], types: Types, tools: Mapping[str, Tool]
) -> Iterator[tuple[Step, str]]:
    """Problems of steps in an order in which each comes after what it reads; fills `types`."""
    for step in steps:
        if isinstance(step, Each):
            yield from _each(step, types, tools)
        elif isinstance(step, Repeat):
            yield from _repeat(step, types, tools)
        else:
            types[step.id] = _type_of_step(step, types)
        for message in dict.fromkeys(_step(step, types, tools)):
            yield step, message


def _each(step: Each, types: Types, tools: Mapping[str, Tool]) -> Iterator[tuple[Step, str]]:
    items = _resolved(infer(step.items, types))
    inside: Types = {**types, step.item: _items_of(items)}
    yield from _steps(step.body, inside, tools)
    for message in _value(step.result, inside):
        yield step, message
    types[step.id] = {"type": "array", "items": infer(step.result, inside)}
    named = items.get("type")
    if isinstance(named, str) and named != "array":
        yield step, f"it runs over {_spelled(step.items)}, which is {_article(named)}, not a list"


def _repeat(step: Repeat, types: Types, tools: Mapping[str, Tool]) -> Iterator[tuple[Step, str]]:
    start = _resolved(infer(step.start, types))
    inside: Types = {**types, step.item: start}
    yield from _steps(step.body, inside, tools)
    for value in step.ends:
        for message in _value(value, inside):
            yield step, message
    types[step.id] = infer(step.result, inside)
    result = _resolved(types[step.id])
    begins, goes_on = _shape(start), _shape(result)
    if begins and goes_on and begins != goes_on:
        yield step, f"{step.item!r} begins as {begins} and goes on as {goes_on}: make them alike"
    lost = [name for name in start.get("properties", ()) if name not in _known_parts(result, name)]
    if lost:
        yield step, f"its result has no {lost[0]!r}, which {step.item!r} begins with"


def _known_parts(schema: Schema, otherwise: str) -> Collection[str]:
    """The parts of a mapping; where they are not known, it may have any."""
    known = schema.get("properties")
    return known if known and not schema.get("additionalProperties") else (otherwise,)


def _spelled(value: Value) -> str:
    return repr(value.name) if isinstance(value, Ref) else "a value"


def _article(named: str) -> str:
    return {"integer": "an integer", "object": "an object"}.get(named, f"a {named}")


def _step(step: Step, types: Types, tools: Mapping[str, Tool]) -> Iterator[str]:
    if step.when is not None:
        yield from _value(step.when, types)
    match step:
        case LLM(args=args):
            for _, value in args:
                yield from _value(value, types)
            yield from _fields(step, types)
            if step.reduce is not None:
                yield from _reduce(step, step.reduce, types)
        case ToolCall(args=args):
            for _, value in args:
                yield from _value(value, types)
            if step.tool in tools:
                yield from _arguments(args, tools[step.tool], types)
        case Select():
            for value in (step.condition, step.then, step.otherwise):
                yield from _value(value, types)
        case Compute(value=value):
            yield from _value(value, types)
        case Each() | Repeat():
            yield from _value(step.begins, types)


def _fields(step: LLM, types: Types) -> Iterator[str]:
    """Parts of fields that a prompt reads, `{{ reply.subject }}`."""
    given = dict(step.args)
    for prompt in (step.system, step.prompt):
        try:
            segments = prompt.segments if prompt is not None else ()
        except PromptError:
            return
        for part in segments:
            if isinstance(part, Field) and part.name in given:
                known = infer(given[part.name], types)
                yield from _path(known, part.name, part.path)[1]


def _reduce(step: LLM, reduce: Reduce, types: Types) -> Iterator[str]:
    """A list that is none, and answers that cannot take the place of its items."""
    value = dict(step.args).get(reduce.over, Ref(reduce.over))
    given = _resolved(infer(value, types))
    named = given.get("type")
    if isinstance(named, str) and named != "array":
        yield f"it reduces {_spelled(value)}, which is {_article(named)}, not a list"
    if not reduce.tree or reduce.merge is not None:
        return
    item, answer = _items_of(given), _resolved(_type_of_step(step, types))
    cure = "give it `merge`, a prompt that folds answers, or tree: false"
    before, after = _shape(item), _shape(answer)
    if before and after and before != after:
        yield f"each item is {before} and an answer {after}, which is folded in its place: {cure}"
    lost = [name for name in item.get("properties", ()) if name not in _known_parts(answer, name)]
    if before == after and lost:
        yield f"an answer has no {lost[0]!r}, which the items have in whose place it is: {cure}"


def _arguments(args: Args, tool: Tool, types: Types) -> Iterator[str]:
    """Arguments of another shape than the tool's parameters."""
    parameters: Mapping[str, Schema] = json.loads(tool.parameters).get("properties", {})
    for name, value in args:
        wanted = _shape(_resolved(parameters.get(name, _UNKNOWN)))
        given = _shape(_resolved(infer(value, types)))
        if wanted and given and wanted != given:
            yield f"the tool's parameter {name!r} takes {wanted}, not {given}"


def _shape(schema: Schema) -> str | None:
    named = schema.get("type")
    return _SHAPES.get(named) if isinstance(named, str) else None


# ---- what is known of a value ----------------------------------------------------------------------


def _type_of_step(step: Step, types: Types) -> Schema:
    match step:
        case LLM(choices=choices) if choices:
            return {"type": "string", "enum": list(choices)}
        case LLM(schema=str(text)):
            found = json.loads(text)
            return cast("Schema", found) if isinstance(found, dict) else _UNKNOWN
        case LLM():
            return {"type": "string"}
        case Compute(value=value):
            return infer(value, types)
        case Select(then=then, otherwise=otherwise):
            one, other = infer(then, types), infer(otherwise, types)
            return one if one == other else _UNKNOWN
        case _:
            return _UNKNOWN


def infer(value: Value, types: Types) -> Schema:
    """What is known of a value, as a JSON Schema."""
    match value:
        case Const(text):
            return _type_of_data(json.loads(text))
        case Ref(name, path):
            return _path(types.get(name, _UNKNOWN), name, path)[0]
        case Expr():
            return _UNKNOWN
        case ListOf():
            return {"type": "array"}
        case DictOf(items):
            return {"type": "object", "properties": {name: infer(v, types) for name, v in items}}


def _type_of_data(data: Any) -> Schema:
    match data:
        case bool():
            return {"type": "boolean"}
        case int():
            return {"type": "integer"}
        case float():
            return {"type": "number"}
        case str():
            return {"type": "string"}
        case list():
            return {"type": "array"}
        case dict():
            pairs = cast("dict[str, Any]", data)
            return {"type": "object", "properties": {k: _type_of_data(v) for k, v in pairs.items()}}
        case _:
            return _UNKNOWN


def _resolved(schema: Schema, root: Schema | None = None) -> Schema:
    """A schema with its reference into `$defs` followed."""
    for _ in range(10):
        reference = schema.get("$ref")
        if not isinstance(reference, str):
            return schema
        home: Mapping[str, Schema] = (root or schema).get("$defs", {})
        schema = {**home.get(reference.rpartition("/")[2], {}), "$defs": home}
    return _UNKNOWN


def _items_of(schema: Schema) -> Schema:
    inside = schema.get("items")
    return _within(cast("Schema", inside), schema) if isinstance(inside, dict) else _UNKNOWN


def _within(inside: Schema, around: Schema) -> Schema:
    """A part of a schema, which still knows the definitions of the whole."""
    known = around.get("$defs")
    return _resolved({**inside, "$defs": known} if known else inside)


def _path(schema: Schema, name: str, path: Sequence[str | int]) -> tuple[Schema, list[str]]:
    """What is known of a part, and why there is no such part."""
    at = name
    for part in path:
        schema = _resolved(schema)
        if wrong := _no_part(schema, at, part):
            return _UNKNOWN, [wrong]
        inside = schema.get("properties", {}).get(part) if isinstance(part, str) else None
        if isinstance(inside, dict):
            schema = _within(cast("Schema", inside), schema)
        else:
            schema = _items_of(schema) if isinstance(part, int) else _UNKNOWN
        at += f".{part}" if isinstance(part, str) else f"[{part}]"
    return schema, []


def _no_part(schema: Schema, at: str, part: str | int) -> str | None:
    named = schema.get("type")
    match named:
        case "object" if "properties" in schema and not schema.get("additionalProperties"):
            known: Mapping[str, Any] = schema["properties"]
            if part in known:
                return None
            return f"{at!r} has no {part!r}{did_you_mean(str(part), known, 'it has')}"
        case "array" if isinstance(part, str):
            return f"{at!r} is a list, which has no {part!r}: loop over it, or take [0]"
        case "integer" | "number" | "boolean":
            return f"{at!r} is {_article(named)}, which has no parts"
        case "string" if isinstance(part, str):
            return f"{at!r} is a text, which has no {part!r}"
        case _:
            return None


# ---- expressions -----------------------------------------------------------------------------------


def _value(value: Value, types: Types) -> Iterator[str]:
    match value:
        case Ref(name, path):
            yield from _path(types.get(name, _UNKNOWN), name, path)[1]
        case Expr(source):
            yield from _expression(source, types)
        case ListOf(items):
            for item in items:
                yield from _value(item, types)
        case DictOf(items):
            for _, item in items:
                yield from _value(item, types)
        case Const():
            return


def _expression(source: str, types: Types) -> Iterator[str]:
    from jinja2 import TemplateSyntaxError
    from jinja2.parser import Parser

    try:
        tree = Parser(environment(), source, state="variable").parse_expression()
        found = list(_node(tree, types))
    except (TemplateSyntaxError, RecursionError):
        return  # told elsewhere
    yield from found


def _node(node: Any, types: Types) -> Iterator[str]:
    from jinja2 import nodes

    if isinstance(node, nodes.Compare):
        yield from _compare(node, types)
    if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Getattr):
        yield from _node(node.node.node, types)  # a method is no part
        children: list[Any] = [*node.args, *node.kwargs]
    else:
        reference = _reference(node)
        if reference is not None:
            yield from _path(types.get(reference.name, _UNKNOWN), reference.name, reference.path)[1]
            return
        children = list(node.iter_child_nodes())
    for child in children:
        yield from _node(child, types)


def _reference(node: Any) -> Ref | None:
    from jinja2 import nodes

    match node:
        case nodes.Name(name=str(name)):
            return Ref(name)
        case nodes.Getattr(node=inner, attr=str(part)):
            below = _reference(inner)
        case nodes.Getitem(node=inner, arg=nodes.Const(value=str() | int() as part)):
            below = _reference(inner)
        case _:
            return None
    return Ref(below.name, (*below.path, part)) if below else None


def _compare(node: Any, types: Types) -> Iterator[str]:
    """Comparisons of a choice with a text that is none of the choices."""
    from jinja2 import nodes

    sides = [node.expr, *(operand.expr for operand in node.ops)]
    constants = [one for side in sides for one in (side.items if _is_list(side) else [side])]
    texts = [one.value for one in constants if isinstance(one, nodes.Const)]
    for side in sides:
        reference = _reference(side)
        known = infer(reference, types).get("enum") if reference else None
        for text in texts if isinstance(known, list) else ():
            choices = [str(choice) for choice in cast("list[Any]", known)]
            if isinstance(text, str) and text not in choices:
                cure = did_you_mean(text, choices, "its choices")
                yield f"{_spelled(reference)} is never {text!r}{cure}" if reference else ""


def _is_list(node: Any) -> bool:
    from jinja2 import nodes

    return isinstance(node, nodes.List | nodes.Tuple)
