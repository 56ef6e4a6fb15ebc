"""Workflows over real tables, on the embedded engine with the tiny model, end to end.

    python benchmarks/tables.py [--quick] [--data DIR]

`beer`: 28,479 reviews, a choice per row and a description per style of beer (benchmarks/beer.yaml).
`gsm8k`: 300 word problems with visible reasoning (benchmarks/gsm8k.yaml). Both to Parquet, with
the journal. The baseline is the same engine run row by row: no consolidation. Each run is a
process of its own, so that its peak memory is its own. `--quick`: 1,500 and 40 rows.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from _common import Figures

HERE = Path(__file__).parent
JOBS = {
    "beer": ("beer.yaml", "tables/beer.csv", None, 1500),
    "gsm8k": ("gsm8k.yaml", "qa/gsm8k_test.jsonl", 300, 40),
}


def run_job(workflow: str, table: str, out: str, limit: int | None, consolidate: bool) -> None:
    """One run, in this process; its figures as a JSON line."""
    import resource
    import time

    import anyio

    from tenter.runtime.jobs import Control, MapSpec, map_table
    from tenter.runtime.report.tally import Tally

    home = str(Path(out).parent)
    spec = MapSpec(workflow, table, out, limit=limit, home=home, consolidate=consolidate)
    started_s, cpu_s = time.perf_counter(), time.process_time()
    outcome = anyio.run(lambda: map_table(spec, Control(), Tally()))
    total, snapshot = outcome.snapshot.total, outcome.snapshot
    assert outcome.status == "done" and not outcome.rows_failed, outcome
    line = {
        "rows": outcome.rows_done,
        "rows_per_s": outcome.rows_done / snapshot.elapsed_s,
        "tokens_per_s": (total.prompt_tokens + total.output_tokens) / snapshot.elapsed_s,
        "hit_rate": total.cached_tokens / max(total.prompt_tokens, 1),
        "calls": total.calls,
        "calls_consolidated": total.shared,
        "computed_tokens": total.prompt_tokens - total.cached_tokens + total.output_tokens,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "cpu_s": time.process_time() - cpu_s,
        "wall_s": time.perf_counter() - started_s,
    }
    print(json.dumps(line))


def measure(name: str, data: Path, quick: bool, consolidate: bool) -> dict[str, float]:
    workflow, table, rows, few = JOBS[name]
    with tempfile.TemporaryDirectory() as folder:
        limit = few if quick else rows
        arguments = [str(HERE / workflow), str(data / table), f"{folder}/out.parquet"]
        command = [sys.executable, __file__, "--job", json.dumps([*arguments, limit, consolidate])]
        environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--job", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job:
        run_job(*json.loads(given.job))
        return
    figures = Figures("tables")
    for name, (_, table, _, _) in JOBS.items():
        if not (given.data / table).exists():
            sys.exit(f"{given.data / table} is missing: name the folder of the data with --data")
        ours = measure(name, given.data, given.quick, consolidate=True)
        base = measure(name, given.data, given.quick, consolidate=False)
        for metric, value in ours.items():
            figures.add(metric, value, base[metric], table=name, rows=int(ours["rows"]))
    figures.table("Tables; the baseline is the same engine without consolidation")


if __name__ == "__main__":
    main()
