"""How a row is written into a prompt, and which of its fields may change places."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import PlannerError


@dataclass(frozen=True, slots=True)
class Field:
    """One field: a column's value between two texts. `free`: the author lets it move.

    `quoted`: the value is written as JSON, else as Python's `str` does.
    """

    name: str
    before: str = ""
    after: str = ""
    free: bool = False
    quoted: bool = False

    def written(self, value: Any) -> str:
        """The field's text for a value, without the texts around it."""
        return json.dumps(value, ensure_ascii=False, default=str) if self.quoted else str(value)


@dataclass(frozen=True, slots=True)
class Layout:
    """A prompt that holds a row: a text, the fields, a text; `separator` between free fields.

    Only fields marked free move, and only among the places of free fields. These places must
    follow each other; raises `PlannerError` where they do not, or where two fields share a name.
    """

    fields: tuple[Field, ...]
    before: str = ""
    after: str = ""
    separator: str = ""

    def __post_init__(self) -> None:
        names = [field.name for field in self.fields]
        if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            raise PlannerError(f"two fields are called {twice[0]!r}; a layout names each once")
        places = self.free
        if places and places[-1] - places[0] >= len(places):
            fixed = next(i for i in range(places[0], places[-1]) if i not in places)
            raise PlannerError(
                f"the field {names[fixed]!r} is fixed and stands between free ones; "
                "free fields must follow each other"
            )

    @classmethod
    def json_object(
        cls, names: Sequence[str], before: str = "", after: str = "", free: Sequence[str] = ()
    ) -> "Layout":
        """A row written as a JSON object, as `json.dumps` does."""
        places = [index for index, name in enumerate(names) if name in free]
        first = places[0] if places else 0

        def field(index: int, name: str) -> Field:
            key = f"{json.dumps(name, ensure_ascii=False)}: "
            if name in free:
                return Field(name, key, free=True, quoted=True)
            ahead = index < first
            return Field(name, key if ahead or not index else f", {key}", ", " * ahead, quoted=True)

        fields = tuple(field(index, name) for index, name in enumerate(names))
        return cls(fields, before + "{", "}" + after, ", ")

    @property
    def free(self) -> tuple[int, ...]:
        """The places of the free fields."""
        return tuple(index for index, field in enumerate(self.fields) if field.free)

    def render(self, row: Sequence[Any], order: Sequence[int] | None = None) -> str:
        """The prompt for a row's values, with its fields in `order` (indices into `fields`)."""
        text, after_free = self.before, False
        for index in range(len(self.fields)) if order is None else order:
            field = self.fields[index]
            if field.free and after_free:
                text += self.separator
            text += f"{field.before}{field.written(row[index])}{field.after}"
            after_free = field.free
        return text + self.after

    def segment(self, index: int, text: str) -> str:
        """A field with its share of the separators, so that segments joined are the prompt.

        Tokenizers join a blank to the word after it and a line's end to the mark before it, so the
        separator is cut before its last blanks.
        """
        field = self.fields[index]
        if not field.free:
            return f"{field.before}{text}{field.after}"
        head = self.separator.rstrip(" ")
        return f"{self.separator[len(head) :]}{field.before}{text}{field.after}{head}"
