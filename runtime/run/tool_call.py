"""One call of a tool that is to be run: what of it others need to know."""

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from ...tools import Tool
from ...tools.registry import Touched
from ..scheduler.events import ToolStarted
from .codec import encode
from .early import EarlyCall
from .owner import Owner
from .sharing import Sharing


@dataclass(frozen=True, slots=True)
class Call:
    """One call. A result answers equal calls for `keep_s` seconds."""

    owner: Owner
    path: str
    tool: Tool
    values: Mapping[str, Any]
    started: ToolStarted
    touched: Touched | None
    signature: bytes | None
    keep_s: float | None
    early: EarlyCall | None = None  # the same call, if it was started before


def touched_by(tool: Tool, values: Mapping[str, Any]) -> Touched | None:
    """What a call reads and writes, where its tool can tell."""
    if tool.touches is None:
        return None
    with suppress(ValueError):  # arguments that the tool itself will refuse, and say why
        return tool.touches(values)
    return None


def shared_as(
    sharing: Sharing | None, tool: Tool, values: Mapping[str, Any], touched: Touched | None
) -> tuple[bytes | None, float | None]:
    """What equal calls have in common, if they are made once; for how long a result answers.

    What reads a table is told apart from what read it before a write.
    """
    reads = touched is not None and not touched.writes
    if sharing is None or not (tool.effect == "pure" or (tool.effect == "idempotent" and reads)):
        return None, None
    keep_s, versions = tool.memo_s, list[int]()
    if touched is not None:
        versions = sharing.versions(touched.reads)
        lasting = math.inf if tool.effect == "pure" else 0.0
        keep_s = lasting if keep_s is None else keep_s
    try:
        same = tool.identity(values) if tool.identity else dict(values)
        kind = ["tool", tool.name, tool.source_hash, same, *([versions] if touched else [])]
        return blake2b(encode(kind, order="sorted"), digest_size=16).digest(), keep_s
    except ValueError:  # arguments that the tool itself will refuse, and say why
        return None, None


def first_word(values: Mapping[str, Any]) -> str:
    """A hash of the first word of a tool's first argument: traces hold no text of arguments."""
    first = next(iter(values.values()), None)
    words = first.split(maxsplit=1) if isinstance(first, str) else ()
    return blake2b(words[0].encode("utf-8", "replace"), digest_size=4).hexdigest() if words else ""
