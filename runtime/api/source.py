"""Values as text of the expression language, and names in that text replaced by other values."""

import json
import keyword
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

from ...planner.errors import PromptError
from ...planner.graph import Const, DictOf, Expr, ListOf, Ref, Value, names_in
from ...planner.template import environment
from ...planner.values import check_expression

_RESERVED = frozenset(keyword.kwlist) | {"true", "false", "none", "loop", "self", "caller"}
_ATOM = re.compile(r"\w+(\[(\d+|'[^'\\]*')\])*|'[^'\\]*'")

Resolve = Callable[[str], Value | None]


def usable(name: str) -> bool:
    """Whether `name` can name an input or a step: templates must be able to read it."""
    return name.isidentifier() and name not in _RESERVED and name.lower() not in _RESERVED


def const(data: Any) -> Const:
    """A constant of JSON data; raises ValueError or TypeError if it is none."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Const(text)


def literal(data: Any) -> str:
    """JSON data as text of the expression language."""
    match data:
        case None:
            return "none"
        case bool():
            return "true" if data else "false"
        case str():
            return quote(data)
        case int() | float():
            return f"({data!r})" if data < 0 else repr(data)
        case list():
            items = cast("list[Any]", data)
            return "[" + ", ".join(literal(item) for item in items) + "]"
        case _:
            pairs: dict[str, Any] = data
            return "{" + ", ".join(f"{quote(k)}: {literal(v)}" for k, v in pairs.items()) + "}"


def quote(text: str) -> str:
    """`text` as a string of the expression language."""
    text = text.replace("\\", "\\\\").replace("'", "\\'")
    return "'" + re.sub(r"[\x00-\x1f\x7f]", lambda found: f"\\x{ord(found[0]):02x}", text) + "'"


def source_of(value: Value) -> str:
    """`value` as an expression."""
    match value:
        case Const(text):
            return literal(json.loads(text))
        case Ref(name, path):
            return name + "".join(f"[{literal(part)}]" for part in path)
        case Expr(source):
            return source
        case ListOf(items):
            return "[" + ", ".join(source_of(item) for item in items) + "]"
        case DictOf(items):
            pairs = (f"{quote(name)}: {source_of(item)}" for name, item in items)
            return "{" + ", ".join(pairs) + "}"


def operand(value: Value) -> str:
    """`value` as a part of a larger expression, in brackets where they are needed."""
    source = source_of(value)
    plain = isinstance(value, Const | ListOf | DictOf | Ref) or _ATOM.fullmatch(source)
    return source if plain else f"({source})"


def expression(source: str, *values: Value) -> Expr:
    """An expression that reads what `values` read."""
    return Expr(source, tuple(dict.fromkeys(name for value in values for name in names_in(value))))


def guard(value: Value) -> Value:
    """A condition in the one spelling that guards are compared by."""
    return Expr(source_of(value), (value.name,)) if isinstance(value, Ref) and value.path else value


def negated(value: Value) -> Value:
    """The opposite of a condition."""
    return expression(f"not {operand(value)}", value)


def all_of(guards: Sequence[Value]) -> Value | None:
    """The condition that all `guards` hold; None if there are none."""
    if len(guards) <= 1:
        return guards[0] if guards else None
    return expression(" and ".join(operand(one) for one in guards), *guards)


def part_of(value: Value, part: str | int) -> Value:
    """One part of a value: taken out of it where it is known, and otherwise read at run time."""
    match value:
        case Ref(name, path):
            return Ref(name, (*path, part))
        case DictOf(items) if part in dict(items):
            return dict(items)[str(part)]
        case ListOf(items) if isinstance(part, int) and -len(items) <= part < len(items):
            return items[part]
        case _:
            return expression(f"{operand(value)}[{literal(part)}]", value)


def uses_of(source: str) -> tuple[str, ...]:
    """The names that an expression reads; raises PromptError where it is wrong or too deep."""
    try:
        return check_expression(source)
    except (SyntaxError, MemoryError, RecursionError):  # Python's own limits
        raise PromptError("the expression is nested too deeply, or too large") from None


# ---- replacing names ----------------------------------------------------------------------------


def replace_names(value: Value, resolve: Resolve) -> Value:
    """`value` with each name replaced by what `resolve` gives for it; None leaves it."""
    match value:
        case Const():
            return value
        case Ref(name, path):
            found = resolve(name)
            if found is None:
                return value
            for part in path:
                found = part_of(found, part)
            return found
        case Expr(source):
            return _in_expression(source, resolve)
        case ListOf(items):
            return ListOf(tuple(replace_names(item, resolve) for item in items))
        case DictOf(items):
            return DictOf(tuple((name, replace_names(item, resolve)) for name, item in items))


def _in_expression(source: str, resolve: Resolve) -> Expr:
    text = ""
    for token, is_name in _tokens(source):
        found = resolve(token) if is_name else None
        text += token if found is None else operand(found)
    return Expr(text, uses_of(text))


def _tokens(source: str) -> Iterator[tuple[str, bool]]:
    """The pieces of an expression; True for those that are names of variables."""
    opening = "{{"
    raw = [(kind, text) for _, kind, text in environment().lexer.tokeniter(opening + source, None)]
    tokens = raw[1:]
    reads = set(uses_of(source))
    solid = [index for index, (kind, _) in enumerate(tokens) if kind != "whitespace"]
    around = {index: place for place, index in enumerate(solid)}
    for index, (kind, text) in enumerate(tokens):
        if kind != "name" or text not in reads:
            yield text, False
            continue
        place = around[index]
        before = tokens[solid[place - 1]][1] if place else ""
        after = tokens[solid[place + 1]][1] if place + 1 < len(solid) else ""
        yield text, _is_variable(before, after, (tokens[i][1] for i in solid[:place]))


def _is_variable(before: str, after: str, earlier: Iterable[str]) -> bool:
    """Whether a name between these tokens is a variable: no attribute, filter, test or keyword."""
    if before in (".", "|", "is") or after == "=":
        return False
    return not (before == "not" and list(earlier)[-2:-1] == ["is"])
