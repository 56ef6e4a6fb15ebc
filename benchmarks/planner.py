"""The planner's own cost: tokens per second through statistics and reordering, memory, explain.

    python benchmarks/planner.py [--quick] [--rows ROWS] [--data DIR]

Generated tables of orders (six columns, some 50 tokens a row as JSON behind an instruction) of growing
size, each in a process of its own, and the tables of DIR/tables. Tokens are those of the tiny
model's tokenizer, over distinct texts. `stats` is the one pass over the rows, with the sample
tokenised; `encode` gives each distinct segment its tokens; `arrange` orders rows and fields; `plan`
is all rules over a workflow of three steps. `explain_s` is what a user waits for, from a CSV file
to the text, `explain_again_s` with the statistics kept. All but memory is CPU time of the process,
the tokenizer's threads included.
"""

import argparse
import csv
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

sys.path.insert(0, str(Path(__file__).parent))
from _common import Figures, one_thread

ROWS = 1_000_000
QUICK_ROWS = 20_000
NAMES = ["id", "customer", "region", "state", "stars", "product"]
INSTRUCTION = (
    "You read the orders of a shop. Below is one of them, as a JSON object. Say in one word whether "
    "somebody should look at it before it is sent: YES or NO.\n"
)
Made = TypeVar("Made")


def orders(rows: int, rng: random.Random) -> Iterator[list[str]]:
    """Orders of customers: an entity with fixed fields, a few categories, a time."""
    for _ in range(rows):
        customer = int(rng.paretovariate(1.1) * 7) % max(1, rows // 20)
        yield [
            f"{rng.randrange(10**9)}",
            f"Customer number {customer}",
            f"Region {customer % 40}",
            ("open", "paid", "sent", "lost")[min(3, int(rng.expovariate(1.2)))],
            f"{rng.randrange(5) + 1}/5",
            f"Product {int(rng.paretovariate(0.9)) % 500} of the spring catalogue",
        ]


class Stages:
    """CPU seconds of each stage, as they come."""

    def __init__(self) -> None:
        self.took_s: dict[str, float] = {}

    def run(self, name: str, work: Callable[[], Made]) -> Made:
        started_s = time.process_time()
        made = work()
        self.took_s[name] = time.process_time() - started_s
        return made


def pipeline(names: list[str]) -> str:
    """A choice over the whole row, a summary of most of it, and an answer to both, as YAML."""
    fields = "\n".join(f"{name}: {{{{ {name} }}}}" for name in names)
    later = f"{{{{ kind }}}}: {{{{ {names[-1]} }}}} {{{{ {names[0]} }}}}"
    return json.dumps(
        {
            "version": 1,
            "name": "flow",
            "inputs": dict.fromkeys(names, "string"),
            "steps": {
                "kind": {"llm": INSTRUCTION + fields, "choices": ["yes", "no"]},
                "short": {"llm": f"Sum it up.\n{fields}"},
                "answer": {"llm": f"{later}\n{{{{ short }}}}"},
            },
            "output": "{{ answer }}",
        }
    )


def measure(path: Path) -> dict[str, float]:
    """The figures of one table."""
    from tenter.planner.optimize import optimize
    from tenter.planner.plan import Context
    from tenter.planner.reorder import Layout
    from tenter.planner.stats import collect
    from tenter.runtime import explain
    from tenter.runtime.spec import loads
    from tenter.runtime.table_stats import tokens_of_spec
    from tenter.runtime.workflow import ModelSpec

    csv.field_size_limit(1 << 30)
    tokens, stages = tokens_of_spec(ModelSpec()), Stages()
    with path.open(newline="", encoding="utf-8") as file:
        header = next(csv.reader(file))
    names = [f"c{number}" for number, _ in enumerate(header)]
    layout = Layout.json_object(names, INSTRUCTION, free=names)

    def rows() -> Iterator[list[str]]:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file)
            next(reader)
            for row in filter(None, reader):  # cells may be missing, or too many
                yield (row + [""] * len(names))[: len(names)]

    stages.run("read", lambda: sum(1 for _ in rows()))
    mappings = (dict(zip(names, row, strict=True)) for row in rows())
    stats = stages.run("stats", lambda: collect(mappings, names, None, tokens.count))
    graph, context = loads(pipeline(names)).graph, Context(stats, tokens=tokens)
    assert graph is not None
    stages.run("plan", lambda: optimize(graph, context))
    stats_mb = peak_mb()
    reordered = reorder(rows(), layout, tokens, stages)
    found = {**reordered, "stats_mb": stats_mb, "reorder_mb": peak_mb()}
    with tempfile.TemporaryDirectory() as home:
        flow, copy = Path(home) / "flow.yaml", Path(home) / "table.csv"
        flow.write_text(pipeline(names))
        write(copy, names, rows())
        for name in ("explain", "explain_again"):
            stages.run(name, lambda: str(explain(str(flow), copy, home=home)))
    return found | {f"{name}_s": took_s for name, took_s in stages.took_s.items()}


def reorder(
    rows: Iterator[list[str]], layout: Any, tokens: Any, stages: Stages
) -> dict[str, float]:
    """Encode and arrange a table; what it holds and what a cache would save of it."""
    from tenter.planner.reorder import arrange, encode

    table = stages.run("encode", lambda: encode(rows, layout, tokens.count))
    made = stages.run("arrange", lambda: arrange(table))
    return {
        "rows": float(table.rows),
        "tokens": float(table.prompt_tokens),
        "hit_rate": made.saved_tokens / max(1, made.prompt_tokens),
    }


def write(path: Path, names: list[str], rows: Iterator[list[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows(rows)


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def told(figures: Figures, table: str, found: dict[str, float]) -> None:
    setup = {"table": table, "rows": int(found["rows"])}
    for stage in ("stats", "encode", "arrange"):
        rate = found["tokens"] / max(found[f"{stage}_s"], 1e-9)
        figures.add(f"{stage}_tokens_per_s", rate, unit="tokens/s", **setup)
    for stage in ("read", "stats", "plan", "encode", "arrange", "explain", "explain_again"):
        figures.add(f"{stage}_s", found[f"{stage}_s"], unit="s", **setup)
    for name in ("stats_mb", "reorder_mb"):
        figures.add(name, found[name], unit="MB", **setup)
    figures.add("expected_hit_rate", found["hit_rate"], **setup)


def apart(path: Path) -> dict[str, float]:
    """The figures of a table, from a process of its own: so its memory is its own."""
    command = [sys.executable, __file__, "--measure", str(path)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rows", type=int, default=ROWS, help="of the largest generated table")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    one_thread()
    if given.measure:
        sys.stdout.write(json.dumps(measure(given.measure)))
        return
    figures = Figures("planner")
    most = min(given.rows, QUICK_ROWS) if given.quick else given.rows
    with tempfile.TemporaryDirectory() as folder:
        smaller = () if given.quick else (size for size in (10_000, 100_000) if size < most)
        for rows in (*smaller, most):
            path = Path(folder) / f"orders_{rows}.csv"
            write(path, NAMES, orders(rows, random.Random(1)))
            told(figures, "orders", apart(path))
    for path in () if given.quick else sorted((given.data / "tables").glob("*.csv")):
        told(figures, path.stem, apart(path))
    figures.table("The planner's own cost")


if __name__ == "__main__":
    main()
