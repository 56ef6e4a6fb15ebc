"""A planned pipeline against the same one row by row, on the same engine, in one run.

    python benchmarks/pipeline.py [--quick] [--data DIR] [--rows N] [--kv TOKENS ...]

2,000 tickets in no order, each about twice: a choice of team (an LLM step) with the data sheet of
one of 40 products in view, a look-up of the policy (a tool, 5 ms), and an answer of at most 32
tokens (an LLM step). All prompts begin with one handbook. The tiny model on the embedded engine,
float32, greedy, one thread; a fresh engine for each system. `_pipeline_flow.py` has the workflow.

Peers: a coroutine per row and `asyncio.gather`; LangGraph (a node per step, `abatch`, 256 rows at
once). Tenter runs `map` as `tenter map` does, with its journal and its output file. Answers are
compared: they must be equal. Then each rule is left out in turn. Seconds are those of the run
without loading the model: of the wall clock, and of the CPU of all threads.

`--quick`: 64 rows of 8 products, and one size of the KV cache.
"""

import argparse
import asyncio
import csv
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from _common import Figures, one_thread

one_thread()

import overhead
from _pipeline_flow import table
from _pipeline_peers import Asker, langgraph, plain

from tenter.runtime.backends.embedded import EmbeddedBackend
from tenter.runtime.jobs import Control, MapSpec, map_table
from tenter.runtime.models import tiny_path
from tenter.runtime.report.tally import Tally

ROWS, QUICK_ROWS = 2_000, 64
KV_TOKENS = (16_384, 131_072)  # scarce, and plenty
LEFT_OUT = ("consolidate", "order", "group")
FLOW = Path(__file__).parent / "_pipeline_flow.py"


@dataclass(frozen=True, slots=True)
class Ran:
    """What one system took, and what it answered, in the order of the rows."""

    wall_s: float
    cpu_s: float
    calls: int
    computed_tokens: int
    output_tokens: int
    answers: list[dict[str, str]]


async def peer(run: Any, rows: Sequence[dict[str, str]], kv_tokens: int) -> Ran:
    """One of `_pipeline_peers` on an engine of its own."""
    async with EmbeddedBackend(tiny_path(), kv_tokens=kv_tokens, threads=1) as backend:
        asker = Asker(backend)
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        answers = await run(asker, rows)
        wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    computed = asker.prompt_tokens - asker.cached_tokens
    return Ran(wall_s, cpu_s, asker.calls, computed, asker.output_tokens, answers)


class Clocks(Tally):
    """A tally that reads the CPU's clock where a run begins and ends."""

    def __init__(self) -> None:
        super().__init__()
        self.cpu_s: list[float] = []
        self.wall_s: list[float] = []

    def write(self, at_s: float, record: Any) -> None:
        if type(record).__name__ in ("RunStarted", "RunEnded"):
            self.cpu_s.append(time.process_time())
            self.wall_s.append(time.perf_counter())
        super().write(at_s, record)


async def tenter(
    rows: Sequence[dict[str, str]], kv_tokens: int, folder: Path, without: tuple[str, ...] = ()
) -> Ran:
    """`map_table`, with a journal and a trace in `folder`."""
    given, out = folder / "rows.csv", folder / "answers.jsonl"
    with given.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    model = f"embedded:path=tiny,kv_tokens={kv_tokens},threads=1"
    spec = MapSpec(
        f"{FLOW}:answer",
        str(given),
        str(out),
        models={"default": model},
        home=str(folder),
        without=without,
    )
    clocks = Clocks()
    outcome = await map_table(spec, Control(), clocks)
    if outcome.status != "done" or outcome.rows_failed:
        sys.exit(f"the run ended as {outcome.status}, {outcome.rows_failed} rows failed")
    total = outcome.snapshot.total
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    answers = [{name: line[name] for name in ("kind", "reply")} for line in lines]
    out.unlink()
    return Ran(
        clocks.wall_s[-1] - clocks.wall_s[0],
        clocks.cpu_s[-1] - clocks.cpu_s[0],
        total.calls,
        total.prompt_tokens - total.cached_tokens,
        total.output_tokens,
        answers,
    )


async def measure(
    figures: Figures, rows: Sequence[dict[str, str]], kv_tokens: int, folder: Path
) -> None:
    """All systems on a KV cache of `kv_tokens`."""
    setup = {"rows": len(rows), "kv_tokens": kv_tokens}
    ours = await tenter(rows, kv_tokens, folder)
    told(figures, "tenter", ours, ours, setup)
    systems = {"asyncio": plain, "langgraph": langgraph}
    for name in systems if have_langgraph() else ("asyncio",):
        ran = await peer(systems[name], rows, kv_tokens)
        told(figures, name, ran, ours, setup)
        figures.add("speedup", ran.wall_s / ours.wall_s, 1.0, clock="wall", peer=name, **setup)
        figures.add("speedup", ran.cpu_s / ours.cpu_s, 1.0, clock="cpu", peer=name, **setup)
    for rule in LEFT_OUT:
        ran = await tenter(rows, kv_tokens, folder, (rule,))
        told(figures, f"tenter without {rule}", ran, ours, setup)
        figures.add("gained_by_rule", ran.wall_s / ours.wall_s, clock="wall", rule=rule, **setup)
        figures.add("gained_by_rule", ran.cpu_s / ours.cpu_s, clock="cpu", rule=rule, **setup)


def told(figures: Figures, system: str, ran: Ran, ours: Ran, setup: dict[str, int]) -> None:
    """Report what a system took; its answers must be those of Tenter."""
    if ran.answers != ours.answers:
        sys.exit(f"{system} and tenter do not answer alike")
    figures.add("wall_s", ran.wall_s, unit="s", system=system, **setup)
    figures.add("cpu_s", ran.cpu_s, unit="CPU-s", system=system, **setup)
    figures.add("calls", ran.calls, system=system, **setup)
    figures.add("computed_tokens", ran.computed_tokens, unit="tokens", system=system, **setup)


def have_langgraph() -> bool:
    """Make LangGraph importable: it lives beside our own packages, which come first."""
    if overhead.langgraph_python() is None:
        return False
    for path in sorted((overhead.PEERS / "lib").glob("python*/site-packages")):
        if str(path) not in sys.path:
            sys.path.append(str(path))
    return True


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROWS} rows, one KV cache")
    parser.add_argument("--data", type=Path, help="not read")
    parser.add_argument("--rows", type=int, help=f"{ROWS:,} if not given")
    parser.add_argument("--kv", type=int, nargs="+", help="sizes of the KV cache, tokens")
    options = parser.parse_args()
    sizes = options.kv or (KV_TOKENS[:1] if options.quick else KV_TOKENS)
    rows = table(options.rows or (QUICK_ROWS if options.quick else ROWS))
    figures = Figures("pipeline")
    with tempfile.TemporaryDirectory() as folder:
        for kv_tokens in sizes:
            asyncio.run(measure(figures, rows, kv_tokens, Path(folder)))
    figures.table(f"A pipeline of {len(rows)} rows: planned against row by row")


if __name__ == "__main__":
    main()
