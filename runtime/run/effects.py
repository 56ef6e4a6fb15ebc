"""Tools with effect `once`: written down before they start, and never repeated without asking."""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...tools import Tool
from ...tools.secrets import known, redact_data
from ..errors import JournalError, OutcomeUnknown, StepFailed, ToolFailed
from ..journal.base import StepRecord, check
from ..scheduler.events import EffectUnknown
from .codec import decode, encode, identity
from .owner import Owner
from .sharing import Settled
from .tool_call import Call
from .trust import Approval

if TYPE_CHECKING:
    from .host import Host

INTENT = "?"  # behind a call's path: that it is about to start, as [identity of its arguments];
# without the brackets where the calls of chats had no places of their own yet
QUESTION = "!"  # and whether it had its effect, asked of its author
WITHDRAWN = b"false"  # an intent: it was not started after all, or did nothing
CUT_OFF = "was started before, and cut off"
UNKNOWN = (
    "tool {!r} {}, and may have had its effect; it is not repeated. Declare it idempotent if it "
    "may be, give it an outcome= that can tell, or let it raise NoEffect where it has done nothing"
)
AGAIN = (
    "tool {!r} was started with the same arguments before, and it is not known whether that had "
    "its effect; it is not called so again"
)
OTHERWISE = (
    "tool {!r} had been started with other arguments when the run stopped; the program does not "
    "take the same way again"
)
NAMED_OTHERWISE = (
    "tool {!r} was called in this row by an earlier version of Tenter, which named the calls of "
    "chats otherwise: finish the run with that version, or begin a new one"
)

Result = tuple[Any, Exception | None]
Ask = Callable[[Call, Tool], Awaitable[Result]]


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
            again = OutcomeUnknown(AGAIN.format(call.tool.name), call.started.step, first)
            self.remember(call, again)
            done(None, again)
            return

        def declared() -> None:
            if owner.ended:
                with suppress(JournalError):
                    journal.record(StepRecord(owner.row, intent, WITHDRAWN))
            else:
                start()

        try:
            value = encode([identity(call.values)])
            journal.record(StepRecord(owner.row, intent, value), declared, sync=True)
        except JournalError as error:
            done(None, error)

    def unknown(self, call: Call, why: str) -> OutcomeUnknown:
        """The error of a call that may have had its effect; its equals are refused from now on."""
        said = UNKNOWN.format(call.tool.name, why)
        error = OutcomeUnknown(said, call.started.step, call.path)
        self.remember(call, error)
        return error

    def remember(self, call: Call, error: ToolFailed) -> None:
        """A call ended, now or in an earlier attempt, with `error`: equals of one of unknown outcome
        are refused."""
        if not isinstance(error, OutcomeUnknown):
            return
        error.call = call.tool.name, call.values
        if error.path == call.path:
            owner, step, name = call.owner, call.started.step, call.tool.name
            owner.unknown.setdefault(_same(call), call.path)
            self._host.note(EffectUnknown(program=owner.name, step=step, tool=name))

    async def after_failure(self, call: Call, said: str, error: ToolFailed) -> Result:
        """What came of a call that raised: it may have had its effect before that.

        Its author's `outcome` tells; None says that it had none, and `error` is handed on.
        """
        if call.tool.outcome is None:
            return None, self.unknown(call, f"failed ({said})")
        value, lost = await self._looked_up(call)
        if lost is not None:
            return None, self.unknown(call, f"failed ({said}), then its outcome= did")
        return (value, None) if value is not None else (None, error)

    async def _looked_up(self, call: Call) -> Result:
        """What the tool's author says of an earlier start of the call."""
        assert call.tool.outcome is not None
        asked = replace(call.tool, function=call.tool.outcome, effect="idempotent", outcome=None)
        return await self._ask(call, asked)

    async def _ask_outcome(self, call: Call, start: Callable[[], None], done: Settled) -> None:
        """A crash interrupted the call: its author knows what it came to, or that it is to be made."""
        value, error = await self._looked_up(call)
        if call.owner.ended:
            return
        if error is not None:
            lost = OutcomeUnknown(str(error), "", call.path)
            self.remember(call, lost)
            done(None, lost)
        elif value is None:
            start()
        else:
            self._host.record(call.owner, call.path, value, None, done, sync=True)


def question_of(
    row: int, error: Exception | None, recorded: Mapping[str, StepRecord]
) -> StepRecord | None:
    """What the author may be asked of a call that ended a row, unless he has said that he does not
    know either."""
    if not isinstance(error, OutcomeUnknown) or error.call is None:
        return None
    (tool, values), path = error.call, f"{error.path}{QUESTION}"
    said = recorded.get(path)
    if said is not None and said.value == encode(False):
        return None
    try:
        shown = redact_data(dict(values), encode(values), known())
        question = StepRecord(row, path, encode(Approval(tool, shown, ()).question()))
        check(question)
    except (TypeError, ValueError, JournalError):  # arguments that no journal takes
        return None
    return question


def differs(
    owner: Owner, path: str, step: str, tool: Tool, values: Mapping[str, Any]
) -> StepFailed | None:
    """The error where an earlier attempt started a tool at this place with other arguments."""
    record = owner.recorded.get(f"{path}{INTENT}") if tool.effect == "once" else None
    given = None if record is None else decode(record.value)
    if isinstance(given, str | list):
        same = identity(values)
        if given not in (same, [same]):
            return StepFailed(OTHERWISE.format(tool.name), step)
    return None


def check_named_alike(owner: Owner, path: str, step: str) -> None:
    """Raise StepFailed where the chats of an earlier Tenter counted their calls at `path`.

    They did so in the order of approval, so that it cannot be told which call was which.
    """
    places = f"{path}{INTENT}", f"{path}#"  # the first of them may have been withdrawn
    for name, record in owner.recorded.items():
        intent = name.startswith(places) and name.endswith(INTENT)
        if intent and isinstance(decode(record.value), str):
            raise StepFailed(NAMED_OTHERWISE.format(step), step)


def _same(call: Call) -> tuple[str, str]:
    """What equal calls of a tool have in common."""
    return call.tool.name, identity(call.values)
