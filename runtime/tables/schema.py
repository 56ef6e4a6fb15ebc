"""Between rows and JSON Schema: the text of a cell as a typed input, a result as typed columns."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import msgspec

from ..errors import InvalidTable
from .base import Kind
from .values import json_bytes

_INTEGER = re.compile(r"[+-]?\d{1,4000}", re.ASCII)
_BOOLEANS = {"true": True, "false": False}
_KINDS: Mapping[str, Kind] = {
    "string": "string",
    "integer": "integer",
    "number": "number",
    "boolean": "boolean",
}
_NOT_TEXT = ("integer", "number", "boolean", "array", "object")  # tried in this order


def coerce(
    row: Mapping[str, Any], schemas: Mapping[str, str], what: str = "column"
) -> dict[str, Any]:
    """`row` with typed columns as values of their JSON Schemas (texts).

    Text becomes what its schema takes; a column whose schema takes strings stays text, and an
    empty cell is null where the schema takes null. Where text is wanted, a number or a boolean is
    its JSON text; where an integer is, 3.0 is 3. Raises InvalidTable for all else that is not of
    the type; it names the column (`what` it is called) and concerns this row alone.
    """
    typed = dict(row)
    for name, schema in schemas.items():
        if name in typed:
            types = _types(schema)
            try:
                typed[name] = _typed(typed[name], types)
            except ValueError as error:
                raise InvalidTable(f"{what} {name!r}: {error}") from None
    return typed


def _typed(value: Any, types: frozenset[str]) -> Any:
    """`value` as one of `types`; ValueError says that it is none."""
    if isinstance(value, str):
        return _from_text(value, types)
    kind = _type_of(value)
    if not types or kind in types or (kind == "integer" and "number" in types):
        return value
    if kind == "number" and "integer" in types and float(value).is_integer():
        return int(value)
    if kind in ("integer", "number", "boolean") and "string" in types:
        return json_bytes(value).decode()
    raise ValueError(_misfit(json_bytes(value).decode(), types, value is None))


def _misfit(shown: str, types: frozenset[str], empty: bool) -> str:
    shown = shown if len(shown) <= 40 else shown[:39] + "…"
    kinds = [kind for kind in ("string", *_NOT_TEXT) if kind in types]
    cure = ""
    if empty and kinds:
        cure = f'; an input of {{type: [{", ".join(kinds)}, "null"]}} takes it'
    return f"{shown} is not of type {' or '.join(kinds) or 'null'}{cure}"


@lru_cache(1024)
def _types(schema: str) -> frozenset[str]:
    """The JSON types that a schema takes; empty: any."""
    root = _decode(schema)
    return frozenset(_collect(root, root, depth=0))


def _decode(schema: str) -> dict[str, Any]:
    value: Any = msgspec.json.decode(schema or "{}")
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _resolved(schema: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    """`schema`, or what its `$ref` into `root` names."""
    reference = schema.get("$ref")
    if not isinstance(reference, str) or not reference.startswith("#/"):
        return schema
    found: Any = root
    for part in reference[2:].split("/"):
        key = part.replace("~1", "/").replace("~0", "~")
        found = cast("dict[str, Any]", found).get(key) if isinstance(found, dict) else None
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def _collect(schema: dict[str, Any], root: dict[str, Any], depth: int) -> set[str]:
    schema = _resolved(schema, root)
    kind = schema.get("type")
    if isinstance(kind, str):
        return {kind}
    if isinstance(kind, list):
        return set(cast("list[str]", kind))
    values = cast("list[Any]", schema.get("enum", [schema["const"]] if "const" in schema else []))
    if values:
        return {_type_of(value) for value in values}
    branches = cast("list[dict[str, Any]]", schema.get("anyOf") or schema.get("oneOf") or [])
    if depth > 8 or not branches:
        return set()
    taken = [_collect(branch, root, depth + 1) for branch in branches]
    return set[str]().union(*taken) if all(taken) else set()


def _type_of(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"


def _from_text(text: str, types: frozenset[str]) -> Any:
    if not types or "string" in types:
        return text
    stripped = text.strip()
    if "null" in types and stripped in ("", "null"):
        return None
    for kind in _NOT_TEXT:
        if kind in types:
            value = _parsed(stripped, kind)
            if value is not None:
                return value
    raise ValueError(_misfit(repr(text[:60]), types, not stripped))


def _parsed(text: str, kind: str) -> Any:
    """The value of `text` as a `kind`, or None."""
    if kind in ("integer", "number") and _INTEGER.fullmatch(text):
        return int(text)
    if kind == "integer" or not text.isascii() and kind == "number":
        return None
    if kind == "boolean":
        return _BOOLEANS.get(text.lower())
    try:
        if kind == "number":
            number = float(text)
            return number if math.isfinite(number) and "_" not in text else None
        value: Any = msgspec.json.decode(text)
    except (ValueError, msgspec.DecodeError, RecursionError):
        return None
    return value if _type_of(value) == kind else None


def _kind(schema: dict[str, Any], root: dict[str, Any]) -> Kind:
    types = _collect(schema, root, depth=0) - {"null"}
    if types == {"integer", "number"}:
        return "number"
    return _KINDS.get(types.pop(), "json") if len(types) == 1 else "json"


@dataclass(frozen=True, slots=True)
class Layout:
    """The columns of an output: inputs, then results, then `error`.

    `results` maps each column to the key of the result that it shows; None shows all of it.
    """

    kinds: Mapping[str, Kind]  # of all columns, in order
    inputs: tuple[str, ...]
    results: Mapping[str, str | None]
    error: str

    def row(self, inputs: Mapping[str, Any], value: Any, error: str | None) -> dict[str, Any]:
        """One output row."""
        row = {name: inputs.get(name) for name in self.inputs}
        for column, key in self.results.items():
            if key is None:
                row[column] = value
            else:
                fields = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
                row[column] = fields.get(key)
        row[self.error] = error
        return row


def layout(inputs: Mapping[str, Kind], result_schema: str = "{}") -> Layout:
    """The output's columns for input columns and a result's JSON Schema.

    An object with known keys becomes a column per key, anything else one column `answer`. A name
    that is taken gets a number: `answer_2`.
    """
    root = _decode(result_schema)
    schema = _resolved(root, root)
    properties = cast("dict[str, dict[str, Any]]", schema.get("properties") or {})
    kinds: dict[str, Kind] = dict(inputs)
    results: dict[str, str | None] = {}
    if properties:
        for key, about in properties.items():
            column = _free(key, kinds)
            kinds[column], results[column] = _kind(about, root), key
    else:
        column = _free("answer", kinds)
        kinds[column], results[column] = _kind(root, root), None
    error = _free("error", kinds)
    kinds[error] = "string"
    return Layout(kinds, tuple(inputs), results, error)


def _free(name: str, taken: Mapping[str, object]) -> str:
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    return free
