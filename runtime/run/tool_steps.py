"""Tool steps: answered from the journal, joined with equal calls, or run and timed."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from ...tools import Tool
from ...tools.call import call as call_tool
from ...tools.call import did_nothing
from ...tools.context import ToolContext, enter
from ...tools.registry import ToolError, ToolTimeout
from ...tools.secrets import named, redact, redact_data, used
from ..clock import now
from ..errors import BackendUnavailable, Drained, ToolFailed
from ..scheduler.core import DRAINED
from ..scheduler.events import CallShared, ToolEnded, ToolStarted
from .codec import decode, encode, identity
from .early import EarlyCall, outside
from .effects import Effects, Result, differs
from .owner import Owner
from .raised import raised_at
from .sharing import Settled
from .tool_call import Call, first_word, shared_as, touched_by
from .tool_failures import failed_before
from .tool_progress import Progress
from .tool_records import ToolRecords

if TYPE_CHECKING:
    from .host import Host

NOTHING: frozenset[str] = frozenset()


class ToolSteps:
    """Runs tool steps for the programs of a host."""

    def __init__(self, host: "Host", run: str) -> None:
        self._host = host
        self._run = run
        self._secrets = named()
        self._effects = Effects(host, self._outcome)
        self._records = ToolRecords(host)

    def use(
        self,
        owner: Owner,
        path: str,
        step: str,
        tool: Tool,
        values: Mapping[str, Any],
        done: Settled,
        early: EarlyCall | None = None,
    ) -> None:
        """Run one; `done(value, error)` is called once, perhaps before this returns.

        `early` is the same call, if it was started before its turn had ended.
        """
        gate = self._host.gate

        def begin() -> None:
            if not owner.ended:
                self._begin(owner, path, step, tool, values, done, early)

        if gate.shut:
            gate.wait(owner.name, path, begin)
        else:
            begin()

    def _begin(
        self,
        owner: Owner,
        path: str,
        step: str,
        tool: Tool,
        values: Mapping[str, Any],
        done: Settled,
        early: EarlyCall | None,
    ) -> None:
        host = self._host
        if host.draining:
            owner.stopped = Drained(DRAINED, step)
            done(None, owner.stopped)
            return
        other = differs(owner, path, step, tool, values)
        if other is not None:
            done(None, other)
            return
        if owner.recorded and host.answered_before(owner, path, step, done, tool.name):
            return
        # The chat that spoke last: others may, before this starts.
        call = self._call(owner, path, step, tool, values, owner.session)
        failure = failed_before(owner.recorded, path) if owner.recorded else None
        if failure is not None:
            self._effects.remember(call, failure)
            host.note(CallShared(program=owner.name, step=step, how="journal", tool=tool.name))
            done(None, failure)
            return
        done = self._records.failures_kept(call, done)

        def start() -> None:
            if owner.ended:
                host.abandon(call.signature)
            else:
                once = tool.effect == "once"
                host.run_for(owner, self._perform(call, done), once, call.signature, path)

        if tool.effect == "once":
            self._effects.declare(call, start, done)
        elif early is not None and early.take(call.signature):
            call = replace(call, early=early, started=early.since(call.started))
            start()
        else:
            if early is not None:
                early.drop()
            # What other runs wrote is not known: reads of tables answer this run alone.
            local = call.touched is not None
            told = done if call.keep_s is None else self._records.for_this_call_too(call, done)
            host.share(owner, path, step, call.signature, start, told, call.started, local)

    def _call(
        self,
        owner: Owner,
        path: str,
        step: str,
        tool: Tool,
        values: Mapping[str, Any],
        session: str | None,
    ) -> Call:
        touched = touched_by(tool, values)
        signature, keep_s = shared_as(self._host.sharing, tool, values, touched)
        started = ToolStarted(
            program=owner.name,
            step=step,
            tool=tool.name,
            session=session,
            eta_s=tool.eta_s,
            word=first_word(values),
        )
        return Call(owner, path, tool, values, started, touched, signature, keep_s)

    # ---- before its turn has ended ----------------------------------------------------------------

    def start_early(
        self, owner: Owner, turn: str, session: str, tool: Tool, values: Mapping[str, Any]
    ) -> EarlyCall | None:
        """Start a call of the turn at the path `turn`, which has not ended.

        None where equal work has been done or is under way, or where nothing may start.
        """
        host, same = self._host, identity(values)
        call = self._call(owner, f"{turn}.{tool.name}@{same}", tool.name, tool, values, session)
        signature, sharing = call.signature, host.sharing
        if owner.ended or host.draining or host.gate.shut:
            return None
        if sharing is not None and signature is not None:
            if sharing.known(signature) or sharing.in_flight(signature):
                return None
            sharing.begin(signature)
        early = EarlyCall(host, call.started, same, signature)
        if signature is not None and host.looks_elsewhere:
            host.run_task(self._look_first(call, early, signature))
        else:
            self._go_early(call, early)
        return early

    async def _look_first(self, call: Call, early: EarlyCall, signature: bytes) -> None:
        """Start a call early unless its result is there, or another process makes it.

        No part of its program, so that a claim that was asked for is always heard of.
        """
        first = await self._host.enter_first(signature)
        sharing = self._host.sharing
        if first and early.open and not call.owner.ended:
            self._go_early(call, early)
            return
        early.undo()
        if first and sharing is not None and not sharing.in_flight(signature):
            self._host.abandon(signature)

    def _go_early(self, call: Call, early: EarlyCall) -> None:
        early.begin(self._host.run_for(call.owner, self._run_early(call, early)))

    async def _run_early(self, call: Call, early: EarlyCall) -> None:
        outside(early)
        context = ToolContext(self._key(call), early.progress.report)
        early.end(await self._value(call, call.tool, context))

    # ---- running ----------------------------------------------------------------------------------

    async def _perform(self, call: Call, done: Settled) -> None:
        """Run the tool, record what it gave, and hand it on."""
        host, owner, signature = self._host, call.owner, call.signature
        value, error = await self._run_tool(call)
        once = call.tool.effect == "once"
        if owner.ended:
            host.abandon(signature)
            if once:  # a resumed run is to know of its effect
                self._records.keep(call, value, error)
        elif error is not None:
            host.failed(signature, error, done)
        else:
            local = call.touched is not None
            keep_s = call.keep_s
            host.record(owner, call.path, value, signature, done, once, keep_s, known=local)

    async def _run_tool(self, call: Call) -> Result:
        """The tool's result, or why there is none; the scheduler hears of its start and its end."""
        host, send, started = self._host, self._host.scheduler.send, call.started
        early = call.early
        started_s = now() if early is None else early.began_s
        send(started)
        progress = Progress(started, send) if early is None else early.progress
        progress.tell(send)
        written = call.touched.writes if call.touched is not None else NOTHING
        host.changed(written)
        try:
            found = await early.outcome if early is not None else None
            if found is None:
                context = ToolContext(self._key(call), progress.report)
                found = await self._value(call, call.tool, context)
            value, error = found
            ended_s = now() if early is None or early.ended_s is None else early.ended_s
        except asyncio.CancelledError:
            if not call.owner.ended:  # it goes on without the tool
                if early is not None:
                    early.stop()
                send(_ended(started, now() - started_s, ToolFailed("it was given up")))
            raise
        finally:
            progress.over = True
            host.changed(written)
        send(_ended(started, ended_s - started_s, error))
        return value, error

    async def _value(self, call: Call, tool: Tool, context: ToolContext) -> Result:
        """What `tool` returns, or why it does not, without the secrets in it."""
        enter(context)
        try:
            data = encode(await call_tool(tool, call.values))
            return redact_data(decode(data), data, self._secrets | used()), None
        except Exception as failure:
            cause = failure.cause if isinstance(failure, ToolError) else None
            if isinstance(cause, Drained | BackendUnavailable):
                return None, cause  # of a step that it took: no failure of its own
            error = ToolFailed(self._told(failure), call.started.step)
            _note_place(error, cause)
            if tool.effect != "once" or did_nothing(failure):
                return None, error
            if isinstance(failure, ToolTimeout) or isinstance(cause, ToolTimeout):
                return None, self._effects.unknown(call, "did not end in its time")
            said = failure.message if isinstance(failure, ToolError) else f"{failure}"
            value, error = await self._effects.after_failure(call, self._told(said), error)
            _note_place(error, cause)
            return value, error

    def _told(self, said: object) -> str:
        """What may leave a tool of an error: Unicode without secrets."""
        text = f"{said}".encode("utf-8", "replace").decode()
        return redact(text, self._secrets | used())

    async def _outcome(self, call: Call, asked: Tool) -> Result:
        """What `asked` says of an earlier start of the call, under the same key."""
        return await self._value(call, asked, ToolContext(self._key(call)))

    def _key(self, call: Call) -> str:
        """What a service may know a call again by, after a retry or a resume."""
        place = f"{self._run}/{call.owner.row}/{call.path}".encode("utf-8", "surrogatepass")
        return blake2b(place, digest_size=16).hexdigest()


def _ended(started: ToolStarted, seconds: float, error: Exception | None) -> ToolEnded:
    return ToolEnded(
        program=started.program,
        step=started.step,
        tool=started.tool,
        seconds=seconds,
        ok=error is None,
        session=started.session,
        error=str(error) if error else None,
        word=started.word,
    )


def _note_place(error: Exception | None, cause: BaseException | None) -> None:
    """Note where an author's code raised the `cause`: for him, not for a model."""
    at = raised_at(cause) if cause is not None else ""
    note = f"raised at {at}"
    if error is not None and at and note not in getattr(error, "__notes__", ()):
        error.add_note(note)
