"""Tools from Python functions: schema from the signature, description from the docstring."""

import hashlib
import inspect
import json
import textwrap
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NotRequired, get_type_hints

from pydantic import PydanticUserError, TypeAdapter
from pydantic_core import PydanticSerializationError, to_jsonable_python

from .arguments import adapter_of, checked
from .registry import Effect, InvalidTool, Tool

_VARIADIC = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}


def python_tool(
    function: Callable[..., Any],
    *,
    name: str | None = None,
    effect: Effect = "once",
    timeout_s: float | None = 60.0,
    retries: int = 0,
    max_concurrency: int | None = None,
    eta_s: float | None = None,
    memo_s: float | None = None,
    sensitive: bool = False,
    outcome: Callable[..., Any] | None = None,
    namespace: Mapping[str, Any] | None = None,
) -> Tool:
    """A tool that calls `function`, sync or async; raises `InvalidTool`.

    `namespace` has the names that annotations written as text may use beside the module's.
    """
    name = name or _name_of(function)
    arguments = _arguments(name, function, namespace)
    schema = _schema(name, function, arguments)
    return Tool(
        name=name,
        description=inspect.getdoc(function) or "",
        parameters=json.dumps(schema, ensure_ascii=False, separators=(",", ":")),
        function=function,
        effect=effect,
        timeout_s=timeout_s,
        retries=retries,
        max_concurrency=max_concurrency,
        eta_s=eta_s,
        memo_s=memo_s,
        sensitive=sensitive,
        source_hash=source_hash(function),
        validate=partial(checked, name, arguments),
        origin=origin_of(function),
        outcome=outcome,
    )


def source_hash(function: Callable[..., Any]) -> str:
    """Changes with the source text of `function`, or with its code where there is no text."""
    return hashlib.blake2b(source_of(function).encode(), digest_size=16).hexdigest()


def source_of(function: Callable[..., Any]) -> str:
    """The source text of `function`; where there is none, what its code says."""
    function = inspect.unwrap(function)
    try:
        return textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError):
        return _code_text(getattr(function, "__code__", None))


def _code_text(code: Any) -> str:
    """A text that changes with a code object and with those inside it."""
    if code is None:
        return ""
    constants = [_code_text(c) if hasattr(c, "co_code") else repr(c) for c in code.co_consts]
    return json.dumps([code.co_code.hex(), list(code.co_names), constants])


def origin_of(function: Callable[..., Any]) -> str:
    """ "module:function" if the function can be imported by that, else ""."""
    function = inspect.unwrap(function)
    module = getattr(function, "__module__", None)
    path = getattr(function, "__qualname__", "")
    return f"{module}:{path}" if module and path.isidentifier() else ""


def _name_of(function: Callable[..., Any]) -> str:
    name = getattr(function, "__name__", "")
    if not callable(function):
        raise InvalidTool(str(function), "a tool is made from a function")
    if not name.isidentifier():
        raise InvalidTool(name or repr(function), "has no name of its own: give it one by name=")
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise InvalidTool(name, "is a generator: return a list instead of yielding")
    return name


def _arguments(
    name: str, function: Callable[..., Any], namespace: Mapping[str, Any] | None
) -> TypeAdapter[dict[str, Any]]:
    """Validates the arguments of `function` as a dict."""
    fields: dict[str, Any] = {}
    hints = _hints(name, function, namespace)
    for parameter in _parameters(name, function):
        if parameter.name not in hints:
            raise InvalidTool(
                name,
                f"parameter {parameter.name!r} has no annotation: "
                f"write `{parameter.name}: str` or whatever its type is",
            )
        hint = hints[parameter.name]
        required = parameter.default is inspect.Parameter.empty
        fields[parameter.name] = hint if required else NotRequired[hint]
    return adapter_of(name, fields)


def _hints(
    name: str, function: Callable[..., Any], namespace: Mapping[str, Any] | None
) -> dict[str, Any]:
    try:
        local = dict(namespace) if namespace else None
        return get_type_hints(inspect.unwrap(function), localns=local, include_extras=True)
    except NameError as error:
        raise InvalidTool(name, f"an annotation cannot be found: {error}") from None
    except TypeError as error:
        raise InvalidTool(name, f"an annotation is no type: {error}") from None


def _parameters(name: str, function: Callable[..., Any]) -> list[inspect.Parameter]:
    found = list(inspect.signature(function).parameters.values())
    for parameter in found:
        if parameter.kind in _VARIADIC:
            raise InvalidTool(
                name,
                f"takes {_VARIADIC[parameter.kind]}{parameter.name}: name each parameter, "
                "since a model has to be told which there are",
            )
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            raise InvalidTool(
                name, f"parameter {parameter.name!r} is positional-only: remove the `/`"
            )
    return found


def _schema(
    name: str, function: Callable[..., Any], arguments: TypeAdapter[dict[str, Any]]
) -> dict[str, Any]:
    """The JSON Schema of the arguments, with the defaults that JSON can say."""
    try:
        schema = arguments.json_schema()
    except PydanticUserError as error:
        raise InvalidTool(name, f"an annotation is of no use to JSON: {_first(error)}") from None
    schema.pop("title", None)
    schema.setdefault("properties", {})
    for parameter in inspect.signature(function).parameters.values():
        field: dict[str, Any] = schema["properties"][parameter.name]
        if field.get("title") == parameter.name.replace("_", " ").title():
            del field["title"]
        if parameter.default is not inspect.Parameter.empty:
            try:
                field["default"] = to_jsonable_python(parameter.default)
            except PydanticSerializationError:
                continue
    return schema


def _first(error: Exception) -> str:
    return str(error).splitlines()[0]
