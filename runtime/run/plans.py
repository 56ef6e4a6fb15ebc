"""Plans that a model writes: sub-steps as data, checked before anything of them runs.

A plan is hostile until it has been read: it may be of any size and shape, go in circles, name what
is not there, or ask for what its author may not do. What it says is never compiled: prompts are
taken letter by letter, and the one way to a result is the value {"from": "id"}.
"""

import json
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal, cast

import msgspec

from ...tools import Tool
from ..errors import OutputInvalid
from .trust import Trust

MAX_STEPS = 64
MAX_CHARS = 200_000  # of a whole plan as JSON
MAX_DEPTH = 24  # of lists and objects in each other
MAX_NAME = 64
MAX_PROBLEMS = 20  # that a message lists
PLANNED = "a plan that a model wrote"


class SubStep(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One step of a plan. It starts when those that it `needs`, or takes values from, have ended.

    `llm` asks a model `prompt`, below which the results of `needs` are written; `tool` calls a tool
    and `step` a step of the author's with `args`, in which {"from": "id"} stands for a result.
    """

    id: str
    kind: Literal["llm", "tool", "step"]
    prompt: str | None = None
    tool: str | None = None
    step: str | None = None
    args: dict[str, Any] = {}
    needs: list[str] = []

    @property
    def after(self) -> tuple[str, ...]:
        """The steps that it waits for, each once."""
        return tuple(dict.fromkeys((*self.needs, *sources(self.args))))


@dataclass(frozen=True, slots=True)
class Known:
    """A step of the author's that plans may use: its fields, its result's type, how it is run."""

    fields: tuple[str, ...]
    run: Callable[..., Awaitable[Any]]
    result: str | None = None  # a JSON type, where it is known


@dataclass(frozen=True, slots=True)
class Means:
    """What a plan may use, and how: `use(id, tool, arguments)` calls a tool, and `prompt(id, text)`
    asks a model, None where plans may not."""

    use: Callable[[str, Tool, Mapping[str, Any]], Awaitable[Any]]
    tools: Mapping[str, Tool] = field(default_factory=dict[str, Tool])
    steps: Mapping[str, Known] = field(default_factory=dict[str, Known])
    prompt: Callable[[str, str], Awaitable[Any]] | None = None
    allow: frozenset[str] = frozenset()
    max_steps: int = MAX_STEPS


def read_steps(given: Any, means: Means) -> list[SubStep]:
    """The steps of a plan by their shape alone: JSON text, {"steps": [...]} or a list.

    Raises OutputInvalid.
    """
    data = _data(given)
    if isinstance(data, dict):
        pairs = cast("dict[str, Any]", data)
        if set(pairs) != {"steps"}:
            raise _invalid(['a plan is {"steps": [...]}, with no other key'], given)
        data = pairs["steps"]
    if not isinstance(data, list):
        raise _invalid([f"the steps of a plan are a list, not {type(data).__name__}"], given)
    steps = cast("list[Any]", data)
    if len(steps) > means.max_steps:
        raise _invalid([f"it has {len(steps)} steps; at most {means.max_steps} are run"], given)
    try:
        return msgspec.convert(steps, list[SubStep])
    except msgspec.ValidationError as error:
        raise _invalid([str(error)], given) from None


def check(steps: Sequence[SubStep], means: Means) -> None:
    """Raise OutputInvalid with all that is wrong, unless the steps can be run."""
    if len(steps) > means.max_steps:
        raise _invalid([f"it has {len(steps)} steps; at most {means.max_steps} are run"], None)
    ids: dict[str, SubStep] = {}
    problems: list[str] = []
    for step in steps:
        if not (step.id.isascii() and step.id.isidentifier() and len(step.id) <= MAX_NAME):
            problems.append(f"the id {step.id[:MAX_NAME]!r} is no name: use letters, digits and _")
        elif step.id in ids:
            problems.append(f"two steps are called {step.id!r}")
        ids.setdefault(step.id, step)
    for step in steps:
        problems += (f"step {step.id!r}: {text}" for text in _step(step, ids, means))
    problems += _circles(ids)
    if problems:
        raise _invalid(problems, None)


def sources(value: Any) -> Iterator[str]:
    """The steps whose results a value takes."""
    match value:
        case {"from": str(name), **rest} if not rest:
            yield name
        case dict():
            for inner in cast("dict[str, Any]", value).values():
                yield from sources(inner)
        case list():
            for inner in cast("list[Any]", value):
                yield from sources(inner)
        case _:
            return


def filled(value: Any, results: Mapping[str, Any]) -> Any:
    """A value with results in the places that ask for them."""
    match value:
        case {"from": str(name), **rest} if not rest:
            return results[name]
        case dict():
            pairs = cast("dict[str, Any]", value)
            return {key: filled(inner, results) for key, inner in pairs.items()}
        case list():
            return [filled(inner, results) for inner in cast("list[Any]", value)]
        case _:
            return value


# ---- shape ---------------------------------------------------------------------------------------


def _data(given: Any) -> Any:
    """Plain data of bounded size and depth."""
    if isinstance(given, str) and len(given) > MAX_CHARS:
        raise _invalid([f"it is longer than {MAX_CHARS:,} characters"], given)
    try:
        data = json.loads(given, parse_constant=_refuse) if isinstance(given, str) else given
        size = len(json.dumps(data, ensure_ascii=False, allow_nan=False).encode())
    except (ValueError, TypeError, RecursionError) as error:
        raise _invalid([f"it is not JSON: {error}"[:200]], given) from None
    if size > MAX_CHARS:
        raise _invalid([f"it is longer than {MAX_CHARS:,} characters"], given)
    if not _shallow(data, MAX_DEPTH):
        raise _invalid([f"it is nested deeper than {MAX_DEPTH} levels"], given)
    return data


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a number")


def _shallow(data: Any, depth: int) -> bool:
    if isinstance(data, dict):
        inside: Collection[Any] = cast("dict[str, Any]", data).values()
    elif isinstance(data, list):
        inside = cast("list[Any]", data)
    else:
        return True
    return depth > 0 and all(_shallow(inner, depth - 1) for inner in inside)


def _invalid(problems: list[str], given: Any) -> OutputInvalid:
    told = problems[:MAX_PROBLEMS]
    more = [f"and {len(problems) - len(told)} more"] if len(problems) > len(told) else []
    text = given if isinstance(given, str) else ""
    return OutputInvalid(f"the plan cannot be run: {'; '.join(told + more)}", output=text)


# ---- meaning -------------------------------------------------------------------------------------


def _step(step: SubStep, ids: Mapping[str, SubStep], means: Means) -> Iterator[str]:
    for name in step.after:
        if name not in ids:
            yield f"it needs {name[:MAX_NAME]!r}, which is no step{_near(name, ids)}"
    for other in ("prompt", "tool", "step"):
        wanted = other == ("prompt" if step.kind == "llm" else step.kind)
        if wanted != (getattr(step, other) is not None):
            yield f"a step of kind {step.kind!r} has {'a' if wanted else 'no'} {other!r}"
            return
    match step.kind:
        case "llm":
            yield from _prompt(step, means)
        case "tool":
            yield from _tool(step, ids, means)
        case "step":
            yield from _known(step, means)


def _prompt(step: SubStep, means: Means) -> Iterator[str]:
    if means.prompt is None:
        yield "this plan may not ask a model; use a tool or a step"
    if step.args:
        yield "a prompt has no args: name the steps that it reads under needs"
    if not (step.prompt or "").strip():
        yield "its prompt is empty"


def _known(step: SubStep, means: Means) -> Iterator[str]:
    name = step.step or ""
    known = means.steps.get(name)
    if known is None:
        yield f"there is no step {name[:MAX_NAME]!r}{_near(name, means.steps)}"
        return
    yield from _names(step, known.fields, known.fields)


def _tool(step: SubStep, ids: Mapping[str, SubStep], means: Means) -> Iterator[str]:
    name = step.tool or ""
    tool = means.tools.get(name)
    if tool is None:
        yield f"there is no tool {name[:MAX_NAME]!r}{_near(name, means.tools)}"
        return
    trust = Trust(means.allow, sources={PLANNED: None})
    if not trust.permits(tool):
        yield trust.refusal(tool)
    schema = cast("dict[str, Any]", json.loads(tool.parameters))
    fields = cast("dict[str, Any]", schema.get("properties", {}))
    yield from _names(step, fields, cast("list[str]", schema.get("required", [])))
    for key, value in step.args.items():
        if key in fields:
            wanted = {**fields[key], "$defs": schema.get("$defs", {})}
            yield from (f"{key}: {text}" for text in _value(value, wanted, ids, means))


def _names(step: SubStep, fields: Collection[str], required: Collection[str]) -> Iterator[str]:
    for key in step.args:
        if key not in fields:
            yield f"it takes no {key[:MAX_NAME]!r}{_near(key, fields)}"
    for key in required:
        if key not in step.args:
            yield f"{key!r} has no value"


def _value(
    value: Any, schema: dict[str, Any], ids: Mapping[str, SubStep], means: Means
) -> Iterator[str]:
    """What is wrong with an argument: a constant is checked as it is, a result by its type."""
    from jsonschema import Draft202012Validator

    match value:
        case {"from": str(name), **rest} if not rest:
            wanted, given = schema.get("type"), _type(ids.get(name), means)
            fits = wanted == given or (wanted, given) == ("number", "integer")
            if isinstance(wanted, str) and given is not None and not fits:
                yield f"it is of type {wanted}, and {name!r} gives {given}"
        case _ if not any(True for _ in sources(value)):
            problems = Draft202012Validator(schema).iter_errors(value)  # pyright: ignore[reportUnknownMemberType]
            yield from (problem.message[:200] for problem in problems)
        case _:
            return


def _type(step: SubStep | None, means: Means) -> str | None:
    """The JSON type of a step's result, where it is known."""
    if step is None or step.kind == "tool":
        return None
    if step.kind == "llm":
        return "string"
    known = means.steps.get(step.step or "")
    return known.result if known else None


def _circles(ids: Mapping[str, SubStep]) -> Iterator[str]:
    """The steps that wait for each other."""
    waits = {name: {each for each in step.after if each in ids} for name, step in ids.items()}
    while ready := [name for name, after in waits.items() if not after]:
        for name in ready:
            del waits[name]
        for after in waits.values():
            after.difference_update(ready)
    if waits:
        yield f"these steps wait for each other: {', '.join(waits)}"


def _near(name: str, known: Collection[str]) -> str:
    names = sorted(known)
    near = get_close_matches(name[:MAX_NAME], names, n=1)
    listed = ", ".join(names[:12])
    return f"; did you mean {near[0]!r}?" if near else f"; there is {listed or 'none'}"
