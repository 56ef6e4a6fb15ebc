"""What the runtime itself costs per step: Tenter beside plain asyncio and LangGraph.

W1 a chain of 1,000 steps; W2 a fan-out of 10,000 and a join; W3 10,000 workflows of five steps;
W4 1,000 agents of ten turns, each a model call and a tool call. The model does nothing. Without
a journal, and with one: every step of Tenter waits until SQLite has committed it, and LangGraph
uses its AsyncSqliteSaver. Each measurement is a process of its own; the systems take turns, and
the medians of the rounds are printed. LangGraph lives in `.cache/peers/langgraph`, a virtual
environment that is made on first use.

    python benchmarks/overhead.py [--quick] [--data DIR]

`--quick` takes one round and smaller sizes, so its figures are rougher. No data is read.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from _common import Figures

HERE = Path(__file__).parent
PEERS = HERE.parent / ".cache" / "peers" / "langgraph"
PACKAGES = ("langgraph", "langgraph-checkpoint-sqlite")
ENDS_S = 900  # of one measurement

FULL = {"W1": 1_000, "W2": 10_000, "W3": 10_000, "W4": 1_000}
PEER = {"W1": 1_000, "W2": 10_000, "W3": 2_000, "W4": 300}  # LangGraph: fewer, for time
QUICK = {"W1": 1_000, "W2": 10_000, "W3": 2_000, "W4": 200}
QUICK_PEER = {"W1": 200, "W2": 2_000, "W3": 100, "W4": 20}
WIDE = 100_000  # W2 again, ten times as wide


def langgraph_python() -> str | None:
    """The interpreter that has LangGraph; None where it cannot be installed."""
    python = PEERS / "bin" / "python"
    ready = PEERS / "ready"
    if not ready.exists():
        print(f"installing LangGraph into {PEERS} (once)", file=sys.stderr)
        try:
            subprocess.run([sys.executable, "-m", "venv", PEERS], check=True)
            install = [python, "-m", "pip", "install", "--quiet", *PACKAGES]
            subprocess.run(install, check=True, stdout=sys.stderr)
        except (subprocess.CalledProcessError, OSError) as error:
            print(f"no LangGraph: {error}", file=sys.stderr)
            return None
        ready.touch()
    return str(python)


def measure(python: str, system: str, shape: str, size: int, journal: bool) -> dict[str, float]:
    """One measurement, in a process of its own."""
    script = "overhead_langgraph.py" if system == "langgraph" else "overhead_shapes.py"
    command = [python, str(HERE / script), system, shape, str(size), str(journal).lower()]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=ENDS_S)
    return json.loads(done.stdout.splitlines()[-1])


def plan(quick: bool, python: str | None) -> list[tuple[str, str, int, bool]]:
    """(system, shape, size, journal), the systems side by side."""
    ours, theirs = (QUICK, QUICK_PEER) if quick else (FULL, PEER)
    found: list[tuple[str, str, int, bool]] = []
    for journal in (False, True):
        for shape in ours:
            found.append(("tenter", shape, ours[shape], journal))
            if not journal:
                found.append(("asyncio", shape, ours[shape], False))
            if python is not None:
                found.append(("langgraph", shape, theirs[shape], journal))
        if not journal:
            found.append(("tenter", "W2", WIDE, False))
    if not quick:
        found.append(("tenter", "W3", 10 * ours["W3"], False))  # is memory flat in the rows?
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--data", default="../shared/data", help="not read")
    quick: bool = parser.parse_args().quick
    peer = langgraph_python()
    cases = plan(quick, peer)
    figures: dict[tuple[str, str, int, bool], list[dict[str, float]]] = {}
    for _ in range(1 if quick else 3):
        for case in cases:
            python = peer if case[0] == "langgraph" else sys.executable
            assert python is not None
            figures.setdefault(case, []).append(measure(python, *case))
    report(figures, quick)


def report(figures: dict[tuple[str, str, int, bool], list[dict[str, float]]], quick: bool) -> None:
    """One JSON line per figure, then a table. The baseline is LangGraph's figure, where there is one."""
    peers = {(case[1], case[3]): case for case in figures if case[0] == "langgraph"}
    found = Figures("overhead")
    for case, runs in figures.items():
        system, shape, size, journal = case
        peer = peers.get((shape, journal)) if system != "langgraph" else None
        setup = {"system": system, "shape": shape, "size": size, "journal": journal}
        for metric, unit in (
            ("us_per_step", "us CPU"),
            ("wall_us_per_step", "us"),
            ("peak_mb", "MB"),
        ):
            baseline = middle(figures[peer], metric) if peer is not None else None
            found.add(metric, middle(runs, metric), baseline, unit, **setup, rounds=len(runs))
    found.table(f"Cost per step{' (quick: one round, small sizes)' if quick else ''}")


def middle(runs: list[dict[str, float]], metric: str) -> float:
    return statistics.median(run[metric] for run in runs)


if __name__ == "__main__":
    main()
