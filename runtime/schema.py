"""JSON Schema of the YAML format, for editors; made from the key tables that the validator uses."""

from typing import Any

from ..planner.step_checks import ON_LIMIT
from ..tools.registry import EFFECTS
from .spec.check import VERSION
from .spec.keys import (
    BLOCK,
    BRANCH_STEP,
    CASCADE,
    SCHEDULING,
    SCORER,
    STEP_KINDS,
    TOOL_KINDS,
    TOP,
    Key,
    Table,
)
from .spec.reader import MAX_DIGITS
from .spec.types import NAMES

DIALECT = "https://json-schema.org/draft/2020-12/schema"
NAME = "^[^\\W\\d]\\w*$"
SOME_TEXT = "\\S"


def json_schema() -> dict[str, Any]:
    """The schema of a workflow file; `tenter schema` prints it."""
    return {
        "$schema": DIALECT,
        "title": "Tenter workflow",
        **_table(TOP),
        "$defs": {
            "step": {"anyOf": [_ref(f"{kind}_step") for kind in (*STEP_KINDS, "branch")]},
            **{f"{kind}_step": _table(table) for kind, table in STEP_KINDS.items()},
            "branch_step": _table(BRANCH_STEP),
            "block": _table(BLOCK),
            "scheduling": _table(SCHEDULING),
            "scorer": _table(SCORER),
            "cascade": _table(CASCADE),
            "tool_definition": {"anyOf": [_ref(f"{kind}_tool") for kind in TOOL_KINDS]},
            **{f"{kind}_tool": _table(table) for kind, table in TOOL_KINDS.items()},
            "steps": _names(_ref("step")),
            "type": _type(),
            "value": {"description": "Any data; texts may hold {{ expressions }}."},
        },
    }


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/$defs/{name}"}


def _table(table: Table) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {name: _key(key) for name, key in table.items()},
        "required": [name for name, key in table.items() if key.required],
        "additionalProperties": False,
    }


def _names(value: dict[str, Any]) -> dict[str, Any]:
    """A mapping of names to something; it may be left empty."""
    return {
        "type": ["object", "null"],
        "propertyNames": {"pattern": NAME},
        "additionalProperties": value,
    }


def _key(key: Key) -> dict[str, Any]:
    schema = _kind(key)
    if key.nullable:
        schema = {"anyOf": [schema, {"type": "null"}]}
    return {"description": key.doc, **schema}


def _kind(key: Key) -> dict[str, Any]:
    text: dict[str, Any] = {"type": "string", "pattern": SOME_TEXT}
    match key.kind:
        case "version":
            return {"const": VERSION}
        case "text" | "prompt":
            return text
        case "integer" | "number":
            return {"type": key.kind, **_bounds(key)}
        case "boolean":
            return {"type": "boolean"}
        case "choices":
            return {"type": "array", "items": text, "minItems": 2, "uniqueItems": True}
        case "texts":
            return {"anyOf": [text, {"type": "array", "items": {"type": "string"}}]}
        case "texts_by_name":
            return {"type": "object", "additionalProperties": text}
        case "effect":
            return {"enum": list(EFFECTS)}
        case "on_limit":
            return {"enum": list(ON_LIMIT)}
        case "approve":
            return {"const": "pause"}
        case "expression":
            return {"type": ["string", "array"]}
        case "condition":
            return {"type": ["string", "boolean"]}
        case "value":
            return _ref("value")
        case "values":
            return {"type": ["object", "null"], "additionalProperties": _ref("value")}
        case "branch":
            return {"anyOf": [_ref("block"), _ref("value")]}
        case "type":
            return _ref("type")
        case "inputs":
            return _names(_ref("type"))
        case "models":
            backend = {"type": "object", "properties": {"backend": text}}
            return {"type": ["object", "null"], "additionalProperties": {"anyOf": [text, backend]}}
        case "tools":
            return _names(_ref("tool_definition"))
        case "steps":
            return _ref("steps")
        case "cascade":
            return _ref("cascade")
        case "scheduling":
            return _ref("scheduling")
        case "scorer":
            return {"anyOf": [text, _ref("scorer")]}
        case "data":
            return {"type": "object"}


def _bounds(key: Key) -> dict[str, Any]:
    bounds: dict[str, Any] = {}
    if key.least is not None:
        bounds["exclusiveMinimum" if key.above else "minimum"] = key.least
    if key.most is not None:
        bounds["maximum"] = key.most
    elif key.kind == "integer":
        bounds["maximum"] = 10**MAX_DIGITS
    return bounds


def _type() -> dict[str, Any]:
    """A type: its name, one type in a list, a mapping of fields to types, or a JSON Schema."""
    return {
        "anyOf": [
            {"enum": list(NAMES)},
            {"type": "array", "items": _ref("type"), "minItems": 1, "maxItems": 1},
            {"type": "object"},
        ]
    }
