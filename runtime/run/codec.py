"""Results as bytes: JSON, the same everywhere in a run."""

from hashlib import blake2b
from typing import Any

import msgspec

encode = msgspec.json.encode
decode = msgspec.json.decode


def is_json(data: bytes) -> bool:
    """Whether `data` can be decoded; what was kept for long may be anything."""
    try:
        decode(data)
    except (ValueError, RecursionError):
        return False
    return True


def identity(values: Any) -> str:
    """A short hash that equal JSON values have in common, in this run and in those resumed."""
    try:
        data = encode(values, order="sorted")
    except ValueError:  # half a surrogate pair
        data = repr(values).encode("utf-8", "backslashreplace")
    return blake2b(data, digest_size=6).hexdigest()
