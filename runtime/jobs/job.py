"""A job whose workflow, table and output fit together, found out before a model is loaded."""

import itertools
import json
import re
from asyncio import to_thread
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ...planner.optimize import optimize
from ...planner.plan import Context, Expected, Plan, Tokens
from ...planner.stats import TableStats
from ..api.checks import result_schema
from ..errors import InvalidInput, InvalidTable
from ..journal.base import Manifest
from ..journal.store import Store
from ..predict import Learned
from ..run.control import Control, Wish
from ..run.local import bind
from ..run.rows import Row
from ..table_stats import Told, table_stats
from ..tables import BadRow, Grouped, Table, TableOutput, View, coerce, open_output, open_table
from .spec import MapSpec, absolute, check_output
from .work import RowWork, expected_of

COUNTED_BYTES = 256 * 2**20  # of a table, up to which its rows are counted ahead
SAMPLE_ROWS = 100  # of which one must be readable for a run to begin
PINNED_ROWS = 8  # a table with fewer rows is not worth pinning prefixes for


class Job(RowWork):
    """A map job whose workflow, table and output fit together; InvalidInput where they do not."""

    def __init__(self, spec: MapSpec) -> None:
        super().__init__(spec)
        if spec.out:
            check_output(Path(spec.out))
        inputs = self.workflow.inputs
        view = View(spec.unnest, spec.group_by)
        keep = spec.columns or spec.group_by
        there = open_table(spec.table, view=view).columns
        self.columns = _columns_of(tuple(given.name for given in inputs), there, spec.table)
        self.optional = {g.name for g in inputs if not g.required}
        required = [self.columns.get(g.name, g.name) for g in inputs if g.required]
        needed = dict.fromkeys((*required, *self.columns.values()))
        self.table = open_table(spec.table, keep or None, spec.limit, needed, view)
        self.schemas = {g.name: g.schema for g in inputs if g.name in self.columns}
        table = self.table
        _check_rows(table.source if isinstance(table, Grouped) else table, spec.table)
        self.keep = keep or self.table.columns
        self.tokens = Tokens()  # how the model counts, once it is known
        self.expected = Expected()

    async def sort(self, control: Control) -> None:
        """Sort the rows into groups, where there are any, while signals are heeded."""
        if isinstance(self.table, Grouped):
            await to_thread(self.table.sort, lambda: control.wish > Wish.RUN)

    def measure(self, tokens: Tokens, learned: Learned | None) -> None:
        """Plan with the model's own tokens, and with what earlier runs have taught."""
        self.tokens = tokens
        if learned is not None:
            self.expected = expected_of(self.workflow, learned)

    @property
    def has_output(self) -> bool:
        return Path(self.spec.out).exists()

    def open_output(self) -> TableOutput:
        """The output files, begun anew: finished rows come back from the journal."""
        schema = result_schema(self.workflow)
        return open_output(self.spec.out, self.table, schema, self.keep)

    def rows(self) -> Iterator[Row]:
        """The table's rows with the workflow's inputs made of them."""
        for item in self.table:
            if isinstance(item, BadRow):
                yield Row(item.row, {}, problem=item.message)
                continue
            row, cells = item
            try:
                yield Row(row, cells, bind(self.workflow, coerce(self.given(cells), self.schemas)))
            except (InvalidTable, InvalidInput) as error:
                yield Row(row, cells, problem=str(error))

    def given(self, cells: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs that a row gives; null leaves an optional one at its default."""
        values = {name: cells.get(column) for name, column in self.columns.items()}
        return {k: v for k, v in values.items() if v is not None or k not in self.optional}

    def plan(self) -> Plan | None:
        """The plan of a static workflow, for this table; None for a program."""
        if self.workflow.graph is None:
            return None
        return optimize(self.workflow.graph, self.context())

    @property
    def constants(self) -> frozenset[str]:
        """The inputs that no column feeds: they are the same for all rows."""
        return frozenset(g.name for g in self.workflow.inputs if g.name not in self.columns)

    def context(self, tell: Told | None = None) -> Context:
        return Context(
            self.statistics(tell),
            self.constants,
            consolidate=self.consolidate,
            tokens=self.tokens,
            expected=self.expected,
            without=self.without,
        )

    @property
    def shares_prefixes(self) -> bool:
        """Whether what all prompts of a step begin with is pinned."""
        return "group" not in self.without and _worth_pinning(self.table)

    def statistics(self, tell: Told | None = None) -> TableStats:
        """Statistics of the input columns, from some rows of a big table; kept in the job's home."""
        folder = Store(self.spec.home).home / "stats" if self.spec.journal else None
        limit = self.spec.limit
        return table_stats(self.table, self.columns, self.tokens, folder, limit, tell)

    def rows_total(self) -> int | None:
        """The table's rows, counted where that takes no long; None: not known."""
        rows = self.table.rows_total
        if rows is None and Path(self.spec.table).stat().st_size < COUNTED_BYTES:
            rows = self.table.count_rows()
        return rows

    def fingerprint(self) -> str:
        """What of the input determines the output."""
        kept = ",".join(self.keep)
        return f"{self.table.fingerprint()}/{self.spec.limit}/{kept}"

    def manifest(self, run: str, models: str) -> Manifest:
        """What a run of this job is of; `models` is their fingerprint."""
        return Manifest(
            run=run,
            workflow=self.workflow.name,
            workflow_fingerprint=self.workflow.fingerprint,
            model_fingerprint=models,
            input_fingerprint=self.fingerprint(),
            settings={"spec": json.dumps(asdict(absolute(self.spec)))},
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )


def _check_rows(table: Table, path: str) -> None:
    """Refuse a table without rows, and one of which no row at the beginning can be read."""
    first: BadRow | None = None
    for item in itertools.islice(table, SAMPLE_ROWS):
        if not isinstance(item, BadRow):
            return
        first = first or item
    if first is None:
        raise InvalidTable(f"{path}: there are no rows")
    raise InvalidTable(f"{path}: there is no row that can be read; {first.message}")


def _columns_of(inputs: tuple[str, ...], columns: tuple[str, ...], path: str) -> dict[str, str]:
    """The column that feeds each input: its namesake, or the one whose name differs from it only
    in what no identifier can hold ("beer/name" feeds `beer_name`)."""
    plain: dict[str, list[str]] = {}
    for column in columns:
        plain.setdefault(re.sub(r"\W+", "_", column).strip("_").lower(), []).append(column)
    found: dict[str, str] = {}
    for name in inputs:
        close = [name] if name in columns else plain.get(name.lower(), [])
        if len(close) > 1:
            raise InvalidTable(f"{path}: input {name!r} may be column {' or '.join(close)}; rename")
        if close:
            found[name] = close[0]
    return found


def _worth_pinning(table: Table) -> bool:
    return table.rows_total is None or table.rows_total >= PINNED_ROWS
