"""Arguments that several commands take, each said once."""

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
