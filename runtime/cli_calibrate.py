"""`tenter calibrate`: the stop rule of a reasoning step, chosen on rows of a table."""

import json as jsonlib
from pathlib import Path

import anyio
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from .calibrating import Calibrated, calibrate_step
from .errors import InvalidInput
from .jobs import MapSpec


def calibrate(
    spec: MapSpec,
    step: str | None,
    label: str | None,
    budget: float | None,
    level: float,
    out: str | None,
    json: bool,
) -> int:
    """Run the rows, choose, and print what was found and what the workflow should say."""
    if out is not None and not Path(out).resolve().parent.is_dir():
        raise InvalidInput(f"--rule-out {out}: there is no such folder")
    columns = (SpinnerColumn(), TextColumn("{task.fields[rows]} thoughts to their end"))
    bar = Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), disable=json)
    with bar:
        task = bar.add_task("thinking", total=None, rows=0)

        async def work() -> Calibrated:
            return await calibrate_step(
                spec,
                step,
                label,
                budget,
                level,
                progress=lambda rows: bar.update(task, rows=rows),
            )

        done = anyio.run(work)
    settings = jsonlib.dumps(done.settings)
    if out is not None:
        Path(out).write_text(jsonlib.dumps(done.settings["rule"], indent=1) + "\n")
    if json:
        record = {
            "type": "calibrated",
            "step": done.step,
            "rows": done.rows,
            "failed": done.failed,
            "rule": done.settings["rule"],
            "message": done.found.message,
            "enough_data": done.found.enough_data,
        }
        print(jsonlib.dumps(record))
        return 0
    for tried in done.found.tried:
        verdict = "within" if tried.passed else "beyond"
        print(
            f"{tried.rule.name:<16} saves {tried.saved:6.1%}  loses {tried.loss:+6.2%}  "
            f"bound {tried.bound:6.2%}  {verdict} the budget"
        )
    print(f"{done.rows} thoughts, {done.failed} rows failed")
    print(done.found.message)
    print(f"put this into the step {done.step!r}:\n  settings: {settings}")
    return 0
