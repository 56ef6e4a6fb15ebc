"""What the command line says when something is wrong: one clear line each, and the exit code."""

import shlex
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, cast

from cyclopts import CycloptsError

from .errors import InvalidWorkflow, TenterError

if TYPE_CHECKING:
    from .journal.base import RunInfo


def explain_failure(error: BaseException) -> int:
    """One line per thing that is wrong, and the exit code."""
    leaves = [leaf for leaf in _leaves(error) if isinstance(leaf, Exception)] or [error]
    known = [leaf for leaf in leaves if isinstance(leaf, TenterError | CycloptsError)]
    for leaf in known or leaves[:1]:
        match leaf:
            case InvalidWorkflow():
                for problem in leaf.problems:
                    say(str(problem))
            case CycloptsError():
                say(f"{_first_line(leaf)} (tenter --help lists the commands)")
            case TenterError():
                say(" ".join((_first_line(leaf), *_notes(leaf))))
            case _:
                say(
                    f"{type(leaf).__name__}: {_first_line(leaf)} "
                    "(this is not your doing; TENTER_DEBUG=1 shows where)"
                )
    if not known:
        return 1
    first = known[0]
    return first.exit_code if isinstance(first, TenterError) else 2


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in cast("BaseExceptionGroup[BaseException]", error).exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _notes(error: BaseException) -> list[str]:
    """Where it came from, in brackets."""
    return [f"({note})" for note in getattr(error, "__notes__", ())]


def resume_command(run: str, home: str | None, what: str = "resume") -> str:
    """What goes on with a run."""
    return f"tenter {what} {run}" + (f" --home {shlex.quote(home)}" if home else "")


def going_on(info: "RunInfo", home: str | None, retry: bool = False) -> str:
    """How a run is gone on with; with `retry` its failed rows too."""
    if info.manifest.once:
        return "what began it, once more and with the same name"
    what = "retry" if info.rows_failed and (retry or info.status == "done") else "resume"
    return resume_command(info.manifest.run, home, what)


def say(line: str) -> None:
    """One line on stderr, if anybody can be told."""
    with suppress(OSError):
        print(f"tenter: {line}", file=sys.stderr)
