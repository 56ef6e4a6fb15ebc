"""Every retention policy with every order, simulated beside a stock server and a clairvoyant.

Workloads: coding sessions (recorded; gaps over 60 s drawn anew or cut to 60 s), agents like those of
SWE-Bench and of BFCL's web search (drawn), text-to-SQL requests (recorded lengths). All arrive by
Poisson, at .5, .8 and .95 of the rate that saturates the baseline. Llama-3.1-8B on one H100, 70B on
four; with 256 GB per replica in the host for evicted KV, and without.

The baseline is a stock server that gets each call at once: first come, first served, and the least
recently used KV is evicted. The bound is the default policy told how long each tool will take. The
saturation rate is the highest at which the baseline's programs take at most 3 times as long as
alone in the mean, found by bisection to 7 %; it is another one for each workload, model and tier.

    python benchmarks/policies.py [--quick] [--data DIR] [--cells FILE] [--only TEXT]

`--quick` takes few programs, 8B without a host tier, and orders other than the default for the
default policy only: a sample, whose figures are rough. `--cells` keeps what was simulated in FILE,
so that a run that was stopped goes on. `--only` takes the workloads whose name has TEXT in it.

Over all cells (a cell: workload, load, model, tier; always the default order): `gap_closed` is the
share of the gap between baseline and bound that the default policy closes, and
`over_continuum_under_pressure` how much shorter its programs take than with Continuum's rule, both
in the mean over the cells under memory pressure, where the baseline computes a tenth of its prompt
tokens again or more. `worst_cell_ratio` is its time over the best named policy's in the worst cell.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from _common import Figures

from tenter.kvpolicy import DEFAULT_POLICY, POLICIES
from tenter.runtime.replay import (
    Workload,
    bfcl_web,
    coding_sessions,
    fitting,
    poisson,
    subsample,
    swe_bench,
    text2sql,
)
from tenter.runtime.scheduler.policies import ORDERS
from tenter.runtime.simulate import STOCK, Setup, simulate, survey

LOADS = (0.5, 0.8, 0.95)
MODELS = (("llama-3.1-8b", "h100"), ("llama-3.1-70b", "4xh100"))
HOST_GB = (0.0, 256.0)
BOUND, RIVAL, ORDER = "clairvoyant", "continuum", "fcfs"
NAMED = tuple(name for name in POLICIES if name not in (DEFAULT_POLICY, BOUND))
SATURATED = 5.0  # times as long as alone
HALVINGS = 6
PRESSURE = 0.1
SEED = 1

# Programs of each workload: all of it, or a sample; in a full run and in a quick one.
PROGRAMS = {
    "coding-drawn": (60, 20),
    "coding-capped": (60, 0),
    "swe-bench": (150, 60),
    "bfcl-web": (200, 60),
    "text2sql": (90, 0),
}


def workloads(data: Path, quick: bool, only: str) -> Iterator[tuple[str, Workload]]:
    """The workloads by name; their arrivals are drawn later."""
    sessions = data / "agents" / "coding_sessions.csv.gz"
    requests = data / "text2sql" / "input_file_trace1.json"
    made: dict[str, Callable[[int], Workload]] = {
        "coding-drawn": lambda n: subsample(coding_sessions(sessions, "drawn", SEED), n, SEED),
        "coding-capped": lambda n: subsample(coding_sessions(sessions, "capped", SEED), n, SEED),
        "swe-bench": lambda n: swe_bench(n, 1.0, SEED),
        "bfcl-web": lambda n: bfcl_web(n, 1.0, SEED),
        "text2sql": lambda n: subsample(text2sql(requests), n, SEED),
    }
    for name, make in made.items():
        programs = PROGRAMS[name][quick]
        if programs and only in name:
            yield name, make(programs)


@dataclass(frozen=True, slots=True)
class Cells:
    """What was simulated, by what it was; kept in a file if there is one."""

    known: dict[str, dict[str, Any]]
    path: Path | None

    @classmethod
    def of(cls, path: Path | None) -> "Cells":
        lines = path.read_text().splitlines() if path is not None and path.exists() else []
        return cls({row["key"]: row for row in map(json.loads, lines)}, path)

    def get(self, workload: Workload, name: str, rate: float, setup: Setup) -> dict[str, Any]:
        """The figures of a simulation, made now or before."""
        key = f"{name} x{workload.programs} {rate!r} {setup!r}"
        if key not in self.known:
            result = simulate(poisson(workload, rate, SEED), setup)
            self.known[key] = {"key": key, **result.record()}
            if self.path is not None:
                with self.path.open("a") as file:
                    file.write(json.dumps(self.known[key]) + "\n")
        return self.known[key]


def saturation(cells: Cells, workload: Workload, name: str, stock: Setup) -> float:
    """The highest rate of arrivals, in programs per second, that the baseline sustains."""
    alone = cells.get(workload, name, 1e-5, stock)
    busy_s = alone["busy_share"] * alone["span_s"] / alone["programs"]
    low, high = 1 / 16 / busy_s, 4 / busy_s
    for _ in range(HALVINGS):
        middle = (low * high) ** 0.5
        mean_s = cells.get(workload, name, middle, stock)["mean_completion_s"]
        if mean_s > SATURATED * alone["mean_completion_s"]:
            high = middle
        else:
            low = middle
    return low


def contenders(quick: bool) -> Iterator[tuple[str, str]]:
    """(policy, order): every one with every order, or with the default one."""
    for order in ORDERS:
        for policy in (DEFAULT_POLICY, *NAMED, BOUND):
            if order == ORDER or policy == DEFAULT_POLICY or not quick:
                yield policy, order


@dataclass(slots=True)
class Summary:
    """What is gathered over the cells, as ratios of mean completion times."""

    ours: list[float]  # default over baseline, under pressure
    bound: list[float]  # clairvoyant over baseline, under pressure
    rival: list[float]  # default over Continuum's rule, under pressure
    worst: float = 0.0
    worst_where: str = ""

    def add(self, where: str, base: dict[str, Any], means: dict[str, float]) -> None:
        ours, stock = means[DEFAULT_POLICY], base["mean_completion_s"]
        best = min(NAMED, key=lambda name: means[name])
        if ours / means[best] > self.worst:
            self.worst, self.worst_where = ours / means[best], f"{where}: {best}"
        if base["recomputed_tokens"] >= PRESSURE * base["computed_tokens"]:
            self.ours.append(ours / stock)
            self.bound.append(means[BOUND] / stock)
            self.rival.append(ours / means[RIVAL])


def measure(
    figures: Figures,
    cells: Cells,
    summary: Summary,
    name: str,
    workload: Workload,
    setup: Setup,
    quick: bool,
) -> None:
    """All loads and contenders on one workload, model and tier."""
    seen = survey(workload)
    setup = replace(setup, limit_tokens=seen.limit_tokens, page_tokens=seen.page_tokens)
    workload = fitting(workload, setup.context_tokens)
    stock = replace(setup, policy=STOCK, order="call-fcfs")
    highest = saturation(cells, workload, name, stock)
    about = {"workload": name, "model": setup.model, "host_gb": setup.host_gb}
    figures.add("saturation", highest, unit="programs/s", **about, programs=workload.programs)
    for load in LOADS[1:] if quick else LOADS:
        base = cells.get(workload, name, load * highest, stock)
        report(figures, base, None, {**about, "load": load})
        means: dict[str, float] = {}
        for policy, order in contenders(quick):
            one = replace(setup, policy=policy, order=order)
            found = cells.get(workload, name, load * highest, one)
            report(figures, found, base, {**about, "load": load})
            if order == ORDER:
                means[policy] = found["mean_completion_s"]
        summary.add(f"{name} {setup.model} {setup.host_gb:g} GB {load}", base, means)


def report(
    figures: Figures, found: dict[str, Any], base: dict[str, Any] | None, about: dict[str, Any]
) -> None:
    """The figures of one simulation; the baseline is the stock server's."""
    setup = {**about, "policy": found["policy"], "order": found["order"]}
    if found["failed"]:
        setup["failed"] = found["failed"]
    for metric, unit in (
        ("mean_completion_s", "s"),
        ("p95_completion_s", "s"),
        ("recomputed_tokens", "tokens"),
        ("output_tokens_per_s", "tokens/s"),
    ):
        figures.add(metric, found[metric], base[metric] if base else None, unit, **setup)


def conclude(figures: Figures, summary: Summary) -> None:
    """The figures over all cells."""
    setup = {"policy": DEFAULT_POLICY, "order": ORDER, "cells_under_pressure": len(summary.ours)}
    figures.add("worst_cell_ratio", summary.worst, **setup, cell=summary.worst_where)
    if not summary.ours:
        return
    gap = 1 - statistics.fmean(summary.bound)
    closed = 1 - statistics.fmean(summary.ours)
    figures.add("gap_closed", closed / gap if gap else 0.0, unit="share", **setup)
    gained = 1 - statistics.fmean(summary.rival)
    figures.add("over_continuum_under_pressure", gained, unit="share", **setup)


def main() -> None:
    about = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--cells", type=Path, help="a file that keeps what was simulated")
    parser.add_argument("--only", default="", help="workloads whose name has this in it")
    options = parser.parse_args()
    if not (options.data / "agents").is_dir():
        sys.exit(f"no traces in {options.data}; give their folder with --data DIR")
    figures, cells = Figures("policies"), Cells.of(options.cells)
    summary = Summary([], [], [])
    began_s = time.monotonic()
    for name, workload in workloads(options.data, options.quick, options.only):
        for model, hardware in MODELS[: 1 if options.quick else None]:
            for host_gb in HOST_GB[: 1 if options.quick else None]:
                setup = Setup(hardware=hardware, model=model, host_gb=host_gb)
                measure(figures, cells, summary, name, workload, setup, options.quick)
                spent_s = time.monotonic() - began_s
                print(f"{name} {model} {host_gb:g} GB: {spent_s:.0f} s so far", file=sys.stderr)
    conclude(figures, summary)
    figures.table(f"Retention policies{' (quick: a sample)' if options.quick else ''}")


if __name__ == "__main__":
    main()
