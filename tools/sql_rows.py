"""What a database answered, as JSON of a bounded size: rows are taken one by one, while they fit."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from math import isfinite
from typing import Any
from uuid import UUID

from .registry import NoEffect

MAX_CELL = 10_000  # characters of one value
EXACT_DIGITS = 6  # a fraction that is no longer is an amount, and kept exactly
MAX_DIGITS = 1_000  # of a whole number
Row = Sequence[Any]


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one answer."""

    rows: int
    bytes: int
    timeout_s: float


@dataclass(slots=True)
class Answer:
    """What a statement returned, so far; `changed`: how many rows a writing one did."""

    limits: Limits
    columns: list[str] = field(default_factory=list[str])
    rows: list[list[Any]] = field(default_factory=list[list[Any]])
    size: int = 0  # bytes of JSON
    full: bool = False  # there was a row that did not fit
    changed: int = 0

    def take(self, row: Row) -> bool:
        """Keep a row if it fits; whether another one may be asked for."""
        values = [plain(value) for value in row] if len(self.rows) < self.limits.rows else []
        self.size += len(json.dumps(values))
        self.full = len(self.rows) >= self.limits.rows or self.size > self.limits.bytes
        if not self.full:
            self.rows.append(values)
        return not self.full

    def result(self) -> dict[str, Any]:
        """What the tool returns."""
        if not self.columns:
            return {"changed": max(self.changed, 0)}
        found: dict[str, Any] = {"columns": self.columns, "rows": self.rows}
        if self.full:
            found["cut"] = f"only the first {len(self.rows)} rows; ask for fewer, or aggregate"
        return found


def statement_failed(error: Exception) -> NoEffect:
    """The error of a statement that was not committed."""
    return NoEffect(f"{type(error).__name__}: {error}".strip())


def plain(value: Any) -> Any:
    """A database value as JSON."""
    match value:
        case None | bool() | int():
            return value
        case float():
            return value if isfinite(value) else str(value)
        case str():
            return value if len(value) <= MAX_CELL else f"{value[:MAX_CELL]}[...]"
        case Decimal():
            return _number(value)
        case datetime() | date() | time():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case bytes() | bytearray():
            return f"[{len(value)} bytes]"
        case list() | tuple():
            return [plain(each) for each in value]  # pyright: ignore[reportUnknownVariableType]
        case dict():
            return {str(key): plain(each) for key, each in value.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        case UUID():
            return str(value)
        case _:
            return str(value)[:MAX_CELL]


def _number(value: Decimal) -> int | float | str:
    """A number where it stays what it is; a text for an amount that a float would change."""
    if not value.is_finite():
        return str(value).lower()
    if value == 0 or value.adjusted() < MAX_DIGITS and value == value.to_integral_value():
        return int(value)
    near = float(value)
    digits = -int(value.as_tuple().exponent)
    if isfinite(near) and (Decimal(repr(near)) == value or digits > EXACT_DIGITS):
        return near
    return str(value)[:MAX_CELL]
