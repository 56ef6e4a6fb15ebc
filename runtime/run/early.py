"""Calls of pure tools that start while their turn is still being written.

A call starts once its arguments have come whole, beside the rest of the turn, as in Conveyor
(2406.00059). If the turn ends with it, it is taken over, and all goes on as if it had begun then;
otherwise it is cancelled, and what it gave goes nowhere.
"""

import asyncio
import json
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, cast

from msgspec.structs import replace

from ...tools import Tool
from ..calls import Chunk
from ..clock import now
from ..errors import StepFailed
from ..scheduler.events import Speculated, ToolStarted
from .codec import identity
from .context import Program, current_program
from .tool_progress import Progress
from .turns import CallStream

if TYPE_CHECKING:
    from .host import Host

Outcome = tuple[Any, Exception | None]


class EarlyCall:
    """One such call: looked up elsewhere, running, taken over or dropped.

    Its flight (`Sharing`) is its own until then, so that equal calls wait for it, and make the call
    themselves if it is dropped.
    """

    def __init__(
        self, host: "Host", started: ToolStarted, same: str, signature: bytes | None
    ) -> None:
        self._host = host
        self._started = started
        self.same = same  # the identity of its arguments
        self.signature = signature
        self.began_s = now()
        self.ended_s: float | None = None
        self.progress = Progress(started, _to_nobody)  # until it is taken over
        self.outcome: asyncio.Future[Outcome | None] = asyncio.get_running_loop().create_future()
        self._task: asyncio.Task[None] | None = None
        self._thread = threading.get_ident()
        self._open = True

    @property
    def tool(self) -> str:
        return self._started.tool

    @property
    def open(self) -> bool:
        """Whether it is not known yet if somebody takes it over."""
        return self._open

    def begin(self, task: asyncio.Task[None]) -> None:
        """It runs; until then nobody takes it over."""
        self._task = task
        self.began_s = now()

    def end(self, outcome: Outcome) -> None:
        """It has answered or failed."""
        if not self.outcome.done():
            self.ended_s, self.progress.over = now(), True
            self.outcome.set_result(outcome)

    def undo(self) -> None:
        """It needs its turn to have ended first: it is made then, or again."""
        if threading.get_ident() != self._thread:  # before what the tool says, which comes alike
            self.outcome.get_loop().call_soon_threadsafe(self.undo)
            return
        self._close()
        if not self.outcome.done():
            self.outcome.set_result(None)

    def take(self, signature: bytes | None) -> bool:
        """The turn has ended with it: whoever asks goes on with it, and with its flight.

        Not if it was dropped or has not begun, nor if equal calls would not be equal any more: what
        it has read was written to.
        """
        if not self._open or self._task is None or signature != self.signature:
            return False
        self._open = False
        self._note(used=True)
        return True

    def since(self, started: ToolStarted) -> ToolStarted:
        """`started`, as the scheduler is told of a call that has run for a while.

        No session waits for one that has ended.
        """
        if self.ended_s is not None:
            return replace(started, ran_s=self._ran_s, session=None)
        eta_s = started.eta_s
        left_s = None if eta_s is None else max(0.0, eta_s - self._ran_s)
        return replace(started, ran_s=self._ran_s, eta_s=left_s)

    @property
    def _ran_s(self) -> float:
        return (now() if self.ended_s is None else self.ended_s) - self.began_s

    def stop(self) -> None:
        """Whoever took it over has given it up."""
        if self._task is not None:
            self._task.cancel()

    def drop(self) -> None:
        """Nobody will take it over."""
        if self._open:
            if self._task is not None:
                self._note(used=False)
            self._close()

    def _close(self) -> None:
        if self._open:
            self._open = False
            self.progress.over = True
            self._host.abandon(self.signature)
            if self._task is not None and self._task is not asyncio.current_task():
                self._task.cancel()

    def _note(self, used: bool) -> None:
        started = self._started
        self._host.note(
            Speculated(
                program=started.program,
                step=started.step,
                tool=started.tool,
                seconds=self._ran_s,
                used=used,
            )
        )


Begin = Callable[[Tool, Mapping[str, Any]], EarlyCall | None]


class EarlyCalls:
    """The early calls of one turn; hears it as it is written (`chat_work.Hearer`)."""

    def __init__(self, tools: Iterable[Tool], begin: Begin) -> None:
        self._tools = {tool.name: tool for tool in tools}
        self._begin = begin
        self._context = copy_context()  # of whoever asks for the turn, for its tools
        self._stream = CallStream(self._tools)
        self._calls: list[EarlyCall] = []
        self._found: list[EarlyCall] = []  # of them, those that were asked for
        self._closed = False

    def heard(self, chunk: Chunk) -> None:
        """Start the calls that end in the next piece of the turn."""
        if self._closed:  # whoever asked for the turn was cancelled, and it goes on
            return
        for name, arguments in self._stream.push(chunk.text):
            values = json.loads(arguments)
            if isinstance(values, dict):
                given = cast("Mapping[str, Any]", values)
                early = self._context.run(self._begin, self._tools[name], given)
                self._calls += [early] if early is not None else []

    def restart(self) -> None:
        """The turn is written anew."""
        self._drop()
        self._stream = CallStream(self._tools)

    def keep(self, calls: Sequence[tuple[str, str]]) -> None:
        """The turn has ended with `calls`: drop all others."""
        left = [(name, identity(json.loads(arguments))) for name, arguments in calls]
        for early in self._calls:
            if (early.tool, early.same) in left:
                left.remove((early.tool, early.same))
            else:
                early.drop()

    def find(self, tool: Tool, values: Mapping[str, Any]) -> EarlyCall | None:
        """The early call of `tool` with these values; it is found once."""
        same = identity(values)
        for early in self._calls:
            if (early.tool, early.same) == (tool.name, same) and early not in self._found:
                self._found.append(early)
                return early
        return None

    def close(self) -> None:
        """Drop all that nobody has taken over, and start nothing more."""
        self._closed = True
        self._drop()

    def _drop(self) -> None:
        for early in self._calls:
            early.drop()
        self._calls.clear()
        self._found.clear()


def may_be_early(tool: Tool) -> bool:
    """Whether a call of `tool` does nothing but answer, whoever chose it."""
    return tool.effect == "pure" and not tool.sensitive


def outside(early: EarlyCall) -> None:
    """In the current task, no step of the program is taken: the turn may not end with the call.

    One that tries is undone, and made when the turn has ended.
    """
    current_program.set(cast("Program", _NotYet(early)))


class _NotYet:
    """Stands where a tool finds its program."""

    def __init__(self, early: EarlyCall) -> None:
        self._early = early

    def __getattr__(self, name: str) -> Any:
        self._early.undo()
        raise StepFailed("a call that was started early takes no step of its program")


def _to_nobody(news: object) -> None:
    """What a call tells of its end before it is known whether anybody waits for it."""
