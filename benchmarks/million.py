"""A million short rows from CSV to Parquet: does memory grow with the table, and how fast is it?

    python benchmarks/million.py [--quick] [--rows N]

`tenter map` with a model that answers at once, with and without the journal, against a run of
10,000 rows; beside it a bare asyncio loop over csv and pyarrow, LangGraph's `abatch` and Ray Data's
`map_batches` with 100,000 rows. Each run is a process of its own,
so that its peak memory is its own; of Ray that is the driver's, its workers and its object store
come on top. `peak_mb_ratio` is the peak of a run over that of 10,000 rows, wanted is at most 1.2;
`rows_per_s` is of the wall clock, from reading to the finished file. LangGraph and Ray live in
`.cache/peers`; what cannot be installed there is left out. `--quick`: 30,000 rows, without them.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from _common import Figures

HERE = Path(__file__).parent
PEERS = HERE.parent / ".cache" / "peers"
PACKAGES = {"langgraph": ("langgraph", "langgraph-checkpoint-sqlite"), "ray": ("ray[data]",)}
FEW = 10_000
QUICK = 30_000
MILLION = 1_000_000
PEER_ROWS = 100_000
ENDS_S = 3600  # of one measurement


def write_table(path: Path, rows: int) -> None:
    with path.open("w") as file:
        file.write("id,text\n")
        file.writelines(f"{row},parcel number {row}\n" for row in range(rows))


def peer_python(name: str) -> str | None:
    """The interpreter that has the peer; None where it cannot be installed."""
    python, ready = PEERS / name / "bin" / "python", PEERS / name / "ready"
    if not ready.exists():
        print(f"installing {name} into {PEERS / name} (once)", file=sys.stderr)
        try:
            subprocess.run([sys.executable, "-m", "venv", PEERS / name], check=True)
            install = [python, "-m", "pip", "install", "--quiet", *PACKAGES[name]]
            subprocess.run(install, check=True, stdout=sys.stderr)
        except (subprocess.CalledProcessError, OSError) as error:
            print(f"no {name}: {error}", file=sys.stderr)
            return None
        ready.touch()
    return str(python)


def measure(python: str, system: str, folder: Path, rows: int) -> dict[str, float]:
    """One run, in a process of its own and in a folder that is new."""
    table = folder / f"{rows}.csv"
    if not table.exists():
        write_table(table, rows)
    with tempfile.TemporaryDirectory(dir=folder) as fresh:
        out = str(Path(fresh) / "out.parquet")
        command = [python, str(HERE / "million_systems.py"), system, str(table), out]
        done = subprocess.run(command, capture_output=True, text=True, timeout=ENDS_S, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{system}, {rows:,} rows: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def report(figures: Figures, python: str, system: str, rows: int, folder: Path) -> None:
    """The figures of `system`, beside those of a few rows."""
    few, many = (measure(python, system, folder, count) for count in (FEW, rows))
    setup = {"system": system, "rows": rows}
    figures.add("rows_per_s", rows / many["wall_s"], unit="rows/s", **setup)
    if system != "ray":  # most of its work is its workers'
        figures.add("rows_per_cpu_s", rows / many["cpu_s"], unit="rows/s", **setup)
    figures.add("peak_mb", many["peak_mb"], few["peak_mb"], "MB", **setup)
    figures.add("peak_mb_ratio", many["peak_mb"] / few["peak_mb"], unit="x", **setup)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rows", type=int, default=None)
    parser.add_argument("--data", default=None, help="not needed")
    given = parser.parse_args()
    rows = given.rows or (QUICK if given.quick else MILLION)
    figures = Figures("million")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ours = ["tenter", "asyncio"] if given.quick else ["tenter", "tenter, no journal", "asyncio"]
        for system in ours:
            report(figures, sys.executable, system, rows, folder)
        for system in () if given.quick else PACKAGES:
            python = peer_python(system)
            if python is not None:
                report(figures, python, system, PEER_ROWS, folder)
    figures.table(f"{rows:,} short rows, CSV to Parquet, a model that answers at once")


if __name__ == "__main__":
    main()
