"""Working out values: a `Value` becomes a function of the names it reads.

Constants and references cost well under a microsecond; expressions run in Jinja's sandbox.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any, cast

from . import template
from .errors import EvaluationError, PromptError
from .graph import Args, Const, DictOf, Expr, ListOf, Ref, Value

Evaluate = Callable[[Mapping[str, Any]], Any]


def compile_value(value: Value) -> Evaluate:
    """A function that works `value` out; it raises `EvaluationError`."""
    match value:
        case Const(text):
            return _const(text)
        case Ref(name, ()):
            return _name(name)
        case Ref(name, path):
            return _part(name, path)
        case Expr(source):
            return _expression(source)
        case ListOf(items):
            parts = [compile_value(item) for item in items]
            return lambda values: [part(values) for part in parts]
        case DictOf(items):
            return compile_args(items)


def compile_args(args: Args) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """A function that works out a step's arguments."""
    parts = [(name, compile_value(value)) for name, value in args]
    return lambda values: {name: part(values) for name, part in parts}


def evaluate(value: Value, values: Mapping[str, Any]) -> Any:
    """`value` worked out once."""
    return compile_value(value)(values)


def check_expression(source: str) -> tuple[str, ...]:
    """The names that an expression reads, in order; raises `PromptError` on a syntax error."""
    return _compiled(source).uses


def spell(value: Value) -> str:
    """How an author would write `value`."""
    match value:
        case Const(text):
            return text
        case Ref(name, path):
            return name + "".join(f".{p}" if _plain(p) else f"[{json.dumps(p)}]" for p in path)
        case Expr(source):
            return source
        case ListOf(items):
            return "[" + ", ".join(spell(item) for item in items) + "]"
        case DictOf(items):
            return "{" + ", ".join(f"{json.dumps(k)}: {spell(item)}" for k, item in items) + "}"


def _plain(part: str | int) -> bool:
    return isinstance(part, str) and part.isidentifier()


def _const(text: str) -> Evaluate:
    """A constant; lists and dicts are made anew each time, since readers may change theirs."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise EvaluationError(f"not JSON: {error}", text) from None
    return (lambda values: json.loads(text)) if isinstance(value, list | dict) else lambda _: value


def _name(name: str) -> Evaluate:
    def read(values: Mapping[str, Any]) -> Any:
        try:
            return values[name]
        except KeyError:
            raise _unknown(name, values, name) from None

    return read


def _unknown(name: str, values: Mapping[str, Any], source: str) -> EvaluationError:
    return EvaluationError(f"{name!r} is undefined; known: {template.known(values)}", source)


def _part(name: str, path: tuple[str | int, ...]) -> Evaluate:
    source = spell(Ref(name, path))

    def read(values: Mapping[str, Any]) -> Any:
        try:
            found = values[name]
        except KeyError:
            raise _unknown(name, values, source) from None
        for part in path:
            found = _step_into(found, part, source)
        return found

    return read


def _step_into(value: Any, part: str | int, source: str) -> Any:
    """One part of `value`: a dict's item, a list's item, or an attribute that holds data."""
    match value:
        case Mapping():
            items = cast("Mapping[Any, Any]", value)
            if part in items:
                return items[part]
            raise EvaluationError(f"there is no {part!r}; there is {_keys(items)}", source)
        case list() | tuple():
            listed = cast("list[Any] | tuple[Any, ...]", value)
            if isinstance(part, int) and -len(listed) <= part < len(listed):
                return listed[part]
            raise EvaluationError(f"there is no {part!r} in a list of {len(listed)}", source)
        case _:
            return _attribute(value, part, source)


def _keys(items: Mapping[Any, Any], most: int = 12) -> str:
    names = [repr(key) for key in items]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) + more) or "nothing"


def _attribute(value: Any, part: str | int, source: str) -> Any:
    """An attribute that holds data: neither private nor a method."""
    missing = object()
    found: Any = missing
    if isinstance(part, str) and not part.startswith("_"):
        found = getattr(value, part, missing)
    if found is missing or callable(found):
        raise EvaluationError(f"there is no {part!r} in a {type(value).__name__}", source)
    return found


# ---- expressions --------------------------------------------------------------------------------


class _Expression:
    """A compiled expression."""

    __slots__ = ("_template", "source", "uses")

    def __init__(self, source: str) -> None:
        from jinja2 import TemplateSyntaxError

        self.source = source
        try:
            self.uses = _names(source)
            compiled = template.environment().compile_expression(source, undefined_to_none=False)
        except TemplateSyntaxError as error:
            raise PromptError(error.message or "syntax error", error.lineno) from None
        except (RecursionError, SyntaxError, MemoryError):  # of Python's own compiler
            raise PromptError("the expression is nested too deeply") from None
        self._template = compiled._template  # pyright: ignore[reportPrivateUsage]

    def __call__(self, values: Mapping[str, Any]) -> Any:
        from jinja2 import UndefinedError

        try:
            context = self._template.new_context(dict(values))
            for _ in self._template.root_render_func(context):
                pass
            return _settle(context.vars["result"])
        except UndefinedError as error:
            raise EvaluationError(template.tell_undefined(error, values), self.source) from None
        except Exception as error:
            raise EvaluationError(f"{type(error).__name__}: {error}", self.source) from error


def _settle(value: Any) -> Any:
    """An expression's result as plain data: iterators become lists; a part may not be undefined."""
    from jinja2 import Undefined, UndefinedError

    match value:
        case str() | int() | float() | None:
            return value
        case Undefined():
            str(value)  # raises what is wrong, if it is strict
            raise UndefinedError("it has no value; an 'if' may lack its 'else'")
        case list() | tuple() | range() | Iterator():
            return [_settle(item) for item in cast("Iterator[Any]", value)]
        case dict():
            return {key: _settle(item) for key, item in cast("dict[Any, Any]", value).items()}
        case _:
            return value


@lru_cache(maxsize=4096)
def _compiled(source: str) -> _Expression:
    return _Expression(source)


def _names(source: str) -> tuple[str, ...]:
    from jinja2.parser import Parser

    parser = Parser(template.environment(), source, state="variable")
    tree = parser.parse_expression()
    if not parser.stream.eos:
        parser.fail(f"unexpected {parser.stream.current.value!r} after the expression")
    return tuple(dict.fromkeys(template.loads(tree)))


def _expression(source: str) -> Evaluate:
    try:
        return _compiled(source)
    except PromptError as error:
        raise EvaluationError(error.message, source) from None
