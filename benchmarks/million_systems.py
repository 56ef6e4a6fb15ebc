"""One table through one system, from CSV to Parquet, with a model that answers at once.

Run by `million.py`, one measurement per process, as `python million_systems.py SYSTEM TABLE OUT`;
the peers' packages are in virtual environments of their own, so nothing is imported before it is
needed. Prints seconds, CPU seconds and peak memory as a JSON line.
"""

import asyncio
import csv
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypedDict

AT_ONCE = 64  # rows, or calls, in flight
BATCH = 10_000  # rows of the bare loop's output that are written together
WORKFLOW = """\
version: 1
name: short
inputs: { text: string }
steps:
  answer: { llm: "Say something about {{ text }}." }
output: "{{ answer }}"
"""


async def model(prompt: str) -> str:
    await asyncio.sleep(0)
    return "fine"


# ---- Tenter ------------------------------------------------------------------------------------


def tenter(table: str, out: str, journal: bool = True) -> None:
    from tenter.runtime.jobs import Control, MapSpec, map_table
    from tenter.runtime.report.tally import Tally

    folder = Path(out).parent
    workflow = folder / "short.yaml"
    workflow.write_text(WORKFLOW)
    spec = MapSpec(
        *(str(workflow), table, out),
        models={"default": f"fake:reply=fine,max_running={AT_ONCE}"},
        home=str(folder / "home"),
        journal=journal,
    )
    outcome = asyncio.run(map_table(spec, Control(), Tally()))
    assert outcome.status == "done" and not outcome.rows_failed, outcome


# ---- a bare loop -------------------------------------------------------------------------------


def bare(table: str, out: str) -> None:
    """As many tasks as rows in flight, each takes the next row; output is written in batches."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("id", pa.int64()), ("text", pa.string()), ("answer", pa.string())])
    held: dict[int, dict[str, Any]] = {}

    async def work(rows: Iterator[tuple[int, dict[str, str]]], writer: Any) -> None:
        written = 0
        batch: list[dict[str, Any]] = []

        def hand_on() -> None:
            nonlocal written
            while written in held:
                batch.append(held.pop(written))
                written += 1
            if len(batch) >= BATCH:
                writer.write_table(pa.Table.from_pylist(batch, schema))
                batch.clear()

        async def worker() -> None:
            for number, row in rows:
                answer = await model(f"Say something about {row['text']}.")
                held[number] = {"id": int(row["id"]), "text": row["text"], "answer": answer}
                hand_on()

        await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
        writer.write_table(pa.Table.from_pylist(batch, schema))

    with open(table, newline="") as file, pq.ParquetWriter(out, schema) as writer:
        asyncio.run(work(enumerate(csv.DictReader(file)), writer))


# ---- peers -------------------------------------------------------------------------------------


class State(TypedDict):
    text: str
    answer: str


def langgraph(table: str, out: str) -> None:
    """`abatch` over all rows, as its documentation has it; the answers are written as CSV."""
    from langgraph.graph import END, START, StateGraph

    async def step(state: State) -> dict[str, str]:
        return {"answer": await model(f"Say something about {state['text']}.")}

    graph = StateGraph(State)
    graph.add_node("answer", step)
    graph.add_edge(START, "answer")
    graph.add_edge("answer", END)
    app = graph.compile()
    with open(table, newline="") as file:
        inputs = [{"text": row["text"]} for row in csv.DictReader(file)]
    answers = asyncio.run(app.abatch(inputs, {"max_concurrency": AT_ONCE}))
    with open(out, "w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "answer"])
        writer.writeheader()
        writer.writerows(answers)


def ray(table: str, out: str) -> None:
    """`map_batches` from CSV to Parquet, a call per row within a batch."""
    import ray as engine

    engine.init(num_cpus=2, include_dashboard=False, logging_level="error")

    def step(batch: dict[str, Any]) -> dict[str, Any]:
        async def all_of_it() -> list[str]:
            return await asyncio.gather(*(model(f"Say {text}.") for text in batch["text"]))

        return {**batch, "answer": asyncio.run(all_of_it())}

    data = engine.data.read_csv(table).map_batches(step, batch_size=AT_ONCE)
    data.write_parquet(out)


def peak_mb() -> float:
    """Of this process and of the largest of its children."""
    own, theirs = (
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return max(own, theirs) / 1024


SYSTEMS: dict[str, Callable[[str, str], None]] = {
    "tenter": tenter,
    "tenter, no journal": lambda table, out: tenter(table, out, journal=False),
    "asyncio": bare,
    "langgraph": langgraph,
    "ray": ray,
}


def main() -> None:
    system, table, out = sys.argv[1:]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    SYSTEMS[system](table, out)
    seconds = {"wall_s": time.perf_counter() - wall_s, "cpu_s": time.process_time() - cpu_s}
    print(json.dumps({**seconds, "peak_mb": peak_mb()}))


if __name__ == "__main__":
    main()
