"""Tool steps: answered from the journal, joined with equal calls, or run and timed."""

import math
from collections.abc import Mapping
from dataclasses import replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from ...tools import Tool
from ...tools.call import call as call_tool
from ...tools.context import ToolContext, enter
from ...tools.registry import ToolTimeout, Touched
from ...tools.secrets import named, redact, redact_data, used
from ..clock import now
from ..errors import Drained, ToolFailed
from ..scheduler.core import DRAINED
from ..scheduler.events import ToolEnded, ToolStarted
from .codec import decode, encode, identity
from .early import EarlyCall, outside
from .effects import Effects, differs
from .owner import Owner
from .sharing import Settled
from .tool_call import Call, first_word, touched_by
from .tool_progress import Progress

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

        `early` is the same call, if it was started before.
        """
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

        def start() -> None:
            if owner.ended:
                host.abandon(call.signature)
            else:
                once = tool.effect == "once"
                host.run_for(owner, self._perform(call, done), once, call.signature)

        if tool.effect == "once":
            self._effects.declare(call, start, done)
        elif early is not None and early.take(call.signature):
            call = replace(call, early=early, started=early.since(call.started))
            start()
        else:
            # What other runs wrote is not known: reads of tables answer this run alone.
            local = call.touched is not None
            host.share(owner, path, step, call.signature, start, done, call.started, local)

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
        signature, keep_s = self._shared(tool, values, touched)
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
        early.task = host.run_for(owner, self._run_early(call, early))
        return early

    async def _run_early(self, call: Call, early: EarlyCall) -> None:
        if call.signature is not None and await self._host.has_result(call.signature):
            early.undo()
            return
        outside(early)
        context = ToolContext(self._key(call), early.progress.report)
        early.end(await self._value(call, call.tool, context))

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
        keep_s, versions = tool.memo_s, list[int]()
        if touched is not None:
            versions = sharing.versions(touched.reads)
            lasting = math.inf if tool.effect == "pure" else 0.0
            keep_s = lasting if keep_s is None else keep_s
        try:
            same = tool.identity(values) if tool.identity else dict(values)
            kind = ["tool", tool.name, tool.source_hash, same, *([versions] if touched else [])]
            return blake2b(encode(kind, order="sorted"), digest_size=16).digest(), keep_s
        except ValueError:  # arguments that the tool itself will refuse, and say why
            return None, None

    # ---- running ----------------------------------------------------------------------------------

    async def _perform(self, call: Call, done: Settled) -> None:
        """Run the tool, record what it gave, and hand it on."""
        host, owner, signature = self._host, call.owner, call.signature
        value, error = await self._run_tool(call)
        once = call.tool.effect == "once"
        if owner.ended:
            host.abandon(signature)
            if once and error is None:  # its effect is there, and a resumed run is to know
                host.record(owner, call.path, value, None, _to_nobody, sync=True)
        elif error is not None:
            host.failed(signature, error, done)
        else:
            local = call.touched is not None
            keep_s = call.keep_s
            host.record(owner, call.path, value, signature, done, once, keep_s, known=local)

    async def _run_tool(self, call: Call) -> tuple[Any, Exception | None]:
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
        finally:
            progress.over = True
            host.changed(written)
        send(
            ToolEnded(
                program=started.program,
                step=started.step,
                tool=started.tool,
                seconds=ended_s - started_s,
                ok=error is None,
                session=started.session,
                error=str(error) if error else None,
                word=started.word,
            )
        )
        return value, error

    async def _value(
        self, call: Call, tool: Tool, context: ToolContext
    ) -> tuple[Any, Exception | None]:
        """What `tool` returns, or why it does not, without the secrets in it."""
        enter(context)
        try:
            data = encode(await call_tool(tool, call.values))
            return redact_data(decode(data), data, self._secrets | used()), None
        except Exception as failure:
            late = isinstance(failure, ToolTimeout) or isinstance(
                getattr(failure, "cause", None), ToolTimeout
            )
            if late and tool.effect == "once":
                return None, self._effects.unknown(call, "did not end in its time")
            said = redact(f"{failure}", self._secrets | used())
            return None, ToolFailed(said, call.started.step)

    async def _outcome(self, call: Call, asked: Tool) -> tuple[Any, Exception | None]:
        """What `asked` says of an earlier start of the call, under the same key."""
        return await self._value(call, asked, ToolContext(self._key(call)))

    def _key(self, call: Call) -> str:
        """What a service may know a call again by, after a retry or a resume."""
        place = f"{self._run}/{call.owner.row}/{call.path}".encode("utf-8", "surrogatepass")
        return blake2b(place, digest_size=16).hexdigest()


def _to_nobody(value: Any, error: Exception | None) -> None:
    """The program has ended."""
