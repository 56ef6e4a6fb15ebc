"""Symbolic values: what steps give while a workflow function is traced.

Attributes, items, comparisons and arithmetic on them become references and expressions. What
Python would have to know at once (`if`, `for`, `len`, f-strings) is refused with the cure.
"""

from collections.abc import Callable
from typing import Any, Never, NoReturn, cast

from ...planner.graph import Const, DictOf, ListOf, Value
from ..errors import InvalidInput
from .places import refuse
from .source import const, expression, operand, part_of, source_of
from .types import to_json

_BRANCH = (
    "use when(condition, then=..., otherwise=...), combine conditions with & | ~, "
    "or make the workflow `async def`"
)
_LOOP = "use each(items, body), or make the workflow `async def`"
_TEXT = (
    "pass it to a prompt as a field, `{{ field }}`, join texts with +, "
    "or make the workflow `async def`"
)


def _refuser(what: str, cure: str) -> Callable[..., NoReturn]:
    def refused(self: "Symbol", *args: Any) -> NoReturn:
        raise refuse(f"{what} a value that is known only when the workflow runs: {cure}")

    return refused


def _operator(sign: str, *, swapped: bool = False) -> Callable[["Symbol", Any], "Symbol"]:
    def applied(self: "Symbol", other: Any) -> "Symbol":
        left, right = value_of(self), to_value(other)
        if swapped:
            left, right = right, left
        return Symbol(expression(f"{operand(left)} {sign} {operand(right)}", left, right))

    return applied


def _prefix(sign: str) -> Callable[["Symbol"], "Symbol"]:
    def applied(self: "Symbol") -> "Symbol":
        value = value_of(self)
        return Symbol(expression(f"{sign}{operand(value)}", value))

    return applied


class Symbol:
    """A value that is known only when the workflow runs."""

    __slots__ = ("_tenter_value",)
    _tenter_value: Value

    def __init__(self, value: Value) -> None:
        object.__setattr__(self, "_tenter_value", value)

    def __repr__(self) -> str:
        return f"<symbolic {source_of(self._tenter_value)}>"

    def __getattr__(self, name: str) -> "Symbol":
        if name.startswith("_"):
            raise AttributeError(f"a symbolic value has no {name!r}; write [{name!r}]")
        return Symbol(part_of(self._tenter_value, name))

    def __getitem__(self, key: Any) -> "Symbol":
        value = self._tenter_value
        match key:
            case slice():
                cut = cast("slice[Any, Any, Any]", key)
                bounds = [to_value(bound) for bound in (cut.start, cut.stop, cut.step)]
                texts = ["" if b == Const("null") else operand(b) for b in bounds]
                source = f"{operand(value)}[{':'.join(texts if texts[2] else texts[:2])}]"
                return Symbol(expression(source, value, *bounds))
            case str() | int():
                return Symbol(part_of(value, key))
            case _:
                index = to_value(key)
                source = f"{operand(value)}[{source_of(index)}]"
                return Symbol(expression(source, value, index))

    __eq__: Any = _operator("==")
    __ne__: Any = _operator("!=")
    __lt__ = _operator("<")
    __le__ = _operator("<=")
    __gt__ = _operator(">")
    __ge__ = _operator(">=")
    __and__ = _operator("and")
    __rand__ = _operator("and", swapped=True)
    __or__ = _operator("or")
    __ror__ = _operator("or", swapped=True)
    __add__ = _operator("+")
    __radd__ = _operator("+", swapped=True)
    __sub__ = _operator("-")
    __rsub__ = _operator("-", swapped=True)
    __mul__ = _operator("*")
    __rmul__ = _operator("*", swapped=True)
    __truediv__ = _operator("/")
    __rtruediv__ = _operator("/", swapped=True)
    __floordiv__ = _operator("//")
    __rfloordiv__ = _operator("//", swapped=True)
    __mod__ = _operator("%")
    __rmod__ = _operator("%", swapped=True)
    __pow__ = _operator("**")
    __rpow__ = _operator("**", swapped=True)
    __invert__ = _prefix("not ")
    __neg__ = _prefix("-")
    __pos__ = _prefix("+")

    __bool__ = _refuser("`if`, `while`, `and`, `or`, `not` on", _BRANCH)
    __iter__: Callable[..., Never] = _refuser("a Python loop over", _LOOP)
    __len__ = _refuser("len() of", "use length(value)")
    __contains__ = _refuser("`in` on", "use contains(container, item)")
    __str__ = _refuser("text, print() or an f-string of", _TEXT)
    __format__ = _refuser("text, print() or an f-string of", _TEXT)
    __int__ = _refuser("int() of", "use arithmetic on it, or make the workflow `async def`")
    __float__ = _refuser("float() of", "use arithmetic on it, or make the workflow `async def`")
    __index__ = _refuser("an index or range() by", _LOOP)
    __hash__: Any = _refuser("a set or a dict key of", "use it as a value")
    __setattr__ = _refuser("an assignment to a part of", "make a new value, or use a @tool")
    __setitem__ = _refuser("an assignment to a part of", "make a new value, or use a @tool")
    __call__ = _refuser("a method of", "put the code in a @tool, or make the workflow `async def`")
    __await__: Callable[..., Never] = _refuser("`await` on", "make the workflow `async def`")


def value_of(symbol: Symbol) -> Value:
    """The value that a symbol stands for."""
    return symbol._tenter_value  # pyright: ignore[reportPrivateUsage]


def to_value(thing: Any) -> Value:
    """Anything that the author wrote, as a value: symbols inside lists and dicts are kept."""
    match thing:
        case Symbol():
            return value_of(thing)
        case list() | tuple() if _holds_symbol(thing):
            items: list[Any] = list(thing)  # pyright: ignore[reportUnknownArgumentType]
            return ListOf(tuple(to_value(item) for item in items))
        case dict() if _holds_symbol(thing):
            pairs = cast("dict[Any, Any]", thing)
            for key in pairs:
                if not isinstance(key, str):
                    raise refuse(f"the key {key!r} of a dict is no text: JSON wants text")
            return DictOf(tuple((key, to_value(item)) for key, item in pairs.items()))
        case _:
            try:
                return const(to_json(thing, "the value"))
            except InvalidInput as error:
                raise refuse(str(error)) from None


def _holds_symbol(thing: Any) -> bool:
    match thing:
        case Symbol():
            return True
        case list() | tuple():
            items: list[Any] = list(thing)  # pyright: ignore[reportUnknownArgumentType]
            return any(_holds_symbol(item) for item in items)
        case dict():
            pairs = cast("dict[Any, Any]", thing)
            return any(_holds_symbol(item) for item in pairs.values())
        case _:
            return False


def contains(container: Any, item: Any) -> Any:
    """Whether `item` is in `container`; for symbolic values too, where Python's `in` is not."""
    if not (_holds_symbol(container) or _holds_symbol(item)):
        return item in container
    left, right = to_value(item), to_value(container)
    return Symbol(expression(f"{operand(left)} in {operand(right)}", left, right))


def length(thing: Any) -> Any:
    """How many items or characters `thing` has; for symbolic values too."""
    if not isinstance(thing, Symbol):
        return len(thing)
    value = value_of(thing)
    return Symbol(expression(f"{operand(value)} | length", value))
