"""The commands that run something: signals, progress, records and exit codes around a job."""

import json as jsonlib
import os
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import anyio

from .cli_failure import explain_failure, resume_command, say
from .cli_signals import Stop, governed
from .errors import InvalidInput, RunMismatch
from .jobs import Control, MapSpec, Outcome, map_table, resume, run_once
from .jobs.spec import settings_of
from .journal.store import Store
from .load import load_workflow
from .report.summary import render, summary
from .report.tally import Tally

BIG_BYTES = 16 * 2**20  # of a table
FAILED, ROW_ERRORS, SPENT, LATE, CANCELLED, ASKING = 1, 3, 4, 7, 8, 9
STOPPED = {
    "tokens": SPENT,
    "time": LATE,
    "asked": CANCELLED,
    "approval": ASKING,
}  # by the reason of a pause
WHY = {
    "approval": "calls of tools wait for approval (`tenter approve`)",
    "tokens": "the token budget is spent",
    "time": "the time limit has passed",
    "asked": "it was cancelled",
}


def emit(record: dict[str, Any]) -> None:
    """One JSON line on stdout."""
    print(jsonlib.dumps(record, ensure_ascii=False), flush=True)


def overrides(models: Sequence[str]) -> dict[str, str]:
    """`name=backend:options` pairs by model name."""
    found: dict[str, str] = {}
    for given in models:
        name, equals, backend = given.partition("=")
        if not equals or not name.isidentifier() or not backend:
            raise InvalidInput(
                f"--model {given}: write name=backend:options, "
                "as in default=embedded:path=/models/qwen3,dtype=bfloat16"
            )
        found[name] = backend
    return found


def limits_of(text: str | None) -> dict[str, Any]:
    """`--limits` as data; what it may say is checked with the job."""
    if text is None:
        return {}
    from .errors import InvalidWorkflow
    from .spec.reader import Reader

    try:
        found = Reader().read(text).data
    except InvalidWorkflow as error:
        raise InvalidInput(f"--limits: {error}") from None
    if not isinstance(found, dict):
        raise InvalidInput("--limits: write a mapping, as in {working_set: 0.9}")
    return cast("dict[str, Any]", found)


def resources_of(text: str | None) -> dict[str, float]:
    """`--ray-resources` as amounts by name."""
    found: dict[str, float] = {}
    for pair in (text or "").split(","):
        name, _, amount = pair.strip().partition("=")
        try:
            if name:
                found[name] = float(amount)
        except ValueError:
            raise InvalidInput(f"--ray-resources {pair}: write name=amount, as in GPU=1") from None
    return found


# ---- run ---------------------------------------------------------------------------------------


def run_one(
    workflow: str,
    given: Sequence[str],
    models: Sequence[str],
    home: str | None,
    json: bool,
    cache: bool | None = None,
    run: str | None = None,
) -> int:
    """`tenter run`."""
    values = inputs_of(workflow, given)
    stop = Stop()

    async def work(control: Control, tally: Tally) -> Any:
        return await run_once(
            workflow,
            values,
            models=overrides(models),
            home=home,
            control=control,
            tally=tally,
            cache=cache,
            run=run,
        )

    try:
        result = anyio.run(lambda: governed(work, stop, shown=False))
    except Exception as error:
        if not stop.signal and (run is None or os.environ.get("TENTER_DEBUG") == "1"):
            raise
        code = stop.exit_code if stop.signal else explain_failure(error)
        refused = code in (InvalidInput.exit_code, RunMismatch.exit_code)
        if run is not None and not refused and Store(home).runs.has(run):
            say(f"{run} is recorded: the same command goes on with it")
        return code
    if json:
        emit({"type": "done", "status": "done", "result": result})
    else:
        print(result if isinstance(result, str) else _pretty(result))
    return 0


def _pretty(value: Any) -> str:
    return jsonlib.dumps(value, ensure_ascii=False, indent=2)


def inputs_of(workflow: str, given: Sequence[str]) -> dict[str, Any]:
    """A workflow's inputs from `name=value` pairs and `-`; text stays text where text is wanted."""
    schemas = {wanted.name: wanted.schema for wanted in load_workflow(workflow).inputs}
    values: dict[str, Any] = {}
    for pair in given:
        if pair.startswith("@"):
            values.update(_object(pair[1:]))
            continue
        name, equals, text = pair.partition("=")
        if not equals:
            raise InvalidInput(f"{pair!r}: write name=value, or @file.json")
        if name not in schemas:
            known = ", ".join(schemas) or "none"
            raise InvalidInput(f"{workflow} has no input {name!r}; its inputs: {known}")
        values[name] = _value(text, schemas[name])
    return values


def _value(text: str, schema: str) -> Any:
    wanted: Any = jsonlib.loads(schema)
    kind = cast("dict[str, Any]", wanted).get("type") if isinstance(wanted, dict) else None
    if kind in (None, "string"):
        return text
    try:
        return jsonlib.loads(text)
    except ValueError:
        return text  # the workflow's own check names the input and what it wants


def _object(source: str) -> dict[str, Any]:
    """The JSON object in a file, or on stdin (`-`)."""
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text()
        value: Any = jsonlib.loads(text)
    except (OSError, ValueError) as error:
        raise InvalidInput(f"@{source}: not a file with a JSON object: {error}") from error
    if not isinstance(value, dict):
        raise InvalidInput(f"@{source}: expected a JSON object of inputs")
    return cast("dict[str, Any]", value)


# ---- map and resume ----------------------------------------------------------------------------


def map_rows(spec: MapSpec, show: int, force: bool, json: bool) -> int:
    """`tenter map`."""
    _check_free(spec, force)
    if spec.group_by and _is_big(spec.table):
        say(f"sorting the rows of {spec.table} into groups first")

    async def work(control: Control, tally: Tally) -> Outcome:
        return await map_table(spec, control, tally)

    return _finish(work, spec.home, show, json, resumable=spec.journal)


def _is_big(table: str) -> bool:
    """Whether reading it takes seconds."""
    with suppress(OSError):
        return Path(table).stat().st_size > BIG_BYTES
    return False  # the job says what is wrong


def _check_free(spec: MapSpec, force: bool) -> None:
    """Refuse an output that is there already, or that a live run of this home is writing."""
    out = Path(spec.out)
    if out.exists() and not force:
        raise InvalidInput(f"{out} exists; name another file, or --force to replace it")
    if not out.with_name(out.name + ".partial").exists():
        return
    for info in Store(spec.home).list():
        if info.status == "running" and settings_of(info.manifest).get("out") == str(out.resolve()):
            run = info.manifest.run
            raise InvalidInput(f"{run} is writing {out}; name another file, or tenter cancel {run}")


def resume_run(
    run: str,
    home: str | None,
    show: int,
    json: bool,
    changes: Mapping[str, Any],
    retry: bool = False,
) -> int:
    """`tenter resume`, and `tenter retry`."""
    name = Store(home).find(run)
    given = {option: value for option, value in changes.items() if value is not None}

    async def work(control: Control, tally: Tally) -> Outcome:
        return await resume(name, home, control, tally, given, retry)

    return _finish(work, home, show, json, resumable=True)


def _finish(
    work: Callable[[Control, Tally], Awaitable[Outcome]],
    home: str | None,
    show: int,
    json: bool,
    *,
    resumable: bool,
) -> int:
    stop = Stop()
    run = ""

    async def known(control: Control, tally: Tally) -> Outcome:
        nonlocal run
        try:
            return await work(control, tally)
        finally:
            run = tally.snapshot().run

    try:
        outcome = anyio.run(lambda: governed(known, stop, emit if json else None, shown=True))
    except Exception as error:
        if not run and stop.signal:
            explain_failure(error)
            return stop.exit_code
        if not run or os.environ.get("TENTER_DEBUG") == "1":
            raise
        return _end_broken(error, run, resume_command(run, home) if resumable else None, json)
    code = _exit_code(outcome, stop)
    again = _going_on(outcome, home) if resumable and outcome.status != "done" else None
    if json:
        _emit_last(_done(outcome, code, again))
        return code
    if show and outcome.status == "done":
        _show_answers(outcome.out, show)
    print(f"\n{render(outcome.snapshot)}\n", file=sys.stderr)
    _say_end(outcome, again)
    return code


def _emit_last(record: dict[str, Any]) -> None:
    """Print the last record, if anybody reads it still."""
    try:
        emit(record)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _exit_code(outcome: Outcome, stop: Stop) -> int:
    match outcome.status:
        case "done":
            return ROW_ERRORS if outcome.rows_failed else 0
        case "paused" if outcome.reason == "signal":
            return stop.exit_code
        case "paused":
            return STOPPED.get(outcome.reason or "", SPENT)
        case "failed":
            return FAILED


def _end_broken(error: Exception, run: str, again: str | None, json: bool) -> int:
    """A run that had begun has ended with an error of its own, as of its journal."""
    code = explain_failure(error)
    if again:
        say(f"to go on: {again}")
    if json:
        record = {"status": "failed", "exit_code": code, "reason": "error", "run": run}
        _emit_last({"type": "done"} | record | {"resume": again})
    return code


def _going_on(outcome: Outcome, home: str | None) -> str:
    command = resume_command(outcome.run, home)
    given_up = outcome.status == "failed"  # its failed rows stay failed, so it needs more room
    return f"{command} --max-errors {2 * outcome.rows_failed}" if given_up else command


def _done(outcome: Outcome, code: int, again: str | None) -> dict[str, Any]:
    return {
        "type": "done",
        "status": outcome.status,
        "exit_code": code,
        "reason": outcome.reason,
        "run": outcome.run,
        "rows_done": outcome.rows_done,
        "rows_failed": outcome.rows_failed,
        "out": outcome.out,
        "dead_letter": outcome.dead_letter,
        "resume": again,
        "summary": summary(outcome.snapshot),
    }


def _say_end(outcome: Outcome, again: str | None) -> None:
    match outcome.status:
        case "done":
            say(f"the answers are in {outcome.out}")
        case "paused":
            why = WHY.get(outcome.reason or "")
            say(f"paused after {outcome.rows_done:,} rows" + (f": {why}" if why else ""))
        case "failed":
            say(f"given up after {outcome.rows_failed:,} failed rows")
    if outcome.dead_letter and outcome.rows_failed:
        say(f"{outcome.rows_failed:,} rows failed; they are in {outcome.dead_letter}")
    if again:
        say(f"to go on: {again}")


def _show_answers(path: str, count: int) -> None:
    """The first rows of the output, one field per line; what is empty is left out."""
    from .tables import BadRow, open_table

    for row in open_table(path, limit=count):
        if isinstance(row, BadRow):
            continue
        fields = {name: text for name, value in row[1].items() for name, text in _told(name, value)}
        width = max(len(name) for name in fields)
        print()
        for name, text in fields.items():
            print(f"  {name:<{width}}  {text}")


def _told(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """A field as text; an object's fields one by one, also where a cell holds it as JSON."""
    if isinstance(value, str) and value.startswith("{"):
        with suppress(ValueError):
            value = jsonlib.loads(value)
    if isinstance(value, dict):
        for inner, part in cast("dict[str, Any]", value).items():
            yield from _told(f"{name}.{inner}", part)
    elif value not in (None, ""):
        yield name, value if isinstance(value, str) else jsonlib.dumps(value, ensure_ascii=False)
