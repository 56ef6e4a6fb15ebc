"""`tenter explain`, before a run and after it."""

import json as jsonlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import anyio

from .cli_failure import say
from .cli_signals import Stop, governed
from .cli_work import emit
from .errors import InvalidInput
from .explaining import DEFAULT_PRESET, Analysed, analyze, explain, run_and_analyze
from .jobs import MapSpec
from .load import YAML_SUFFIXES
from .progress import slow
from .report.analysis import Analyst
from .report.tally import Tally
from .run.control import Control


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command was given."""

    workflow: str
    table: str | None
    limit: int | None
    unnest: str | None
    group_by: tuple[str, ...]
    models: Mapping[str, str]
    hardware: str | None
    preset: str | None
    verbose: bool
    without: tuple[str, ...]
    home: str | None
    out: str | None
    cache: bool | None


def explain_workflow(asked: Asked, analyzed: bool, json: bool) -> int:
    """Print a plan, or with `analyzed` what a run took."""
    if not analyzed and asked.out is not None:
        raise InvalidInput("--out is for --analyze; without it nothing runs")
    if asked.preset is not None and asked.hardware is None:
        raise InvalidInput("--preset is for --hardware: what is served there")
    if analyzed and asked.table is not None:
        return _run(asked, asked.table, json)
    if analyzed:
        return _look(asked, json)
    with slow(f"reading {asked.table or asked.workflow}", "rows", json=json) as told:
        found = explain(
            asked.workflow,
            asked.table,
            limit=asked.limit,
            unnest=asked.unnest,
            group_by=asked.group_by,
            models=asked.models,
            without=asked.without,
            hardware=asked.hardware,
            model=asked.preset or DEFAULT_PRESET,
            home=asked.home,
            verbose=asked.verbose,
            tell=told,
        )
    print(jsonlib.dumps(found.record(), ensure_ascii=False) if json else str(found).rstrip("\n"))
    return 0


def _look(asked: Asked, json: bool) -> int:
    """A run that was made before."""
    path, _, name = asked.workflow.rpartition(":")
    if Path(asked.workflow).suffix in YAML_SUFFIXES or (path and name.isidentifier()):
        raise InvalidInput(
            f"--analyze {asked.workflow}: name a run (`tenter ls` lists them), or the table that "
            "the workflow is to run over"
        )
    with slow(f"reading {asked.workflow}", "records", json=json) as told:
        found = analyze(asked.workflow, home=asked.home, tell=told)
    _print(found, json)
    return 0


def _run(asked: Asked, table: str, json: bool) -> int:
    """A run that is made now."""
    if asked.out is not None and Path(asked.out).exists():
        raise InvalidInput(f"{asked.out} exists; name another file")
    spec = MapSpec(
        asked.workflow,
        table,
        asked.out or "",
        limit=asked.limit,
        unnest=asked.unnest,
        group_by=asked.group_by,
        models=asked.models,
        without=asked.without,
        home=asked.home,
        cache=asked.cache,
    )
    if not asked.out and not json:
        say("running; the answers are thrown away, --out FILE keeps them")
    analyst, stop = Analyst(), Stop()

    async def work(control: Control, tally: Tally) -> Analysed:
        return await run_and_analyze(spec, control, analyst)

    found = anyio.run(
        lambda: governed(work, stop, emit if json else None, shown=True, tally=analyst)
    )
    _print(found, json)
    return stop.exit_code if stop.signal else 0


def _print(found: Analysed, json: bool) -> None:
    print(jsonlib.dumps(found.record(), ensure_ascii=False) if json else str(found).rstrip("\n"))
