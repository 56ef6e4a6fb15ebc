"""The commands that run something: signals, progress, records and exit codes around a job."""

import json as jsonlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import anyio

from . import progress
from .cli_failure import say
from .errors import InvalidInput
from .jobs import Control, MapSpec, Outcome, map_table, resume, run_once
from .journal.store import Store
from .load import load_workflow
from .report.summary import render, summary
from .report.tally import Tally

Result = TypeVar("Result")
FAILED, ROW_ERRORS, PAUSED = 1, 3, 4


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


# ---- signals and progress around a job ---------------------------------------------------------


@dataclass(slots=True)
class Stop:
    """The first signal that asked for an end, if any."""

    signal: int = 0

    @property
    def exit_code(self) -> int:
        return 128 + self.signal


@contextmanager
def _restored(*signals: signal.Signals) -> Generator[None]:
    """Their handlers are afterwards what they were: asyncio would leave its own defaults."""
    before = {number: signal.getsignal(number) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


async def _heed(control: Control, tally: Tally, stop: Stop) -> None:
    """The first signal drains, the second aborts, the third ends the process."""
    count = 0
    heeded = signal.SIGINT, signal.SIGTERM
    with _restored(*heeded), anyio.open_signal_receiver(*heeded) as signals:
        async for number in signals:
            count += 1
            if count == 1:
                stop.signal = number
                control.drain()
                running = tally.snapshot().programs_live
                rows = f"the {running:,} rows that run" if running else "what runs"
                say(f"finishing {rows}, starting no other; once more to stop at once")
            elif count == 2:
                control.abort()
                say("stopping at once")
            else:
                os._exit(stop.exit_code)


async def _governed(
    work: Callable[[Control, Tally], Awaitable[Result]], stop: Stop, *, shown: bool, json: bool
) -> Result:
    control, tally = Control(), Tally()
    results: list[Result] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_heed, control, tally, stop)
        if shown:
            tasks.start_soon(progress.show, tally, emit if json else None)
        results.append(await work(control, tally))
        tasks.cancel_scope.cancel()
    return results[0]


# ---- run ---------------------------------------------------------------------------------------


def run_one(
    workflow: str, given: Sequence[str], models: Sequence[str], home: str | None, json: bool
) -> int:
    """`tenter run`."""
    values = inputs_of(workflow, given)
    stop = Stop()

    async def work(control: Control, tally: Tally) -> Any:
        return await run_once(
            workflow, values, models=overrides(models), home=home, control=control, tally=tally
        )

    try:
        result = anyio.run(lambda: _governed(work, stop, shown=False, json=json))
    except Exception:
        if stop.signal:
            return stop.exit_code
        raise
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
    if Path(spec.out).exists() and not force:
        raise InvalidInput(f"{spec.out} exists; name another file, or --force to replace it")

    async def work(control: Control, tally: Tally) -> Outcome:
        return await map_table(spec, control, tally)

    return _finish(work, spec.home, show, json, resumable=spec.journal)


def resume_run(
    run: str, home: str | None, show: int, json: bool, max_errors: int | None = None
) -> int:
    """`tenter resume`."""
    name = Store(home).find(run)

    async def work(control: Control, tally: Tally) -> Outcome:
        return await resume(name, home, control, tally, max_errors)

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
    outcome = anyio.run(lambda: _governed(work, stop, shown=True, json=json))
    code = _exit_code(outcome, stop)
    again = _resume_command(outcome, home) if resumable and outcome.status != "done" else None
    if json:
        emit(_done(outcome, code, again))
        return code
    if show and outcome.status == "done":
        _show_answers(outcome.out, show)
    print(f"\n{render(outcome.snapshot)}\n", file=sys.stderr)
    _say_end(outcome, again)
    return code


def _exit_code(outcome: Outcome, stop: Stop) -> int:
    match outcome.status:
        case "done":
            return ROW_ERRORS if outcome.rows_failed else 0
        case "paused":
            return stop.exit_code if stop.signal else PAUSED
        case "failed":
            return FAILED


def _resume_command(outcome: Outcome, home: str | None) -> str:
    command = f"tenter resume {outcome.run}" + (f" --home {home}" if home else "")
    given_up = outcome.status == "failed"  # its failed rows stay failed, so it needs more room
    return f"{command} --max-errors {2 * outcome.rows_failed}" if given_up else command


def _done(outcome: Outcome, code: int, again: str | None) -> dict[str, Any]:
    return {
        "type": "done",
        "status": outcome.status,
        "exit_code": code,
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
            say(f"paused after {outcome.rows_done:,} rows")
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
