"""What the benchmarks share: clocks that count the CPU, one JSON line per figure, a table."""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one run. `cpu_s` counts all threads of this process."""

    cpu_s: float
    wall_s: float


def timed(run: Callable[[], Any]) -> Timing:
    """How long `run` takes."""
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    run()
    return Timing(time.process_time() - cpu_s, time.perf_counter() - wall_s)


def median(timings: list[Timing]) -> Timing:
    """The median of either clock."""
    return Timing(
        statistics.median(t.cpu_s for t in timings), statistics.median(t.wall_s for t in timings)
    )


def interleaved(runs: dict[str, Callable[[], Timing]], rounds: int) -> dict[str, Timing]:
    """Run all in turn, `rounds` times, so that a slow minute hits each; their medians."""
    timings: dict[str, list[Timing]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            timings[name].append(run())
    return {name: median(found) for name, found in timings.items()}


@dataclass(slots=True)
class Figures:
    """The figures of one benchmark: each a JSON line on stdout at once, all a table on stderr."""

    bench: str
    rows: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    def add(
        self, metric: str, value: float, baseline: float | None = None, unit: str = "", **setup: Any
    ) -> None:
        """Report `value` of `metric`; `baseline` is what it is compared with."""
        row: dict[str, Any] = {"bench": self.bench, "metric": metric, "value": _short(value)}
        if baseline is not None:
            row["baseline"] = _short(baseline)
        if unit:
            row["unit"] = unit
        row["setup"] = setup
        self.rows.append(row)
        print(json.dumps(row), flush=True)

    def table(self, title: str) -> None:
        """Print all figures for a reader."""
        table = Table(title=title, title_justify="left")
        for name in ("metric", "value", "baseline", "unit", "setup"):
            table.add_column(name, justify="right" if name in ("value", "baseline") else "left")
        for row in self.rows:
            setup = ", ".join(f"{name} {value}" for name, value in row["setup"].items())
            cells = (row["metric"], row["value"], row.get("baseline", ""), row.get("unit", ""))
            table.add_row(*map(str, cells), setup)
        Console(file=sys.stderr, width=None if sys.stderr.isatty() else 120).print(table)


def one_thread() -> None:
    """Let libraries use one thread, and let waiting threads sleep; call it before importing them."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def _short(value: float) -> float:
    return float(f"{value:.4g}")
