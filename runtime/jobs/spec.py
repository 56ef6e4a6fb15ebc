"""What a job is asked to do, as plain data: checked, written down with its run, and read back."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from ...planner.optimize import left_out
from ..errors import InvalidInput
from ..journal.address import is_redis
from ..journal.base import Manifest
from ..journal.store import default_home
from ..operate.settings import LEAST, POLICIES, SECONDS, check
from ..scheduler.limits import Limits as CallLimits
from ..scheduler.loop import ATTEMPT_TIMEOUT_S
from ..workflow import Workflow

OUTPUT_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".pq")
_PATH = re.compile(r"(?P<name>[:,]\s*path=)(?P<path>[^,]+)")  # in `embedded:path=DIR,dtype=...`

EngineName = Literal["local", "ray"]


@dataclass(frozen=True, slots=True)
class MapSpec:
    """A workflow over a table. `workflow` is "pipeline.yaml", "file.py:name" or "module:name".

    `columns` are the input columns copied to the output (none: all; of groups, what they are grouped
    by). With `unnest` rows are the items of the lists in that column, with `group_by` the groups of
    rows that are equal in those columns (`tables.views`); `limit` counts these rows. `models`
    overrides a workflow's models, as in {"default": "embedded:path=DIR,dtype=bfloat16"}. `home` is
    where runs are kept; without `journal` nothing is, and the run cannot be resumed. `order` and `retention`
    are names of policies, `limits` plain data for `scheduler.limits.Limits.read`, `tenant` an
    input: they go over what the workflow says. `without` are rules of the planner to leave out,
    beside those that the workflow leaves out. An attempt at a call on a server that takes longer
    than `call_timeout_s` is broken off, and tried again. Once calls have used `token_budget` tokens,
    prompts and answers, or after `time_limit_s`, what runs is finished and the run pauses. `cache`:
    whether results of earlier runs in `home` answer equal calls (None: as the workflow says).

    With the `engine` "ray" rows are run by `shards` processes of a Ray cluster (None: one for each
    of its CPUs, at most 8), each of which takes `ray_resources` of it. `ray_address` is
    that of its head; None: RAY_ADDRESS, a cluster that runs on this machine, or one of its own.
    """

    workflow: str
    table: str
    out: str
    columns: tuple[str, ...] = ()
    limit: int | None = None
    unnest: str | None = None
    group_by: tuple[str, ...] = ()
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
    engine: EngineName = "local"
    shards: int | None = None
    ray_address: str | None = None
    ray_resources: Mapping[str, float] = field(default_factory=dict[str, float])


def changed(spec: MapSpec, changes: Mapping[str, Any]) -> MapSpec:
    """`spec` as it goes on; without Ray, what was said of Ray is forgotten."""
    if changes.get("engine") == "local":
        spec = replace(spec, shards=None, ray_address=None, ray_resources={})
    return replace(spec, **changes)


def check_output(out: Path) -> None:
    """Refuse what could not be written at the end, before anything is spent."""
    if out.suffix.lower() not in OUTPUT_SUFFIXES:
        raise InvalidInput(f"--out {out}: write one of {', '.join(OUTPUT_SUFFIXES)}")
    if not out.parent.is_dir():
        raise InvalidInput(f"--out {out}: there is no folder {out.parent}")


def check_options(spec: MapSpec) -> None:
    """Refuse numbers of rows that mean nothing, and policies that do not exist."""
    check({name: getattr(spec, name) for name in (*LEAST, *SECONDS, *POLICIES)})
    try:
        left_out(spec.without)
    except ValueError as error:
        raise InvalidInput(f"--without: {error}") from None
    CallLimits.read(spec.limits)
    check_engine(spec)
    if spec.cache and not spec.consolidate:
        raise InvalidInput("--cache answers equal calls, --no-consolidate repeats them: give one")


def check_engine(spec: MapSpec) -> None:
    """Refuse an engine that does not exist, and what only another one can heed."""
    if spec.engine not in get_args(EngineName):
        raise InvalidInput(
            f"--engine {spec.engine}: it is one of {', '.join(get_args(EngineName))}"
        )
    if spec.engine != "ray":
        given = {name: getattr(spec, name) for name in ("shards", "ray_address", "ray_resources")}
        for name, value in given.items():
            if value:
                raise InvalidInput(f"--{name.replace('_', '-')} is for --engine ray")
    for name, amount in spec.ray_resources.items():
        if not 0 <= amount < 1e6:
            raise InvalidInput(f"--ray-resources {name}={amount}: it must be a number of 0 or more")


def check_tenant(tenant: str | None, workflow: Workflow) -> None:
    names = [given.name for given in workflow.inputs]
    if tenant is not None and tenant not in names:
        raise InvalidInput(f"--tenant {tenant}: it is an input of the workflow: {', '.join(names)}")


def absolute(spec: MapSpec) -> MapSpec:
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


def portable(spec: MapSpec) -> MapSpec:
    """`spec` for a process that is started from elsewhere."""
    home = spec.home or default_home()
    home = str(home) if is_redis(home) else str(Path(home).resolve())
    return replace(absolute(spec), home=home)


def _whole(option: re.Match[str]) -> str:
    """A `path=` option whose folder is there, as a path from the root."""
    path = Path(option["path"])
    found = option["path"] != "tiny" and path.is_dir()
    return f"{option['name']}{path.resolve()}" if found else option[0]


def settings_of(manifest: Manifest) -> dict[str, Any]:
    """The fields of the MapSpec that a run over a table was begun with; else none."""
    spec = manifest.settings.get("spec")
    return {} if spec is None else fields_of(spec)


def fields_of(text: str) -> dict[str, Any]:
    """The fields of a MapSpec that was written down as JSON."""
    fields = json.loads(text)
    for name in ("columns", "group_by", "without"):
        fields[name] = tuple(fields.get(name, ()))
    return fields
