"""Arguments that several commands take, each said once."""

from collections.abc import Sequence
from typing import Annotated

from cyclopts import Parameter

Run = Annotated[str, Parameter(help="The run's name, the beginning of it, or `last`.")]
Home = Annotated[
    str | None,
    Parameter(
        help="Where runs are kept: a folder or a Redis. Default: `$TENTER_HOME`, else `./.tenter`."
    ),
]
Json = Annotated[bool, Parameter(name="--json", help="Only JSON lines on stdout.", negative=())]
Concurrency = Annotated[int | None, Parameter(help="Rows in flight at most.")]
Workflow = Annotated[str, Parameter(help="`pipeline.yaml`, `file.py:name` or `module:name`.")]
Unnest = Annotated[
    str | None,
    Parameter(help="A column of lists: a row for each item of them, instead of for each list."),
]
GroupBy = Annotated[
    tuple[str, ...],
    Parameter(
        help="Columns: a row for each group of rows that are equal in them; the other columns hold "
        "lists, and `rows` whole rows.",
        negative=(),
    ),
]
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
Shards = Annotated[
    int | None,
    Parameter(help="With `--engine ray`: so many processes. Default: one per CPU, at most 8."),
]
RayAddress = Annotated[
    str | None,
    Parameter(
        help="The cluster: `HOST:6379`, or `auto` for the one on this machine. Default: "
        "RAY_ADDRESS, or a cluster that is started for this run."
    ),
]
RayResources = Annotated[
    str | None,
    Parameter(help="What each shard takes of the cluster: `CPU=1,GPU=1,near_sglang=1`."),
]


def listed(given: Sequence[str]) -> tuple[str, ...]:
    """Names given one by one or with commas."""
    return tuple(name.strip() for part in given for name in part.split(",") if name.strip())
