"""`explain` and `explain --analyze`: what a workflow would take over a table, and what a run took.

Nothing runs for `explain`. Statistics of the table are kept in the home, so that it is looked through
once.
"""

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, cast

from ..planner.explain import after_rules, explain_placement
from ..planner.explain import explain as explain_plan
from ..planner.graph import LLM
from ..planner.hardware import Hardware, ModelShape
from ..planner.lint import lint
from ..planner.optimize import left_out, optimize
from ..planner.plan import Context, Plan, PlanStep, Tokens
from ..planner.seconds import CallSeconds, call_seconds
from ..planner.stats import collect
from .api import WorkflowHandle
from .backends.sim import named_presets
from .errors import InvalidInput
from .jobs import Job, MapSpec, expected_of, first_model, map_table, models_of
from .journal.store import Store
from .load import load_workflow
from .predict import Learned
from .reasoning.cascade import Outlook, outlook
from .report.analysis import Analysis, Analyst
from .report.expected import Expectation, over, planned
from .report.explained import (
    analysis_record,
    analysis_text,
    expectation_record,
    expectation_table,
)
from .run.control import Control
from .run.local import pools
from .run.placed import Placed, place_on
from .run.rows import WINDOW_ROWS
from .table_stats import Told, tokens_of_spec
from .tables import BadRow, Table, View, open_table
from .trace import read
from .workflow import ModelSpec, Workflow

__all__ = ["Analysed", "Explained", "analyze", "explain", "run_and_analyze"]

Rows = Iterable[Mapping[str, Any]]
NOT_FOLLOWED = "  a run gives workers equal shares; `place: true` has it follow this placement\n"
EVERY_RECORDS = 10_000  # between two words about how far the reading of a trace is
DEFAULT_PRESET = "llama-3.1-8b"  # of the model whose seconds are told


@dataclass(frozen=True, slots=True)
class Explained:
    """A plan and what it is expected to take.

    `rows` are those of the table, None without one; with `sampled` its statistics are those of some.
    Tokens are `counted` by the model's tokenizer, or estimated. `engine`: whose seconds are told.
    `placed`: on several workers; `follows`: a run does what it says. `after_rules` has the plan
    after each rule, `cascades` by step what their samples can vouch for, where they can. `str()` of
    it is the text for people.
    """

    workflow: str
    plan: Plan | None
    rows: int | None = None
    sampled: bool = False
    counted: bool = False
    placed: Placed | None = None
    follows: bool = False
    steps: tuple[Expectation, ...] = ()
    after_rules: tuple[tuple[str, str], ...] = ()
    cascades: Mapping[str, str] = field(default_factory=dict[str, str])
    warnings: tuple[str, ...] = ()
    engine: str = ""

    def __str__(self) -> str:
        if self.plan is None:
            return (
                f"{self.workflow} is an `async def` workflow: its steps are known when they are "
                "reached, so there is no plan ahead of a run\n"
            )
        parts = [f"== {rule}\n{text}" for rule, text in self.after_rules]
        parts += [] if parts else [explain_plan(self.plan)]
        if self.steps and self.rows is not None:
            of = ", judged by some of them" if self.sampled else ""
            of += "" if self.counted else ", a token for four characters"
            of += f", seconds of {self.engine}" if self.engine else ""
            table = expectation_table(self.steps)
            parts.append(f"expected over {self.rows:,} rows{of}:\n{table}\n")
        if self.placed is not None:
            parts.append(explain_placement(self.placed.placement, self.placed.bound_s))
            parts += [] if self.follows else [NOT_FOLLOWED]
        parts += [f"cascade {step}: {text}\n" for step, text in self.cascades.items()]
        parts += [f"warning: {text}\n" for text in self.warnings]
        return "".join(parts)

    def record(self) -> dict[str, Any]:
        """The same as one JSON object."""
        plan = self.plan
        return {
            "type": "plan",
            "workflow": self.workflow,
            "plan": None if plan is None else explain_plan(plan, estimates=False),
            "rows": self.rows,
            "sampled": self.sampled,
            "counted": self.counted,
            "row_order": [] if plan is None else list(plan.row_order.columns),
            "steps": [expectation_record(step) for step in self.steps],
            "placement": None if self.placed is None else _placement(self.placed, self.follows),
            "after_rules": dict(self.after_rules),
            "notes": [] if plan is None else list(plan.notes),
            "cascades": dict(self.cascades),
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True, slots=True)
class Analysed:
    """A run looked at, step by step. `str()` of it is the text for people."""

    found: Analysis

    def __str__(self) -> str:
        return analysis_text(self.found) + "\n"

    def record(self) -> dict[str, Any]:
        """The same as one JSON object."""
        return analysis_record(self.found)


def explain(
    workflow: str | Workflow | WorkflowHandle,
    table: str | Path | Rows | None = None,
    *,
    limit: int | None = None,
    unnest: str | None = None,
    group_by: tuple[str, ...] = (),
    models: Mapping[str, str] | None = None,
    without: tuple[str, ...] = (),
    hardware: str | None = None,
    model: str = DEFAULT_PRESET,
    home: str | None = None,
    verbose: bool = False,
    tell: Told | None = None,
) -> Explained:
    """The plan of a workflow, for a table if there is one: a file, or rows as mappings.

    `unnest` and `group_by` are as in `MapSpec`. Seconds are told for engines on `hardware`
    ("h100", "4xh100") that serve a model like `model`. With `verbose` the plan after each rule is
    kept; `tell` hears how many rows were read. Raises InvalidInput for what `tenter map` would
    refuse.
    """
    presets = None if hardware is None else named_presets(hardware, model)
    rows: int | None = None
    if isinstance(workflow, str) and isinstance(table, str | Path):
        spec = MapSpec(
            workflow,
            str(table),
            "",
            limit=limit,
            unnest=unnest,
            group_by=group_by,
            models=models or {},
            home=home,
            without=without,
        )
        job = Job(spec)
        flow = job.workflow
        job.measure(_tokens(flow, models or {}), _learned(flow, home))
        specs = job.models
        context = job.context(tell)
        stats = context.stats
        rows = job.rows_total() if stats is None or stats.sampled else stats.rows
    else:
        flow = _workflow(workflow)
        specs = models_of(flow, models or {})
        if isinstance(table, str | Path):
            table = _rows_of(open_table(table, view=View(unnest, group_by)))
        context = _context(flow, table, limit, models or {}, home, without)
        rows = None if context.stats is None else context.stats.rows
    if flow.graph is None:
        return Explained(flow.name, None, rows)
    found = _explained(flow, context, rows, presets, verbose)
    found = replace(found, engine=f"{model} on {hardware}" if presets is not None else "")
    if presets is None or not rows or found.plan is None:
        return found
    placed = _placed(found.plan, rows, specs, presets)
    several = placed is not None and len(_pools(specs)[0]) > 1  # the shares of one are equal
    return replace(found, placed=placed, follows=flow.scheduling.place or not several)


def _explained(
    flow: Workflow,
    context: Context,
    rows: int | None,
    presets: tuple[Hardware, ModelShape] | None,
    verbose: bool,
) -> Explained:
    assert flow.graph is not None
    plan = optimize(flow.graph, context)
    after = tuple(after_rules(flow.graph, context)) if verbose else ()

    def seconds(step: PlanStep) -> CallSeconds | None:
        if presets is None or not isinstance(step.step, LLM):
            return None
        return call_seconds(*presets, step.estimate)

    steps = tuple(over(step, rows) for step in planned(plan, seconds)) if rows else ()
    sampled = context.stats is not None and context.stats.sampled
    warnings = tuple(str(warning) for warning in lint(plan, context))
    outlooks = dict(_outlooks(plan, rows)) if rows else {}
    warnings += tuple(
        f"{step}: {found.message}" for step, found in outlooks.items() if not found.enough
    )
    counted = bool(context.tokens.name)
    return Explained(
        *(flow.name, plan, rows, sampled, counted),
        steps=steps,
        after_rules=after,
        cascades={step: found.message for step, found in outlooks.items() if found.enough},
        warnings=warnings,
    )


def _outlooks(plan: Plan, rows: int) -> Iterator[tuple[str, Outlook]]:
    """What the samples of cascades may vouch for."""
    for step in plan.steps:
        wish = step.step.cascade if step.cascaded and isinstance(step.step, LLM) else None
        if wish is not None:
            found = outlook(wish.target, wish.confidence, wish.sample, rows, WINDOW_ROWS)
            yield step.id, found


def _placed(
    plan: Plan, rows: int, specs: Mapping[str, ModelSpec], presets: tuple[Hardware, ModelShape]
) -> Placed | None:
    """The placement on the workers that `specs` name; None for a single one."""
    pools, pool_of = _pools(specs)
    if sum(map(len, pools.values())) < 2:
        return None
    return place_on(plan, rows, pools, pool_of, dict.fromkeys(specs, presets))


def _pools(specs: Mapping[str, ModelSpec]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """The workers of each pool, and the pool of each model; equal settings share one."""
    pool_of, workers = pools(specs), dict[str, list[str]]()
    for pool in dict.fromkeys(pool_of.values()):
        urls = specs[pool].options.get("url")
        count = len(cast("list[Any]", urls)) if isinstance(urls, list) else 1
        workers[pool] = [f"{pool}/{index}" for index in range(count)]
    return workers, pool_of


def _placement(placed: Placed, follows: bool) -> dict[str, Any]:
    """A placement as plain data; rows are in the plan's order."""
    found = placed.placement
    return {
        "makespan_s": found.makespan_s,
        "bound_s": placed.bound_s,
        "followed": follows,
        "workers": {worker: list(map(asdict, visits)) for worker, visits in found.visits.items()},
    }


def _workflow(given: str | Workflow | WorkflowHandle) -> Workflow:
    if isinstance(given, WorkflowHandle):
        return given.workflow
    return given if isinstance(given, Workflow) else load_workflow(given)


def _context(
    flow: Workflow,
    table: Rows | None,
    limit: int | None,
    models: Mapping[str, str],
    home: str | None,
    without: tuple[str, ...],
) -> Context:
    """What a plan is made for where there is no file to read, or no reference to a workflow."""
    tokens = _tokens(flow, models)
    try:
        left = left_out((*flow.scheduling.without, *without))
    except ValueError as error:
        raise InvalidInput(f"without: {error}") from None
    learned = _learned(flow, home)
    context = Context(tokens=tokens, expected=expected_of(flow, learned), without=left)
    if table is None:
        return context
    rows = islice(table, limit)
    first = list(islice(rows, 1))
    there = {name for row in first for name in row}
    columns = [given.name for given in flow.inputs if given.name in there]
    constants = frozenset(given.name for given in flow.inputs if given.name not in there)
    count = tokens.count if tokens.name else None
    stats = collect(chain(first, rows), columns, limit, count)
    return replace(context, stats=stats, constants=constants)


def _rows_of(table: Table) -> Iterator[Mapping[str, Any]]:
    return (item[1] for item in table if not isinstance(item, BadRow))


def _tokens(flow: Workflow, models: Mapping[str, str]) -> Tokens:
    spec = models_of(flow, models).get(first_model(flow))
    return Tokens() if spec is None else tokens_of_spec(spec)


def _learned(flow: Workflow, home: str | None) -> Learned:
    return Learned.load(Store(home).place, flow.name, "")


# ---- afterwards --------------------------------------------------------------------------------


def analyze(run: str, *, home: str | None = None, tell: Told | None = None) -> Analysed:
    """What a run took, step by step, beside what was expected; also while it goes on.

    `run` is its name, the beginning of it, `last`, or the path of a trace. `tell` hears how many
    records were read. Raises InvalidInput where there is no such run, or it has no trace.
    """
    analyst = Analyst()
    for number, (at_s, record) in enumerate(read(_trace_of(run, home)), start=1):
        analyst.add(at_s, record)
        if tell is not None and number % EVERY_RECORDS == 0:
            tell(number)
    return Analysed(analyst.analysis())


def _trace_of(run: str, home: str | None) -> Path:
    path = Path(run)
    if path.is_dir() and (path / "trace.jsonl").is_file():
        return path / "trace.jsonl"
    if path.is_file():
        return path
    store = Store(home)
    found = store.trace_path(store.find(run))
    if not found.exists():
        raise InvalidInput(f"{run}: its trace {found} is not on this machine")
    return found


async def run_and_analyze(
    spec: MapSpec, control: Control | None = None, analyst: Analyst | None = None
) -> Analysed:
    """Run a workflow over a table and look at it.

    Without `spec.out` the answers are thrown away and no run is kept. What its tools do, they do.
    """
    control, analyst = control or Control(), analyst or Analyst()
    if spec.out:
        await map_table(spec, control, analyst)
    else:
        with tempfile.TemporaryDirectory(prefix="tenter-") as folder:
            out = str(Path(folder) / "answers.jsonl")
            await map_table(replace(spec, out=out, journal=False), control, analyst)
    return Analysed(analyst.analysis())
