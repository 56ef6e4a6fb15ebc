"""A workflow for one input as a run of its own: recorded, so that it goes on where it was cut off."""

import hashlib
import random
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from anyio import CancelScope

from ..backends.base import Backend
from ..clock import now
from ..errors import (
    ApprovalWanted,
    BackendUnavailable,
    Drained,
    InvalidInput,
    JournalError,
    OutcomeUnknown,
    StepFailed,
)
from ..journal.base import Journal, Manifest, RowRecord, RunInfo, RunStatus, StepRecord
from ..journal.resuming import close_journal, compare
from ..journal.store import Store
from ..scheduler.events import RunEnded, RunStarted
from ..trace import TRACE_VERSION, Fanout, Trace, TraceWriter
from ..workflow import Workflow
from .codec import decode, encode
from .control import Control, Wish
from .effects import QUESTION, question_of
from .local import (
    Replicas,
    bind,
    model_fingerprint,
    open_host,
    open_means,
    run_program,
)
from .rows import tell
from .speech import OnText
from .tool_failures import FAILURE, is_failure
from .trust import approval_id

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
    one that waits for an approval, or for word of what came of a call that was cut off, once that
    is given (`tenter approve`). `backends` (by model name, entered) are used instead of those that
    the workflow names; `options` are those of `open_host`. Raises RunMismatch where the workflow,
    the model or the input are others than the run began with, and JournalError where another
    process runs it.
    """
    bound = bind(workflow, inputs)
    store = Store(home)
    before = _before(store, run)
    if before is not None and before.status == "done":  # no model is opened for this
        compare(before.manifest, _manifest(run, workflow, before.manifest.model_fingerprint, bound))
        ends = (e for e in store.entries(run) if isinstance(e, RowRecord))
        return _result(next(ends, None), run)
    async with AsyncExitStack() as stack:
        means = await open_means(stack, workflow, backends, cache, home, options)
        replicas = {n: b if isinstance(b, Sequence) else (b,) for n, b in means.items()}
        manifest = _manifest(run, workflow, model_fingerprint(replicas), bound)
        left = await stack.enter_async_context(_open(store, manifest))
        if left.end is not None and left.end.error is None:  # it has ended meanwhile, or just so
            await left.journal.set_status("done", {})
            return _result(left.end, run)
        writer = TraceWriter(store.trace_path(run))
        stack.callback(writer.close)
        heard = writer if trace is None else Fanout(writer, trace)
        heard.write(now(), RunStarted(TRACE_VERSION, run, workflow.name, rows=1))
        if left.resumed:
            await left.journal.set_status("running", {})
        control, broken = control or Control(), list[JournalError]()

        def failed(error: JournalError) -> None:
            broken.append(error)
            control.abort()  # nothing can be recorded any more, so nothing may go on

        left.journal.on_failure = failed
        # with the old seeds a model would fail as it did
        options.setdefault("seed", random.Random().getrandbits(31) if left.end is not None else 0)
        # in another home there may be a run of this name: keys of tools tell them apart
        label = f"{run}/{left.manifest.created_at}"
        hosting = open_host(
            means, journal=left.journal, trace=heard, resumed=left.resumed, run=label, **options
        )
        status: RunStatus = "paused"
        try:
            async with hosting as host:
                value = await run_program(
                    host, workflow, bound, control, recorded=left.steps, on_text=on_text
                )
            left.journal.record(RowRecord(ROW, _encoded(value)))
            status = "done"
        except Exception as error:
            if broken:
                raise broken[0] from None
            question = question_of(ROW, error, left.steps)
            if question is not None and isinstance(error, OutcomeUnknown):
                left.journal.record(question, sync=True)
                tool = error.call[0] if error.call is not None else error.step
                raise ApprovalWanted(tool, approval_id(ROW, question.path)) from error
            if control.wish == Wish.RUN and not isinstance(error, LATER):
                left.journal.record(RowRecord(ROW, None, tell(error)))
                status = "failed"
            raise
        finally:
            heard.write(now(), RunEnded(status=status))
            if not broken:
                with CancelScope(shield=True):
                    await left.journal.set_status(status, {})
        return value


@dataclass(frozen=True, slots=True)
class _Left:
    """What an earlier attempt left: how it ended, if it did, and the steps that need not be done."""

    manifest: Manifest
    journal: Journal
    end: RowRecord | None
    steps: Mapping[str, StepRecord]
    resumed: bool


@asynccontextmanager
async def _open(store: Store, manifest: Manifest) -> AsyncGenerator[_Left]:
    """The run, claimed: a new one, or what is left of it."""
    before = _before(store, manifest.run)
    if before is None:
        journal = store.create(manifest)
    else:
        compare(before.manifest, manifest)
        _, journal = store.open(manifest.run)
    try:
        end = (await journal.rows(ROW, ROW)).get(ROW)
        found = await journal.steps(ROW, ROW)
        steps = {path: step for (_, path), step in found.items()}
        for path in [path for path in steps if is_failure(path)]:
            asked = steps.get(f"{path.removesuffix(FAILURE)}{QUESTION}")
            if end is not None or (asked is not None and asked.value != encode(False)):
                del steps[path]  # the tool is called again, or asked again what came of it
        yield _Left(
            manifest if before is None else before.manifest,
            journal,
            end,
            steps,
            resumed=before is not None,
        )
    finally:
        await close_journal(journal)


def _before(store: Store, run: str) -> RunInfo | None:
    """The run of this name, if there is one."""
    if not isinstance(run, str) or run == "last":  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidInput(f"{run!r} cannot be the name of a run")
    store.folder(run)  # refuses what else cannot be a name
    if not store.runs.has(run):
        return None
    found = store.info(run)
    if not found.manifest.once:
        raise InvalidInput(f"{run} is a run over a table; give this one another name")
    if found.status == "running":
        raise JournalError(f"run {run} is running already, in another process or task")
    return found


def _manifest(run: str, workflow: Workflow, models: str, inputs: Mapping[str, Any]) -> Manifest:
    try:
        given = encode(inputs, order="sorted")
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{workflow.name}: an input is not JSON: {error}") from None
    return Manifest(
        run=run,
        workflow=workflow.name,
        workflow_fingerprint=workflow.fingerprint,
        model_fingerprint=models,
        input_fingerprint=hashlib.blake2b(given, digest_size=16).hexdigest(),
        settings={"once": "true"},
        created_at=datetime.now(UTC).isoformat(timespec="microseconds"),
    )


def _encoded(value: Any) -> bytes:
    try:
        return encode(value)
    except (TypeError, ValueError) as error:
        raise StepFailed(f"the result is not JSON: {error}") from None


def _result(end: RowRecord | None, run: str) -> Any:
    """What a run that is done has answered."""
    if end is None or end.value is None:
        raise JournalError(f"{run} is done, but its result is not there; take another name")
    return decode(end.value)
