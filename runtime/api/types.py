"""Python types and JSON: schemas of annotations, conversion of what comes in and goes out."""

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

from pydantic import PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, to_jsonable_python

from ..errors import InvalidInput
from ..workflow import Input
from .places import did_you_mean, place_of, refuse
from .source import usable

_NO_DEFAULT = inspect.Parameter.empty


def schema_text(schema: Mapping[str, Any]) -> str:
    """A JSON Schema as text, its order kept."""
    return json.dumps(schema, ensure_ascii=False, separators=(",", ":"))


def adapter_of(hint: Any, what: str) -> TypeAdapter[Any]:
    """What converts values to `hint`; InvalidWorkflow if JSON cannot say such a type."""
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(hint)
        adapter.json_schema()
    except PydanticUserError as error:
        reason = str(error).splitlines()[0]
        raise refuse(f"{what}: {hint!r} is of no use to JSON ({reason})") from None
    return adapter


def to_json(value: Any, what: str) -> Any:
    """`value` as JSON data: models, dataclasses, dates, tuples and sets are converted."""
    if value is None or type(value) in (str, bool, int):
        return value
    try:
        plain = to_jsonable_python(value)
        json.dumps(plain, allow_nan=False)
    except (PydanticSerializationError, ValueError, TypeError, RecursionError) as error:
        raise InvalidInput(f"{what} is a {type(value).__name__}, not JSON data: {error}") from None
    return plain


@dataclass(frozen=True, slots=True)
class Signature:
    """A workflow function's inputs and result, as types and as JSON Schemas."""

    inputs: tuple[Input, ...]
    adapters: Mapping[str, TypeAdapter[Any]]
    result: TypeAdapter[Any] | None
    python: inspect.Signature

    @property
    def result_schema(self) -> str:
        return schema_text(self.result.json_schema()) if self.result else "{}"

    def bind(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments by name, with defaults."""
        found = bound(self.python, args, kwargs, f"workflow {name!r}", "input")
        found.apply_defaults()
        return dict(found.arguments)

    def check(self, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """`values` as what the annotations promise; raises InvalidInput."""
        return {key: convert(self.adapters[key], v, f"{name}: {key}") for key, v in values.items()}


def bound(
    python: inspect.Signature,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    what: str,
    kind: str,
) -> inspect.BoundArguments:
    """Arguments bound to parameters; InvalidInput says which are missing or unknown."""
    known = list(python.parameters)
    for name in kwargs:
        if name not in known:
            cure = did_you_mean(name, known, f"its {kind}s")
            raise InvalidInput(f"{what} has no {kind} {name!r}{cure}")
    try:
        return python.bind(*args, **kwargs)
    except TypeError as error:
        names = ", ".join(known) or "none"
        raise InvalidInput(f"{what}: {error}; its {kind}s: {names}") from None


def convert(adapter: TypeAdapter[Any], value: Any, what: str) -> Any:
    """`value` as the adapter's type; InvalidInput says what does not fit."""
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        raise InvalidInput(f"{what}: {misfit(error)}") from None


def misfit(error: ValidationError) -> str:
    """What a validation found, in one line."""
    parts: list[str] = []
    for found in error.errors(include_url=False, include_context=False):
        path = ".".join(str(part) for part in found["loc"])
        parts.append(f"{path}: {found['msg']}" if path else found["msg"])
    return "; ".join(parts)


def signature_of(function: Callable[..., Any], local: Mapping[str, Any]) -> Signature:
    """The inputs and the result that a workflow function declares."""
    place = place_of(function)
    python = inspect.signature(function)
    try:
        hints = get_type_hints(function, localns=dict(local), include_extras=True)
    except (NameError, TypeError) as error:
        raise refuse(f"an annotation of {function.__name__}() is wrong: {error}", place) from None
    inputs: list[Input] = []
    adapters: dict[str, TypeAdapter[Any]] = {}
    for parameter in python.parameters.values():
        _check_parameter(function, parameter)
        adapter = adapter_of(hints.get(parameter.name, Any), f"input {parameter.name!r}")
        adapters[parameter.name] = adapter
        inputs.append(_input(parameter, adapter))
    result = hints.get("return", Any)
    made = None if result is Any else adapter_of(result, "the result")
    return Signature(tuple(inputs), adapters, made, python)


def _check_parameter(function: Callable[..., Any], parameter: inspect.Parameter) -> None:
    place, name = place_of(function), parameter.name
    match parameter.kind:
        case inspect.Parameter.VAR_POSITIONAL | inspect.Parameter.VAR_KEYWORD:
            raise refuse(f"{function.__name__}() takes *{name}: name each input", place)
        case inspect.Parameter.POSITIONAL_ONLY:
            raise refuse(f"input {name!r} is positional-only: remove the `/`", place)
        case _ if not usable(name):
            raise refuse(f"input {name!r} cannot be used in templates: rename it", place)
        case _:
            return


def _input(parameter: inspect.Parameter, adapter: TypeAdapter[Any]) -> Input:
    schema = schema_text(adapter.json_schema())
    if parameter.default is _NO_DEFAULT:
        return Input(parameter.name, schema)
    default = to_json(parameter.default, f"the default of input {parameter.name!r}")
    return Input(parameter.name, schema, False, default)
