"""How long values and prompts are, and which input columns decide them: what estimates rest on."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf
from typing import Any, cast

from .graph import LLM, Const, DictOf, Expr, ListOf, Ref, Value, names_in
from .plan import CHARS_PER_TOKEN, Tokens
from .prompt import Dynamic, Field, Static
from .several import DEFAULT_TOKENS, LIST_TOKENS

EXPRESSION_TOKENS = 5.0
DICT_TOKENS = 1.5  # written around each item
DEFAULT_ITEMS = 4  # of an `each` over a list that is not known


@dataclass(frozen=True, slots=True)
class Source:
    """Where a name's value comes from: its size, and the columns that determine it.

    `columns` is None where even equal rows may give different values. `most`: at most so many
    values differ. `items`: of a list, where that is known.
    """

    tokens: float
    columns: frozenset[str] | None
    most: float = inf
    items: float | None = None


@dataclass(frozen=True, slots=True)
class Sources:
    """What is known of names so far, and how the texts around them are counted."""

    tokens: Tokens
    of: dict[str, Source] = field(default_factory=dict[str, Source])

    def text(self, text: str) -> float:
        """The tokens of a text."""
        return self.tokens.count([text])[0] if text else 0.0


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a rendered prompt. `field` is "" for text and code."""

    tokens: float
    columns: frozenset[str] | None
    field: str = ""
    most: float = inf

    @property
    def chars(self) -> float:
        """Its length as text, about."""
        return self.tokens * CHARS_PER_TOKEN


def prompt_pieces(step: LLM, known: Sources) -> Iterator[Piece]:
    """The parts of a step's prompt, system prompt first, with their sizes and what decides them."""
    args = dict(step.args)
    for part in (*(step.system.segments if step.system else ()), *step.prompt.segments):
        match part:
            case Static(text):
                yield Piece(known.text(text), frozenset())
            case Field(name):
                value = args.get(name, Ref(name))
                source = known.of.get(value.name) if isinstance(value, Ref) else None
                most = inf if source is None else source.most
                yield Piece(value_tokens(value, known), value_columns(value, known), name, most)
            case Dynamic(uses, chars):
                values = [args.get(name, Ref(name)) for name in uses]
                size = sum(value_tokens(value, known) for value in values)
                size += chars / CHARS_PER_TOKEN
                yield Piece(size, union([value_columns(value, known) for value in values]))


def value_tokens(value: Value, known: Sources) -> float:
    """About how long a value is as text."""
    match value:
        case Const(text):
            return known.text(text)
        case Ref(name, path):
            source = known.of.get(name)
            tokens = source.tokens if source else DEFAULT_TOKENS
            return tokens / 2 if path else tokens
        case Expr():
            return EXPRESSION_TOKENS
        case ListOf(items):
            return sum(value_tokens(item, known) + LIST_TOKENS for item in items)
        case DictOf(items):
            return sum(
                value_tokens(item, known) + known.text(name) + DICT_TOKENS for name, item in items
            )


def value_columns(value: Value, known: Sources) -> frozenset[str] | None:
    """The input columns that determine a value; None where they do not."""
    return union([known.of[name].columns if name in known.of else None for name in names_in(value)])


def union(columns: list[frozenset[str] | None]) -> frozenset[str] | None:
    """All of these columns; None where some are not known."""
    found: frozenset[str] = frozenset()
    for more in columns:
        if more is None:
            return None
        found |= more
    return found


def list_items(value: Value, known: Sources) -> tuple[float, float]:
    """How many items a list has, and how long one is."""
    match value:
        case Const(text):
            listed: Any = json.loads(text)
            count = len(cast("list[Any]", listed)) if isinstance(listed, list) else 1
            return count, known.text(text) / max(1, count)
        case ListOf(items):
            return len(items), value_tokens(value, known) / max(1, len(items))
        case Ref(name, ()) if name in known.of and (count := known.of[name].items):
            return count, value_tokens(value, known) / count
        case _:
            return DEFAULT_ITEMS, value_tokens(value, known) / DEFAULT_ITEMS
