"""Every retention policy with every order, simulated beside a stock server and a clairvoyant.

Workloads: coding sessions (recorded; gaps over 60 s drawn anew or cut to 60 s), agents like those of
SWE-Bench and of BFCL's web search (drawn), text-to-SQL requests (recorded lengths). All arrive by
Poisson, at .5, .8 and .95 of the rate that saturates the baseline. Llama-3.1-8B on one H100, 70B on
four; with 256 GB per replica in the host for evicted KV, and without.

The baseline is a stock server that gets each call at once: first come, first served, and the least
recently used KV is evicted. Beside it three clairvoyant rules are told how long each tool will take:
the default one, InferCept's, and Belady's (what is needed last goes first). None of them is the best
everywhere, for what a pin saves depends on the pins to come; so the bound of a cell is the least mean
that any policy reached there in the default order, clairvoyant or not. Each policy runs with the default
admission, by working set and expected lengths, and as published, without it. The saturation rate is the
highest at which the baseline's programs take at most SATURATED times as long as alone in the mean,
found by bisection to 7 %; it is another one for each workload, model and tier.

    python benchmarks/policies.py [--quick | --ablations] [--data DIR] [--cells FILE]
                                  [--part I/N] [--only TEXT] [--orders NAMES] [--seeds N]

`--quick` takes few programs, 8B, the highest load, and orders other than the default for the default
policy only: a sample, whose figures are rough. Groups that it has not begun after QUICK_S seconds it
leaves out, and says so: first those with a host tier. `--cells` keeps what was simulated in FILE, so that a run
that was stopped goes on. `--part 2/5` takes every fifth group of cells (a workload, a model, a tier),
from the second on; with one FILE for all parts, the last part's run without `--part` prints the
figures over all cells. `--only` takes the workloads whose name has TEXT in it. `--seeds` draws so
many arrivals for each cell, whose times are the means over them: at the edge of saturation two
draws differ by more than two policies do.

`--ablations` leaves out one ingredient of ours at a time, without a host tier: the price of memory,
the condition on the time elapsed, the order by program, the admission by working set, and by
expected lengths.

Over all cells (a cell: workload, load, model, tier; always the default order): `gap_closed` is the
share of the gap between baseline and bound that the default policy closes, and
`over_continuum_under_pressure` how much shorter its programs take than with Continuum's rule, as
published (`admission` null) and with our admission, both in the mean over the cells under memory
pressure, where the baseline computes a tenth of its prompt tokens again or more. `worst_cell_ratio`
is its time over the best named policy's in the worst cell, with either admission.
"""

import argparse
import json
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
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
RIVAL, ORDER = "continuum", "fcfs"
TOLD = tuple(name for name in POLICIES if name.startswith("clairvoyant"))
NAMED = tuple(name for name in POLICIES if name not in (DEFAULT_POLICY, *TOLD))
SATURATED = 5.0  # times as long as alone
HALVINGS = 6
PRESSURE = 0.1
SEED = 1
QUICK_S = 22.0  # after so long no further group is begun
ABLATED: dict[str, dict[str, Any]] = {
    "nothing": {},
    "price": {"without": ("price",)},
    "elapsed time": {"without": ("elapsed",)},
    "program order": {"order": "call-fcfs"},
    "retention": {"policy": "never"},
    "working set": {"working_set": None},
    "expected lengths": {"past_future": False},
}

# Programs of each workload: all of it, or a sample; in a full run and in a quick one.
PROGRAMS = {
    "coding-drawn": (60, 12),
    "coding-capped": (60, 0),
    "swe-bench": (150, 40),
    "bfcl-web": (200, 40),
    "text2sql": (90, 16),
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
    seeds: int = 1

    @classmethod
    def of(cls, path: Path | None, seeds: int) -> "Cells":
        lines = path.read_text().splitlines() if path is not None and path.exists() else []
        return cls({row["key"]: row for row in map(json.loads, lines)}, path, seeds)

    def mean(self, workload: Workload, name: str, rate: float, setup: Setup) -> dict[str, Any]:
        """The means of the figures over all draws of the arrivals."""
        draws = range(SEED, SEED + self.seeds)
        found = [self.get(workload, name, rate, setup, seed) for seed in draws]
        means = {
            figure: statistics.fmean(one[figure] for one in found)
            for figure, amount in found[0].items()
            if isinstance(amount, (int, float))
        }
        return {**found[0], **means}

    def get(
        self, workload: Workload, name: str, rate: float, setup: Setup, seed: int = SEED
    ) -> dict[str, Any]:
        """The figures of a simulation, made now or before."""
        key = f"{name} x{workload.programs} {rate!r} {seed} {setup!r}"
        if key not in self.known:
            result = simulate(poisson(workload, rate, seed), setup)
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


def contenders(setup: Setup, orders: Sequence[str], quick: bool) -> Iterator[Setup]:
    """Every policy with every order, or with the default one; and as published, in that one."""
    for order in dict.fromkeys((ORDER, *orders)):
        for policy in (DEFAULT_POLICY, *NAMED, *TOLD):
            if order == ORDER or policy == DEFAULT_POLICY or not quick:
                yield replace(setup, policy=policy, order=order)
    bare = replace(setup, order=ORDER, working_set=None, past_future=False)
    for policy in (RIVAL,) if quick else (DEFAULT_POLICY, *NAMED, *TOLD):
        yield replace(bare, policy=policy)


@dataclass(slots=True)
class Summary:
    """What is gathered over the cells, as ratios of mean completion times."""

    ours: list[float] = field(default_factory=list[float])  # over baseline, under pressure
    bound: list[float] = field(default_factory=list[float])  # the best over baseline, likewise
    rival: list[float] = field(default_factory=list[float])  # over Continuum's rule, likewise
    beside: list[float] = field(default_factory=list[float])  # over the same with our admission
    cells: list[tuple[float, str]] = field(default_factory=list[tuple[float, str]])

    def add(
        self, where: str, base: dict[str, Any], means: dict[str, float], bare: dict[str, float]
    ) -> None:
        """`means` by policy, with the default admission; `bare` as published."""
        ours, stock = means[DEFAULT_POLICY], base["mean_completion_s"]
        bare = {**means, **bare}
        found, best = min((min(means[name], bare[name]), name) for name in NAMED)
        self.cells.append((ours / found, f"{where}: {best}"))
        if base["recomputed_tokens"] >= PRESSURE * base["computed_tokens"]:
            self.ours.append(ours / stock)
            self.bound.append(min(*means.values(), *bare.values()) / stock)
            self.rival.append(ours / bare[RIVAL])
            self.beside.append(ours / means[RIVAL])


@dataclass(frozen=True, slots=True)
class Group:
    """The cells of one workload, model and tier."""

    name: str
    workload: Workload
    setup: Setup
    saturation: float  # programs per second

    @property
    def about(self) -> dict[str, Any]:
        return {
            "workload": self.name,
            "model": self.setup.model,
            "host_gb": self.setup.host_gb,
        }


def group(cells: Cells, name: str, workload: Workload, setup: Setup) -> Group:
    """What fits of `workload`, and the rate that saturates the baseline with it."""
    seen = survey(workload)
    setup = replace(setup, limit_tokens=seen.limit_tokens, page_tokens=seen.page_tokens)
    workload = fitting(workload, setup.context_tokens)
    return Group(name, workload, setup, saturation(cells, workload, name, _stock(setup)))


def _stock(setup: Setup) -> Setup:
    return replace(setup, policy=STOCK, order="call-fcfs")


def measure(
    figures: Figures,
    cells: Cells,
    summary: Summary,
    of: Group,
    loads: Sequence[float],
    orders: Sequence[str],
    quick: bool,
) -> None:
    """All contenders at `loads`."""
    figures.add("saturation", of.saturation, unit="programs/s", **of.about)
    for load in loads:
        rate, about = load * of.saturation, {**of.about, "load": load}
        base = cells.mean(of.workload, of.name, rate, _stock(of.setup))
        report(figures, base, None, about)
        means: dict[str, float] = {}
        bare: dict[str, float] = {}
        for one in contenders(of.setup, orders, quick):
            found = cells.mean(of.workload, of.name, rate, one)
            report(figures, found, base, {**about, "admission": one.working_set})
            if one.order == ORDER:
                known = means if one.working_set else bare
                known[one.policy] = found["mean_completion_s"]
        summary.add(" ".join(map(str, about.values())), base, means, bare)


def ablate(figures: Figures, cells: Cells, of: Group, loads: Sequence[float]) -> None:
    """Ours without one ingredient at a time."""
    for load in loads:
        rate, whole = load * of.saturation, 0.0
        for off, change in ABLATED.items():
            setup = replace(of.setup, **change)
            found = cells.mean(of.workload, of.name, rate, setup)
            whole = whole or found["mean_completion_s"]
            about = {**of.about, "load": load, "off": off}
            figures.add(
                "ablation_mean_completion_s", found["mean_completion_s"], whole, "s", **about
            )


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
    worst, where = max(summary.cells)
    beyond = sum(ratio > 1.03 for ratio, _ in summary.cells)
    about = {"cells": len(summary.cells), "cells_beyond_1.03": beyond}
    figures.add("worst_cell_ratio", worst, **setup, cell=where, **about)
    if not summary.ours:
        return
    gap = 1 - statistics.fmean(summary.bound)
    closed = 1 - statistics.fmean(summary.ours)
    figures.add("gap_closed", closed / gap if gap else 0.0, unit="share", **setup)
    for admission, ratios in ((None, summary.rival), ("auto", summary.beside)):
        gained = 1 - statistics.fmean(ratios)
        about = {**setup, "admission": admission}
        figures.add("over_continuum_under_pressure", gained, unit="share", **about)


def groups(options: argparse.Namespace) -> Iterator[tuple[str, Workload, Setup]]:
    """The groups of cells that were asked for: name, workload, setup."""
    part, parts = map(int, options.part.split("/"))
    models = MODELS[: 1 if options.quick else None]
    tiers = HOST_GB[: 1 if options.ablations else None]
    made = (
        (name, workload, Setup(hardware=hardware, model=model, host_gb=host_gb))
        for host_gb in tiers
        for model, hardware in models
        for name, workload in workloads(options.data, options.quick, options.only)
    )
    return islice(made, part - 1, None, parts)


def main() -> None:
    about = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--ablations", action="store_true", help="ours without one ingredient")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--cells", type=Path, help="a file that keeps what was simulated")
    parser.add_argument("--part", default="1/1", help="2/5: the second of five parts")
    parser.add_argument("--orders", default="", help="these only: fcfs,least-attained")
    parser.add_argument("--only", default="", help="workloads whose name has this in it")
    parser.add_argument("--seeds", type=int, default=1, help="draws of the arrivals per cell")
    options = parser.parse_args()
    if not (options.data / "agents").is_dir():
        sys.exit(f"no traces in {options.data}; give their folder with --data DIR")
    if re.fullmatch(r"[1-9]\d*/[1-9]\d*", options.part) is None or options.seeds < 1:
        sys.exit("write --part as 2/5 (the second of five), and --seeds as 1 or more")
    orders = options.orders.split(",") if options.orders else tuple(ORDERS)
    figures, cells, summary = Figures("policies"), Cells.of(options.cells, options.seeds), Summary()
    began_s = time.monotonic()
    for name, workload, setup in groups(options):
        if options.quick and time.monotonic() - began_s > QUICK_S:
            print(f"left out, for want of time: {name} {setup.host_gb:g} GB", file=sys.stderr)
            continue
        of = group(cells, name, workload, setup)
        loads = LOADS[-1:] if options.quick else LOADS
        if options.ablations:
            ablate(figures, cells, of, loads)
        else:
            measure(figures, cells, summary, of, loads, orders, options.quick)
        spent_s = time.monotonic() - began_s
        print(f"{name} {setup.model} {setup.host_gb:g} GB: {spent_s:.0f} s so far", file=sys.stderr)
    if summary.cells:
        conclude(figures, summary)
    figures.table(f"Retention policies{' (quick: a sample)' if options.quick else ''}")


if __name__ == "__main__":
    main()
