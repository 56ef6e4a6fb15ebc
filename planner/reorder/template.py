"""Free fields in a prompt's template: told apart from the text around them, and put in order."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from os.path import commonprefix

from ..errors import PlannerError
from ..prompt import Field as PromptField
from ..prompt import Prompt, Static
from .fields import Field, Layout

_WORD = re.compile(r"\w")


@dataclass(frozen=True, slots=True)
class Freed:
    """A template cut around its free fields.

    Each free field takes its label along: the text between the separator and its value.
    """

    before: str
    names: tuple[str, ...]
    labels: tuple[str, ...]
    outputs: tuple[str, ...]  # the Jinja that prints each
    separator: str
    after: str

    def prompt(self, order: Sequence[int]) -> Prompt:
        """The prompt with the free fields in this order, given as indices into `names`."""
        parts = (self.labels[index] + self.outputs[index] for index in order)
        return Prompt.parse(f"{self.before}{self.separator.join(parts)}{self.after}")

    def layout(self) -> Layout:
        """The template as a layout: its fixed fields, the free ones between them.

        Raises `PlannerError` where code other than `{{ name }}` stands before the free fields,
        for then it cannot be said where they begin.
        """
        text, head = _fields(self.before)
        free = (
            Field(name, label, free=True)
            for name, label in zip(self.names, self.labels, strict=True)
        )
        if head:
            last = head[-1]
            head[-1] = Field(last.name, last.before, text[-1])
        return Layout((*head, *free), text[0], self.after, self.separator)


def free_fields(prompt: Prompt, free: Collection[str]) -> Freed:
    """The template cut around the fields that may move, each a plain `{{ name }}`.

    They must follow each other with nothing but text between them, and begin on lines of their own
    or after the separator, so that each field's label can be told. Raises `PlannerError` otherwise.
    """
    Prompt.parse(prompt.source)  # a syntax error is told before anything else
    names = "|".join(sorted(map(re.escape, free), key=len, reverse=True))
    found = list(re.finditer(r"\{\{\s*(" + names + r")\s*\}\}", prompt.source)) if free else []
    seen = [match[1] for match in found]
    for name in free:
        if seen.count(name) != 1:
            raise PlannerError(
                f"the free field {name!r} appears {seen.count(name)} times as '{{{{ {name} }}}}'; "
                "a field that may move stands in the prompt once, without a filter"
            )
    between = [prompt.source[one.end() : other.start()] for one, other in pairwise(found)]
    for name, text in zip(seen[1:], between, strict=True):
        if any(mark in text for mark in ("{{", "{%", "{#")):
            raise PlannerError(f"there is code before the free field {name!r}; only text may be")
    if not between:
        raise PlannerError("fewer than two fields are free; there is nothing to put in order")
    separator = _separator(between)
    start = prompt.source[: found[0].start()]
    label = _label(start, separator, seen[0])
    return Freed(
        start[: len(start) - len(label)],
        tuple(seen),
        (label, *(text[len(separator) :] for text in between)),
        tuple(match[0] for match in found),
        separator,
        prompt.source[found[-1].end() :],
    )


def _separator(between: Sequence[str]) -> str:
    """What all texts between the fields begin with, up to the first word."""
    shared = commonprefix(list(between))
    word = _WORD.search(shared)
    shared = shared[: word.start()] if word else shared
    if not shared:
        raise PlannerError(
            f"the free fields are parted by {between[0]!r} and other texts that begin differently; "
            "write the same separator between all of them"
        )
    return shared


def _label(start: str, separator: str, name: str) -> str:
    """The end of `start` that belongs to the first free field: from its line's or list's begin."""
    mark = "\n" if "\n" in separator else separator
    cut = start.rfind(mark)
    if cut < 0 and (not start or "\n" not in mark):
        cut = start.rfind("\n")
    label = start[cut + (len(mark) if start.startswith(mark, cut) else 1) :] if cut >= 0 else start
    if any(code in label for code in ("}}", "%}", "#}")):
        raise PlannerError(f"the free field {name!r} shares its line with code; give it its own")
    return label


def _fields(before: str) -> tuple[list[str], list[Field]]:
    """The fixed fields of the text before the free ones, and the texts around them."""
    texts, fields = [""], list[Field]()
    for part in Prompt(before).segments:
        match part:
            case Static(text):
                texts[-1] += text
            case PromptField(name, path):
                dotted = ".".join([name, *map(str, path)])
                fields.append(Field(dotted, texts[-1] if fields else ""))
                texts.append("")
            case _:
                raise PlannerError("code stands before the free fields; only text and fields may")
    return texts, fields
