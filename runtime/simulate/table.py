"""A pipeline over a table as a workload: what `tenter map` would ask, on engines that are not there.

Rows are streamed: they are lowered once, into a file of our own format that is gone afterwards, so
that every policy reads the same programs and none of them is held in memory.
"""

import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from ...planner.graph import LLM, Step, ToolCall, tools_of
from ...planner.graph import walk as steps_of
from ..backends.estimate import EstimatedTokenizer
from ..calls import Tokenizer
from ..errors import InvalidInput
from ..jobs import Job, MapSpec
from ..journal.store import Store
from ..predict import Learned
from ..replay import Program, Workload, read_workload, write_workload
from ..run.rows import WINDOW_ROWS, Row
from .lowering import Lowering
from .standin import StandIns

Told = Callable[[int], None]
TOOL_S = 1.0  # of a tool that no earlier run has called


@dataclass(frozen=True, slots=True)
class Asked:
    """A pipeline over a table.

    `limit` rows of the table, all if None. They arrive by a Poisson process of rate `per_s`, all at
    once if None. `tokenizer` is a model's folder or "tiny"; without, tokens are estimated. What
    earlier runs in `home` have taught of lengths and tools is used; a tool that none has called
    takes `tool_s`. What is drawn follows from `seed`.
    """

    workflow: str
    table: str
    limit: int | None = None
    per_s: float | None = None
    tokenizer: str | None = None
    home: str | None = None
    tool_s: float = TOOL_S
    seed: int = 0


@dataclass(slots=True)
class Lowered:
    """The workload, and what should be said of it."""

    workload: Workload
    rows: int = 0
    bad_rows: int = 0
    first_bad: str = ""
    shared: int = 0  # calls that an equal one answers
    sessions: bool = False  # whether programs are conversations: where there are agents
    notes: list[str] = field(default_factory=list[str])

    def record(self) -> dict[str, Any]:
        """What should be said, as one JSON record."""
        return {
            "type": "lowered",
            "workload": self.workload.name,
            "rows": self.rows,
            "bad_rows": self.bad_rows,
            "first_bad": self.first_bad,
            "shared_calls": self.shared,
            "notes": self.notes,
        }


@contextmanager
def lowered(asked: Asked, on_row: Told = lambda rows: None) -> Generator[Lowered]:
    """The workload of a pipeline over a table, which can be read within the block.

    `on_row` hears how many rows were lowered. Raises InvalidInput for a workflow or a table that
    `tenter map` would refuse, for a workflow without a graph, and where no row asks a model.
    """
    _check(asked)
    job = Job(MapSpec(asked.workflow, asked.table, out="", limit=asked.limit))
    plan = job.plan()
    name = job.workflow.name
    if plan is None:
        raise InvalidInput(
            f"{asked.workflow} is an `async def` workflow: its steps are known when they are "
            "reached. Run it once, and simulate what was recorded: tenter simulate .tenter/runs/RUN"
        )
    tokenizer = _tokenizer(asked.tokenizer)
    learned = Learned.load(Store(asked.home).place, name, "")
    stand_ins = StandIns(name, tokenizer, learned, asked.tool_s)
    workflow = replace(job.workflow, graph=plan.graph)
    lowering = Lowering(workflow, tokenizer, stand_ins, asked.seed)
    order = plan.row_order.columns if asked.per_s is None else ()
    found = Lowered(Workload(name, lambda: iter(())))
    rows = _rows(job.rows(), order)
    with tempfile.TemporaryDirectory(prefix="tenter-") as folder:
        path = Path(folder) / "workload.jsonl"
        programs = Workload(name, lambda: _programs(rows, lowering, asked, found, on_row))
        if not write_workload(programs, path):
            raise _nothing(asked, found)
        found.workload, found.shared = read_workload(path), lowering.shared
        found.notes = list(_notes(asked, found, stand_ins, plan.graph.steps))
        found.sessions = any(isinstance(s, LLM) and s.loop for s in steps_of(plan.graph.steps))
        yield found


def _check(asked: Asked) -> None:
    if asked.per_s is not None and not asked.per_s > 0:
        raise InvalidInput(f"--rate must be positive, not {asked.per_s:g} rows per second")
    if not asked.tool_s >= 0:
        raise InvalidInput(f"--tool-seconds must be 0 or more, not {asked.tool_s:g}")


def _tokenizer(given: str | None) -> Tokenizer:
    if given is None:
        return EstimatedTokenizer()
    from ..models import tiny_path
    from ..tokenizer import HFTokenizer

    return HFTokenizer(tiny_path() if given == "tiny" else given)


def _rows(rows: Iterator[Row], order: tuple[str, ...]) -> Iterator[Row]:
    """The rows, sorted within windows as a run sorts them."""
    if not order:
        yield from rows
        return
    while window := list(islice(rows, WINDOW_ROWS)):
        yield from sorted(window, key=lambda row: [str(row.inputs.get(name)) for name in order])


def _programs(
    rows: Iterator[Row], lowering: Lowering, asked: Asked, found: Lowered, on_row: Told
) -> Iterator[Program]:
    random, now_s = Random(asked.seed), 0.0
    for row in rows:
        found.rows += 1
        on_row(found.rows)
        if row.problem:
            found.bad_rows += 1
            found.first_bad = found.first_bad or f"row {row.row + 1}: {row.problem}"
            continue
        if asked.per_s is not None:
            now_s += random.expovariate(asked.per_s)
        program = lowering.program(row.row, row.inputs, now_s)
        if program is not None:
            yield program


def _nothing(asked: Asked, found: Lowered) -> InvalidInput:
    if found.bad_rows == found.rows:
        return InvalidInput(f"{asked.table}: no row can be used; {found.first_bad}")
    return InvalidInput(f"{asked.workflow}: no row asks a model, so there is nothing to simulate")


def _left_out(asks: list[LLM]) -> Iterator[str]:
    """What a run would do with these steps, and the simulator does not."""
    packed = [step.id for step in asks if step.pack is not None]
    if packed:
        yield f"{', '.join(packed)}: each row has a prompt of its own; packs are not simulated"
    cascaded = [step.id for step in asks if step.cascade is not None]
    if cascaded:
        yield (
            f"{', '.join(cascaded)}: all rows are answered by the step's own model; a small model "
            "that answers first is not simulated"
        )
    whole = [
        step.id
        for step in asks
        if step.reduce is not None and step.reduce.tree and step.reduce.batch_tokens is None
    ]
    if whole:
        yield (
            f"{', '.join(whole)}: all items go into one call, as the model's context is not known; "
            "`batch_tokens` has the tree simulated"
        )


def _notes(
    asked: Asked, found: Lowered, stand_ins: StandIns, steps: tuple[Step, ...]
) -> Iterator[str]:
    """What was assumed, a sentence each."""
    inside: list[Any] = list(steps_of(steps))
    asks = [step for step in inside if isinstance(step, LLM)]
    if asked.tokenizer is None:
        yield "tokens are estimated, four bytes each; --tokenizer FOLDER counts with a model's own"
    drawn = [s.id for s in asks if not s.choices and not stand_ins.knows_length(s.id)]
    if drawn:
        yield (
            f"no run has taught how long answers of {', '.join(drawn)} are: drawn evenly up to "
            "max_tokens"
        )
    tools = {name: None for step in inside for name in tools_of(step)}
    unknown = [name for name in tools if not stand_ins.knows_seconds(name)]
    if unknown:
        yield (
            f"no run has taught how long {', '.join(unknown)} takes: {asked.tool_s:g} s a call "
            "(--tool-seconds)"
        )
    if any(isinstance(step, ToolCall) or tools_of(step) for step in inside):
        yield "no tool is called: results are stood in for"
    yield from _left_out(asks)
    if len({step.model for step in asks}) > 1:
        yield "the workflow's models are simulated as one"
    if found.shared:
        yield f"{found.shared:,} calls are left out because an equal one answers them"
    if found.bad_rows:
        yield f"{found.bad_rows:,} rows cannot be used; the first: {found.first_bad}"
