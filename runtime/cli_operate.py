"""The commands for runs that go on, from any terminal, and `retry` for those that have ended."""

import json as jsonlib
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from .cli_failure import going_on, say
from .cli_options import Concurrency, Home, Json, Run

if TYPE_CHECKING:
    from .journal.base import RunInfo
    from .journal.store import Store
    from .operate.door import Ask

MaxErrors = Annotated[
    int | None, Parameter(help="Give up when more rows than this have failed. Default: never.")
]
Budget = Annotated[
    int | None,
    Parameter(
        help="Pause once calls have used so many tokens, prompts and answers, since this start."
    ),
]
TimeLimit = Annotated[
    str | None, Parameter(help="Pause after so long: seconds, or as `90s`, `15m`, `8h`, `2d`.")
]
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds_of(text: str | None, option: str = "--time-limit") -> float | None:
    """A duration in seconds. Raises InvalidInput."""
    from .errors import InvalidInput

    if text is None:
        return None
    number, unit = (text[:-1], text[-1]) if text[-1:] in _UNITS else (text, "s")
    try:
        return float(number) * _UNITS[unit]
    except ValueError:
        raise InvalidInput(f"{option} {text!r}: write seconds, or 90s, 15m, 8h, 2d") from None


# ---- of a live run -----------------------------------------------------------------------------


def watch(run: Run = "last", /, *, home: Home = None, json: Json = False) -> int:
    """Show how far a run in another process is, until it ends.

    Ctrl-C ends the watching, not the run. Returns 0 if the run is done, 3 if rows have failed, 1
    if it was stopped or given up.

    ```
    tenter watch last
    ```
    """
    import anyio

    from .operate.asking import live_now
    from .operate.watching import Watched, settled

    store, name = _found(run, home)
    live = live_now(store.folder(name))
    if live is not None:
        watched = Watched(live)
        anyio.run(_follow, watched, store.folder(name), json)
    info = anyio.run(settled, store, name)
    _say_end(info, home, json)
    if info.status == "done":
        return 3 if info.rows_failed else 0
    return 1


async def _follow(watched: Any, folder: Any, json: bool) -> None:
    import anyio

    from . import progress

    def changed(state: str) -> None:
        if json and state != "ended":
            _emit({"type": "state", "run": watched.live.run, "state": state})
        elif state != "ended":
            say(state)

    if watched.live.state != "running":
        changed(watched.live.state)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(progress.show, watched, _emit if json else None)
        await watched.follow(folder, changed)
        tasks.cancel_scope.cancel()


def _say_end(info: "RunInfo", home: str | None, json: bool) -> None:
    name = info.manifest.run
    rows = f"{info.rows_done:,} rows done, {info.rows_failed:,} failed"
    again = None if info.status in ("done", "running") else going_on(info, home)
    if json:
        counts = {"rows_done": info.rows_done, "rows_failed": info.rows_failed}
        _emit(
            {
                "type": "done",
                "run": name,
                "status": info.status,
                **counts,
                "resume": None if info.manifest.once else again,
            }
        )
    elif info.status == "running":
        say(f"run {name} cannot be watched from here, or is just starting; {rows} so far")
    else:
        say(f"run {name} is {info.status}: {rows}")
        if again:
            say(f"to go on: {again}")


def pause(run: Run, /, *, home: Home = None, json: Json = False) -> int:
    """Hold a live run: calls and tools that run end, no other starts; its process waits.

    ```
    tenter pause last
    ```
    """
    return _ask(run, "pause", {}, home, json)


def go_on(run: Run, /, *, home: Home = None, json: Json = False) -> int:
    """Let a paused live run go on. (One that has ended goes on with `tenter resume`.)

    ```
    tenter continue last
    ```
    """
    return _ask(run, "continue", {}, home, json)


def cancel(
    run: Run,
    /,
    *,
    now: Annotated[
        bool, Parameter(help="Break off what runs, instead of finishing it.", negative=())
    ] = False,
    home: Home = None,
    json: Json = False,
) -> int:
    """Stop a live run: what runs is finished, the rest is left to `tenter resume`.

    ```
    tenter cancel last
    tenter cancel last --now
    ```
    """
    return _ask(run, "cancel", {"now": True} if now else {}, home, json)


def change(
    run: Run,
    /,
    *,
    concurrency: Concurrency = None,
    token_budget: Budget = None,
    time_limit: TimeLimit = None,
    max_errors: MaxErrors = None,
    order: Annotated[
        str | None, Parameter(help="Whose turn it is, as for `tenter map --order`.")
    ] = None,
    retention: Annotated[
        str | None,
        Parameter(help="How long an agent's KV is kept, as for `tenter map --retention`."),
    ] = None,
    limits: Annotated[
        str | None,
        Parameter(help="Limits as for `tenter map --limits`; those that are not named stay."),
    ] = None,
    home: Home = None,
    json: Json = False,
) -> int:
    """Change how a live run goes on: its concurrency, its budgets, its policies, its limits.

    ```
    tenter set last --concurrency 8
    tenter set last --order fair --token-budget 2000000
    tenter set last --limits '{models: {default: {tokens_per_minute: 200000}}}'
    ```
    """
    from .cli_work import limits_of
    from .operate.settings import check_change

    given = {
        "concurrency": concurrency,
        "token_budget": token_budget,
        "time_limit_s": seconds_of(time_limit),
        "max_errors": max_errors,
        "order": order,
        "retention": retention,
        "limits": None if limits is None else jsonlib.dumps(limits_of(limits)),
    }
    values = {name: value for name, value in given.items() if value is not None}
    check_change(values)
    return _ask(run, "set", values, home, json)


def _ask(run: str, what: "Ask", values: Mapping[str, Any], home: str | None, json: bool) -> int:
    """Ask something of a live run, and print its answer; 1 if it refuses."""
    import anyio

    from .operate.asking import request

    store, name = _found(run, home)
    answer = anyio.run(request, store, name, what, values)
    if json:
        _emit({"type": "answer", "run": name, "ask": what, "ok": answer.ok, "said": answer.said})
    elif answer.ok:
        print(f"{name}: {answer.said}")
    else:
        say(answer.said)
    return 0 if answer.ok else 1


# ---- of one that has ended ---------------------------------------------------------------------


def retry(
    run: Run,
    /,
    *,
    concurrency: Concurrency = None,
    token_budget: Budget = None,
    time_limit: TimeLimit = None,
    max_errors: MaxErrors = None,
    show: Annotated[int, Parameter(help="Print this many answers at the end.")] = 0,
    home: Home = None,
    json: Json = False,
) -> int:
    """Run the failed rows of a run again; the others keep their answers. The output is made anew.

    Steps of a failed row that had succeeded are not repeated, and a tool that must run only once is
    not started again. A run that was stopped is continued too.

    ```
    tenter retry last
    ```
    """
    from .cli_work import resume_run

    store, name = _found(run, home)
    info = store.info(name)
    if info.status == "done" and not info.rows_failed:
        say(f"run {name}: no row has failed; there is nothing to run again")
        return 0
    changes = {
        "concurrency": concurrency,
        "token_budget": token_budget,
        "time_limit_s": seconds_of(time_limit),
        "max_errors": max_errors,
    }
    return resume_run(name, home, show, json, changes, retry=True)


# ---- pieces ------------------------------------------------------------------------------------


def _found(run: str, home: str | None) -> "tuple[Store, str]":
    from .journal.store import Store

    store = Store(home)
    return store, store.find(run)


def _emit(record: dict[str, Any]) -> None:
    sys.stdout.write(jsonlib.dumps(record, ensure_ascii=False) + "\n")
    sys.stdout.flush()


COMMANDS = {
    "watch": watch,
    "pause": pause,
    "continue": go_on,
    "cancel": cancel,
    "set": change,
    "retry": retry,
}
