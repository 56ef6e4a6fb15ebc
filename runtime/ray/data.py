"""A workflow as a stage of a Ray Data pipeline: columns in, columns with its answers out.

Each process of the stage opens the models once, and runs the rows of a batch side by side, in the
order of their prefixes. Nothing is kept: Ray Data itself repeats the batches of a process that dies.
"""

import asyncio
import itertools
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import asdict
from importlib import import_module
from typing import Any, Literal, get_args

import msgspec
from anyio.from_thread import start_blocking_portal

from ...planner.optimize import optimize
from ...planner.plan import Context
from ..api.checks import result_schema
from ..errors import BackendUnavailable, InvalidInput, InvalidTable, TenterError
from ..jobs.engine import Begin, open_work
from ..jobs.spec import MapSpec, fields_of, portable
from ..jobs.work import RowWork, concurrency_of
from ..journal.memory import NoJournal
from ..run.local import bind, open_backends
from ..run.rows import tell
from ..tables import Layout, coerce, layout
from ..tables.parquet import arrow_types, plain
from ..tables.values import fit
from ..trace import NoTrace
from .cluster import placement
from .shard import Shard, ShardRow

Errors = Literal["column", "raise"]
BATCH_ROWS = 256
_Ending = tuple[Any, Exception | None]


def map_batches(
    dataset: Any,
    workflow: str,
    *,
    columns: Mapping[str, str] | None = None,
    models: Mapping[str, str] | None = None,
    errors: Errors = "column",
    processes: int = 1,
    resources: Mapping[str, float] | None = None,
    concurrency: int | None = None,
    batch_rows: int = BATCH_ROWS,
    cache: bool | None = None,
    home: str | None = None,
) -> Any:
    """`dataset`, a `ray.data.Dataset`, with the answers of a workflow as columns.

    `workflow` is "pipeline.yaml", "file.py:name" or "module:name", and must be there on every
    machine. `columns` names the column that feeds an input, where that is not its namesake. An
    object with known keys becomes a column per key, anything else one column `answer`; a row that
    fails has an `error`, or with `errors="raise"` ends the pipeline. So many `processes`, each of
    which takes `resources` of the cluster ({"GPU": 1}), run `concurrency` rows side by side.
    `models`, `cache` and `home` are as for `tenter map`. Raises InvalidInput for what cannot be.
    """
    if errors not in get_args(Errors):
        raise InvalidInput(f"errors={errors!r}: it is one of {', '.join(get_args(Errors))}")
    spec = MapSpec(
        workflow,
        table="",
        out="",
        models=models or {},
        concurrency=concurrency,
        journal=False,
        cache=cache,
        home=home,
    )
    rows = RowWork(spec)
    known = [given.name for given in rows.workflow.inputs]
    for name in columns or {}:
        if name not in known:
            raise InvalidInput(f"columns: the workflow has no input {name!r}; it has {known}")
    return dataset.map_batches(
        Stage,
        fn_constructor_args=(
            msgspec.json.encode(asdict(portable(spec))),
            dict(columns or {}),
            errors,
        ),
        batch_size=batch_rows,
        batch_format="pyarrow",
        concurrency=processes,
        **placement({"CPU": 1.0, **(resources or {})}),
    )


class Stage:
    """What Ray Data calls with each batch, in each of its processes."""

    def __init__(self, spec: bytes, columns: Mapping[str, str], errors: Errors) -> None:
        self._rows = RowWork(MapSpec(**fields_of(spec.decode())))
        self._columns = columns
        self._errors = errors
        self._numbers = itertools.count()
        self._schemas = {given.name: given.schema for given in self._rows.workflow.inputs}
        self._stack = ExitStack()
        self._portal = self._stack.enter_context(start_blocking_portal())
        opened = self._portal.wrap_async_context_manager(_open(self._rows))
        self._shard = self._stack.enter_context(opened)

    def __call__(self, batch: Any) -> Any:
        """A table of pyarrow with the answers beside it."""
        self._check(batch.column_names)
        endings = self._portal.call(self._run, batch.to_pylist())
        failed = [error for _, error in endings if error is not None]
        if failed and (self._errors == "raise" or isinstance(failed[0], BackendUnavailable)):
            raise TenterError(
                f"{len(failed):,} of {len(endings):,} rows of a batch failed, the first with: "
                f"{tell(failed[0])}"
            )
        return _beside(batch, self._rows, endings)

    def close(self) -> None:
        """Let go of the models."""
        self._stack.close()

    async def _run(self, rows: Sequence[Mapping[str, Any]]) -> list[_Ending]:
        """How each row has ended."""
        endings: list[_Ending | None] = [None] * len(rows)
        over = asyncio.Event()
        left = len(rows)
        ready: list[ShardRow] = []
        for index, cells in enumerate(rows):

            def ended(value: Any, error: Exception | None, index: int = index) -> None:
                nonlocal left
                endings[index] = value, error
                left -= 1
                if not left:
                    over.set()

            try:
                inputs = bind(self._rows.workflow, coerce(self._given(cells), self._schemas))
            except (InvalidTable, InvalidInput) as error:
                ended(None, error)
            else:
                ready.append(ShardRow(next(self._numbers), inputs, ended))
        self._shard.add(ready)
        if rows:
            await over.wait()
        return [ending for ending in endings if ending is not None]

    def _check(self, there: Sequence[str]) -> None:
        for given in self._rows.workflow.inputs:
            column = self._columns.get(given.name, given.name)
            if column not in there and (given.required or given.name in self._columns):
                raise InvalidTable(
                    f"the dataset has no column {column!r} for input {given.name!r}; it has "
                    f"{', '.join(there)}"
                )

    def _given(self, cells: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs that a row gives; null leaves an optional one at its default."""
        found: dict[str, Any] = {}
        for given in self._rows.workflow.inputs:
            column = self._columns.get(given.name, given.name)
            value = plain(cells.get(column))
            if column in cells and (value is not None or given.required):
                found[given.name] = value
        return found


@asynccontextmanager
async def _open(rows: RowWork) -> AsyncGenerator[Shard]:
    """The workflow on its models, ready for rows."""
    graph = rows.workflow.graph
    context = Context(consolidate=rows.consolidate, without=rows.without)
    async with open_backends(rows.models) as backends:
        begin = Begin(
            run="",
            plan=None if graph is None else optimize(graph, context),
            journal=NoJournal(),
            trace=NoTrace(),
            learned=None,
            scheduling=rows.scheduling(),
            concurrency=rows.spec.concurrency or concurrency_of(backends),
            pins=True,
        )
        async with open_work(rows, backends, begin) as work:
            shard = Shard(work, begin.concurrency)
            try:
                yield shard
            finally:
                shard.abort()


def _beside(batch: Any, rows: RowWork, endings: Sequence[_Ending]) -> Any:
    """The batch with the columns that the answers have in an output file."""
    pa = import_module("pyarrow")  # which has no stubs
    shape = layout(dict.fromkeys(batch.column_names, "json"), result_schema(rows.workflow))
    cells = [_cells(shape, value, error) for value, error in endings]
    types = arrow_types(pa)
    for column in (*shape.results, shape.error):
        values = [row[column] for row in cells]
        batch = batch.append_column(column, pa.array(values, types[shape.kinds[column]]))
    return batch


def _cells(shape: Layout, value: Any, error: Exception | None) -> dict[str, Any]:
    """The cells of a row; a value that its column has no room for is an error."""
    row = shape.row({}, value, None if error is None else tell(error))
    for column in shape.results:
        try:
            row[column] = fit(row[column], shape.kinds[column])
        except ValueError as problem:
            row[column] = None
            row[shape.error] = f"column {column!r} has no room for its value: {problem}"
    return row
