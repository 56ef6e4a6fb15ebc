"""Tools that ask a database: PostgreSQL, SQLite or DuckDB; read-only unless the author says so.

Reading is held twice: the statement is parsed and must be one SELECT (`sql_text`), and it runs in
a transaction that the database itself holds to reading and that is rolled back, on a connection
that cannot reach files or other databases. Time, rows and bytes are bounded.
"""

import asyncio
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from .arguments import arguments
from .registry import (
    Effect,
    InvalidArguments,
    InvalidTool,
    NoEffect,
    Tool,
    ToolError,
    Touched,
    Validate,
)
from .secrets import redact, resolve
from .sql_embedded import ask_duckdb, ask_sqlite
from .sql_postgres import ask_postgres
from .sql_rows import Limits
from .sql_text import SQLRefused, Statement, bound, read_sql

ENGINES = ("postgresql", "sqlite", "duckdb")
NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)?")


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
    functions: Sequence[str] = (),
) -> Tool:
    """A tool that asks `database`; raises `InvalidTool`.

    `database` is "postgresql://host/name", "sqlite:///path" or "duckdb:///path"; a password comes
    as "env:NAME", which may also stand for the whole. With `query` the author fixes the statement,
    in which `:name` is a parameter, and `parameters` gives their types ({"id": int}); without it
    the model writes SQL. A writing tool has an effect ("once"). A reading one is idempotent: the
    tables may change between two calls. Equal reads in flight are made once, by their normal form,
    and for `memo_s` seconds a result answers its equals; effect="pure" keeps it for the whole run.
    A writing tool of the same run ends that for the tables that its statements name. What views and
    triggers do beyond them is not seen.
    A reading statement calls functions of values alone; `functions` names others that it may call,
    such as your own ("edit_distance", "geo.area").
    The result is {"columns", "rows"} and "cut" where `max_rows` or `max_bytes` left some out; a
    writing statement says how many rows it "changed".
    """
    engine = _engine(name, database)
    if max_rows < 1 or max_bytes < 1 or not timeout_s > 0:
        raise InvalidTool(name, "max_rows, max_bytes and timeout_s are above 0")
    _needs(name, engine)
    allowed = _functions(name, functions)
    fixed: Statement | None = None
    if query is not None:
        try:
            fixed = read_sql(query, engine, write, allowed)
        except SQLRefused as error:
            raise InvalidTool(name, f"query: {error}") from None
    elif parameters:
        raise InvalidTool(name, "parameters are those of a query: say which")
    limits = Limits(max_rows, max_bytes, timeout_s)
    schema, check = arguments(name, (parameters or {}) if query is not None else {"sql": str})
    ask = partial(_ask, name, engine, database, write, limits, allowed)

    async def run(**values: Any) -> dict[str, Any]:
        return await (ask(query, values) if query is not None else ask(values["sql"], {}))

    def identity(values: Mapping[str, Any]) -> Any:
        return (
            [fixed.text, dict(values)]
            if fixed
            else read_sql(values["sql"], engine, write, allowed).text
        )

    def touches(values: Mapping[str, Any]) -> Touched | None:
        said = fixed or read_sql(values["sql"], engine, write, allowed)
        return None if said.varies and not said.changes else _touched(database, said)

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
        validate=check
        if query is not None
        else partial(_readable, name, engine, write, allowed, check),
        sensitive=write,
        memo_s=memo_s,
        identity=identity,
        touches=touches,
    )


async def _ask(
    tool: str,
    engine: str,
    database: str,
    write: bool,
    limits: Limits,
    functions: frozenset[str],
    sql: str,
    values: Mapping[str, Any],
) -> dict[str, Any]:
    """Run one statement within the limits; raises `ToolError` with the database's own message."""
    address, secrets = _address(database)
    try:
        async with asyncio.timeout(limits.timeout_s):
            if engine == "sqlite":
                ask = ask_sqlite(_path(address), sql, values, write, limits, functions)
            elif engine == "duckdb":
                spelled, given = bound(sql, values, "${}") if values else (sql, {})
                ask = ask_duckdb(_path(address), spelled, given, write, limits)
            else:
                ask = ask_postgres(address, sql, values, write, limits)
            return (await ask).result()
    except TimeoutError:
        raise ToolError(tool, f"the statement took longer than {limits.timeout_s:g} s") from None
    except NoEffect as error:
        raise NoEffect(redact(str(error), secrets)) from None
    except Exception as error:  # noqa: BLE001 (each driver has its own)
        raise ToolError(tool, redact(f"{type(error).__name__}: {error}".strip(), secrets)) from None


def _address(database: str) -> tuple[str, list[str]]:
    """Where the database is, and what must not be shown of that: its secrets, and any piece of a
    password that is not spelled as a URL wants it."""
    before, at, after = database.rpartition("@")
    credentials, hidden = resolve(before, quoted=True)
    rest, secrets = resolve(after)
    address = f"{credentials}{at}{rest}"
    if not address.startswith("postgres"):
        return address, [*hidden, *secrets]
    pieces = re.split("[:/?#@]+", address.rpartition("@")[0])[2:]  # after the scheme and the user
    return address, [*hidden, *secrets, *pieces, *map(unquote, pieces)]


def _engine(name: str, database: str) -> str:
    resolved = database
    if database.startswith("env:"):
        try:
            resolved, _ = resolve(database)
        except ValueError as error:
            raise InvalidTool(name, f"database: {error}") from None
    engine = _engine_of(resolved.split(":", 1)[0])
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


def _functions(tool: str, names: Sequence[str]) -> frozenset[str]:
    if isinstance(names, str) or not all(NAME.fullmatch(str(name)) for name in names):
        raise InvalidTool(
            tool, f'functions is a list of names, as ["edit_distance"], not {names!r}'
        )
    return frozenset(name.lower() for name in names)


def _engine_of(scheme: str) -> str:
    return {"postgres": "postgresql"}.get(scheme, scheme)


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


def _touched(database: str, statement: Statement) -> Touched:
    """The tables of a statement, by the last parts of their names: what is in another schema, and
    is called alike, is taken for the same."""
    address, _ = _address(database)
    parts = urlsplit(address)
    place = f"{parts.hostname or ''}:{parts.port or ''}{parts.path}"
    if _engine_of(parts.scheme) != "postgresql":
        place = str(_path(address).absolute())

    def names(tables: frozenset[str]) -> frozenset[str]:
        return frozenset(f"{place}#{table.rpartition('.')[2]}" for table in tables)

    return Touched(names(statement.reads), names(statement.writes))


def _shown(database: str) -> str:
    parts = urlsplit(database)
    return f"{parts.scheme}://{parts.hostname or ''}{parts.path}"


def _readable(
    tool: str,
    engine: str,
    write: bool,
    functions: frozenset[str],
    check: Validate,
    given: Mapping[str, Any],
) -> dict[str, Any]:
    """Arguments whose SQL is one statement of the allowed kind."""
    values = check(given)
    try:
        read_sql(values["sql"], engine, write, functions)
    except SQLRefused as error:
        raise InvalidArguments(tool, f"sql: {error}") from None
    return values
