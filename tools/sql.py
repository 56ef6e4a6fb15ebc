"""Tools that ask a database: PostgreSQL, SQLite or DuckDB; read-only unless the author says so.

Reading is held twice: the statement is parsed and must be one SELECT (`sql_text`), and it runs in
a transaction that the database itself holds to reading and that is rolled back, on a connection
that cannot reach files or other databases. Time, rows and bytes are bounded.
"""

import asyncio
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import partial
from itertools import pairwise
from math import isfinite
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from uuid import UUID

from .arguments import arguments
from .context import tool_context
from .registry import Effect, InvalidArguments, InvalidTool, Tool, ToolError, Validate
from .secrets import redact, resolve
from .sql_text import SQLRefused, Statement, read_sql

MAX_CELL = 10_000  # characters of one value
ENGINES = ("postgresql", "sqlite", "duckdb")
Row = Sequence[Any]


@dataclass(frozen=True, slots=True)
class _Limits:
    rows: int
    bytes: int
    timeout_s: float


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a statement returned; `rows` has one more than the limit where there are more."""

    columns: list[str]
    rows: Sequence[Row]
    changed: int


def sql_tool(
    name: str,
    database: str,
    *,
    query: str | None = None,
    parameters: Mapping[str, Any] | None = None,
    description: str = "",
    write: bool = False,
    effect: Effect | None = None,
    max_rows: int = 100,
    max_bytes: int = 32_768,
    timeout_s: float = 30.0,
    retries: int = 0,
    max_concurrency: int | None = 8,
    memo_s: float | None = None,
    eta_s: float | None = None,
) -> Tool:
    """A tool that asks `database`; raises `InvalidTool`.

    `database` is "postgresql://host/name", "sqlite:///path" or "duckdb:///path"; a password comes
    as "env:NAME", which may also stand for the whole. With `query` the author fixes the statement,
    in which `:name` is a parameter, and `parameters` gives their types ({"id": int}); without it
    the model writes SQL. A reading tool is idempotent (the tables may change between two calls;
    say effect="pure" where they do not), a writing one has an effect ("once").
    The result is {"columns", "rows"} and "cut" where `max_rows` or `max_bytes` left some out; a
    writing statement says how many rows it "changed".
    """
    engine = _engine(name, database)
    if max_rows < 1 or max_bytes < 1 or not timeout_s > 0:
        raise InvalidTool(name, "max_rows, max_bytes and timeout_s are above 0")
    _needs(name, engine)
    fixed: Statement | None = None
    if query is not None:
        try:
            fixed = read_sql(query, engine, write)
        except SQLRefused as error:
            raise InvalidTool(name, f"query: {error}") from None
    elif parameters:
        raise InvalidTool(name, "parameters are those of a query: say which")
    limits = _Limits(max_rows, max_bytes, timeout_s)
    schema, check = arguments(name, (parameters or {}) if query is not None else {"sql": str})
    ask = partial(_ask, name, engine, database, write, limits)

    async def run(**values: Any) -> dict[str, Any]:
        return await (ask(query, values) if query is not None else ask(values["sql"], {}))

    def identity(values: Mapping[str, Any]) -> Any:
        return [fixed.text, dict(values)] if fixed else read_sql(values["sql"], engine, write).text

    return Tool(
        name=name,
        description=description or f"Ask the {engine} database by SQL. One statement at a time.",
        parameters=schema,
        function=run,
        effect=effect or ("once" if write else "idempotent"),
        timeout_s=timeout_s * (retries + 1) + 1,
        retries=retries,
        max_concurrency=max_concurrency,
        eta_s=eta_s,
        source_hash=f"sql/1 {engine} {_shown(database)} {query or ''}",
        validate=check if query is not None else partial(_readable, name, engine, write, check),
        sensitive=write,
        memo_s=memo_s,
        identity=identity,
    )


async def _ask(
    tool: str,
    engine: str,
    database: str,
    write: bool,
    limits: _Limits,
    sql: str,
    values: Mapping[str, Any],
) -> dict[str, Any]:
    """Run one statement within the limits; raises `ToolError` with the database's own message."""
    address, secrets = resolve(database)
    password = urlsplit(address).password
    secrets = [*secrets, unquote(password)] if password else secrets
    asks = {"postgresql": _postgres, "sqlite": _sqlite, "duckdb": _duckdb}
    try:
        async with asyncio.timeout(limits.timeout_s):
            answer = await asks[engine](address, sql, values, write, limits)
    except TimeoutError:
        raise ToolError(tool, f"the statement took longer than {limits.timeout_s:g} s") from None
    except Exception as error:  # noqa: BLE001 (each driver has its own)
        raise ToolError(tool, redact(f"{type(error).__name__}: {error}".strip(), secrets)) from None
    return _result(answer, limits)


async def _postgres(
    address: str, sql: str, values: Mapping[str, Any], write: bool, limits: _Limits
) -> _Answer:
    """Through psycopg, in one transaction. A read is a cursor of the server's: nothing but a query
    can be declared one, no more rows are fetched than wanted, and it is rolled back in any case."""
    import psycopg

    statement, given = _bound(sql, values, "%({})s") if values else (sql, None)
    connection = await psycopg.AsyncConnection.connect(
        address,
        autocommit=True,
        application_name=f"tenter {tool_context().key}".strip(),
        connect_timeout=max(2, int(limits.timeout_s)),
    )
    async with connection:
        milliseconds = int(limits.timeout_s * 1000)
        await connection.execute(f"SET statement_timeout = {milliseconds}".encode())
        await connection.execute("BEGIN" if write else "BEGIN READ ONLY")
        cursor = connection.cursor() if write else connection.cursor("tenter")
        async with cursor:
            await cursor.execute(statement.encode(), given)
            found = await cursor.fetchmany(limits.rows + 1) if cursor.description else []
            columns = [column.name for column in cursor.description or ()]
            answer = _Answer(columns, found, cursor.rowcount)
        await connection.execute("COMMIT" if write else "ROLLBACK")
        return answer


async def _sqlite(
    address: str, sql: str, values: Mapping[str, Any], write: bool, limits: _Limits
) -> _Answer:
    import sqlite3

    path = _path(address)
    mode = "rw" if write else "ro"
    forbidden = {sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH, sqlite3.SQLITE_PRAGMA}

    def authorize(action: int, first: str | None, second: str | None, *_: str | None) -> int:
        """Asked before each part of a statement is compiled: no other file, no setting."""
        loads = action == sqlite3.SQLITE_FUNCTION and (second or "").lower() == "load_extension"
        return sqlite3.SQLITE_DENY if loads or action in forbidden else sqlite3.SQLITE_OK

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode={mode}",
            uri=True,
            timeout=limits.timeout_s,
            check_same_thread=False,
        )
        connection.execute(f"PRAGMA query_only = {int(not write)}")
        connection.set_authorizer(authorize)
        return connection

    return await _in_thread(connect, sql, values, write, limits)


async def _duckdb(
    address: str, sql: str, values: Mapping[str, Any], write: bool, limits: _Limits
) -> _Answer:
    import duckdb

    path = _path(address)

    def connect() -> Any:
        settings: dict[str, Any] = {"enable_external_access": "false", "lock_configuration": "true"}
        return duckdb.connect(str(path), read_only=not write, config=settings)

    statement, given = _bound(sql, values, "${}") if values else (sql, {})
    return await _in_thread(connect, statement, given or {}, write, limits)


async def _in_thread(
    connect: Callable[[], Any], sql: str, values: Mapping[str, Any], write: bool, limits: _Limits
) -> _Answer:
    """Run a statement of an embedded database; a cancel interrupts it and waits for its end."""
    opened: list[Any] = []
    gone = threading.Event()

    def run() -> _Answer:
        connection = connect()
        opened.append(connection)
        try:
            if gone.is_set():
                raise TimeoutError
            cursor = connection.execute(sql, dict(values)) if values else connection.execute(sql)
            columns = [str(column[0]) for column in cursor.description or ()]
            rows: list[Row] = cursor.fetchmany(limits.rows + 1) if columns else []
            if write:
                connection.commit()
            return _Answer(columns, rows, getattr(cursor, "rowcount", -1))
        finally:
            connection.close()

    task = asyncio.ensure_future(asyncio.to_thread(run))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        gone.set()
        for connection in opened:
            connection.interrupt()
        await asyncio.wait([task])
        task.exception()
        raise


def _result(answer: _Answer, limits: _Limits) -> dict[str, Any]:
    if not answer.columns:
        return {"changed": max(answer.changed, 0)}
    rows: list[list[Any]] = []
    room = limits.bytes
    for row in answer.rows[: limits.rows]:
        plain = [_plain(value) for value in row]
        room -= len(json.dumps(plain))
        if room < 0:
            break
        rows.append(plain)
    found: dict[str, Any] = {"columns": answer.columns, "rows": rows}
    if len(rows) < len(answer.rows):
        found["cut"] = f"only the first {len(rows)} rows; ask for fewer, or aggregate"
    return found


def _plain(value: Any) -> Any:
    """A database value as JSON."""
    match value:
        case None | bool() | int():
            return value
        case float():
            return value if isfinite(value) else str(value)
        case str():
            return value if len(value) <= MAX_CELL else f"{value[:MAX_CELL]}[...]"
        case Decimal():
            return int(value) if value == value.to_integral_value() else float(value)
        case datetime() | date() | time():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case bytes() | bytearray():
            return f"[{len(value)} bytes]"
        case list() | tuple():
            return [_plain(each) for each in value]  # pyright: ignore[reportUnknownVariableType]
        case dict():
            return {str(key): _plain(each) for key, each in value.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        case UUID():
            return str(value)
        case _:
            return str(value)[:MAX_CELL]


def _bound(sql: str, values: Mapping[str, Any], mark: str) -> tuple[str, dict[str, Any]]:
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


def _engine(name: str, database: str) -> str:
    resolved = database
    if database.startswith("env:"):
        try:
            resolved, _ = resolve(database)
        except ValueError as error:
            raise InvalidTool(name, f"database: {error}") from None
    scheme = resolved.split(":", 1)[0]
    engine = {"postgres": "postgresql"}.get(scheme, scheme)
    if engine not in ENGINES:
        raise InvalidTool(
            name,
            'database is "postgresql://host/name", "sqlite:///path" or "duckdb:///path"',
        )
    if engine == "postgresql" and not database.startswith("env:"):
        password = urlsplit(database).password
        if password and not password.startswith("env"):
            raise InvalidTool(name, "database holds a password: name its variable, as env:NAME")
    return engine


def _needs(name: str, engine: str) -> None:
    modules = {"postgresql": "psycopg", "duckdb": "duckdb", "sqlite": "sqlglot"}
    for module in {modules[engine], "sqlglot"}:
        try:
            __import__(module)
        except ImportError:
            cure = "pip install 'tenter[sql]'"
            raise InvalidTool(name, f"needs the package {module}: {cure}") from None


def _path(address: str) -> Path:
    """sqlite:///relative.db, or sqlite:////absolute.db."""
    return Path(unquote(address.split(":///", 1)[-1]))


def _shown(database: str) -> str:
    parts = urlsplit(database)
    return f"{parts.scheme}://{parts.hostname or ''}{parts.path}"


def _readable(
    tool: str, engine: str, write: bool, check: Validate, given: Mapping[str, Any]
) -> dict[str, Any]:
    """Arguments whose SQL is one statement of the allowed kind."""
    values = check(given)
    try:
        read_sql(values["sql"], engine, write)
    except SQLRefused as error:
        raise InvalidArguments(tool, f"sql: {error}") from None
    return values
