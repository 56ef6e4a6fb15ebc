"""Texts with {{ expressions }} as values, and the names that may be read where they stand."""

import json
import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Any

from jinja2 import TemplateSyntaxError, nodes
from jinja2.parser import Parser

from ...planner.errors import PromptError
from ...planner.graph import Const, DictOf, Expr, ListOf, Ref, Value
from ...planner.prompt import Prompt
from ...planner.template import environment
from ..api.places import did_you_mean
from ..api.source import const, operand, quote, uses_of
from .check import Notes
from .reader import Item

_MARKS = re.compile(r"\{\{|\{%|\{#")
_NOTHING = Const("null")


class Scope:
    """The names that can be read at a place; `used` collects those that are."""

    def __init__(self, names: frozenset[str], notes: Notes, used: set[str]) -> None:
        self.names = names
        self.notes = notes
        self.used = used

    def inside(self, *names: str) -> "Scope":
        """The scope of a loop's body."""
        return Scope(self.names | frozenset(names), self.notes, self.used)

    # ---- reading ---------------------------------------------------------------------------------

    def value(self, item: Item) -> Value:
        """Any data, with expressions in its texts."""
        match item.kind:
            case "list":
                parts = tuple(self.value(one) for one in item.items)
                known = all(isinstance(part, Const) for part in parts)
                return const(_data(parts)) if known else ListOf(parts)
            case "map":
                pairs = tuple((key, self.value(one)) for key, one in item.pairs.items())
                known = all(isinstance(part, Const) for _, part in pairs)
                return _const_dict(pairs) if known else DictOf(pairs)
            case _ if isinstance(item.scalar, str):
                return self._text(item.scalar, item)
            case _:
                return const(item.scalar)

    def expression(self, item: Item) -> Value:
        """An expression, with or without {{ }}; a list or a boolean is itself."""
        text = item.scalar
        if not isinstance(text, str):
            return self.value(item)
        if _MARKS.search(text) and text.lstrip().startswith("{"):
            return self._text(text.strip(), item)
        return self._parsed(text.strip(), item)

    def read(self, name: str, item: Item, line: int | None = None) -> None:
        """Note that `name` is read, and a problem if there is no such name."""
        self.used.add(name)
        if name not in self.names:
            self.used.update(get_close_matches(name, self.names, n=1))  # it is meant, so it is read
            cure = did_you_mean(name, sorted(self.names))
            self.notes.add(f"{name!r} is not defined{cure}", item, line)

    def prompt(self, item: Item) -> Prompt | None:
        """A prompt; None if it does not parse."""
        try:
            return Prompt.parse(str(item.scalar))
        except PromptError as error:
            line = line_in(item, error.line)
            self.notes.add(f"the template does not parse: {error.message.rstrip('.')}", item, line)
            self.seen(str(item.scalar))
            return None

    def seen(self, text: str) -> None:
        """Count the words of a text that does not parse as read, so as not to complain twice."""
        self.used.update(re.findall(r"\w+", text))

    def look(self, items: Iterable[Item]) -> None:
        """Check values that go nowhere."""
        for item in items:
            self.value(item)

    def _text(self, text: str, item: Item) -> Value:
        """A text: itself, one expression, or texts and expressions joined."""
        if not _MARKS.search(text):
            return const(text)
        try:
            parts = list(_parts(text))
        except (TemplateSyntaxError, RecursionError) as error:
            line = error.lineno if isinstance(error, TemplateSyntaxError) else 0
            message = str(getattr(error, "message", None) or "nested too deeply").rstrip(".")
            self.seen(text)
            self.notes.add(f"the template does not parse: {message}", item, line_in(item, line))
            return _NOTHING
        if len(parts) == 1 and parts[0][0]:
            return self._parsed(parts[0][1], item)
        return self._joined(parts, item)

    def _joined(self, parts: list[tuple[bool, str]], item: Item) -> Value:
        texts: list[str] = []
        for is_expression, text in parts:
            texts.append(operand(self._parsed(text, item)) if is_expression else quote(text))
        source = " ~ ".join(texts)
        try:
            return Expr(source, uses_of(source)) if texts else const("")
        except PromptError as error:
            self.notes.add(f"the template does not parse: {error.message}", item)
            return _NOTHING

    def _parsed(self, source: str, item: Item) -> Value:
        """An expression: a constant, a reference, or code."""
        try:
            uses = uses_of(source)
            found = _simple(_tree(source)) or Expr(source, uses)
        except (PromptError, ValueError, RecursionError) as error:
            message = error.message if isinstance(error, PromptError) else str(error)
            self.notes.add(f"{source!r} is no expression: {message}", item)
            self.seen(source)
            return _NOTHING
        for name in uses:
            self.read(name, item)
        return found


def line_in(item: Item, line: int) -> int | None:
    """The file's line of a text's line; None if there is none."""
    if not line:
        return None
    return item.line + line - (0 if item.block else 1)


def line_of_field(item: Item, name: str) -> int | None:
    """The file's line where a template first reads `name`."""
    text = str(item.scalar)
    found = re.search(r"\{[{%][^}]*?(?<![\w.'\"])" + re.escape(name) + r"\b", text)
    return line_in(item, text.count("\n", 0, found.end()) + 1) if found else None


def _parts(text: str) -> Iterator[tuple[bool, str]]:
    """The pieces of a template: True with an expression, False with text."""
    inside: list[str] | None = None
    line = 1
    for line, kind, token in environment().lexer.tokeniter(text, None):
        match kind:
            case "variable_begin":
                inside = []
            case "variable_end":
                yield True, "".join(inside or ()).strip()
                inside = None
            case "block_begin":
                message = "'{% %}' belongs in prompts; a value has {{ expressions }} only"
                raise TemplateSyntaxError(message, line)
            case "data":
                yield False, token
            case _ if inside is not None:
                inside.append(token)
            case _:
                continue
    if inside is not None:
        raise TemplateSyntaxError("a '{{' is not closed by '}}'", line)


def _tree(source: str) -> nodes.Expr:
    return Parser(environment(), source, state="variable").parse_expression()


def _simple(node: Any) -> Value | None:
    """A constant, or a name with a constant path; None for all else."""
    match node:
        case nodes.Const(value=value):
            return const(value)
        case nodes.Name(name=str(name)):
            return Ref(name)
        case nodes.Getattr(node=inner, attr=str(part)):
            below = _simple(inner)
        case nodes.Getitem(node=inner, arg=nodes.Const(value=str() | int() as part)):
            below = _simple(inner)
        case _:
            return None
    return Ref(below.name, (*below.path, part)) if isinstance(below, Ref) else None


def _data(parts: tuple[Value, ...]) -> list[Any]:
    return [json.loads(part.json) for part in parts if isinstance(part, Const)]


def _const_dict(pairs: tuple[tuple[str, Value], ...]) -> Const:
    values = _data(tuple(value for _, value in pairs))
    return const(dict(zip((key for key, _ in pairs), values, strict=True)))
