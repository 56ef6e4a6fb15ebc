"""The commands that run a workflow: what each takes and says of itself. The work is `cli_work`'s."""

from typing import Annotated, Literal

from cyclopts import Parameter

from .cli_operate import Budget, TimeLimit, seconds_of
from .cli_options import (
    Cache,
    Concurrency,
    GroupBy,
    Home,
    Json,
    Models,
    RayAddress,
    RayResources,
    Shards,
    Unnest,
    Workflow,
    listed,
)


def run(
    workflow: Workflow,
    /,
    *inputs: Annotated[
        str, Parameter(help="`name=value`; `@file.json` or `-` (stdin) reads a JSON object.")
    ],
    run: Annotated[
        str | None,
        Parameter(
            help="Record it under this name. The same command goes on with it: after a crash, an "
            "error, or an approval (`tenter approve`); once it is done it prints its result."
        ),
    ] = None,
    model: Models = (),
    cache: Cache = None,
    home: Home = None,
    json: Json = False,
) -> int:
    """Run a workflow once and print its result.

    ```
    tenter run examples/triage.yaml ticket="My invoice is wrong."
    echo '{"ticket": "Where is my parcel?"}' | tenter run examples/triage.yaml -
    tenter run flows.py:refund order=1042 --run refund-1042
    ```
    """
    from .cli_work import run_one

    return run_one(workflow, inputs, model, home, json, cache, run)


def map(
    workflow: Workflow,
    table: Annotated[str, Parameter(help="CSV, JSONL or Parquet, one input per row.")],
    /,
    *,
    out: Annotated[str, Parameter(alias="-o", help="Where the answers go; its ending says how.")],
    limit: Annotated[int | None, Parameter(help="Only the first rows.")] = None,
    columns: Annotated[
        tuple[str, ...],
        Parameter(
            help="Input columns to keep in the output: `id,ticket`. Default: all, of groups those "
            "of --group-by.",
            negative=(),
        ),
    ] = (),
    unnest: Unnest = None,
    group_by: GroupBy = (),
    model: Models = (),
    concurrency: Concurrency = None,
    max_errors: Annotated[
        int | None, Parameter(help="Give up when more rows than this have failed. Default: never.")
    ] = None,
    token_budget: Budget = None,
    time_limit: TimeLimit = None,
    call_timeout: Annotated[
        float, Parameter(help="Seconds for an attempt at a call on a server; then it is repeated.")
    ] = 600.0,
    order: Annotated[
        str | None,
        Parameter(
            help="Whose turn it is: `fcfs` (by program; the default), `call-fcfs`, "
            "`least-attained`, `shortest-remaining`, `deadline`, `fair`, `fair:ORDER`."
        ),
    ] = None,
    retention: Annotated[
        str | None,
        Parameter(
            help="How long an agent's KV is kept while its tool runs: `shadow-price` (the default), "
            "`continuum`, `fixed:SECONDS`, `never`, `forever`, `min-waste`."
        ),
    ] = None,
    tenant: Annotated[
        str | None,
        Parameter(
            help="The input whose value says for whom a row runs; see `fair` and `--limits`."
        ),
    ] = None,
    limits: Annotated[
        str | None,
        Parameter(
            help="Limits as YAML: `{models: {default: {tokens_per_minute: 200000}}, tenants: "
            '{"*": {max_running: 8}}, working_set: 0.9}`.'
        ),
    ] = None,
    show: Annotated[int, Parameter(help="Print this many answers at the end.")] = 0,
    force: Annotated[bool, Parameter(help="Replace the output if it exists.", negative=())] = False,
    no_journal: Annotated[
        bool, Parameter(help="Record nothing; the run cannot be resumed.", negative=())
    ] = False,
    no_consolidate: Annotated[
        bool, Parameter(help="Repeat equal calls instead of sharing them.", negative=())
    ] = False,
    without: Annotated[
        tuple[str, ...],
        Parameter(
            help="Rules of the planner to leave out: `order,group`. See `tenter explain -v`.",
            negative=(),
        ),
    ] = (),
    cache: Cache = None,
    engine: Annotated[
        Literal["local", "ray"],
        Parameter(help="Where rows run: in this process, or in shards on a Ray cluster."),
    ] = "local",
    shards: Shards = None,
    ray_address: RayAddress = None,
    ray_resources: RayResources = None,
    home: Home = None,
    json: Json = False,
) -> int:
    """Run a workflow over every row of a table.

    A row that fails becomes an error in its row and in a file beside the output; the others go
    on. Ctrl-C, a lost terminal, and a budget of tokens or time finish what is running and leave a
    run that `tenter resume` continues. `tenter watch`, `pause` and `set` steer it from elsewhere.
    With `--engine ray` the rows are run by processes of a Ray cluster; see docs/ray.md.

    ```
    tenter map triage.yaml tickets.csv --out answers.csv --limit 20
    tenter map flows.py:triage tickets.parquet --out answers.parquet --columns id
    tenter map digest.yaml reviews.csv --out digests.csv --group-by product
    tenter map triage.yaml tickets.csv --out answers.csv --engine ray --shards 4
    ```
    """
    from .cli_work import limits_of, map_rows, overrides, resources_of
    from .jobs import MapSpec

    spec = MapSpec(
        workflow=workflow,
        table=table,
        out=out,
        columns=listed(columns),
        limit=limit,
        unnest=unnest,
        group_by=listed(group_by),
        models=overrides(model),
        home=home,
        concurrency=concurrency,
        journal=not no_journal,
        consolidate=not no_consolidate,
        max_errors=max_errors,
        call_timeout_s=call_timeout,
        token_budget=token_budget,
        time_limit_s=seconds_of(time_limit),
        order=order,
        retention=retention,
        tenant=tenant,
        limits=limits_of(limits),
        without=listed(without),
        cache=cache,
        engine=engine,
        shards=shards,
        ray_address=ray_address,
        ray_resources=resources_of(ray_resources),
    )
    return map_rows(spec, show, force, json)


def resume(
    run: Annotated[str, Parameter(help="The run's name as `tenter ls` lists it, or `last`.")],
    /,
    *,
    max_errors: Annotated[
        int | None, Parameter(help="Another limit of failed rows than the run began with.")
    ] = None,
    concurrency: Annotated[
        int | None, Parameter(help="Other rows in flight than the run began with.")
    ] = None,
    token_budget: Budget = None,
    time_limit: TimeLimit = None,
    engine: Annotated[
        Literal["local", "ray"] | None,
        Parameter(help="Go on in this process, or on a Ray cluster. Default: as it began."),
    ] = None,
    shards: Shards = None,
    ray_address: RayAddress = None,
    show: Annotated[int, Parameter(help="Print this many answers at the end.")] = 0,
    home: Home = None,
    json: Json = False,
) -> int:
    """Continue a run that was stopped; nothing that was recorded is computed again.

    Failed rows stay failed (see `tenter retry`). A budget of tokens or time that the run began with
    counts anew. A run on Ray goes on without it by `--engine local`, and the other way round.

    ```
    tenter resume last
    ```
    """
    from .cli_work import resume_run

    changes = {
        "max_errors": max_errors,
        "concurrency": concurrency,
        "token_budget": token_budget,
        "time_limit_s": seconds_of(time_limit),
        "engine": engine,
        "shards": shards,
        "ray_address": ray_address,
    }
    return resume_run(run, home, show, json, changes)


def calibrate(
    workflow: Workflow,
    table: Annotated[str, Parameter(help="CSV, JSONL or Parquet, one input per row.")],
    /,
    *,
    step: Annotated[
        str | None, Parameter(help="Which reasoning step; the only one if left out.")
    ] = None,
    label: Annotated[
        str | None,
        Parameter(help="The column with right answers. Without it: what thinking to the end says."),
    ] = None,
    budget: Annotated[
        float | None,
        Parameter(
            help="The share of answers that may be lost. Default: none that can be measured."
        ),
    ] = None,
    level: Annotated[float, Parameter(help="How sure the bound on the loss is.")] = 0.9,
    limit: Annotated[int | None, Parameter(help="Only the first N rows.")] = None,
    model: Models = (),
    rule_out: Annotated[str | None, Parameter(help="Write the rule to this file, as JSON.")] = None,
    json: Json = False,
) -> int:
    """Choose when a reasoning step may stop thinking, on rows of a table.

    Every row is thought about to the end, with trial answers along the way. The boldest stop rule
    whose loss the rows can vouch for is printed; where they are too few it says so, and full
    length is kept.

    ```
    tenter calibrate solve.yaml problems.csv --label answer --limit 300
    ```
    """
    from .cli_calibrate import calibrate
    from .cli_work import overrides
    from .jobs import MapSpec

    spec = MapSpec(workflow, table, out="", limit=limit, models=overrides(model), journal=False)
    return calibrate(spec, step, label, budget, level, rule_out, json)
