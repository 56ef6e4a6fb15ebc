"""The commands that look before anything runs: what each takes and says of itself."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from .cli_options import Cache, GroupBy, Home, Json, Models, Unnest, Workflow, listed


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
        Parameter(alias="-o", help="With --analyze: keep the run, and its answers in this file."),
    ] = None,
    limit: Annotated[int | None, Parameter(help="Only the first rows.")] = None,
    unnest: Unnest = None,
    group_by: GroupBy = (),
    model: Models = (),
    cache: Cache = None,
    hardware: Annotated[
        str | None,
        Parameter(help="Tell seconds too, on `h100`, `h200`, `a100`, `l40s`; `4xh100`: of four."),
    ] = None,
    preset: Annotated[
        str | None,
        Parameter(
            help="The model that is served there, `llama-3.1-8b` if not given; a wrong name lists "
            "them."
        ),
    ] = None,
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
        unnest,
        listed(group_by),
        overrides(model),
        hardware,
        preset,
        verbose,
        listed(without),
        home,
        out,
        cache,
    )
    return explain_workflow(asked, analyze, json)


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


def schema() -> int:
    """Print the JSON Schema of YAML workflows, for editors.

    ```
    tenter schema > tenter.schema.json
    ```
    """
    from .cli_look import print_schema

    return print_schema()


def graph(workflow: Workflow, /) -> int:
    """Print a workflow's graph as a Mermaid diagram.

    ```
    tenter graph examples/triage.yaml
    ```
    """
    from .cli_look import print_graph

    return print_graph(workflow)


def simulate(
    workload: Annotated[
        str,
        Parameter(
            help="A JSONL workload, a run (its name, `last`, or its folder), "
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
    tenter simulate last --hardware 4xh100 --model llama-3.1-70b --replicas 2
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
        listed(policy),
        listed(order),
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
