"""Types in YAML: a name, a mapping of fields to types, a list of one type, or a JSON Schema."""

from typing import Any

from ..api.places import did_you_mean
from .check import Notes
from .reader import Item

NAMES = ("string", "integer", "number", "boolean", "object", "array", "null", "any")
_STRUCTURE = ("properties", "items", "enum", "anyOf", "oneOf", "allOf", "$ref", "const", "$defs")
KEYWORDS = frozenset(
    {
        *_STRUCTURE,
        "type",
        "title",
        "description",
        "default",
        "examples",
        "format",
        "pattern",
        "minLength",
        "maxLength",
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "multipleOf",
        "minItems",
        "maxItems",
        "uniqueItems",
        "prefixItems",
        "required",
        "additionalProperties",
        "patternProperties",
        "propertyNames",
        "minProperties",
        "maxProperties",
        "discriminator",
        "not",
        "$schema",
        "$id",
        "$comment",
    }
)


def is_schema(item: Item) -> bool:
    """Whether a mapping is a JSON Schema rather than a mapping of fields to types."""
    pairs = item.pairs
    if any(key in pairs and _structural(key, pairs[key]) for key in _STRUCTURE):
        return True
    if not all(key in KEYWORDS for key in pairs):
        return False
    named = pairs.get("type")
    return (
        not pairs
        or "default" in pairs
        or (named is not None and (named.kind == "list" or named.scalar in NAMES))
    )


def _structural(key: str, value: Item) -> bool:
    match key:
        case "properties" | "$defs":
            return value.kind == "map"
        case "items":
            return value.kind == "map" and is_schema(value)
        case "$ref":
            return isinstance(value.scalar, str) and value.scalar.startswith("#")
        case "const":
            return False
        case _:
            return value.kind == "list"


def read_type(item: Item, notes: Notes) -> dict[str, Any]:
    """The JSON Schema of a type."""
    match item.kind:
        case "scalar":
            return _named(item, notes)
        case "list":
            if len(item.items) != 1:
                notes.add("a list type is written [string], with one type inside", item)
                return {}
            return {"type": "array", "items": read_type(item.items[0], notes)}
        case "map" if is_schema(item):
            _check_schema(item, notes)
            return item.data
        case "map":
            fields = {key: read_type(value, notes) for key, value in item.pairs.items()}
            return {
                "type": "object",
                "properties": fields,
                "required": list(fields),
                "additionalProperties": False,
            }


def _named(item: Item, notes: Notes) -> dict[str, Any]:
    name = item.scalar
    if name == "any":
        return {}
    if not isinstance(name, str) or name not in NAMES:
        cure = did_you_mean(str(name), NAMES, "the types")
        notes.add(f"{item.spell()} is no type{cure}", item)
        return {}
    return {"type": name}


def _check_schema(item: Item, notes: Notes) -> None:
    """Finds what is plainly wrong in a JSON Schema."""
    named = item.pairs.get("type")
    for one in named.items if named and named.kind == "list" else [named] if named else []:
        if one.scalar not in NAMES or one.scalar == "any":
            cure = did_you_mean(str(one.scalar), NAMES[:-1], "the types")
            notes.add(f"{one.spell()} is no type of JSON Schema{cure}", one)
    for key in ("properties", "$defs"):
        inside = item.pairs.get(key)
        if inside is None:
            continue
        if inside.kind != "map":
            notes.add(f"{key} is a mapping, not {inside.spell()}", inside)
        for value in inside.pairs.values():
            _check_inner(value, notes)
    required = item.pairs.get("required")
    if required is not None and required.kind != "list":
        notes.add(f"required is a list of names, not {required.spell()}", required)
    if (items := item.pairs.get("items")) is not None:
        _check_inner(items, notes)


def _check_inner(item: Item, notes: Notes) -> None:
    if item.kind == "map":
        _check_schema(item, notes)
    elif not isinstance(item.scalar, bool):
        notes.add(f"a JSON Schema is a mapping such as {{type: string}}, not {item.spell()}", item)
