"""What a SQL text is before anything runs it: one statement, what it touches, how it is spelled.

The parser is sqlglot's. It says no to what only a statement that changes something can contain; the
database says no again (`sql.py`), since a parser may be wrong about a dialect.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

from .sql_calls import calls_foreign, refused_call

MAX_SQL = 100_000  # characters
DIALECTS = {"postgresql": "postgres", "sqlite": "sqlite", "duckdb": "duckdb"}

# Functions whose results are of the moment, or of chance.
_VARYING = (
    "current_",
    "localtime",
    "now",
    "clock_timestamp",
    "statement_timestamp",
    "transaction_timestamp",
    "timeofday",
    "get_current_",
    "today",
    "rand",
    "setseed",
    "gen_random_",
    "uuid",
    "nextval",
    "currval",
    "lastval",
    "txid_",
    "pg_current_",
    "changes",
    "total_changes",
    "last_insert_rowid",
)


class SQLRefused(ValueError):
    """The text is not one statement, or not one of those allowed."""


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement. `text`: its normal form, equal for equal statements; `reads`, `writes`: tables.

    `varies`: its answer does so by itself, as that of one that asks for the time or for chance.
    """

    text: str
    reads: frozenset[str]
    writes: frozenset[str]
    varies: bool = False

    @property
    def changes(self) -> bool:
        """Whether it may change anything."""
        return bool(self.writes)


@lru_cache(maxsize=256)
def read_sql(
    sql: str, engine: str, write: bool = False, functions: frozenset[str] = frozenset()
) -> Statement:
    """Parse one statement; raises `SQLRefused`, unless `write` also for one that may change data,
    and for one that calls what is neither in `sql_functions` nor among `functions`."""
    from sqlglot import exp
    from sqlglot.dialects.dialect import Dialect
    from sqlglot.errors import SqlglotError

    if len(sql) > MAX_SQL:
        raise SQLRefused(f"the statement is longer than {MAX_SQL} characters")
    dialect = Dialect.get_or_raise(DIALECTS[engine])
    try:
        tokens: list[Any] = dialect.tokenize(sql)
        parsed = [each for each in dialect.parser().parse(tokens, sql) if each is not None]
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
        reaching = None
        if not (write or refused or writes):
            reaching = refused_call(sql, root, tokens, DIALECTS[engine], functions)
        varies = any(map(_varies, root.find_all(exp.Func, exp.Literal)))
        varies = varies or calls_foreign(root, functions)
    except RecursionError:
        raise SQLRefused("it is nested too deeply") from None
    if refused is not None:
        raise SQLRefused(f"{refused}, and this tool only reads")
    if reaching is not None:
        raise SQLRefused(reaching)
    if not write and writes:
        raise SQLRefused(f"it changes {', '.join(sorted(writes))}, and this tool only reads")
    if not writes and not isinstance(root, exp.Query | exp.Values):
        writes = frozenset({"*"})
    return Statement(text, tables - writes, writes, varies)


def _refusal(root: Any, exp: Any) -> str | None:
    """Why a statement is no plain read."""
    if not isinstance(root, exp.Query | exp.Values):
        return f"it is {type(root).__name__.upper()}, no SELECT"
    for node in root.walk():
        if isinstance(node, exp.Into | exp.Lock | exp.Command):
            return f"it says {type(node).__name__.upper()}"
    return None


def _varies(node: Any) -> bool:
    if node.key == "literal":  # SQLite's date('now')
        return str(node.this).lower().startswith("now")
    return _function(node).startswith(_VARYING)


def _function(node: Any) -> str:
    return str(node.name if node.key == "anonymous" else node.sql_name()).lower()


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


def bound(sql: str, values: Mapping[str, Any], mark: str) -> tuple[str, dict[str, Any]]:
    """`sql` with its `:name` parameters spelled as the driver wants them."""
    import sqlglot
    from sqlglot.tokens import TokenType  # pyright: ignore[reportPrivateImportUsage]

    spelled, last = "", 0
    tokens = sqlglot.tokenize(sql, dialect="postgres")
    for before, after in pairwise(tokens):
        if before.token_type == TokenType.COLON and after.start == before.end + 1:
            name = sql[after.start : after.end + 1]
            if name in values:
                text = sql[last : before.start]
                spelled += (text.replace("%", "%%") if "%" in mark else text) + mark.format(name)
                last = after.end + 1
    rest = sql[last:]
    return spelled + (rest.replace("%", "%%") if "%" in mark else rest), dict(values)
