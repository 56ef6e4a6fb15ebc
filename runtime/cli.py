"""The command line: what each command takes and says of itself. The work is done below.

Results go to stdout, everything said along the way to stderr. `main` returns the exit code:
0 done, 1 failed, 2 usage or invalid input, 3 done with row errors, 5 no backend, 6 the plan differs
from the run's; stopped, to be resumed: 4 the token budget is spent, 7 the time limit has passed,
8 cancelled by somebody, 9 tool calls wait for approval, 129, 130 and 143 by a signal (lost
terminal, Ctrl-C, SIGTERM).
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import App, Group, Parameter

from .cli_approve import approve
from .cli_cache import app as cache_app
from .cli_failure import explain_failure, say
from .cli_journal import app as journal
from .cli_operate import COMMANDS, Budget, TimeLimit, seconds_of
from .cli_options import Concurrency, Home, Json

FIRST_STEPS = """
First steps:

```
tenter doctor                           what this machine can do
tenter explain examples/triage.yaml     what would run, and what it costs
tenter map examples/triage.yaml examples/tickets.csv --out answers.csv
```
"""

app = App(
    name="tenter",
    help="Run agent workflows with as few model calls as their answers need.",
    help_epilogue=FIRST_STEPS,
    help_format="markdown",
    version_flags=(),
    default_parameter=Parameter(show_default=False),
)
RUNNING = Group("Run", sort_key=1)
READING = Group("Look before", sort_key=2)
MEANWHILE = Group("While it runs", sort_key=3)
AFTERWARDS = Group("Look after", sort_key=4)
MACHINE = Group("This machine", sort_key=5)

Workflow = Annotated[str, Parameter(help="`pipeline.yaml`, `file.py:name` or `module:name`.")]
Models = Annotated[
    tuple[str, ...],
    Parameter(
        name="--model",
        help="Another model behind a name of the workflow's: "
        "`default=embedded:path=/models/qwen3,dtype=bfloat16`. May be given several times.",
        negative=(),
    ),
]
Cache = Annotated[
    bool | None,
    Parameter(
        help="Whether results of earlier runs answer equal calls. Default: as the workflow says.",
        negative="--no-cache",
    ),
]


@app.command(help_epilogue="", group=RUNNING, sort_key=1)
def run(
    workflow: Workflow,
    /,
    *inputs: Annotated[
        str, Parameter(help="`name=value`; `@file.json` or `-` (stdin) reads a JSON object.")
    ],
    model: Models = (),
    cache: Cache = None,
    home: Home = None,
    json: Json = False,
) -> int:
    """Run a workflow once and print its result.

    ```
    tenter run examples/triage.yaml ticket="My invoice is wrong."
    echo '{"ticket": "Where is my parcel?"}' | tenter run examples/triage.yaml -
    ```
    """
    from .cli_work import run_one

    return run_one(workflow, inputs, model, home, json, cache)


@app.command(help_epilogue="", group=RUNNING, sort_key=2)
def map(
    workflow: Workflow,
    table: Annotated[str, Parameter(help="CSV, JSONL or Parquet, one input per row.")],
    /,
    *,
    out: Annotated[str, Parameter(help="Where the answers go; its ending says how.")],
    limit: Annotated[int | None, Parameter(help="Only the first rows.")] = None,
    columns: Annotated[
        tuple[str, ...],
        Parameter(
            help="Input columns to keep in the output: `id,ticket`. Default: all.", negative=()
        ),
    ] = (),
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
    home: Home = None,
    json: Json = False,
) -> int:
    """Run a workflow over every row of a table.

    A row that fails becomes an error in its row and in a file beside the output; the others go
    on. Ctrl-C, a lost terminal, and a budget of tokens or time finish what is running and leave a
    run that `tenter resume` continues. `tenter watch`, `pause` and `set` steer it from elsewhere.

    ```
    tenter map triage.yaml tickets.csv --out answers.csv --limit 20
    tenter map flows.py:triage tickets.parquet --out answers.parquet --columns id
    ```
    """
    from .cli_work import limits_of, map_rows, overrides
    from .jobs import MapSpec

    spec = MapSpec(
        workflow=workflow,
        table=table,
        out=out,
        columns=_listed(columns),
        limit=limit,
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
        without=_listed(without),
        cache=cache,
    )
    return map_rows(spec, show, force, json)


@app.command(help_epilogue="", group=RUNNING, sort_key=3)
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
    show: Annotated[int, Parameter(help="Print this many answers at the end.")] = 0,
    home: Home = None,
    json: Json = False,
) -> int:
    """Continue a run that was stopped; nothing that was recorded is computed again.

    Failed rows stay failed (see `tenter retry`). A budget of tokens or time that the run began with
    counts anew.

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
    }
    return resume_run(run, home, show, json, changes)


@app.command(help_epilogue="", group=RUNNING, sort_key=4)
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


@app.command(help_epilogue="", group=READING, sort_key=4)
def explain(
    workflow: Annotated[
        str,
        Parameter(
            help="`pipeline.yaml`, `file.py:name` or `module:name`; with --analyze also a run's "
            "name or `last`."
        ),
    ],
    table: Annotated[str | None, Parameter(help="The table it would run over.")] = None,
    /,
    *,
    analyze: Annotated[
        bool,
        Parameter(
            help="What it took, beside what was expected: of a RUN, or of running WORKFLOW over "
            "TABLE now.",
            negative=(),
        ),
    ] = False,
    out: Annotated[
        str | None,
        Parameter(help="With --analyze: keep the run, and its answers in this file."),
    ] = None,
    limit: Annotated[int | None, Parameter(help="Only the first rows.")] = None,
    model: Models = (),
    cache: Cache = None,
    hardware: Annotated[
        str | None,
        Parameter(help="Tell seconds too, on `h100`, `h200`, `a100`, `l40s`; `4xh100`: of four."),
    ] = None,
    preset: Annotated[
        str, Parameter(help="The model that is served there; a wrong name lists them.")
    ] = "llama-3.1-8b",
    verbose: Annotated[
        bool, Parameter(alias="-v", help="The plan after each rule.", negative=())
    ] = False,
    without: Annotated[
        tuple[str, ...], Parameter(help="Rules of the planner to leave out.", negative=())
    ] = (),
    home: Home = None,
    json: Json = False,
) -> int:
    """Show the plan of a workflow, with estimates; nothing runs, except with --analyze.

    ```
    tenter explain examples/triage.yaml examples/tickets.csv
    tenter explain --analyze last
    tenter explain --analyze examples/triage.yaml examples/tickets.csv --limit 20
    ```
    """
    from .cli_explain import Asked, explain_workflow
    from .cli_work import overrides

    asked = Asked(
        workflow,
        table,
        limit,
        overrides(model),
        hardware,
        preset,
        verbose,
        _listed(without),
        home,
        out,
        cache,
    )
    return explain_workflow(asked, analyze, json)


@app.command(help_epilogue="", group=READING, sort_key=5)
def validate(
    *workflows: Annotated[str, Parameter(help="`pipeline.yaml`, `file.py:name` ...")],
    json: Json = False,
) -> int:
    """Check workflows without running them; all problems are listed with their places.

    ```
    tenter validate pipelines/*.yaml
    ```
    """
    from .cli_look import validate_workflows

    return validate_workflows(workflows, json)


@app.command(help_epilogue="", group=READING, sort_key=6)
def schema() -> int:
    """Print the JSON Schema of YAML workflows, for editors.

    ```
    tenter schema > tenter.schema.json
    ```
    """
    from .cli_look import print_schema

    return print_schema()


@app.command(help_epilogue="", group=READING, sort_key=7)
def graph(workflow: Workflow, /) -> int:
    """Print a workflow's graph as a Mermaid diagram.

    ```
    tenter graph examples/triage.yaml
    ```
    """
    from .cli_look import print_graph

    return print_graph(workflow)


@app.command(help_epilogue="", group=READING, sort_key=8)
def simulate(
    workload: Annotated[
        str,
        Parameter(
            help="A JSONL workload, the folder of a run in `.tenter`, "
            "programs drawn from a seed: `swe-bench:200`, `bfcl-web:200`; or with TABLE a pipeline."
        ),
    ],
    table: Annotated[str | None, Parameter(help="The rows that a pipeline runs over.")] = None,
    /,
    *,
    hardware: Annotated[
        str, Parameter(help="`h100`, `h200`, `a100`, `l40s`; `4xh100`: four per replica.")
    ] = "h100",
    model: Annotated[
        str,
        Parameter(name=("--model", "--model-preset"), help="A preset; a wrong name lists them."),
    ] = "llama-3.1-8b",
    replicas: Annotated[int, Parameter(help="Copies of the model.")] = 1,
    rate: Annotated[
        float | None,
        Parameter(help="Programs that arrive per second. Default: as recorded; a table's at once."),
    ] = None,
    policy: Annotated[
        tuple[str, ...],
        Parameter(
            help="How long KV is kept while tools run: `shadow-price,continuum,fixed:30`; `stock`: "
            "a server without a scheduler in front. Default: `stock,shadow-price`.",
            negative=(),
        ),
    ] = (),
    order: Annotated[
        tuple[str, ...],
        Parameter(help="Whose turn it is: `fcfs,least-attained`. Default: `fcfs`.", negative=()),
    ] = (),
    slower_tools: Annotated[float, Parameter(help="What if tools took 2 times as long?")] = 1.0,
    kv_share: Annotated[float, Parameter(help="What if there were .5 of the KV memory?")] = 1.0,
    host_gb: Annotated[
        float, Parameter(help="Host memory per replica for KV that was evicted.")
    ] = 0.0,
    what_if: Annotated[
        bool,
        Parameter(
            help="Ask of each policy: tools twice as slow, half the memory, one replica more?",
            negative=(),
        ),
    ] = False,
    report: Annotated[
        Path | None, Parameter(help="Write an HTML page: curves of completion times, the table.")
    ] = None,
    programs: Annotated[
        int | None, Parameter(help="A sample of so many programs; of a table, the first rows.")
    ] = None,
    tokenizer: Annotated[
        str | None,
        Parameter(help="Counts a table's tokens: a model's folder, `tiny`. Default: an estimate."),
    ] = None,
    tool_seconds: Annotated[
        float | None,
        Parameter(help="Of a pipeline's tools that no run in HOME has called. Default: 1."),
    ] = None,
    page_tokens: Annotated[
        int | None,
        Parameter(help="Granularity of prefix reuse; coarser is faster. Default: by the prompts."),
    ] = None,
    seed: Annotated[int, Parameter(help="Of whatever is drawn.")] = 0,
    home: Home = None,
    json: Json = False,
) -> int:
    """Run a workload on engines that are not there; nothing is asked of any model.

    The scheduler is the real one; the engines are a batch, a cache and a roofline in virtual time.
    Prints, for every policy and order, how long programs take, what is computed, and what it costs.

    ```
    tenter simulate swe-bench:200 --rate 0.06
    tenter simulate agents.jsonl --rate 0.1 --policy stock,continuum,shadow-price --kv-share 0.5
    tenter simulate triage.yaml tickets.csv --rate 5 --replicas 2 --what-if --report page.html
    tenter simulate .tenter/runs/triage-1 --hardware 4xh100 --model llama-3.1-70b --replicas 2
    ```
    """
    from .cli_simulate import simulate_workload
    from .simulate import Setup

    setup = Setup(
        hardware=hardware.lower(),
        model=model.lower(),
        replicas=replicas,
        kv_share=kv_share,
        host_gb=host_gb,
    )
    return simulate_workload(
        workload,
        setup,
        _listed(policy),
        _listed(order),
        rate=rate,
        programs=programs,
        slower_tools=slower_tools,
        page_tokens=page_tokens,
        seed=seed,
        json=json,
        what_if=what_if,
        report=report,
        table=table,
        tokenizer=tokenizer,
        home=home,
        tool_s=tool_seconds,
    )


@app.command(name="ls", help_epilogue="", group=AFTERWARDS, sort_key=8)
def list_runs(*, home: Home = None, json: Json = False) -> int:
    """List the runs, the newest first."""
    from .cli_look import list_runs

    return list_runs(home, json)


@app.command(help_epilogue="", group=AFTERWARDS, sort_key=9)
def show(
    run: Annotated[str, Parameter(help="The run's name, or `last`.")],
    /,
    *,
    home: Home = None,
    json: Json = False,
) -> int:
    """Show what a run was of, how far it came and where its tokens went.

    ```
    tenter show last
    ```
    """
    from .cli_look import show_run

    return show_run(run, home, json)


for place, (verb, command) in enumerate(COMMANDS.items()):
    group = RUNNING if verb == "retry" else MEANWHILE
    app.command(command, name=verb, help_epilogue="", group=group, sort_key=place + 8)

journal.group = (AFTERWARDS,)
app.command(approve, help_epilogue="", group=AFTERWARDS, sort_key=7)
app.command(journal)
cache_app.group = (AFTERWARDS,)
app.command(cache_app)


@app.command(help_epilogue="", group=MACHINE)
def doctor(
    *,
    backend: Annotated[
        tuple[str, ...],
        Parameter(help="URL of an SGLang or OpenAI-compatible server; may be given several times."),
    ] = (),
    api_key: Annotated[
        str | None, Parameter(help="Environment variable that holds the servers' key.")
    ] = None,
    home: Home = None,
    json: Json = False,
) -> int:
    """Check what this machine can do, or with --backend a server, and say what would change it.

    Of a server it tells what its settings mean for pins, priorities, aborts, metrics and several
    replicas, and the flag of the server that would change it.
    """
    from .doctor import report, report_servers

    return report_servers(backend, api_key, json) if backend else report(home, json)


@app.command(help_epilogue="", group=MACHINE)
def version() -> int:
    """Print the version."""
    from importlib.metadata import version as version_of

    print(f"tenter {version_of('tenter')} (Python {sys.version.split()[0]})")
    return 0


def _listed(given: Sequence[str]) -> tuple[str, ...]:
    """Names given one by one or with commas."""
    return tuple(name.strip() for part in given for name in part.split(",") if name.strip())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; no traceback unless TENTER_DEBUG=1."""
    given = sys.argv[1:] if arguments is None else arguments
    tokens = ["@-" if token == "-" else token for token in given]  # a bare hyphen is no option
    if tokens in (["--version"], ["-V"]):
        tokens = ["version"]
    try:
        code = app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except BrokenPipeError:  # the reader of stdout has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        say("stopped")
        return 130
    except (Exception, BaseExceptionGroup) as error:  # a group may hold cancellations too
        if os.environ.get("TENTER_DEBUG") == "1":
            raise
        return explain_failure(error)
