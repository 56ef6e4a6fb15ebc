"""What a tool's arguments may be: a JSON Schema for the model, and a check of what comes back."""

import json
from collections.abc import Mapping
from functools import partial
from typing import Any, NotRequired, cast

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from .registry import InvalidArguments, InvalidTool, Validate


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


def by_schema(tool: str, schema: Mapping[str, Any]) -> Validate:
    """Checks arguments against a JSON Schema, and fills in its defaults."""
    return partial(_by_schema, tool, dict(schema))


def _by_schema(tool: str, schema: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    fields = cast("Mapping[str, Any]", schema.get("properties") or {})
    filled: dict[str, Any] = {}
    for name, kind in fields.items():
        if isinstance(kind, dict) and "default" in kind:
            filled[name] = kind["default"]
    values = {**filled, **given}
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise InvalidArguments(tool, f"the tool's schema is wrong: {error.message}") from None
    problems = Draft202012Validator(schema).iter_errors(values)  # pyright: ignore[reportUnknownMemberType]
    for problem in problems:
        where = "/".join(str(part) for part in problem.absolute_path) or "the arguments"
        raise InvalidArguments(tool, f"{where}: {problem.message[:200]}")
    return values


def _text(schema: Mapping[str, Any]) -> str:
    return json.dumps(schema, ensure_ascii=False, separators=(",", ":"))
