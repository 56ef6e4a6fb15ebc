"""A job being run: its journal, its trace, its output, and how it ends."""

import asyncio
import random
import sys
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..clock import now
from ..errors import InvalidInput
from ..journal.base import Journal
from ..journal.memory import NoJournal
from ..journal.resuming import close_journal, compare
from ..journal.store import Store, new_run_id
from ..operate.steering import Steered, steered
from ..predict import Learned, due
from ..report.expected import planned as expectations
from ..report.summary import summary
from ..report.tally import Tally, TallySnapshot
from ..run.control import Control, Reason
from ..run.rows import Limits, Row, RowOrder, RowPrograms, RowRun, Status
from ..scheduler.events import RunEnded, RunStarted
from ..tables import TableOutput
from ..trace import TRACE_VERSION, Fanout, Trace, TraceWriter
from .engine import Begin, Engine, Work, open_engine
from .job import Job
from .running import watched
from .spec import MapSpec, changed, settings_of


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended. `dead_letter` is the file of failed rows, if any failed.

    `reason` is why a paused one was stopped: a signal, somebody who asked, a budget of tokens or time.
    """

    run: str
    status: Literal["done", "paused", "failed"]
    rows_done: int
    rows_failed: int
    out: str
    dead_letter: str | None
    snapshot: TallySnapshot
    reason: Reason | None = None


async def map_table(spec: MapSpec, control: Control, tally: Tally) -> Outcome:
    """Run a workflow over every row of a table. Raises InvalidInput before anything runs."""
    job = Job(spec)
    job.check_limits()
    await job.sort(control)
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(open_engine(job))
        run = new_run_id(time.time(), random.Random())
        journal: Journal = NoJournal()
        trace: Trace = tally
        learned = folder = None
        if spec.journal:
            store = Store(spec.home)
            journal = store.create(job.manifest(run, engine.model_fingerprint))
            trace = _open_trace(store, run, tally, stack)
            learned = _learned(store, job, engine)
            folder = store.folder(run)
        start = Start(folder)
        return await _run(job, run, engine, journal, trace, control, tally, start, learned)


async def resume(
    run: str,
    home: str | None,
    control: Control,
    tally: Tally,
    changes: Mapping[str, Any] | None = None,
    retry: bool = False,
) -> Outcome:
    """Go on with a run where it stopped; a finished run is left as it is.

    `changes` are fields of its spec: how it runs, not what it answers. Rows that failed stay failed,
    so that one that was given up needs a higher `max_errors` to go on, unless with `retry` they are
    run again, with other seeds; of their steps, those that were recorded are not. A budget is as
    large again as it was.
    Raises RunMismatch where the workflow, the model or the input are no longer what they were.
    """
    store = Store(home)
    name = store.find(run)
    info = store.info(name)
    if info.manifest.once:
        raise InvalidInput(
            f"{name} is a run for a single input: give the command or the call that began it once "
            f"more, with the same name (tenter run WORKFLOW INPUTS --run {name})"
        )
    spec = MapSpec(**settings_of(info.manifest))
    job = Job(changed(spec, changes or {}))
    await job.sort(control)
    if info.status == "done" and job.has_output and not (retry and info.rows_failed):
        tally.add(0.0, _started(job, name, info.rows_done + info.rows_failed, info.rows_failed))
        letters = _letters(job) if info.rows_failed else None
        counts = (info.rows_done, info.rows_failed, job.spec.out, letters)
        return Outcome(name, "done", *counts, tally.snapshot())
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(open_engine(job))
        compare(info.manifest, job.manifest(name, engine.model_fingerprint))
        _, journal = store.open(name)
        trace = _open_trace(store, name, tally, stack)
        failed = 0 if retry else info.rows_failed
        learned = _learned(store, job, engine)
        seed = random.Random().getrandbits(31) if retry else 0  # or rows would fail alike
        start = Start(store.folder(name), info.rows_done + failed, failed, retry, seed)
        return await _run(job, name, engine, journal, trace, control, tally, start, learned)


@dataclass(frozen=True, slots=True)
class Start:
    """How a process begins with a run: `finished` rows are recorded (None: the run is new), of
    which `failed` have failed for good.

    `folder` is where it can be steered from outside; `retry`: failed rows are run again.
    """

    folder: Path | None = None
    finished: int | None = None
    failed: int = 0
    retry: bool = False
    seed: int = 0


async def _run(
    job: Job,
    run: str,
    engine: Engine,
    journal: Journal,
    trace: Trace,
    control: Control,
    tally: Tally,
    start: Start,
    learned: Learned | None = None,
) -> Outcome:
    """Run what is left of a job."""
    out = job.open_output()
    status: Status = "failed"
    begin = _begin(job, run, engine, journal, trace, start, learned)
    limits = Limits(begin.concurrency, max_errors=job.spec.max_errors)
    try:
        if begin.resumed:
            await journal.set_status("running", {})
        async with (
            engine.begin(begin) as work,
            _watched(work, journal, start) as (programs, planned),
        ):
            sink = _Sink(out)
            rows = RowRun(
                *(programs, journal, sink, control),
                limits=limits,
                resumed=begin.resumed,
                planned=planned,
                retry=start.retry,
            )
            parts = Steered(run, work.host, rows, control, tally, trace, job.pools)
            async with steered(parts, job.settings(begin.concurrency), start.folder):
                status = await rows.run(job.rows())
        trace.write(now(), RunEnded(status=status))
        letters = out.finish()[1] if status == "done" else None
        if status != "done":
            out.abandon()
        await journal.set_status(status, summary_numbers(tally.snapshot()))
        if learned is not None:
            await asyncio.to_thread(_keep, learned)
    except BaseException:
        out.abandon()
        raise
    finally:
        await close_journal(journal)
    dead = str(letters) if letters is not None else None
    snapshot = tally.snapshot()
    reason = control.reason or ("approval" if snapshot.approvals else None)
    reason = reason if status == "paused" else None
    return Outcome(run, status, sink.done, sink.failed, job.spec.out, dead, snapshot, reason)


@asynccontextmanager
async def _watched(
    work: Work, journal: Journal, start: Start
) -> AsyncGenerator[tuple[RowPrograms, RowOrder | None]]:
    """The programs of a run and their order, watched where one may kill this process."""
    if start.folder is None or work.programs.takes_all:
        yield work.programs, work.planned
        return
    async with watched(work, journal, start.folder, start.finished, start.retry) as rows:
        yield rows, rows


def _begin(
    job: Job,
    run: str,
    engine: Engine,
    journal: Journal,
    trace: Trace,
    start: Start,
    learned: Learned | None,
) -> Begin:
    """The job planned for its engine; what is expected goes into the trace."""
    job.measure(engine.tokens, learned)
    plan = job.plan()
    trace.write(now(), _started(job, run, start.finished or 0, start.failed))
    for expected in expectations(plan) if plan is not None else ():
        trace.write(now(), expected)
    return Begin(
        run=run,
        plan=plan,
        journal=journal,
        trace=trace,
        learned=learned,
        scheduling=job.scheduling(),
        concurrency=job.spec.concurrency or engine.concurrency,
        pins=job.shares_prefixes,
        resumed=start.finished is not None,
        seed=start.seed,
    )


def _learned(store: Store, job: Job, engine: Engine) -> Learned:
    """What earlier runs of this workflow on these models have taught."""
    fingerprint = f"{job.workflow.fingerprint}/{engine.model_fingerprint}"
    return Learned.load(store.place, job.workflow.name, fingerprint)


def _keep(learned: Learned) -> None:
    """Keep what was learned; a ranker is fitted where torch is there already."""
    if "torch" in sys.modules and due(learned.known):
        learned.fit(0)
    learned.save()


# ---- pieces ------------------------------------------------------------------------------------


class _Sink:
    """Puts finished rows into the output, and counts them."""

    def __init__(self, out: TableOutput) -> None:
        self._out = out
        self.done = 0
        self.failed = 0

    @property
    def held(self) -> int:
        return self._out.held

    def put(self, row: Row, value: Any, error: str | None) -> None:
        if error is None:
            self.done += 1
            self._out.done(row.row, row.cells, value)
        else:
            self.failed += 1
            self._out.failed(row.row, row.cells, error)


def _open_trace(store: Store, run: str, tally: Tally, stack: AsyncExitStack) -> Trace:
    writer = TraceWriter(store.trace_path(run))
    stack.callback(writer.close)
    return Fanout(writer, tally)


def _started(job: Job, run: str, resumed: int, failed: int) -> RunStarted:
    return RunStarted(
        version=TRACE_VERSION,
        run=run,
        workflow=job.workflow.name,
        rows=job.rows_total(),
        resumed_rows=resumed,
        resumed_failed=failed,
    )


def _letters(job: Job) -> str:
    return job.spec.out + ".errors.jsonl"


def summary_numbers(snapshot: TallySnapshot) -> dict[str, float]:
    """The numbers of a run's summary, as the journal keeps them."""
    return {
        name: float(value)
        for name, value in summary(snapshot).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
