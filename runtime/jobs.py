"""Jobs as the command line and `map` from Python ask for them: a table in, a table out, resumable.

Everything that can be wrong with a job is found before a model is loaded or a row is run.
"""

import asyncio
import itertools
import json
import random
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from ..kvpolicy import DEFAULT_POLICY, named
from ..planner.explain import explain as explain_plan
from ..planner.explain import explain_rules
from ..planner.lint import lint
from ..planner.optimize import optimize
from ..planner.plan import Context, Plan
from ..planner.stats import TableStats, collect
from .api.checks import result_schema
from .backends.registry import parse_model
from .clock import now
from .errors import InvalidInput, InvalidTable, JournalError, RunMismatch
from .journal.base import Journal, Manifest
from .journal.memory import NoJournal
from .journal.store import Store, new_run_id
from .load import load_workflow
from .predict import Learned, due
from .report.summary import summary
from .report.tally import Tally, TallySnapshot
from .run.control import Control
from .run.local import (
    Replicas,
    bind,
    llm_steps,
    model_specs,
    open_backends,
    open_host,
    run_program,
)
from .run.program import Programs
from .run.rows import Limits, Row, RowRun, Status
from .scheduler.events import RunEnded, RunStarted
from .scheduler.limits import Limits as CallLimits
from .scheduler.loop import ATTEMPT_TIMEOUT_S
from .scheduler.policies import DEFAULT_ORDER, ordered
from .tables import BadRow, Table, TableOutput, coerce, open_output, open_table
from .trace import TRACE_VERSION, Fanout, Trace, TraceWriter
from .workflow import ModelSpec, Scheduling, Workflow

__all__ = ["Control", "MapSpec", "Outcome", "explain", "map_table", "resume", "run_once"]

OUTPUT_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".pq")
SAMPLE_ROWS = 100  # of which one must be readable for a run to begin
STATS_ROWS = 20_000  # rows that statistics are taken from
PINNED_ROWS = 8  # a table with fewer rows is not worth pinning prefixes for
_PATH = re.compile(r"(?P<name>[:,]\s*path=)(?P<path>[^,]+)")  # in `embedded:path=DIR,dtype=...`
FINGERPRINTS = {
    "workflow_fingerprint": "the workflow (its prompts, steps, sampling or tools)",
    "model_fingerprint": "the model or its tokenizer",
    "input_fingerprint": "the input table or what is read of it",
}


@dataclass(frozen=True, slots=True)
class MapSpec:
    """A workflow over a table. `workflow` is "pipeline.yaml", "file.py:name" or "module:name".

    `columns` are the input columns copied to the output (none: all). `models` overrides a
    workflow's models, as in {"default": "embedded:path=DIR,dtype=bfloat16"}. `home` is where runs
    are kept; without `journal` nothing is, and the run cannot be resumed. `order` and `retention`
    are names of policies, `limits` plain data for `scheduler.limits.Limits.read`, `tenant` an
    input: they go over what the workflow says. An attempt at a call on a server that takes longer
    than `call_timeout_s` is broken off, and tried again.
    """

    workflow: str
    table: str
    out: str
    columns: tuple[str, ...] = ()
    limit: int | None = None
    models: Mapping[str, str] = field(default_factory=dict[str, str])
    home: str | None = None
    concurrency: int | None = None
    journal: bool = True
    consolidate: bool = True
    max_errors: int | None = None
    order: str | None = None
    retention: str | None = None
    limits: Mapping[str, Any] = field(default_factory=dict[str, Any])
    tenant: str | None = None
    call_timeout_s: float = ATTEMPT_TIMEOUT_S


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended. `dead_letter` is the file of failed rows, if any failed."""

    run: str
    status: Literal["done", "paused", "failed"]
    rows_done: int
    rows_failed: int
    out: str
    dead_letter: str | None
    snapshot: TallySnapshot


class Job:
    """A map job whose workflow, table and output fit together; InvalidInput where they do not."""

    def __init__(self, spec: MapSpec) -> None:
        self.spec = spec
        _check_options(spec)
        if spec.out:
            _check_output(Path(spec.out))
        self.workflow = load_workflow(spec.workflow)
        _check_tenant(spec.tenant, self.workflow)
        self.models = _models(self.workflow, spec.models)
        inputs = self.workflow.inputs
        there = open_table(spec.table).columns
        self.columns = _columns_of(tuple(given.name for given in inputs), there, spec.table)
        self.optional = {g.name for g in inputs if not g.required}
        required = [self.columns.get(g.name, g.name) for g in inputs if g.required]
        needed = dict.fromkeys((*required, *self.columns.values()))
        self.table = open_table(spec.table, spec.columns or None, spec.limit, needed=needed)
        self.schemas = {g.name: g.schema for g in inputs if g.name in self.columns}
        _check_rows(self.table, spec.table)
        self.keep = spec.columns or self.table.columns

    @property
    def has_output(self) -> bool:
        return Path(self.spec.out).exists()

    def open_output(self) -> TableOutput:
        """The output files, begun anew: finished rows come back from the journal."""
        schema = result_schema(self.workflow)
        return open_output(self.spec.out, self.table, schema, self.keep)

    def rows(self) -> Iterator[Row]:
        """The table's rows with the workflow's inputs made of them."""
        for item in self.table:
            if isinstance(item, BadRow):
                yield Row(item.row, {}, problem=item.message)
                continue
            row, cells = item
            try:
                yield Row(row, cells, bind(self.workflow, coerce(self.given(cells), self.schemas)))
            except (InvalidTable, InvalidInput) as error:
                yield Row(row, cells, problem=str(error))

    def given(self, cells: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs that a row gives; null leaves an optional one at its default."""
        values = {name: cells.get(column) for name, column in self.columns.items()}
        return {k: v for k, v in values.items() if v is not None or k not in self.optional}

    def plan(self) -> Plan | None:
        """The plan of a static workflow, for this table; None for a program."""
        if self.workflow.graph is None:
            return None
        return optimize(self.workflow.graph, self.context())

    def context(self) -> Context:
        constants = frozenset(g.name for g in self.workflow.inputs if g.name not in self.columns)
        return Context(self.statistics(), constants, consolidate=self.spec.consolidate)

    def statistics(self) -> TableStats:
        """Statistics of the input columns, from the table's first rows."""
        inputs = (
            {name: item[1].get(column) for name, column in self.columns.items()}
            for item in self.table
            if not isinstance(item, BadRow)
        )
        return collect(inputs, tuple(self.columns), limit=STATS_ROWS)

    def scheduling(self) -> Scheduling:
        """What the workflow says, and over it what this job says."""
        spec = self.spec
        given = {"order": spec.order, "retention": spec.retention, "tenant": spec.tenant}
        chosen = {name: value for name, value in given.items() if value is not None}
        said = self.workflow.scheduling
        return replace(said, **chosen, limits={**said.limits, **spec.limits})

    def fingerprint(self) -> str:
        """What of the input determines the output."""
        kept = ",".join(self.keep)
        return f"{self.table.fingerprint()}/{self.spec.limit}/{kept}"

    def manifest(self, run: str, backends: Mapping[str, Replicas]) -> Manifest:
        return Manifest(
            run=run,
            workflow=self.workflow.name,
            workflow_fingerprint=self.workflow.fingerprint,
            model_fingerprint=_model_fingerprint(backends),
            input_fingerprint=self.fingerprint(),
            settings={"spec": json.dumps(asdict(_absolute(self.spec)))},
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )


async def map_table(spec: MapSpec, control: Control, tally: Tally) -> Outcome:
    """Run a workflow over every row of a table. Raises InvalidInput before anything runs."""
    job = Job(spec)
    async with AsyncExitStack() as stack:
        backends = await stack.enter_async_context(open_backends(job.models))
        run = new_run_id(time.time(), random.Random())
        journal: Journal = NoJournal()
        trace: Trace = tally
        learned = None
        if spec.journal:
            store = Store(spec.home)
            journal = store.create(job.manifest(run, backends))
            trace = _open_trace(store, run, tally, stack)
            learned = _learned(store, job, backends)
        return await _run(job, run, backends, journal, trace, control, tally, learned=learned)


async def resume(
    run: str, home: str | None, control: Control, tally: Tally, max_errors: int | None = None
) -> Outcome:
    """Go on with a run where it stopped; a finished run is left as it is.

    Rows that failed stay failed: one that was given up needs a higher `max_errors` to go on.
    Raises RunMismatch where the workflow, the model or the input are no longer what they were.
    """
    store = Store(home)
    name = store.find(run)
    info = store.info(name)
    spec = MapSpec(**_settings(info.manifest))
    job = Job(spec if max_errors is None else replace(spec, max_errors=max_errors))
    if info.status == "done" and job.has_output:
        tally.add(0.0, _started(job, name, info.rows_done + info.rows_failed))
        letters = _letters(job) if info.rows_failed else None
        counts = (info.rows_done, info.rows_failed, job.spec.out, letters)
        return Outcome(name, "done", *counts, tally.snapshot())
    async with AsyncExitStack() as stack:
        backends = await stack.enter_async_context(open_backends(job.models))
        _compare(info.manifest, job.manifest(name, backends))
        _, journal = store.open(name)
        trace = _open_trace(store, name, tally, stack)
        finished = info.rows_done + info.rows_failed
        learned = _learned(store, job, backends)
        return await _run(job, name, backends, journal, trace, control, tally, finished, learned)


async def _run(
    job: Job,
    run: str,
    backends: Mapping[str, Replicas],
    journal: Journal,
    trace: Trace,
    control: Control,
    tally: Tally,
    finished: int | None = None,
    learned: Learned | None = None,
) -> Outcome:
    """Run what is left of a job; `finished` rows are recorded (None: the run is new)."""
    out = job.open_output()
    status: Status = "failed"
    spec = job.spec
    plan = job.plan()
    workflow = _planned(job.workflow, plan)
    trace.write(now(), _started(job, run, finished or 0))
    concurrency = spec.concurrency or _concurrency(backends)
    limits = Limits(concurrency, max_errors=spec.max_errors)
    try:
        async with open_host(
            backends,
            journal=journal,
            trace=trace,
            scheduling=job.scheduling(),
            learned=learned,
            attempt_timeout_s=spec.call_timeout_s,
            max_programs=concurrency,
            share=spec.consolidate,
            resumed=finished is not None,
            run=run,
        ) as host:
            programs = Programs(host, workflow)
            if workflow.graph is not None and _worth_pinning(job.table):
                host.share_prefixes(llm_steps(workflow.graph.steps))
            order = plan.row_order.columns if plan is not None else ()
            sink = _Sink(out)
            rows = RowRun(programs, journal, sink, control, order, limits, finished is not None)
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
        await _close(journal)
    dead = str(letters) if letters is not None else None
    return Outcome(run, status, sink.done, sink.failed, spec.out, dead, tally.snapshot())


def _learned(store: Store, job: Job, backends: Mapping[str, Replicas]) -> Learned:
    """What earlier runs of this workflow on these models have taught."""
    fingerprint = f"{job.workflow.fingerprint}/{_model_fingerprint(backends)}"
    return Learned.load(store.home, job.workflow.name, fingerprint)


def _keep(learned: Learned) -> None:
    """Keep what was learned; a ranker is fitted where torch is there already."""
    if "torch" in sys.modules and due(learned.known):
        learned.fit(0)
    learned.save()


async def _close(journal: Journal) -> None:
    try:
        await journal.close()
    except JournalError:
        if journal.on_failure is not None:  # nobody has been told of it yet
            raise


async def run_once(
    workflow_ref: str,
    inputs: Mapping[str, Any],
    *,
    models: Mapping[str, str] | None = None,
    home: str | None = None,
    control: Control | None = None,
    tally: Tally | None = None,
) -> Any:
    """Run a workflow for one input and return its JSON result; nothing is kept."""
    del home
    workflow = load_workflow(workflow_ref)
    specs = _models(workflow, models or {})
    schemas = {given.name: given.schema for given in workflow.inputs if given.name in inputs}
    bound = bind(workflow, coerce(inputs, schemas, "input"))
    async with open_backends(specs) as backends, open_host(backends, trace=tally) as host:
        return await run_program(host, workflow, bound, control)


async def explain(
    workflow_ref: str, table: str | None = None, limit: int | None = None, verbose: bool = False
) -> str:
    """A workflow's plan as text: after the last rule, or after each if `verbose`."""
    if table is not None:
        job = Job(MapSpec(workflow_ref, table, out="", limit=limit))
        workflow, context = job.workflow, job.context()
    else:
        workflow = load_workflow(workflow_ref)
        context = Context()
    if workflow.graph is None:
        return (
            f"{workflow.name} is an `async def` workflow: its steps are known when they are "
            "reached, so there is no plan ahead of a run\n"
        )
    if verbose:
        return explain_rules(workflow.graph, context)
    plan = optimize(workflow.graph, context)
    return explain_plan(plan) + "".join(f"warning: {line}\n" for line in lint(plan, context))


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


def _check_output(out: Path) -> None:
    """Refuse what could not be written at the end, before anything is spent."""
    if out.suffix.lower() not in OUTPUT_SUFFIXES:
        raise InvalidInput(f"--out {out}: write one of {', '.join(OUTPUT_SUFFIXES)}")
    if not out.parent.is_dir():
        raise InvalidInput(f"--out {out}: there is no folder {out.parent}")


def _check_options(spec: MapSpec) -> None:
    """Refuse numbers of rows that mean nothing, and policies that do not exist."""
    least = {"limit": 1, "concurrency": 1, "max_errors": 0}
    for name, lowest in least.items():
        value = getattr(spec, name)
        if value is not None and value < lowest:
            option = name.replace("_", "-")
            raise InvalidInput(f"--{option} {value}: it must be at least {lowest}")
    if not spec.call_timeout_s > 0:
        raise InvalidInput(f"--call-timeout {spec.call_timeout_s}: it must be more than 0 s")
    try:
        ordered(spec.order or DEFAULT_ORDER)
    except ValueError as error:
        raise InvalidInput(f"--order: {error}") from None
    try:
        named(spec.retention or DEFAULT_POLICY)
    except ValueError as error:
        raise InvalidInput(f"--retention: {error}") from None
    CallLimits.read(spec.limits)


def _check_tenant(tenant: str | None, workflow: Workflow) -> None:
    names = [given.name for given in workflow.inputs]
    if tenant is not None and tenant not in names:
        raise InvalidInput(f"--tenant {tenant}: it is an input of the workflow: {', '.join(names)}")


def _check_rows(table: Table, path: str) -> None:
    """Refuse a table without rows, and one of which no row at the beginning can be read."""
    first: BadRow | None = None
    for item in itertools.islice(table, SAMPLE_ROWS):
        if not isinstance(item, BadRow):
            return
        first = first or item
    if first is None:
        raise InvalidTable(f"{path}: there are no rows")
    raise InvalidTable(f"{path}: there is no row that can be read; {first.message}")


def _columns_of(inputs: tuple[str, ...], columns: tuple[str, ...], path: str) -> dict[str, str]:
    """The column that feeds each input: its namesake, or the one whose name differs from it only
    in what no identifier can hold ("beer/name" feeds `beer_name`)."""
    plain: dict[str, list[str]] = {}
    for column in columns:
        plain.setdefault(re.sub(r"\W+", "_", column).strip("_").lower(), []).append(column)
    found: dict[str, str] = {}
    for name in inputs:
        close = [name] if name in columns else plain.get(name.lower(), [])
        if len(close) > 1:
            raise InvalidTable(f"{path}: input {name!r} may be column {' or '.join(close)}; rename")
        if close:
            found[name] = close[0]
    return found


def _models(workflow: Workflow, overrides: Mapping[str, str]) -> dict[str, ModelSpec]:
    specs = model_specs(workflow)
    for name, text in overrides.items():
        if name not in specs:
            known = ", ".join(sorted(specs)) or "none"
            raise InvalidInput(f"--model {name}: the workflow uses no such model; it uses {known}")
        specs[name] = parse_model(name, text)
    return specs


def _model_fingerprint(backends: Mapping[str, Replicas]) -> str:
    prints = {name: b[0].capabilities.model_fingerprint for name, b in sorted(backends.items())}
    return json.dumps(prints)


def _planned(workflow: Workflow, plan: Plan | None) -> Workflow:
    """The workflow with its graph as the plan carries it out."""
    return workflow if plan is None else replace(workflow, graph=plan.graph)


def _concurrency(backends: Mapping[str, Replicas]) -> int:
    """Programs at once: enough that slots stay filled while rows are recorded or wait for tools."""
    workers = {id(backend): backend for replicas in backends.values() for backend in replicas}
    return max(64, 4 * sum(each.capabilities.max_running for each in workers.values()))


def _worth_pinning(table: Table) -> bool:
    return table.rows_total is None or table.rows_total >= PINNED_ROWS


def _open_trace(store: Store, run: str, tally: Tally, stack: AsyncExitStack) -> Trace:
    writer = TraceWriter(store.trace_path(run))
    stack.callback(writer.close)
    return Fanout(writer, tally)


def _started(job: Job, run: str, resumed: int) -> RunStarted:
    rows = job.table.rows_total
    if rows is None and Path(job.spec.table).stat().st_size < 256 * 2**20:
        rows = job.table.count_rows()
    return RunStarted(
        version=TRACE_VERSION,
        run=run,
        workflow=job.workflow.name,
        rows=rows,
        resumed_rows=resumed,
    )


def _absolute(spec: MapSpec) -> MapSpec:
    """`spec` with paths that hold from every folder."""
    path, colon, name = spec.workflow.rpartition(":")
    file = path if colon and path.endswith(".py") else spec.workflow
    if Path(file).exists():
        whole = str(Path(file).resolve())
        workflow = f"{whole}:{name}" if file != spec.workflow else whole
    else:
        workflow = spec.workflow
    table, out = str(Path(spec.table).resolve()), str(Path(spec.out).resolve())
    models = {name: _PATH.sub(_whole, text) for name, text in spec.models.items()}
    return replace(spec, workflow=workflow, table=table, out=out, models=models)


def _whole(option: re.Match[str]) -> str:
    """A `path=` option whose folder is there, as a path from the root."""
    path = Path(option["path"])
    found = option["path"] != "tiny" and path.is_dir()
    return f"{option['name']}{path.resolve()}" if found else option[0]


def _settings(manifest: Manifest) -> dict[str, Any]:
    settings = json.loads(manifest.settings["spec"])
    settings["columns"] = tuple(settings["columns"])
    return settings


def _compare(then: Manifest, here: Manifest) -> None:
    """Refuse to resume what has changed, with the difference named."""
    changed = [
        what for name, what in FINGERPRINTS.items() if getattr(then, name) != getattr(here, name)
    ]
    if changed:
        raise RunMismatch(
            f"run {then.run} cannot be resumed: {'; '.join(changed)} changed since it began. "
            "Put it back as it was, or start a new run"
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
