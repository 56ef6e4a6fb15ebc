"""Tool steps: answered from the journal, joined with equal calls, or run and timed."""

import asyncio
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from ...tools import Tool
from ...tools.call import call as call_tool
from ...tools.context import ToolContext, enter
from ...tools.registry import Touched
from ...tools.secrets import named, redact, redact_data, used
from ..clock import now
from ..errors import Drained, JournalError, StepFailed, ToolFailed
from ..journal.base import StepRecord
from ..scheduler.core import DRAINED
from ..scheduler.events import ToolEnded, ToolStarted
from .codec import decode, encode, identity
from .owner import Owner
from .sharing import Settled
from .tool_progress import Progress

if TYPE_CHECKING:
    from .host import Host

UNKNOWN = (
    "tool {!r} had been started when the run stopped, and may have had its effect; it is not "
    "repeated. Declare it idempotent if it may be, or give it an outcome= that can tell"
)
WITHDRAWN = b"false"  # the intent of a tool with an effect that was not started after all
NOTHING: frozenset[str] = frozenset()


class ToolSteps:
    """Runs tool steps for the programs of a host."""

    def __init__(self, host: "Host", run: str) -> None:
        self._host = host
        self._run = run
        self._secrets = named()

    def use(
        self,
        owner: Owner,
        path: str,
        step: str,
        tool: Tool,
        values: Mapping[str, Any],
        done: Settled,
    ) -> None:
        """Run one; `done(value, error)` is called once, perhaps before this returns."""
        host = self._host
        if host.draining:
            owner.stopped = Drained(DRAINED, step)
            done(None, owner.stopped)
            return
        if tool.effect == "once" and _differs(owner, path, values):
            message = (
                f"tool {tool.name!r} had been started with other arguments when the run stopped; "
                "the program does not take the same way again"
            )
            done(None, StepFailed(message, step))
            return
        if owner.recorded and host.answered_before(owner, path, step, done, tool.name):
            return
        touched = _touched(tool, values)
        signature, keep_s = self._shared(tool, values, touched)
        started = ToolStarted(
            program=owner.name,
            step=step,
            tool=tool.name,
            session=owner.session,  # that spoke last: others may, before this starts
            eta_s=tool.eta_s,
            word=_first_word(values),
        )

        call = _Call(owner, path, tool, values, started, touched, signature, keep_s)

        def start() -> None:
            if owner.ended:
                host.abandon(signature)
            else:
                host.run_for(owner, self._perform(call, done), effect=tool.effect == "once")

        if tool.effect == "once":
            self._declare(call, start, done)
        else:
            host.share(owner, path, step, signature, start, done, started)

    # ---- equal calls ------------------------------------------------------------------------------

    def _shared(
        self, tool: Tool, values: Mapping[str, Any], touched: Touched | None
    ) -> tuple[bytes | None, float | None]:
        """What equal calls have in common, if they are made once; for how long a result answers.

        What reads a table is told apart from what read it before a write.
        """
        sharing = self._host.sharing
        reads = touched is not None and not touched.writes
        if sharing is None or not (
            tool.effect == "pure" or (tool.effect == "idempotent" and reads)
        ):
            return None, None
        try:
            same = tool.identity(values) if tool.identity else dict(values)
        except ValueError:  # arguments that the tool itself will refuse, and say why
            return None, None
        kind = ["tool", tool.name, tool.source_hash, same]
        keep_s = tool.memo_s
        if touched is not None:
            kind.append(sharing.versions(touched.reads))
            lasting = math.inf if tool.effect == "pure" else 0.0
            keep_s = lasting if keep_s is None else keep_s
        return blake2b(encode(kind, order="sorted"), digest_size=16).digest(), keep_s

    # ---- effects ----------------------------------------------------------------------------------

    def _declare(self, call: "_Call", start: Callable[[], None], done: Settled) -> None:
        """Write down that a tool with an effect starts, so that it is never silently repeated."""
        owner, journal, intent = call.owner, self._host.journal, f"{call.path}?"
        record = owner.recorded.get(intent)
        if record is not None and record.value != WITHDRAWN:
            if call.tool.outcome is not None:
                self._host.run_for(owner, self._ask_outcome(call, start, done))
            else:
                done(None, ToolFailed(UNKNOWN.format(call.tool.name), call.started.step))
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

    async def _ask_outcome(self, call: "_Call", start: Callable[[], None], done: Settled) -> None:
        """A crash interrupted the call: its author knows what it came to, or that it is to be made."""
        assert call.tool.outcome is not None
        asked = replace(call.tool, function=call.tool.outcome, effect="idempotent", outcome=None)
        value, error = await self._value(call, asked, ToolContext(self._key(call)))
        if call.owner.ended:
            return
        if error is not None:
            done(None, error)
        elif value is None:
            start()
        else:
            self._host.record(call.owner, call.path, value, None, done, sync=True)

    # ---- running ----------------------------------------------------------------------------------

    async def _perform(self, call: "_Call", done: Settled) -> None:
        """Run the tool, record what it gave, and hand it on."""
        host, owner, signature = self._host, call.owner, call.signature
        try:
            value, error = await self._run_tool(call)
        except asyncio.CancelledError:
            if owner.ended:  # otherwise the whole run ends, and nobody can take over
                host.abandon(signature)
            raise
        once = call.tool.effect == "once"
        if owner.ended:
            host.abandon(signature)
            if once and error is None:  # its effect is there, and a resumed run is to know
                host.record(owner, call.path, value, None, _to_nobody, sync=True)
        elif error is not None:
            host.failed(signature, error, done)
        else:
            # What other runs wrote is not known: reads of tables are not in the result cache.
            local = call.touched is not None
            keep_s = call.keep_s
            host.record(owner, call.path, value, signature, done, once, keep_s, known=local)

    async def _run_tool(self, call: "_Call") -> tuple[Any, Exception | None]:
        """The tool's result, or why there is none; the scheduler hears of its start and its end."""
        host, send, started = self._host, self._host.scheduler.send, call.started
        started_s = now()
        send(started)
        progress = Progress(started, send)
        written = call.touched.writes if call.touched is not None else NOTHING
        host.changed(written)
        try:
            context = ToolContext(self._key(call), progress.report)
            value, error = await self._value(call, call.tool, context)
        finally:
            progress.over = True
            host.changed(written)
        send(
            ToolEnded(
                program=started.program,
                step=started.step,
                tool=started.tool,
                seconds=now() - started_s,
                ok=error is None,
                session=started.session,
                error=str(error) if error else None,
                word=started.word,
            )
        )
        return value, error

    async def _value(
        self, call: "_Call", tool: Tool, context: ToolContext
    ) -> tuple[Any, Exception | None]:
        """What `tool` returns, or why it does not, without the secrets in it."""
        enter(context)
        try:
            data = encode(await call_tool(tool, call.values))
            return redact_data(decode(data), data, self._secrets | used()), None
        except Exception as failure:
            said = redact(f"{failure}", self._secrets | used())
            return None, ToolFailed(said, call.started.step)

    def _key(self, call: "_Call") -> str:
        """What a service may know a call again by, after a retry or a resume."""
        place = f"{self._run}/{call.owner.row}/{call.path}".encode("utf-8", "surrogatepass")
        return blake2b(place, digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class _Call:
    """One call of a tool that is to be run. A result answers equal calls for `keep_s` seconds."""

    owner: Owner
    path: str
    tool: Tool
    values: Mapping[str, Any]
    started: ToolStarted
    touched: Touched | None
    signature: bytes | None
    keep_s: float | None


def _to_nobody(value: Any, error: Exception | None) -> None:
    """The program has ended."""


def _touched(tool: Tool, values: Mapping[str, Any]) -> Touched | None:
    """What a call reads and writes, where its tool can tell."""
    if tool.touches is None:
        return None
    with suppress(ValueError):  # arguments that the tool itself will refuse, and say why
        return tool.touches(values)
    return None


def _differs(owner: Owner, path: str, values: Mapping[str, Any]) -> bool:
    """Whether a tool was started at this place with other arguments, by an earlier attempt."""
    record = owner.recorded.get(f"{path}?")
    if record is None:
        return False
    given = decode(record.value)
    return isinstance(given, str) and given != identity(values)


def _first_word(values: Mapping[str, Any]) -> str:
    """A hash of the first word of a tool's first argument: traces hold no text of arguments."""
    first = next(iter(values.values()), None)
    words = first.split(maxsplit=1) if isinstance(first, str) else ()
    return blake2b(words[0].encode("utf-8", "replace"), digest_size=4).hexdigest() if words else ""
