"""`tenter cache`: what the result cache of a home holds, and throwing it away."""

import json as jsonlib
import time
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from .cli_options import Home, Json
from .errors import InvalidInput

if TYPE_CHECKING:
    from .journal.results import Holding

DAY_S = 86_400.0

app = App(
    name="cache",
    help="Show or clear the results that answer equal calls of later runs (`--cache`).",
    help_format="markdown",
    version_flags=(),
    default_parameter=Parameter(show_default=False),
    help_epilogue="",
    sort_key=11,
)


@app.command
def stats(*, home: Home = None, json: Json = False) -> int:
    """How many results there are, and how much room they take.

    ```
    tenter cache stats
    ```
    """
    from .journal.store import Store, cache_bounds

    store, bounds = Store(home), cache_bounds()
    results = store.results()
    try:
        found = results.holding()
    finally:
        results.close()
    days = None if found.oldest_s is None else (time.time() - found.oldest_s) / DAY_S
    if json:
        record = {"type": "cache", "home": store.shown, **_counts(found), "oldest_days": days}
        record |= {"max_bytes": bounds.max_bytes, "max_days": bounds.max_age_s / DAY_S}
        print(jsonlib.dumps(record))
        return 0
    oldest = "" if days is None else f", the oldest {max(0.0, days):,.1f} days old"
    print(
        f"{store.shown}: {found.results:,} results, {found.size:,} bytes{oldest}; at most "
        f"{bounds.max_bytes:,} bytes and {bounds.max_age_s / DAY_S:g} days are kept"
    )
    return 0


@app.command
def clear(
    *,
    older_than: Annotated[
        float | None, Parameter(help="Only results that are older than so many days.")
    ] = None,
    home: Home = None,
    json: Json = False,
) -> int:
    """Throw results away; runs that are being made go on, and compute anew.

    ```
    tenter cache clear --older-than 7
    ```
    """
    from .journal.store import Store

    if older_than is not None and not older_than >= 0:
        raise InvalidInput(f"--older-than {older_than:g}: it is days, 0 or more")
    store = Store(home)
    results = store.results()
    try:
        gone = results.clear(None if older_than is None else older_than * DAY_S)
    finally:
        results.close()
    if json:
        print(jsonlib.dumps({"type": "cleared", "home": store.shown, **_counts(gone)}))
    else:
        print(f"{store.shown}: {gone.results:,} results thrown away, {gone.size:,} bytes")
    return 0


def _counts(holding: "Holding") -> dict[str, int]:
    return {"results": holding.results, "bytes": holding.size}
