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
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from ..kvpolicy import DEFAULT_POLICY
from ..planner.optimize import left_out, optimize
from ..planner.plan import Context, Expected, Plan, Tokens
from ..planner.stats import TableStats
from .api.checks import result_schema
from .backends.registry import parse_model
from .clock import now
from .errors import InvalidInput, InvalidTable, JournalError, RunMismatch
from .journal.base import Journal, Manifest
from .journal.memory import NoJournal
from .journal.results import Results
from .journal.store import Store, new_run_id
from .load import load_workflow
from .operate.settings import LEAST, POLICIES, SECONDS, Settings, check
from .operate.steering import Steered, steered
from .predict import Learned, due
from .report.expected import planned as expectations
from .report.summary import summary
from .report.tally import Tally, TallySnapshot
from .run.control import Control, Reason
from .run.host import Host
from .run.local import (
    Replicas,
    bind,
    llm_steps,
    model_specs,
    open_backends,
    open_host,
    open_results,
    run_program,
)
from .run.planned import NO_MODELS, Planned
from .run.program import Programs
from .run.rows import Limits, Row, RowRun, Status
from .scheduler.events import RunEnded, RunStarted
from .scheduler.limits import Limits as CallLimits
from .scheduler.loop import ATTEMPT_TIMEOUT_S
from .scheduler.policies import DEFAULT_ORDER
from .table_stats import Told, table_stats, tokens_of
from .tables import BadRow, Table, TableOutput, coerce, open_output, open_table
from .trace import TRACE_VERSION, Fanout, Trace, TraceWriter
from .workflow import ModelSpec, Scheduling, Workflow

__all__ = ["Control", "MapSpec", "Outcome", "map_table", "resume", "run_once"]

OUTPUT_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".pq")
COUNTED_BYTES = 256 * 2**20  # of a table, up to which its rows are counted ahead
SAMPLE_ROWS = 100  # of which one must be readable for a run to begin
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
    input: they go over what the workflow says. `without` are rules of the planner to leave out,
    beside those that the workflow leaves out. An attempt at a call on a server that takes longer
    than `call_timeout_s` is broken off, and tried again. Once calls have used `token_budget` tokens,
    prompts and answers, or after `time_limit_s`, what runs is finished and the run pauses. `cache`: whether results of earlier runs in
    `home` answer equal calls (None: as the workflow says).
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
    token_budget: int | None = None
    time_limit_s: float | None = None
    without: tuple[str, ...] = ()
    cache: bool | None = None


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


class Job:
    """A map job whose workflow, table and output fit together; InvalidInput where they do not."""

    def __init__(self, spec: MapSpec) -> None:
        self.spec = spec
        _check_options(spec)
        if spec.out:
            _check_output(Path(spec.out))
        self.workflow = load_workflow(spec.workflow)
        _check_tenant(spec.tenant, self.workflow)
        self.models = models_of(self.workflow, spec.models)
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
        self.tokens = Tokens()  # how the model counts, once it is known
        self.expected = Expected()

    def measure(self, tokens: Tokens, learned: Learned | None) -> None:
        """Plan with the model's own tokens, and with what earlier runs have taught."""
        self.tokens = tokens
        if learned is not None:
            self.expected = expected_of(self.workflow, learned)

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

    def context(self, tell: Told | None = None) -> Context:
        constants = frozenset(g.name for g in self.workflow.inputs if g.name not in self.columns)
        return Context(
            self.statistics(tell),
            constants,
            consolidate=self.consolidate,
            tokens=self.tokens,
            expected=self.expected,
            without=self.without,
        )

    @property
    def without(self) -> frozenset[str]:
        """The rules that are left out."""
        return left_out((*self.workflow.scheduling.without, *self.spec.without))

    @property
    def consolidate(self) -> bool:
        """Whether equal work is done once."""
        return self.spec.consolidate and "consolidate" not in self.without

    @property
    def shares_prefixes(self) -> bool:
        """Whether what all prompts of a step begin with is pinned."""
        return "group" not in self.without and _worth_pinning(self.table)

    def planned(self, plan: Plan | None, host: Host) -> Planned | None:
        """What carries the plan out; None where there is none."""
        if plan is None:
            return None
        order, group = "order" not in self.without, "group" not in self.without
        models = NO_MODELS if "reorder" in self.without else host.models
        pools = {model.pool for model in host.models.values()}
        return Planned(
            plan, host.scheduler, order=order, group=group, models=models, pools=sorted(pools)
        )

    def statistics(self, tell: Told | None = None) -> TableStats:
        """Statistics of the input columns, from the table's first rows; kept in the job's home."""
        folder = Store(self.spec.home).home / "stats" if self.spec.journal else None
        limit = self.spec.limit
        return table_stats(self.table, self.columns, self.tokens, folder, limit, tell)

    def rows_total(self) -> int | None:
        """The table's rows, counted where that takes no long; None: not known."""
        rows = self.table.rows_total
        if rows is None and Path(self.spec.table).stat().st_size < COUNTED_BYTES:
            rows = self.table.count_rows()
        return rows

    def results(self) -> AbstractAsyncContextManager[Results | None]:
        """The result cache, where it is wanted; without consolidation there is nothing to look up."""
        wanted = self.workflow.cache if self.spec.cache is None else self.spec.cache
        return open_results(wanted and self.spec.consolidate, self.spec.home)

    def scheduling(self) -> Scheduling:
        """What the workflow says, and over it what this job says."""
        spec = self.spec
        given = {"order": spec.order, "retention": spec.retention, "tenant": spec.tenant}
        chosen = {name: value for name, value in given.items() if value is not None}
        said = self.workflow.scheduling
        return replace(said, **chosen, limits={**said.limits, **spec.limits})

    def settings(self, concurrency: int) -> Settings:
        """What may be changed while the run goes on, as it begins."""
        spec, wish = self.spec, self.scheduling()
        return Settings(
            concurrency,
            wish.order or DEFAULT_ORDER,
            wish.retention or DEFAULT_POLICY,
            spec.max_errors,
            spec.token_budget,
            spec.time_limit_s,
        )

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
        learned = folder = None
        if spec.journal:
            store = Store(spec.home)
            journal = store.create(job.manifest(run, backends))
            trace = _open_trace(store, run, tally, stack)
            learned = _learned(store, job, backends)
            folder = store.folder(run)
        start = Start(folder)
        return await _run(job, run, backends, journal, trace, control, tally, start, learned)


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
    spec = MapSpec(**_settings(info.manifest))
    job = Job(replace(spec, **changes or {}))
    if info.status == "done" and job.has_output and not (retry and info.rows_failed):
        tally.add(0.0, _started(job, name, info.rows_done + info.rows_failed))
        letters = _letters(job) if info.rows_failed else None
        counts = (info.rows_done, info.rows_failed, job.spec.out, letters)
        return Outcome(name, "done", *counts, tally.snapshot())
    async with AsyncExitStack() as stack:
        backends = await stack.enter_async_context(open_backends(job.models))
        _compare(info.manifest, job.manifest(name, backends))
        _, journal = store.open(name)
        trace = _open_trace(store, name, tally, stack)
        finished = info.rows_done + (0 if retry else info.rows_failed)
        learned = _learned(store, job, backends)
        seed = random.Random().getrandbits(31) if retry else 0  # or rows would fail alike
        start = Start(store.folder(name), finished, retry, seed)
        return await _run(job, name, backends, journal, trace, control, tally, start, learned)


@dataclass(frozen=True, slots=True)
class Start:
    """How a process begins with a run: `finished` rows are recorded (None: the run is new).

    `folder` is where it can be steered from outside; `retry`: failed rows are run again.
    """

    folder: Path | None = None
    finished: int | None = None
    retry: bool = False
    seed: int = 0


async def _run(
    job: Job,
    run: str,
    backends: Mapping[str, Replicas],
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
    spec = job.spec
    job.measure(_tokens(job.workflow, backends), learned)
    plan = job.plan()
    workflow = _planned(job.workflow, plan)
    trace.write(now(), _started(job, run, start.finished or 0))
    for expected in expectations(plan) if plan is not None else ():
        trace.write(now(), expected)
    concurrency = spec.concurrency or _concurrency(backends)
    limits = Limits(concurrency, max_errors=spec.max_errors)
    try:
        if start.finished is not None:
            await journal.set_status("running", {})
        async with (
            job.results() as results,
            open_host(
                backends,
                journal=journal,
                trace=trace,
                scheduling=job.scheduling(),
                learned=learned,
                results=results,
                attempt_timeout_s=spec.call_timeout_s,
                max_programs=concurrency,
                share=job.consolidate,
                seed=start.seed,
                resumed=start.finished is not None,
                run=run,
            ) as host,
        ):
            programs = Programs(host, workflow)
            if workflow.graph is not None and job.shares_prefixes:
                host.share_prefixes(llm_steps(workflow.graph.steps))
            planned = host.planned = job.planned(plan, host)
            sink = _Sink(out)
            resumed = start.finished is not None
            rows = RowRun(
                programs, journal, sink, control, (), limits, resumed, planned, start.retry
            )
            parts = Steered(run, host, rows, control, tally, trace)
            async with steered(parts, job.settings(concurrency), start.folder):
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
    snapshot = tally.snapshot()
    reason = control.reason or ("approval" if snapshot.approvals else None)
    reason = reason if status == "paused" else None
    return Outcome(run, status, sink.done, sink.failed, spec.out, dead, snapshot, reason)


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
    cache: bool | None = None,
) -> Any:
    """Run a workflow for one input and return its JSON result; no run is kept.

    `cache`: whether results of earlier runs in `home` answer (None: as the workflow says).
    """
    workflow = load_workflow(workflow_ref)
    specs = models_of(workflow, models or {})
    schemas = {given.name: given.schema for given in workflow.inputs if given.name in inputs}
    bound = bind(workflow, coerce(inputs, schemas, "input"))
    wanted = workflow.cache if cache is None else cache
    async with (
        open_results(wanted, home) as results,
        open_backends(specs) as backends,
        open_host(backends, trace=tally, results=results) as host,
    ):
        return await run_program(host, workflow, bound, control)


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
    check({name: getattr(spec, name) for name in (*LEAST, *SECONDS, *POLICIES)})
    try:
        left_out(spec.without)
    except ValueError as error:
        raise InvalidInput(f"--without: {error}") from None
    CallLimits.read(spec.limits)
    if spec.cache and not spec.consolidate:
        raise InvalidInput("--cache answers equal calls, --no-consolidate repeats them: give one")


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


def models_of(workflow: Workflow, overrides: Mapping[str, str]) -> dict[str, ModelSpec]:
    """What serves each model of a workflow, where `overrides` are backends by name."""
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


def first_model(workflow: Workflow) -> str:
    """The model whose tokenizer a plan is counted with: that of the first call."""
    steps = llm_steps(workflow.graph.steps) if workflow.graph is not None else []
    return steps[0].model if steps else "default"


def _tokens(workflow: Workflow, backends: Mapping[str, Replicas]) -> Tokens:
    found = backends.get(first_model(workflow))
    return Tokens() if found is None else tokens_of(found[0].tokenizer)


def expected_of(workflow: Workflow, learned: Learned) -> Expected:
    """What earlier runs say of a workflow's steps and tools."""
    steps = llm_steps(workflow.graph.steps) if workflow.graph is not None else []
    output = {step.id: learned.mean_output_tokens(workflow.name, step.id) for step in steps}
    tool_s = {name: learned.mean_tool_s(name) for name in workflow.tools}
    return Expected(_known(output), _known(tool_s))


def _known(found: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in found.items() if value is not None}


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
    return RunStarted(
        version=TRACE_VERSION,
        run=run,
        workflow=job.workflow.name,
        rows=job.rows_total(),
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
    settings["without"] = tuple(settings.get("without", ()))
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
