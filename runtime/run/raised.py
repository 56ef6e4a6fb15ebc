"""What is said of an exception of an author's own code: what it is, and the lines it came by."""

import sysconfig
from collections.abc import Iterator
from pathlib import Path
from traceback import walk_tb
from typing import cast

from ...tools.secrets import known, redact
from ..errors import StepFailed, TenterError

MOST = 5  # exceptions of a group that are told, and lines of each
_PATHS = sysconfig.get_paths()
_ROOMS = Path(__file__).resolve().parents[2]
_OTHERS = (
    *(f"{_ROOMS / room}/" for room in ("runtime", "tools", "planner", "kvpolicy")),
    *(f"{_PATHS[name]}/" for name in ("stdlib", "purelib", "platlib")),
    "<frozen",
)


def failure_of(error: Exception) -> TenterError:
    """What a program fails with whose author's code raised `error`, without secrets.

    A group of one of Tenter's own errors is that error.
    """
    leaves = list(_leaves(error))
    if len(leaves) == 1 and isinstance(leaves[0], TenterError):
        return leaves[0]
    told = [_told(leaf) for leaf in leaves[:MOST]]
    if len(leaves) > MOST:
        told.append(f"and {len(leaves) - MOST} more")
    return StepFailed(redact("; ".join(told), known()))


def raised_at(error: BaseException) -> str:
    """The author's lines that an exception came by, outermost first: "flow.py:10, helpers.py:4"."""
    lines = [
        f"{Path(frame.f_code.co_filename).name}:{line}"
        for frame, line in walk_tb(error.__traceback__)
        if not frame.f_code.co_filename.startswith(_OTHERS)
    ]
    return ", ".join(lines[-MOST:])


def _told(error: BaseException) -> str:
    kind = type(error).__name__
    try:
        text = str(error).strip()
    except Exception:  # an author's __str__
        text = ""
    said = text if isinstance(error, TenterError) else f"{kind}: {text}" if text else kind
    at = raised_at(error)
    return f"{said} ({at})" if at else said


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if not isinstance(error, BaseExceptionGroup):
        yield error
        return
    for inner in cast("BaseExceptionGroup[BaseException]", error).exceptions:
        yield from _leaves(inner)
