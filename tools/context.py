"""What a tool may know of the call that it answers: its key, and how to say how long it takes."""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass


def _nobody(seconds: float) -> None:
    """Nobody waits to hear it."""


@dataclass(frozen=True, slots=True)
class ToolContext:
    """One call of a tool, as the tool sees it.

    `key` is the same for every attempt at this call, also after a crash and a resume, and another
    for any other call: hand it to a service that can tell a repeated request by it. Empty where
    the tool is called outside of a run.
    """

    key: str = ""
    report_eta: Callable[[float], None] = _nobody

    def eta(self, seconds: float) -> None:
        """Tell that the call will take `seconds` more: the KV cache that waits for it is kept so.

        It overrides what the runtime has learned of this tool. May be said again as work goes on.
        """
        if not 0 <= seconds < float("inf"):
            raise ValueError(f"eta is a number of seconds, 0 or more, not {seconds}")
        self.report_eta(seconds)


_current: ContextVar[ToolContext] = ContextVar("tenter_tool_context", default=ToolContext())  # noqa: B039


def tool_context() -> ToolContext:
    """Of the call that the running tool answers; in its threads and tasks too."""
    return _current.get()


def enter(context: ToolContext) -> None:
    """Make `context` that of the running task, for the tool that it calls next."""
    _current.set(context)
