"""What tool calls leave in the journal beside the results that their programs wait for."""

from typing import TYPE_CHECKING, Any

from ..errors import JournalError, OutcomeUnknown, ToolFailed
from ..journal.base import StepRecord
from .effects import INTENT, WITHDRAWN
from .sharing import Settled
from .tool_call import Call
from .tool_failures import FAILURE, spell_failure

if TYPE_CHECKING:
    from .host import Host


class ToolRecords:
    """Writes down failures, results of others, and what came of calls whose programs have ended."""

    def __init__(self, host: "Host") -> None:
        self._host = host

    def failures_kept(self, call: Call, done: Settled) -> Settled:
        """`done`, but a failure is recorded before it is handed on: a resumed program hears of it
        again, and takes the same way. Not where the program stops, to be resumed."""

        def settled(value: Any, error: Exception | None) -> None:
            if isinstance(error, ToolFailed) and call.owner.stopped is None:
                self._fail(call, error, done)
            else:
                done(value, error)

        return settled

    def for_this_call_too(self, call: Call, done: Settled) -> Settled:
        """`done`, but a result that others got is recorded for this call too: it answers equal calls
        for a time only, so that a resumed run would not find it by what it is of."""

        def settled(value: Any, error: Exception | None) -> None:
            if error is None:
                self._host.record(call.owner, call.path, value, None, done)
            else:
                done(None, error)

        return settled

    def _fail(self, call: Call, error: ToolFailed, done: Settled) -> None:
        """Write down that a call failed, then hand it on."""
        owner, journal, once = call.owner, self._host.journal, call.tool.effect == "once"
        failure = StepRecord(owner.row, f"{call.path}{FAILURE}", spell_failure(error))
        intent = StepRecord(owner.row, f"{call.path}{INTENT}", WITHDRAWN)
        try:
            journal.record(failure, lambda: done(None, error), once)
            if once and not isinstance(error, OutcomeUnknown):  # so a row tried anew may call it
                journal.record(intent)
        except JournalError as broken:
            done(None, broken)

    def keep(self, call: Call, value: Any, error: Exception | None) -> None:
        """Write down what came of a call, for the program that is resumed."""
        if error is None:
            self._host.record(call.owner, call.path, value, None, _to_nobody, sync=True)
        elif isinstance(error, ToolFailed):
            self._fail(call, error, _to_nobody)


def _to_nobody(value: Any, error: Exception | None) -> None:
    """The program has ended."""
