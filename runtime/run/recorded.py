"""A workflow for one input as a run of its own: recorded, so that it goes on where it was cut off."""

import hashlib
import random
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any

from anyio import CancelScope

from ..backends.base import Backend
from ..clock import now
from ..errors import BackendUnavailable, Drained, InvalidInput, JournalError
from ..fleet.peers import open_peers
from ..journal.base import Journal, Manifest, RowRecord, RunInfo, RunStatus, StepRecord
from ..journal.resuming import close_journal, compare
from ..journal.store import Store
from ..scheduler.events import RunEnded, RunStarted
from ..trace import TRACE_VERSION, Fanout, Trace, TraceWriter
from ..workflow import Workflow
from .codec import decode, encode
from .control import Control, Wish
from .local import (
    Replicas,
    bind,
    model_fingerprint,
    model_specs,
    open_backends,
    open_host,
    open_results,
    run_program,
)
from .rows import tell
from .speech import OnText
from .tool_failures import is_failure

ROW = 0  # the only one of such a run
LATER = (Drained, BackendUnavailable, JournalError)  # errors of the moment, not of the input


async def run_recorded(
    workflow: Workflow,
    inputs: Mapping[str, Any],
    run: str,
    *,
    home: str | None = None,
    backends: Mapping[str, Backend | Replicas] | None = None,
    control: Control | None = None,
    trace: Trace | None = None,
    cache: bool | None = None,
    on_text: OnText | None = None,
    **options: Any,
) -> Any:
    """Run `workflow` for one input under the name `run`, and return its JSON result.

    Called again with the same name it goes on: what was recorded is not done again, and the result
    of a run that is done is returned at once. One that had failed is tried again, with other seeds;
    one that waits for an approval goes on once that is answered (`tenter approve`). `backends` (by
    model name, entered) are used instead of those that the workflow names; `options` are those of
    `open_host`. Raises RunMismatch where the workflow, the model or the input are others than the
    run began with, and JournalError where another process runs it.
    """
    bound = bind(workflow, inputs)
    store = Store(home)
    before = _before(store, run)
    if before is not None and before.status == "done":
        compare(before.manifest, _manifest(run, workflow, before.manifest.model_fingerprint, bound))
        return _result(store, run)
    async with AsyncExitStack() as stack:
        wanted = workflow.cache if cache is None else cache
        results = await stack.enter_async_context(open_results(wanted, home))
        peers = await stack.enter_async_context(open_peers(home))
        if backends is None:
            opened = open_backends(model_specs(workflow))
            replicas = await stack.enter_async_context(opened)
        else:
            replicas = {n: b if isinstance(b, Sequence) else (b,) for n, b in backends.items()}
        manifest = _manifest(run, workflow, model_fingerprint(replicas), bound)
        if before is None:
            journal = store.create(manifest)
        else:
            compare(before.manifest, manifest)
            _, journal = store.open(run)
        stack.push_async_callback(close_journal, journal)
        end = (await journal.rows(ROW, ROW)).get(ROW)
        steps = await _steps(journal, again=end is not None)
        writer = TraceWriter(store.trace_path(run))
        stack.callback(writer.close)
        heard = writer if trace is None else Fanout(writer, trace)
        heard.write(now(), RunStarted(TRACE_VERSION, run, workflow.name, rows=1))
        if before is not None:
            await journal.set_status("running", {})
        control, broken = control or Control(), list[JournalError]()

        def failed(error: JournalError) -> None:
            broken.append(error)
            control.abort()  # nothing can be recorded any more, so nothing may go on

        journal.on_failure = failed
        host_of_it = open_host(
            replicas,
            journal=journal,
            trace=heard,
            results=results,
            peers=peers,
            resumed=before is not None,
            run=run,
            **(_defaults(workflow, again=end is not None) | options),
        )
        status: RunStatus = "paused"
        try:
            async with host_of_it as host:
                value = await run_program(
                    host, workflow, bound, control, recorded=steps, on_text=on_text
                )
            journal.record(RowRecord(ROW, encode(value)))
            status = "done"
        except Exception as error:
            if broken:
                raise broken[0] from None
            if control.wish == Wish.RUN and not isinstance(error, LATER):
                journal.record(RowRecord(ROW, None, tell(error)))
                status = "failed"
            raise
        finally:
            heard.write(now(), RunEnded(status=status))
            if not broken:
                with CancelScope(shield=True):
                    await journal.set_status(status, {})
        return value


def _before(store: Store, run: str) -> RunInfo | None:
    """The run of this name, if there is one."""
    store.folder(run)  # refuses what cannot be a name
    if not store.runs.has(run):
        return None
    found = store.info(run)
    if not found.manifest.once:
        raise InvalidInput(f"{run} is a run over a table; give this one another name")
    return found


def _manifest(run: str, workflow: Workflow, models: str, inputs: Mapping[str, Any]) -> Manifest:
    try:
        given = encode(inputs)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{workflow.name}: an input is not JSON: {error}") from None
    return Manifest(
        run=run,
        workflow=workflow.name,
        workflow_fingerprint=workflow.fingerprint,
        model_fingerprint=models,
        input_fingerprint=hashlib.blake2b(given, digest_size=16).hexdigest(),
        settings={},
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _result(store: Store, run: str) -> Any:
    """What a run that is done has answered."""
    for entry in store.entries(run):
        if isinstance(entry, RowRecord) and entry.value is not None:
            return decode(entry.value)
    raise JournalError(f"{run} is done, but its result is not there; start a new run")


async def _steps(journal: Journal, again: bool) -> dict[str, StepRecord]:
    """What is recorded, by path; tried `again`, without the calls of tools that failed."""
    found = await journal.steps(ROW, ROW)
    return {path: s for (_, path), s in found.items() if not (again and is_failure(path))}


def _defaults(workflow: Workflow, again: bool) -> dict[str, Any]:
    """Options of `open_host`; with the old seeds a model would fail as it did."""
    seed = random.Random().getrandbits(31) if again else 0
    return {"scheduling": workflow.scheduling, "seed": seed}
