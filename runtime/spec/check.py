"""Small checks of located items: each notes what is wrong and gives None, or the checked value."""

import re
from collections.abc import Iterable
from typing import Any, cast

from ...planner.step_checks import ON_LIMIT
from ...tools.registry import EFFECTS
from ..api.places import did_you_mean
from ..api.source import usable
from ..errors import Problem
from .keys import Key, Table
from .reader import Item

VERSION = 1


class Notes:
    """Collects the problems of one file."""

    def __init__(self, file: str, problems: Iterable[Problem] = ()) -> None:
        self.file = file
        self.problems = list(problems)

    def add(self, message: str, at: Item, line: int | None = None) -> None:
        """Note a problem at an item, or in one of its lines."""
        place = (at.line, at.column) if line is None or line == at.line else (line, 0)
        self.problems.append(Problem(message, self.file, *place))

    # ---- mappings --------------------------------------------------------------------------------

    def mapping(self, item: Item, what: str) -> dict[str, Item] | None:
        """The pairs of a mapping."""
        if item.kind == "map":
            return item.pairs
        self.add(f"{what} is a mapping, not {item.spell()}", item)
        return None

    def table(self, item: Item, table: Table, what: str) -> dict[str, Item]:
        """The pairs of a mapping whose keys are in `table`, each of the kind that it says."""
        pairs = self.mapping(item, what)
        if pairs is None:
            return {}
        for key in pairs:
            if key not in table:
                cure = did_you_mean(key, table, "the keys")
                self.add(f"{what} has no key {key!r}{cure}", item.keys[key])
        for key, entry in table.items():
            if entry.required and key not in pairs:
                self.add(f"{what} has no {key!r}: {_lower(entry.doc)}", item)
        known = {key: value for key, value in pairs.items() if key in table}
        return {key: value for key, value in known.items() if self.fits(value, table[key], key)}

    def name(self, key: Item, what: str) -> str:
        """A name that templates can read."""
        name = str(key.scalar)
        if not usable(name):
            plain = re.sub(r"\W+", "_", name).strip("_")
            cure = f"; the column {name!r} feeds an input {plain}" if what == "input" else ""
            self.add(
                f"the {what} {name!r} cannot be used in templates: "
                "use letters, digits and _, and no word of the template language"
                + (cure if usable(plain) else ""),
                key,
            )
        return name

    # ---- values of a kind ------------------------------------------------------------------------

    def fits(self, item: Item, key: Key, name: str) -> bool:
        """Whether an item is of the kind that its key wants; notes it if not."""
        if item.kind == "scalar" and item.scalar is None and key.nullable:
            return True
        match key.kind:
            case "version":
                return self._version(item)
            case "text" | "prompt":
                return self._text(item, name)
            case "integer" | "number":
                return self._number(item, key, name)
            case "boolean":
                wrong = not isinstance(item.scalar, bool)
                return not self._wrong(wrong, f"{name} is true or false", item)
            case "choices":
                return self._texts(item, name) and self._choices(item)
            case "texts":
                is_list = item.kind == "list"
                return self._texts(item, name) if is_list else self._text(item, name)
            case "texts_by_name":
                pairs = self.mapping(item, name)
                each = [self._text(value, key) for key, value in (pairs or {}).items()]
                return pairs is not None and all(each)
            case "effect":
                return self._effect(item)
            case "on_limit":
                wrong = item.scalar not in ON_LIMIT
                return not self._wrong(wrong, f"{name} is one of {', '.join(ON_LIMIT)}", item)
            case "approve":
                return not self._wrong(item.scalar != "pause", f"{name} is pause", item)
            case "expression" | "condition":
                return self._expression(item, key, name)
            case "steps" | "inputs" | "models" | "tools" | "values" | "scheduling":
                wrong = item.kind != "map" and not (item.kind == "scalar" and item.scalar is None)
                return not self._wrong(wrong, f"{name} is a mapping of names", item)
            case "cascade":
                return not self._wrong(item.kind != "map", f"{name} is a mapping of names", item)
            case "scorer":
                return item.kind == "map" or self._text(item, name)
            case "value" | "branch" | "type" | "data":
                return True

    def _wrong(self, wrong: bool, expected: str, item: Item) -> bool:
        if wrong:
            self.add(f"{expected}, not {item.spell()}", item)
        return wrong

    def _version(self, item: Item) -> bool:
        right = item.scalar == VERSION and type(item.scalar) is int
        return not self._wrong(not right, f"version is {VERSION}", item)

    def _text(self, item: Item, name: str) -> bool:
        if self._wrong(not isinstance(item.scalar, str), f"{name} is a text", item):
            return False
        if not str(item.scalar).strip():
            self.add(f"{name} is empty: give it some text", item)
            return False
        return True

    def _choices(self, item: Item) -> bool:
        if len(item.items) < 2:
            self.add(f"choices has two texts or more, not {len(item.items)}", item)
            return False
        seen: set[str] = set()
        for one in item.items:
            text = str(one.scalar)
            if not text.strip():
                self.add("a choice is empty: give it some text", one)
            elif text in seen:
                self.add(f"the choice {text!r} is there twice", one)
            seen.add(text)
        return True

    def _texts(self, item: Item, name: str) -> bool:
        if self._wrong(item.kind != "list", f"{name} is a list of texts", item):
            return False
        before = len(self.problems)
        for one in item.items:
            cure = "" if one.kind != "scalar" else ": quote it"
            if not isinstance(one.scalar, str):
                self.add(f"each of {name} is a text, not {one.spell()}{cure}", one)
        return len(self.problems) == before

    def _number(self, item: Item, key: Key, name: str) -> bool:
        number = item.scalar
        whole = key.kind == "integer"
        right = isinstance(number, int if whole else int | float) and not isinstance(number, bool)
        if self._wrong(not right, f"{name} is {'a whole' if whole else 'a'} number", item):
            return False
        value = cast("float", number)
        if key.least is not None and (value < key.least or (key.above and value == key.least)):
            wanted = "above" if key.above else "at least"
            self.add(f"{name} is {wanted} {key.least:g}, not {value:g}", item)
            return False
        if key.most is not None and value > key.most:
            self.add(f"{name} is at most {key.most:g}, not {value:g}", item)
            return False
        return True

    def _effect(self, item: Item) -> bool:
        if item.scalar in EFFECTS:
            return True
        self.add(f"effect is one of {', '.join(EFFECTS)}, not {item.spell()}", item)
        return False

    def _expression(self, item: Item, key: Key, name: str) -> bool:
        if key.kind == "expression" and item.kind == "list":
            return True
        if key.kind == "condition" and isinstance(item.scalar, bool):
            return True
        other = "a list" if key.kind == "expression" else "true or false"
        wrong = not isinstance(item.scalar, str)
        return not self._wrong(wrong, f"{name} is an expression or {other}", item)


def _lower(text: str) -> str:
    return text[0].lower() + text[1:].rstrip(".")


def scalars(pairs: dict[str, Item], *names: str) -> dict[str, Any]:
    """The data of those keys that are there."""
    return {name: pairs[name].data for name in names if name in pairs}
