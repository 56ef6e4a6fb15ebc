"""The commands that only look: at workflows before they run, and at runs afterwards."""

import json as jsonlib
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..planner.graph import Graph
from .cli_failure import going_on, say
from .errors import InvalidInput, InvalidWorkflow, JournalError, Problem
from .journal.base import RunInfo
from .journal.store import Store
from .load import load_workflow
from .report.expected import kind_of
from .report.tally import TallySnapshot
from .workflow import Workflow

SETTINGS = (
    "table",
    "unnest",
    "group_by",
    "out",
    "limit",
    "columns",
    "models",
    "concurrency",
    "max_errors",
)  # of a run that are shown
ASKED = 10  # requests to a run that are shown, the last ones

# ---- before ------------------------------------------------------------------------------------


def validate_workflows(references: Sequence[str], json: bool) -> int:
    """`tenter validate`: all problems of all workflows; 2 if there is one."""
    if not references:
        raise InvalidInput("name at least one workflow: tenter validate pipeline.yaml")
    fine = True
    for reference in references:
        problems, warnings, shape = _check(reference)
        fine &= not problems
        if json:
            _emit(
                {
                    "type": "workflow",
                    "workflow": reference,
                    "ok": not problems,
                    "problems": [_place(problem) for problem in problems],
                    "warnings": warnings,
                }
            )
            continue
        for problem in problems:
            say(str(problem))
        for warning in warnings:
            say(f"{reference}: {warning}")
        if not problems:
            print(f"{reference}: ok, {shape}")
    return 0 if fine else 2


def _check(reference: str) -> tuple[list[Problem], list[str], str]:
    """What is wrong with a workflow, what is unwise in it, and its shape in words."""
    try:
        workflow = load_workflow(reference)
    except InvalidWorkflow as error:
        return list(error.problems), [], ""
    except InvalidInput as error:
        return [Problem(str(error))], [], ""
    if workflow.graph is None:
        return [], [], f"{_signature(workflow)}; an async workflow, its steps are found as it runs"
    from ..planner.lint import lint

    steps = ", ".join(f"{step.id} ({kind_of(step)})" for step in workflow.graph.steps)
    return [], [str(hint) for hint in lint(workflow.graph)], f"{_signature(workflow)}: {steps}"


def _signature(workflow: Workflow) -> str:
    inputs = ", ".join(wanted.name for wanted in workflow.inputs)
    return f"{workflow.name}({inputs})"


def _place(problem: Problem) -> dict[str, Any]:
    return {
        "message": problem.message,
        "file": problem.file,
        "line": problem.line,
        "column": problem.column,
    }


def print_schema() -> int:
    """`tenter schema`."""
    from .schema import json_schema

    print(jsonlib.dumps(json_schema(), indent=2))
    return 0


def print_graph(reference: str) -> int:
    """`tenter graph`."""
    from ..planner.mermaid import mermaid

    print(mermaid(_graph_of(reference)), end="")
    return 0


def _graph_of(reference: str) -> Graph:
    graph = load_workflow(reference).graph
    if graph is None:
        raise InvalidInput(
            f"{reference} is an async workflow: its graph is known only as it runs; "
            "write a plain `def` to have it before"
        )
    return graph


# ---- after -------------------------------------------------------------------------------------


def list_runs(home: str | None, json: bool) -> int:
    """`tenter ls`."""
    store = Store(home)
    infos = store.list(on_damaged=_say_damaged)
    if json:
        for info in reversed(infos):
            _emit(_run_record(store, info))
        return 0
    if not infos:
        print(f"no runs in {store.shown} yet")
        return 0
    head = ("run", "workflow", "status", "done", "failed", "created")
    rows = [head, *(_cells(store, info) for info in reversed(infos))]
    print("\n".join(_aligned(rows)))
    return 0


def _say_damaged(run: str, error: JournalError) -> None:
    say(f"{run}: {error}")


def _cells(store: Store, info: RunInfo) -> tuple[str, ...]:
    manifest = info.manifest
    return (
        manifest.run,
        manifest.workflow,
        _status(store, info),
        f"{info.rows_done:,}",
        f"{info.rows_failed:,}",
        manifest.created_at[:19].replace("T", " "),
    )


def _status(store: Store, info: RunInfo) -> str:
    state = _state(store, info)
    return info.status if state in (None, "running") else f"{info.status} ({state})"


def _state(store: Store, info: RunInfo) -> str | None:
    """Of a live run whether it is running, paused or stopping; None of others."""
    if info.status != "running":
        return None
    from .operate.asking import live_now

    live = live_now(store.folder(info.manifest.run))
    return None if live is None else live.state


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _run_record(store: Store, info: RunInfo) -> dict[str, Any]:
    manifest = info.manifest
    return {
        "type": "run",
        "run": manifest.run,
        "workflow": manifest.workflow,
        "status": info.status,
        "state": _state(store, info),
        "rows_done": info.rows_done,
        "rows_failed": info.rows_failed,
        "created_at": manifest.created_at,
        "settings": dict(manifest.settings),
        "summary": dict(info.summary),
    }


def show_row(run: str, row: int, home: str | None, json: bool) -> int:
    """`tenter show --row`."""
    from .report.row import RowStory, row_record, row_text
    from .trace import read

    store = Store(home)
    name = store.find(run)
    trace = store.trace_path(name)
    story = RowStory(row)
    for at_s, record in read(trace) if trace.exists() else ():
        story.add(at_s, record)
    if not story.happened:
        told = f"{trace} says nothing of row {row}" if trace.exists() else f"there is no {trace}"
        raise InvalidInput(f"{told}; rows are counted from 0, in the order of the table")
    if json:
        _emit(row_record(story) | {"run": name})
    else:
        print(row_text(story))
    return 0


def show_run(run: str, home: str | None, json: bool) -> int:
    """`tenter show`."""
    store = Store(home)
    name = store.find(run)
    info = store.info(name)
    if json:
        _emit(_run_record(store, info) | _report(store.trace_path(name)))
        return 0
    facts = [
        ("run", name),
        ("workflow", info.manifest.workflow),
        ("status", _status(store, info)),
        ("rows", f"{info.rows_done:,} done, {info.rows_failed:,} failed"),
        ("created", info.manifest.created_at),
        *_settings(info),
        ("trace", str(store.trace_path(name))),
    ]
    print("\n".join(_aligned(facts)))
    trace = store.trace_path(name)
    if trace.exists():
        print(f"\n{_told_by(trace)}")
    if info.status in ("paused", "failed"):
        print(f"\nto go on: {going_on(info, home)}")
    return 0


def _settings(info: RunInfo) -> Iterator[tuple[str, str]]:
    """What the run was asked to do, where it differs from the default."""
    from .jobs.spec import settings_of

    given = settings_of(info.manifest)
    for name in SETTINGS:
        value = given.get(name)
        if value not in (None, (), {}):
            yield name, value if isinstance(value, str) else jsonlib.dumps(value)


def _report(trace: Path) -> dict[str, Any]:
    """The figures of a run for programs, from its trace."""
    from .report.summary import summary

    return {"report": summary(_tallied(trace)[0])} if trace.exists() else {}


def _told_by(trace: Path) -> str:
    """The summary of a run, and what it was asked while it ran, from its trace."""
    from .report.summary import render

    snapshot, asked = _tallied(trace)
    return "\n".join((render(snapshot), *(("", *asked) if asked else ())))


def _tallied(trace: Path) -> tuple[TallySnapshot, Sequence[str]]:
    """The sums of a trace, and the last requests to its run."""
    from .report.tally import Tally
    from .scheduler.events import Asked
    from .trace import read

    tally = Tally()
    asked: deque[str] = deque(maxlen=ASKED)
    for at_s, record in read(trace):
        tally.add(at_s, record)
        if isinstance(record, Asked):
            asked.append(f"{record.at}  {record.by}  {record.what}: {record.said}")
    return tally.snapshot(), asked


def _emit(record: dict[str, Any]) -> None:
    print(jsonlib.dumps(record, ensure_ascii=False), flush=True)
