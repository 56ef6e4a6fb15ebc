"""`tenter journal`: look through a run's journal, make it smaller, write it out."""

import json as jsonlib
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

from cyclopts import App, Parameter

from .cli_failure import say
from .cli_options import Home, Json, Run
from .errors import InvalidInput

if TYPE_CHECKING:
    from .journal.base import Entry
    from .journal.store import Store

app = App(
    name="journal",
    help="Check, compact or export what is recorded of a run.",
    help_format="markdown",
    version_flags=(),
    default_parameter=Parameter(show_default=False),
    help_epilogue="",
    sort_key=10,
)


@app.command
def verify(run: Run, /, *, home: Home = None, json: Json = False) -> int:
    """Read every record of a run and compare it with its checksum, also while the run goes on.

    Returns 1 if anything is damaged or lost.

    ```
    tenter journal verify last
    ```
    """
    store, name = _found(run, home)
    found = store.check(name)
    fine = not found.damaged and not found.lost
    if json:
        _print({"type": "verified", "run": name, "ok": fine, **asdict(found)})
        return 0 if fine else 1
    print(
        f"{name}: {found.steps:,} steps, {found.rows:,} rows, {found.blobs:,} large values "
        f"({found.unused_blobs:,} unused), {found.size:,} bytes"
    )
    for problem in found.problems:
        say(problem)
    if found.damaged > len(found.problems):
        say(f"and {found.damaged - len(found.problems):,} more")
    if found.lost:
        say(f"Redis has lost at least {found.lost:,} records; `tenter resume` does them again")
    print("every record is as it was written" if fine else "not every record is as it was written")
    return 0 if fine else 1


@app.command
def compact(run: Run, /, *, home: Home = None, json: Json = False) -> int:
    """Throw away what no resume asks for: steps of rows that are done, values no record names.

    Steps of failed rows stay, and, until the run is done, those that answer equal work. Nobody may
    be running the run.

    ```
    tenter journal compact last
    ```
    """
    store, name = _found(run, home)
    done = store.compact(name)
    if json:
        _print({"type": "compacted", "run": name, **asdict(done)})
    else:
        print(
            f"{name}: {done.steps:,} steps and {done.blobs:,} large values thrown away, "
            f"{done.size_before:,} -> {done.size_after:,} bytes"
        )
    return 0


@app.command
def export(
    run: Run,
    /,
    *,
    out: Annotated[
        str | None, Parameter(alias="-o", help="The file to write. Default: stdout.")
    ] = None,
    home: Home = None,
) -> int:
    """Write a run's journal as JSON lines: what it was of, then its steps and rows, row by row.

    ```
    tenter journal export last --out journal.jsonl
    ```
    """
    store, name = _found(run, home)
    if out is None:
        _export(store, name, sys.stdout)
        return 0
    try:
        with Path(out).open("x", encoding="utf-8") as file:
            _export(store, name, file)
    except FileExistsError:
        raise InvalidInput(f"--out {out}: it exists; name another file") from None
    except OSError as error:
        raise InvalidInput(f"--out {out}: {error.strerror or error}") from error
    return 0


def _found(run: str, home: str | None) -> "tuple[Store, str]":
    from .journal.store import Store

    store = Store(home)
    return store, store.find(run)


def _export(store: "Store", run: str, to: TextIO) -> None:
    info = store.info(run)
    counts = {"rows_done": info.rows_done, "rows_failed": info.rows_failed}
    head = {"type": "run", "status": info.status, **counts, **asdict(info.manifest)}
    to.write(_line(head))
    to.writelines(_line(_record(entry)) for entry in store.entries(run))


def _record(entry: "Entry") -> dict[str, Any]:
    from .journal.base import StepRecord

    if isinstance(entry, StepRecord):
        record = {"type": "step", "row": entry.row, "path": entry.path, **_value(entry.value)}
        if entry.signature is not None:
            record["signature"] = entry.signature.hex()
        return record
    if entry.value is None:
        return {"type": "row", "row": entry.row, "error": entry.error}
    return {"type": "row", "row": entry.row, **_value(entry.value)}


def _value(data: bytes) -> dict[str, Any]:
    """A recorded value; what is no JSON, such as an answer that was still growing, as hex."""
    try:
        return {"value": jsonlib.loads(data)}
    except ValueError:
        return {"hex": data.hex()}


def _print(record: dict[str, Any]) -> None:
    sys.stdout.write(_line(record))


def _line(record: dict[str, Any]) -> str:
    return jsonlib.dumps(record, ensure_ascii=False) + "\n"
