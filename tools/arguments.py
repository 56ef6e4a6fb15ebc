"""What a tool's arguments may be: a JSON Schema for the model, and a check of what comes back."""

import json
from collections.abc import Iterator, Mapping
from copy import deepcopy
from functools import partial
from itertools import count
from typing import Any, NotRequired, cast

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from .registry import InvalidArguments, InvalidTool, Validate

MAX_REFERENCES = 10_000  # followed in one check: few of them can say a schema of any size
_BY_NAME = frozenset({"properties", "$defs", "definitions", "dependentSchemas"})  # of schemas
_DATA = frozenset({"const", "enum", "default", "examples"})  # no schemas


def arguments(tool: str, parameters: Mapping[str, Any]) -> tuple[str, Validate]:
    """The schema as text, and what validates arguments; raises `InvalidTool`.

    `parameters` are names and Python types ({"id": int}; NotRequired[int] may be left out), or
    names and JSON Schemas ({"id": {"type": "integer"}}; those with a default may be left out).
    """
    if parameters and all(isinstance(kind, Mapping) for kind in parameters.values()):
        required = [name for name, kind in parameters.items() if "default" not in kind]
        schema = {
            "type": "object",
            "properties": {name: dict(kind) for name, kind in parameters.items()},
            "required": required,
            "additionalProperties": False,
        }
        return _text(schema), by_schema(tool, schema)
    for name, kind in parameters.items():
        if isinstance(kind, str):
            raise InvalidTool(
                tool,
                f"parameter {name!r} is of a type, such as str, int or list[str], or has a JSON "
                f'Schema, {{"type": "string"}}; it is the text {kind!r}',
            )
    adapter = adapter_of(tool, parameters)
    schema = adapter.json_schema()
    schema.pop("title", None)
    schema.setdefault("properties", {})
    return _text(schema), partial(checked, tool, adapter)


def adapter_of(tool: str, parameters: Mapping[str, Any]) -> TypeAdapter[dict[str, Any]]:
    """Validates a dict of these types; raises `InvalidTool` for what JSON cannot say."""
    make: Any = TypedDict
    made = make("Arguments", dict(parameters))
    made.__pydantic_config__ = ConfigDict(extra="forbid", arbitrary_types_allowed=False)
    try:
        adapter: TypeAdapter[dict[str, Any]] = TypeAdapter(made)
        adapter.json_schema()
    except PydanticUserError as error:
        first = str(error).splitlines()[0]
        raise InvalidTool(tool, f"an annotation is of no use to JSON: {first}") from None
    return adapter


def optional(kind: Any) -> Any:
    """A type that may be left out."""
    return NotRequired[kind]


def checked(
    tool: str, adapter: TypeAdapter[dict[str, Any]], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Arguments as the function expects them; `InvalidArguments` names all that are wrong."""
    try:
        return adapter.validate_python(dict(given))
    except ValidationError as error:
        problems = [
            f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"
            for problem in error.errors(include_url=False, include_context=False)
        ]
        raise InvalidArguments(tool, "; ".join(problems)) from None


def by_schema(tool: str, schema: Mapping[str, Any], *, trusted: bool = True) -> Validate:
    """Checks arguments against a JSON Schema, and fills in its defaults; raises `InvalidTool`.

    Nothing is fetched: a "$ref" leads into the schema itself. Of one that is not `trusted` no
    pattern is applied, since it could take for ever.
    """
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    try:
        Draft202012Validator.check_schema(schema)
        kept: dict[str, Any] = dict(schema) if trusted else _without_patterns(schema)
    except SchemaError as error:
        raise InvalidTool(tool, f"its JSON Schema is wrong: {error.message[:200]}") from None
    except RecursionError:
        raise InvalidTool(tool, "its JSON Schema is nested too deeply") from None
    return partial(_by_schema, tool, kept)


def _by_schema(tool: str, schema: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    fields = cast("Mapping[str, Any]", schema.get("properties") or {})
    values: dict[str, Any] = {
        name: deepcopy(kind["default"])  # pyright: ignore[reportUnknownArgumentType]
        for name, kind in fields.items()
        if isinstance(kind, dict) and "default" in kind
    }
    values.update(given)
    try:
        problem = _first_problem(schema, values)
    except Exception as error:  # noqa: BLE001 (a reference to nowhere, or round in a circle)
        why = f"{type(error).__name__}: {error}"[:200]
        raise InvalidArguments(tool, f"its JSON Schema cannot be applied: {why}") from None
    if problem is not None:
        where = "/".join(str(part) for part in problem.absolute_path) or "the arguments"
        raise InvalidArguments(tool, f"{where}: {problem.message[:200]}")
    return values


def _first_problem(schema: dict[str, Any], values: dict[str, Any]) -> Any:
    """The first thing that is wrong, if anything is; raises what a wrong reference raises."""
    from jsonschema import Draft202012Validator, validators
    from referencing import Registry

    plain: Any = Draft202012Validator
    nothing_else: Any = Registry()  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    followed = count(1)

    def follow(keyword: str, validator: Any, *rest: Any) -> Iterator[Any]:
        if next(followed) > MAX_REFERENCES:
            raise ValueError(f"it follows more than {MAX_REFERENCES} references")
        yield from plain.VALIDATORS[keyword](validator, *rest) or ()

    counted = {each: partial(follow, each) for each in ("$ref", "$dynamicRef")}
    extend: Any = validators.extend  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return next(extend(plain, counted)(schema, registry=nothing_else).iter_errors(values), None)


def _without_patterns(schema: Any) -> Any:
    """A schema without its regular expressions, and what depends on them."""
    if isinstance(schema, list):
        return [_without_patterns(each) for each in cast("list[Any]", schema)]
    if not isinstance(schema, dict):
        return schema
    kept: dict[str, Any] = {}
    dropped = {"pattern", "patternProperties"}
    if "patternProperties" in schema:
        dropped |= {"additionalProperties", "unevaluatedProperties"}
    for key, value in cast("dict[str, Any]", schema).items():
        if key in _DATA:
            kept[key] = value
        elif key in _BY_NAME and isinstance(value, dict):
            named = cast("dict[str, Any]", value)
            kept[key] = {name: _without_patterns(each) for name, each in named.items()}
        elif key not in dropped:
            kept[key] = _without_patterns(value)
    return kept


def _text(schema: Mapping[str, Any]) -> str:
    return json.dumps(schema, ensure_ascii=False, separators=(",", ":"))
