"""Tools with effect `once`: written down before they start, and never repeated without asking."""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...tools import Tool
from ..errors import JournalError, OutcomeUnknown, StepFailed
from ..journal.base import StepRecord
from ..scheduler.events import EffectUnknown
from .codec import decode, encode, identity
from .owner import Owner
from .sharing import Settled
from .tool_call import Call

if TYPE_CHECKING:
    from .host import Host

INTENT = "?"  # behind a call's path: that it is about to start
QUESTION = "!"  # and whether it had its effect, asked of its author
WITHDRAWN = b"false"  # an intent: it was not started after all, or did nothing
CUT_OFF = "had been started when the run stopped"
UNKNOWN = (
    "tool {!r} {}, and may have had its effect; it is not repeated. Declare it idempotent if it "
    "may be, or give it an outcome= that can tell"
)
AGAIN = (
    "tool {!r} was started with the same arguments before, and it is not known whether that had "
    "its effect; it is not called so again"
)
OTHERWISE = (
    "tool {!r} had been started with other arguments when the run stopped; the program does not "
    "take the same way again"
)

Ask = Callable[[Call, Tool], Awaitable[tuple[Any, Exception | None]]]


class Effects:
    """Lets tools with effect `once` start; `ask` calls the function that looks an outcome up."""

    def __init__(self, host: "Host", ask: Ask) -> None:
        self._host = host
        self._ask = ask

    def declare(self, call: Call, start: Callable[[], None], done: Settled) -> None:
        """Write down that a tool with an effect starts, so that it is never silently repeated.

        Nor is it where a model asks for a call anew whose outcome is not known.
        """
        owner, journal, intent = call.owner, self._host.journal, f"{call.path}{INTENT}"
        record = owner.recorded.get(intent)
        if record is not None and record.value != WITHDRAWN:
            if call.tool.outcome is not None:
                self._host.run_for(owner, self._ask_outcome(call, start, done))
            else:
                done(None, self.unknown(call, CUT_OFF))
            return
        first = owner.unknown.get(_same(call))
        if first is not None and first != call.path:
            done(None, OutcomeUnknown(AGAIN.format(call.tool.name), call.started.step, first))
            return

        def declared() -> None:
            if owner.ended:
                with suppress(JournalError):
                    journal.record(StepRecord(owner.row, intent, WITHDRAWN))
            else:
                start()

        try:
            value = encode(identity(call.values))
            journal.record(StepRecord(owner.row, intent, value), declared, sync=True)
        except JournalError as error:
            done(None, error)

    def unknown(self, call: Call, why: str) -> OutcomeUnknown:
        """The error of a call that may have had its effect; its equals are refused from now on."""
        owner, name = call.owner, call.tool.name
        owner.unknown.setdefault(_same(call), call.path)
        self._host.note(EffectUnknown(program=owner.name, step=call.started.step, tool=name))
        return OutcomeUnknown(UNKNOWN.format(name, why), call.started.step, call.path)

    async def _ask_outcome(self, call: Call, start: Callable[[], None], done: Settled) -> None:
        """A crash interrupted the call: its author knows what it came to, or that it is to be made."""
        assert call.tool.outcome is not None
        asked = replace(call.tool, function=call.tool.outcome, effect="idempotent", outcome=None)
        value, error = await self._ask(call, asked)
        if call.owner.ended:
            return
        if error is not None:
            self.unknown(call, CUT_OFF)
            done(None, OutcomeUnknown(str(error), "", call.path))
        elif value is None:
            start()
        else:
            self._host.record(call.owner, call.path, value, None, done, sync=True)


def differs(
    owner: Owner, path: str, step: str, tool: Tool, values: Mapping[str, Any]
) -> StepFailed | None:
    """The error where an earlier attempt started a tool at this place with other arguments."""
    record = owner.recorded.get(f"{path}{INTENT}") if tool.effect == "once" else None
    given = None if record is None else decode(record.value)
    if not isinstance(given, str) or given == identity(values):
        return None
    return StepFailed(OTHERWISE.format(tool.name), step)


def _same(call: Call) -> tuple[str, str]:
    """What equal calls of a tool have in common."""
    return call.tool.name, identity(call.values)
