"""Where in the author's files something was written, and what to say about it."""

import itertools
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pathlib import Path
from types import FrameType
from typing import Any

from ...planner.graph import Place
from ..errors import InvalidWorkflow, Problem

MOST_NAMES = 12  # that a message lists
_OURS = str(Path(__file__).parent)


def caller() -> FrameType | None:
    """The innermost frame of somebody else's code."""
    frame: FrameType | None = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
    while frame is not None and frame.f_code.co_filename.startswith(_OURS):
        frame = frame.f_back
    return frame


def here() -> Place:
    """Where the author's code is now."""
    frame = caller()
    if frame is None:
        return Place()
    return Place(frame.f_code.co_filename, frame.f_lineno, _column(frame))


def _column(frame: FrameType) -> int:
    positions = frame.f_code.co_positions()
    position = next(itertools.islice(positions, frame.f_lasti // 2, None), None)
    column = position[2] if position else None
    return 0 if column is None else column + 1


def raised_at(error: BaseException) -> Place | None:
    """The innermost line of somebody else's code that an error passed."""
    found, trace = None, error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if not code.co_filename.startswith(_OURS):
            found = Place(code.co_filename, trace.tb_lineno)
        trace = trace.tb_next
    return found


def place_of(function: Callable[..., Any]) -> Place:
    """Where `function` is written."""
    code = getattr(function, "__code__", None)
    return Place(code.co_filename, code.co_firstlineno) if code else Place()


def problem(message: str, place: Place | None = None) -> Problem:
    """A problem at `place`, or where the author's code is now."""
    place = place or here()
    return Problem(message, place.file, place.line, place.column)


def refuse(message: str, place: Place | None = None) -> InvalidWorkflow:
    """An error with the one problem `message`."""
    return InvalidWorkflow([problem(message, place)])


def did_you_mean(word: str, known: Iterable[str], what: str = "known") -> str:
    """The end of a message about a word that is not among the known."""
    names = list(known)
    near = get_close_matches(word, names, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return f"; {what}: {', '.join(names[:MOST_NAMES])}{more}" if names else ""
