"""Makespans of Halo's six workflows: our placement beside Halo's schedulers and the load bound.

    python benchmarks/placement.py [--quick] [--data DIR] [--rows N ...] [--gpus N ...]

Constants are Halo's: a step takes 0.25 s per billion parameters and 0.15 s per row, loading a model
0.75 s per billion (half on an empty GPU), 0.9 of a step's time where a parent just ran; a tool takes
its latency and no GPU. The peers are Halo's dynamic program and its greedy (whole steps on one
GPU), and one step at a time on all GPUs. Our visits cost what the same formula says, but rows leave
a visit one by one (planner/placement/problem.py). `makespan_over_bound` divides by the load bound,
all work at 0.9 over all GPUs; `reachable_over_bound` is a bound that counts what the first leaves
out: first loads, steps without a parent on the same model.

Small cases in the manner of Helium (2603.16104, section on optimality; its own cases are not
published): calls in layers, some with a common prefix, on two or three workers, beside the exact
optimum (OR-tools, group `bench`; without it they are left out).

Executed: the runtime carries the workflows out in virtual time, on simulated engines that serve one
model each and batch what runs (`_placement_run.py`), by the placement, in equal shares, and without
hints. `executed_over_planned` divides the makespan by the placement's, `executed_over_bound` by the
work of the busiest model's engines. `--quick`: 1,024 rows on 1 and 3 GPUs, few small cases, two
workflows executed over few rows.
"""

import argparse
import random
import sys
import time
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from _common import Figures, one_thread

one_thread()

import _halo
from _exact import optimum
from _placement_run import METHODS, case_of, executed_s, unknown

from tenter.planner.placement import AFFINITY, Stage, Worker, load_bound, place

ROWS, GPUS = (256, 1024, 4096), range(1, 9)
QUICK_ROWS, QUICK_GPUS = (1024,), (1, 3)
CASES, QUICK_CASES = 40, 5
SOLVER_S = 4.0  # per case, then its best bound counts
EXECUTED = (256, ((4, 256), (4, 16), (8, 64)))  # rows; GPUs, and calls at once on each
QUICK_EXECUTED = (64, ((4, 16),))
QUICK_WORKFLOWS = ("W1", "W4")


def halo(figures: Figures, workflows: Path, all_rows: Iterable[int], gpus: Iterable[int]) -> None:
    """All methods in all cells."""
    for name, workflow in _halo.read_workflows(workflows).items():
        for rows in all_rows:
            for count in gpus:
                cell(figures, name, workflow, rows, count)


def cell(figures: Figures, name: str, workflow: _halo.Workflow, rows: int, gpus: int) -> None:
    stages = _halo.stages(workflow)
    bound_s = load_bound(stages, gpus, rows)
    began_s = time.process_time()
    program = _halo.dynamic_program(workflow, rows, gpus)
    program_s = time.process_time() - began_s
    greedy = _halo.greedy(workflow, rows, gpus)
    workers = [Worker(f"gpu{index}") for index in range(gpus)]
    began_s = time.process_time()
    ours = place(stages, workers, rows, _halo.loads(workflow))
    took_s = time.process_time() - began_s
    makespans = {
        "halo": _halo.makespan(workflow, rows, gpus, program),
        "greedy": _halo.makespan(workflow, rows, gpus, greedy),
        "data-parallel": _halo.data_parallel(workflow, rows, gpus),
        "ours": ours.makespan_s,
    }
    setup = {"workflow": name, "rows": rows, "gpus": gpus}
    best_s = min(value for method, value in makespans.items() if method != "ours")
    for method, seconds in makespans.items():
        of = {**setup, "method": method, "makespan_s": round(seconds, 1)}
        figures.add("makespan_over_bound", seconds / bound_s, best_s / bound_s, **of)
    figures.add("reachable_over_bound", reachable(workflow, rows, gpus) / bound_s, **setup)
    figures.add("plan_s", took_s, unit="CPU-s", **setup, method="ours")
    figures.add("plan_s", program_s, unit="CPU-s", **setup, method="halo")


def reachable(workflow: _halo.Workflow, rows: int, gpus: int) -> float:
    """A tighter lower bound: a step without a parent runs at its full time; one whose parents have
    other models too, unless a model is loaded behind one of them; every GPU loads a model."""
    work_s = 0.0
    models = [node for node in workflow.values() if node.model]
    for node in models:
        parents = [workflow[dep] for dep in node.deps if workflow[dep].model]
        full_s = node.seconds(rows)
        if any(parent.model == node.model for parent in parents):
            work_s += AFFINITY * full_s
        elif parents:
            work_s += min(full_s, AFFINITY * full_s + node.load_s("another"))
        else:
            work_s += full_s
    return work_s / gpus + min(node.load_s(None) for node in models)


# -- executed


def executed(figures: Figures, workflows: Path, quick: bool) -> None:
    """The runtime's makespans over those that were planned, and over the bound."""
    count, fleets = QUICK_EXECUTED if quick else EXECUTED
    for name, workflow in _halo.read_workflows(workflows).items():
        if quick and name not in QUICK_WORKFLOWS:
            continue
        if why := unknown(workflow):
            print(f"{name} is not executed: {why}", file=sys.stderr)
            continue
        for gpus, running in fleets:
            case = case_of(name, workflow, count, gpus, running)
            took = {method: executed_s(case, method) for method in METHODS}
            best_s = min(seconds for method, seconds in took.items() if method != "plan")
            planned_s, bound_s = case.placed.placement.makespan_s, case.placed.bound_s
            setup = {"workflow": name, "rows": count, "gpus": gpus, "running": running}
            for method, seconds in took.items():
                of = {**setup, "method": method, "executed_s": round(seconds, 1)}
                figures.add("executed_over_planned", seconds / planned_s, best_s / planned_s, **of)
                figures.add("executed_over_bound", seconds / bound_s, best_s / bound_s, **of)


# -- small cases


def small_case(seed: int) -> tuple[list[Stage], int]:
    """Five to eight calls in layers, on two or three workers. A call behind one with a common prefix
    saves a part of its prefill, behind a parent that it continues another."""
    draw = random.Random(seed)
    count, workers = draw.randint(5, 8), draw.choice((2, 3))
    agents = [draw.randrange(3) for _ in range(count)]  # calls of an agent share its system prompt
    layer = sorted(draw.randrange(3) for _ in range(count))
    shared = [draw.uniform(0.1, 0.4) for _ in range(3)]
    stages: list[Stage] = []
    for index in range(count):
        above = [i for i in range(index) if layer[i] == layer[index] - 1]
        parents = draw.sample(above, min(len(above), draw.randint(1, 2)))
        warm = {f"c{i}": 1 - shared[agents[i]] for i in range(count) if agents[i] == agents[index]}
        warm |= {f"c{i}": min(warm.get(f"c{i}", 1.0), AFFINITY) for i in parents}
        warm.pop(f"c{index}", None)
        names = tuple(f"c{parent}" for parent in parents)
        stages.append(Stage(f"c{index}", "model", names, draw.uniform(1, 6), 0.0, warm))
    return stages, workers


def small(figures: Figures, cases: int) -> None:
    """Gaps to the exact optimum."""
    gaps: list[float] = []
    greedy: list[float] = []
    proven = 0
    for seed in range(cases):
        stages, count = small_case(seed)
        workers = [Worker(f"w{index}") for index in range(count)]
        ours_s = place(stages, workers, 1, {}).makespan_s
        try:
            best_s, is_proven = optimum(stages, count, SOLVER_S, ours_s)
        except ImportError:
            print("the small cases are left out: OR-tools is not installed", file=sys.stderr)
            return
        proven += is_proven
        gaps.append(ours_s / best_s - 1)
        greedy.append(first_come(stages, count) / best_s - 1)
    setup = {"cases": cases, "proven": proven}
    for method, found in (("ours", gaps), ("first-come", greedy)):
        figures.add("gap_mean", 100 * sum(found) / cases, 0.9, "%", **setup, method=method)
        figures.add("gap_most", 100 * max(found), 3.6, "%", **setup, method=method)


def first_come(stages: list[Stage], workers: int) -> float:
    """The makespan if every call goes, in order, to the worker that is free first."""
    free_s, last = [0.0] * workers, [""] * workers
    ended: dict[str, float] = {}
    for stage in stages:
        worker = min(range(workers), key=free_s.__getitem__)
        start_s = max([free_s[worker], *(ended[parent] for parent in stage.parents)])
        free_s[worker] = start_s + (stage.warm or {}).get(last[worker], 1.0) * stage.fixed_s
        ended[stage.id], last[worker] = free_s[worker], stage.id
    return max(free_s)


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="few cells and small cases")
    parser.add_argument("--data", type=Path, help="folder with halo/; ../shared/data")
    parser.add_argument("--rows", type=int, nargs="+", help="rows of the table; 256 1024 4096")
    parser.add_argument("--gpus", type=int, nargs="+", help="numbers of GPUs; 1 to 8")
    parser.add_argument("--cases", type=int, help=f"small cases; {CASES}")
    options = parser.parse_args()
    root = Path(__file__).resolve().parents[1]
    file = (options.data or root.parent / "shared" / "data") / "halo" / "w1_w6_dags.json"
    if not file.exists():
        sys.exit(f"{file} is missing: give the folder of the public data with --data")
    rows = options.rows or (QUICK_ROWS if options.quick else ROWS)
    gpus = options.gpus or (QUICK_GPUS if options.quick else GPUS)
    cases = QUICK_CASES if options.quick else CASES
    figures = Figures("placement")
    halo(figures, file, rows, gpus)
    if cases := cases if options.cases is None else options.cases:
        small(figures, cases)
    executed(figures, file, options.quick)
    figures.table("Placement" + (" (quick: few cells)" if options.quick else ""))


if __name__ == "__main__":
    main()
