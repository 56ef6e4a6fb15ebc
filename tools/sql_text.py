"""What a SQL text is before anything runs it: one statement, what it touches, how it is spelled.

The parser is sqlglot's. It says no to what only a statement that changes something can contain; the
database says no again (`sql.py`), since a parser may be wrong about a dialect.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

MAX_SQL = 100_000  # characters
DIALECTS = {"postgresql": "postgres", "sqlite": "sqlite", "duckdb": "duckdb"}

# Functions of PostgreSQL that reach files, other servers or other sessions though they only "read".
_REACHING = (
    "pg_read_",
    "pg_ls_",
    "pg_stat_file",
    "pg_terminate_",
    "pg_cancel_",
    "pg_reload_",
    "pg_rotate_",
    "pg_advisory_",
    "pg_try_advisory_",
    "pg_notify",
    "pg_logical_",
    "pg_create_",
    "pg_drop_",
    "pg_switch_",
    "pg_promote",
    "pg_sleep",
    "set_config",
    "lo_",
    "dblink",
    "query_to_xml",
    "query_to_json",
    "cursor_to_xml",
    "database_to_xml",
    "schema_to_xml",
    "table_to_xml",
    "load_extension",
    "readfile",
    "writefile",
    "edit",
    "read_text",
    "read_blob",
    "read_csv",
    "read_parquet",
    "read_json",
    "read_ndjson",
    "sniff_csv",
    "parquet_",
    "glob",
    "getenv",
)


class SQLRefused(ValueError):
    """The text is not one statement, or not one of those allowed."""


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement. `text`: its normal form, equal for equal statements; `reads`, `writes`: tables."""

    text: str
    reads: frozenset[str]
    writes: frozenset[str]

    @property
    def changes(self) -> bool:
        """Whether it may change anything."""
        return bool(self.writes)


def read_sql(sql: str, engine: str, write: bool = False) -> Statement:
    """Parse one statement; raises `SQLRefused`, also for one that may change data unless `write`."""
    import sqlglot
    from sqlglot import exp
    from sqlglot.errors import SqlglotError

    if len(sql) > MAX_SQL:
        raise SQLRefused(f"the statement is longer than {MAX_SQL} characters")
    try:
        parsed = [each for each in sqlglot.parse(sql, dialect=DIALECTS[engine]) if each is not None]
    except SqlglotError as error:
        first = " ".join(str(error).split())[:300]
        raise SQLRefused(f"it is no SQL that {engine} reads: {first}") from None
    except RecursionError:
        raise SQLRefused("it is nested too deeply") from None
    if len(parsed) != 1:
        raise SQLRefused(f"it is {len(parsed)} statements; say one at a time")
    root: Any = parsed[0]
    try:
        writes = frozenset(_written(root, exp))
        found: Any = root.find_all(exp.Table)
        tables = frozenset(_name(table) for table in found if table.name)
        text = root.sql(dialect=DIALECTS[engine], normalize=True, comments=False)
        refused = None if write else _refusal(root, exp)
    except RecursionError:
        raise SQLRefused("it is nested too deeply") from None
    if refused is not None:
        raise SQLRefused(f"{refused}, and this tool only reads")
    if not write and writes:
        raise SQLRefused(f"it changes {', '.join(sorted(writes))}, and this tool only reads")
    return Statement(text, tables - writes, writes)


def _refusal(root: Any, exp: Any) -> str | None:
    """Why a statement is no plain read."""
    if not isinstance(root, exp.Query | exp.Values):
        return f"it is {type(root).__name__.upper()}, no SELECT"
    for node in root.walk():
        if isinstance(node, exp.Into | exp.Lock | exp.Command):
            return f"it says {type(node).__name__.upper()}"
        if isinstance(node, exp.Func):
            name = str(node.name if isinstance(node, exp.Anonymous) else node.sql_name()).lower()
            if name.startswith(_REACHING):
                return f"it calls {name}, which reaches beyond the tables"
    return None


def _written(root: Any, exp: Any) -> Iterator[str]:
    """Tables that the statement changes; "*" for whatever cannot be told."""
    changing = (exp.Insert, exp.Update, exp.Delete, exp.Merge, exp.Create, exp.Drop, exp.Alter)
    others = (exp.Command, exp.Copy, exp.TruncateTable, exp.Set, exp.Pragma, exp.Attach, exp.Detach)
    for node in root.find_all(*changing):
        target = node.this.find(exp.Table) if node.this is not None else None
        yield _name(target) if target is not None else "*"
    if root.find(*others) is not None:
        yield "*"


def _name(table: Any) -> str:
    return ".".join(part.name.lower() for part in table.parts)
