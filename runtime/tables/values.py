"""Values as cells: text that every reader takes, JSON text, numbers that fit a typed column."""

from typing import Any, Literal, cast

import msgspec

from .base import Kind

_INT64 = 1 << 63


def clean(text: str) -> str:
    """`text` with lone surrogates, which no file can hold, as `\\udc80` escapes."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()
    return text


def json_bytes(value: Any, order: Literal["sorted"] | None = None) -> bytes:
    """`value` as compact JSON; NaN is null, lone surrogates are as `clean` makes them."""
    try:
        return msgspec.json.encode(value, order=order)
    except UnicodeEncodeError:
        return msgspec.json.encode(_clean_all(value), order=order)


def _clean_all(value: Any) -> Any:
    match value:
        case str():
            return clean(value)
        case dict():
            items = cast("dict[Any, Any]", value).items()
            return {_clean_all(key): _clean_all(item) for key, item in items}
        case list() | tuple():
            return [_clean_all(item) for item in cast("list[Any]", value)]
        case _:
            return value


def text(value: Any) -> str | None:
    """A value of a text column: strings as they are, others as JSON."""
    if value is None:
        return None
    return clean(value) if isinstance(value, str) else json_bytes(value).decode()


def fit(value: Any, kind: Kind) -> Any:
    """`value` for a Parquet column of `kind`; raises ValueError where it does not fit."""
    if value is None:
        return None
    if kind == "boolean" and isinstance(value, bool):
        return value
    if kind == "integer" and isinstance(value, int) and not isinstance(value, bool):
        if -_INT64 <= value < _INT64:
            return value
        raise ValueError("it is beyond 64 bits")
    if kind == "number" and isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ValueError("it is beyond a double") from None
    if kind in ("string", "json"):
        return text(value)
    raise ValueError(f"it is not of type {kind}")
