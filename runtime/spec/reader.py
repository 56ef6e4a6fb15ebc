"""YAML text to a tree of located items: strict, without tags, and safe against bombs.

Built from the parser's events without recursion. Only `true` and `false` are booleans; keys are
text and unique.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml

from ..errors import InvalidWorkflow, Problem

MAX_BYTES = 1_000_000
MAX_DEPTH = 50
MAX_ALIASES = 100
MAX_ITEMS = 100_000  # aliases written out
MAX_DIGITS = 18

_NULL = re.compile(r"~|null|Null|NULL|")
_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_BOOLEAN_LIKE = re.compile(r"(?i:yes|no|on|off|true|false)")

Scalar = str | int | float | bool | None
Kind = Literal["scalar", "list", "map"]


@dataclass(slots=True)
class Item:
    """A YAML value with its place; `text` is the source of a plain scalar."""

    kind: Kind
    line: int
    column: int
    scalar: Scalar = None
    block: bool = False  # a `|` or `>` scalar, whose text begins on the next line
    items: "list[Item]" = field(default_factory=list["Item"])
    keys: "dict[str, Item]" = field(default_factory=dict[str, "Item"])
    pairs: "dict[str, Item]" = field(default_factory=dict[str, "Item"])
    size: int = 1  # items in it, aliases written out

    @property
    def data(self) -> Any:
        """The value as JSON data."""
        match self.kind:
            case "scalar":
                return self.scalar
            case "list":
                return [item.data for item in self.items]
            case "map":
                return {key: item.data for key, item in self.pairs.items()}

    @property
    def texts(self) -> list[str]:
        """A text, or a list of texts, as a list."""
        return [str(one.scalar) for one in (self.items if self.kind == "list" else [self])]

    def spell(self) -> str:
        """What this is, for a message."""
        match self.kind, self.scalar:
            case "list", _:
                return "a list"
            case "map", _:
                return "a mapping"
            case _, None:
                return "nothing"
            case _, bool():
                return str(self.scalar).lower()
            case _, str() as text:
                short = text if len(text) <= 40 else text[:37] + "..."
                return f"the text {short!r}"
            case _, number:
                return f"the number {number}"


class _Loader(yaml.SafeLoader):
    """PyYAML's scanner and parser; nothing of it turns nodes into Python objects here."""


class Reader:
    """Reads one YAML document; `problems` are those that leave the rest readable."""

    def __init__(self, file: str = "") -> None:
        self.file = file
        self.problems: list[Problem] = []
        self._anchors: dict[str, Item] = {}
        self._open: set[str] = set()
        self._aliases = 0

    def read(self, text: str) -> Item:
        """The document's root; raises InvalidWorkflow where nothing can be read."""
        if len(text) > MAX_BYTES:
            raise self._fatal(f"the file is larger than {MAX_BYTES:,} bytes: split it", 0, 0)
        try:
            events = self._events(text)
            root = self._tree(events)
        except yaml.MarkedYAMLError as error:
            raise self._syntax(error) from None
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            column = error.position - (text.rfind("\n", 0, error.position) + 1) + 1
            message = f"the character {_escaped(error.character)} is not allowed in YAML: remove it"
            raise self._fatal(message, line, column) from None
        if root is None:
            raise self._fatal("the file is empty: a workflow has name, inputs, steps, output", 1, 1)
        return root

    def _events(self, text: str) -> Iterator[Any]:
        loader: Any = _Loader(text)
        try:
            while loader.check_event():
                yield loader.get_event()
        finally:
            loader.dispose()

    # ---- the tree --------------------------------------------------------------------------------

    def _tree(self, events: Iterator[Any]) -> Item | None:
        root: Item | None = None
        stack: list[_Open] = []
        documents = 0
        for event in events:
            line, column = event.start_mark.line + 1, event.start_mark.column + 1
            match event:
                case yaml.DocumentStartEvent():
                    documents += 1
                    if documents > 1:
                        raise self._fatal(
                            "a file holds one document: remove the `---`", line, column
                        )
                    continue
                case yaml.SequenceStartEvent() | yaml.MappingStartEvent():
                    self._check_tag(event, line, column)
                    if len(stack) >= MAX_DEPTH:
                        message = f"nested deeper than {MAX_DEPTH} levels: flatten it"
                        raise self._fatal(message, line, column)
                    kind = "list" if isinstance(event, yaml.SequenceStartEvent) else "map"
                    opened = _Open(Item(kind, line, column), self._anchor(event))
                    stack.append(opened)
                    continue
                case yaml.SequenceEndEvent() | yaml.MappingEndEvent():
                    done = stack.pop()
                    item = done.item
                    self._close(item, done.anchor)
                case yaml.ScalarEvent():
                    self._check_tag(event, line, column)
                    item = self._scalar(event, line, column)
                    self._close(item, self._anchor(event))
                case yaml.AliasEvent():
                    item = self._alias(event, line, column)
                case _:
                    continue
            if stack:
                self._attach(stack[-1], item, line, column)
            else:
                root = item
        return root

    def _attach(self, parent: "_Open", item: Item, line: int, column: int) -> None:
        """Put an item into the list or the mapping that is open."""
        into = parent.item
        into.size += item.size
        if into.size > MAX_ITEMS:
            raise self._fatal(f"the aliases unfold to more than {MAX_ITEMS:,} items", line, column)
        if into.kind == "list":
            into.items.append(item)
        elif parent.key is None:
            parent.key = item
        else:
            key, parent.key = parent.key, None
            self._pair(into, key, item)

    def _pair(self, into: Item, key: Item, item: Item) -> None:
        if key.kind != "scalar" or not isinstance(key.scalar, str):
            cure = "is this a {{ template }}? quote it" if key.kind == "map" else "quote it"
            self.add(f"a key is a text, not {key.spell()}: {cure}", key)
        elif key.scalar == "<<":
            self.add("merge keys, `<<`, are not supported: write the keys out", key)
        elif key.scalar in into.pairs:
            first = into.keys[key.scalar].line
            self.add(f"the key {key.scalar!r} is there twice, first in line {first}", key)
        else:
            into.keys[key.scalar] = key
            into.pairs[key.scalar] = item

    # ---- anchors, aliases, tags ------------------------------------------------------------------

    def _anchor(self, event: Any) -> str | None:
        if event.anchor is not None:
            self._open.add(event.anchor)
        return event.anchor

    def _close(self, item: Item, anchor: str | None) -> None:
        if anchor is not None:
            self._open.discard(anchor)
            self._anchors[anchor] = item

    def _alias(self, event: Any, line: int, column: int) -> Item:
        self._aliases += 1
        if self._aliases > MAX_ALIASES:
            raise self._fatal(f"more than {MAX_ALIASES} aliases: write it out", line, column)
        if event.anchor in self._open:
            raise self._fatal(f"the alias *{event.anchor} is inside of what it names", line, column)
        if event.anchor not in self._anchors:
            raise self._fatal(f"there is no anchor &{event.anchor} before this", line, column)
        return self._anchors[event.anchor]

    def _check_tag(self, event: Any, line: int, column: int) -> None:
        if event.tag is not None:
            name = event.tag.replace("tag:yaml.org,2002:", "!!")
            self._note(f"the tag {name} is not supported: remove it", line, column)

    # ---- scalars ---------------------------------------------------------------------------------

    def _scalar(self, event: Any, line: int, column: int) -> Item:
        text: str = event.value
        item = Item("scalar", line, column, text, block=event.style in ("|", ">"))
        if event.style is None or event.style == "":
            item.scalar = self.plain(text, item)
        return item

    def plain(self, text: str, item: Item) -> Scalar:
        """What an unquoted text means."""
        if _NULL.fullmatch(text):
            return None
        if text in ("true", "false"):
            return text == "true"
        if _BOOLEAN_LIKE.fullmatch(text):
            truth = "true" if text.lower() in ("yes", "on", "true") else "false"
            self.add(f"{text} can be read as a boolean or as text: write {truth} or '{text}'", item)
            return text
        if _INT.fullmatch(text):
            if len(text) > MAX_DIGITS:
                self.add(
                    f"a number of more than {MAX_DIGITS} digits: quote it to make it text", item
                )
                return 0
            return int(text)
        if _NOT_FINITE.fullmatch(text):
            self.add(f"{text} is no number that JSON can hold: write a number, or '{text}'", item)
            return 0.0
        if _FLOAT.fullmatch(text):
            return self._float(text, item)
        return text

    def _float(self, text: str, item: Item) -> int | float:
        if text.lstrip("+-").isdigit():
            self.add(f"{text} begins with 0: write it without, or quote it to make it text", item)
            return int(text[:MAX_DIGITS])
        number = float(text)
        if math.isinf(number):
            self.add(f"{text} is too large for a number: quote it to make it text", item)
            return 0.0
        return number

    # ---- problems --------------------------------------------------------------------------------

    def add(self, message: str, at: Item) -> None:
        """Note a problem at an item."""
        self._note(message, at.line, at.column)

    def _note(self, message: str, line: int, column: int) -> None:
        self.problems.append(Problem(message, self.file, line, column))

    def _fatal(self, message: str, line: int, column: int) -> InvalidWorkflow:
        return InvalidWorkflow([*self.problems, Problem(message, self.file, line, column)])

    def _syntax(self, error: yaml.MarkedYAMLError) -> InvalidWorkflow:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
        return self._fatal(_readable(error), line, column)


@dataclass(slots=True)
class _Open:
    """A list or mapping whose end has not come yet."""

    item: Item
    anchor: str | None
    key: Item | None = None


def _readable(error: yaml.MarkedYAMLError) -> str:
    """A parser's complaint with a cure where there is a usual one."""
    text = (error.problem or "syntax error").replace("character '\\t'", "a tab")
    cures = {
        "mapping values are not allowed here": "is a text with a colon in it? quote it",
        "cannot start any token": "indent with spaces, and quote texts that begin with a sign",
        "could not find expected ':'": "write `key: value`",
        "expected <block end>": "check the indentation, and what is quoted",
        "unexpected end of stream": "a quote or a bracket is not closed",
        "expected ',' or": "a bracket is not closed, or a comma is missing",
        "found undefined tag": "remove the tag",
        "unhashable": "a key is a text",
    }
    cure = next((cure for sign, cure in cures.items() if sign in text), "")
    return f"not YAML: {text}" + (f": {cure}" if cure else "")


def _escaped(character: Any) -> str:
    return f"U+{ord(character):04X}" if isinstance(character, str) else f"0x{character:02x}"


def decode(raw: bytes, file: str = "") -> str:
    """A file's bytes as text; raises InvalidWorkflow unless they are UTF-8."""
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InvalidWorkflow([Problem("the file is UTF-16: save it as UTF-8", file, 1, 1)])
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        column = error.start - (raw.rfind(b"\n", 0, error.start) + 1) + 1
        message = f"the byte 0x{raw[error.start]:02x} is not UTF-8: save the file as UTF-8"
        raise InvalidWorkflow([Problem(message, file, line, column)]) from None
