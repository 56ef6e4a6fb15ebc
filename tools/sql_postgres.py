"""PostgreSQL, asked through psycopg."""

from collections.abc import Mapping
from typing import Any

from .context import tool_context
from .sql_rows import Answer, Limits, statement_failed
from .sql_text import bound

BYTES_PER_ROW = 32_768  # as many rows are fetched at once as of this size would fill the answer


async def ask_postgres(
    address: str, sql: str, values: Mapping[str, Any], write: bool, limits: Limits
) -> Answer:
    """Through psycopg, in one transaction. A read is a cursor of the server's: nothing but a query
    can be declared one, no more rows are fetched than wanted, and it is rolled back in any case."""
    import psycopg

    statement, given = bound(sql, values, "%({})s") if values else (sql, None)
    ending = False
    try:
        connection = await psycopg.AsyncConnection.connect(
            address,
            autocommit=True,
            application_name=f"tenter {tool_context().key}".strip(),
            connect_timeout=max(2, int(limits.timeout_s)),
        )
        async with connection:
            answer = await _answered(connection, statement, given, write, limits)
            ending = True
            await connection.execute("COMMIT" if write else "ROLLBACK")
    except psycopg.Error as error:
        raise (error if ending else statement_failed(error)) from None
    return answer


async def _answered(
    connection: Any, statement: str, given: dict[str, Any] | None, write: bool, limits: Limits
) -> Answer:
    """What a statement answers, in a transaction that it leaves open."""
    _keep_dates(connection)
    settings = (
        f"SET statement_timeout = {int(limits.timeout_s * 1000)};"
        "SET standard_conforming_strings = on"  # as the parser takes them
    )
    await connection.execute(settings.encode())
    await connection.execute("BEGIN" if write else "BEGIN READ ONLY")
    cursor = connection.cursor() if write else connection.cursor("tenter")
    async with cursor:
        await cursor.execute(statement.encode(), given)
        answer = Answer(limits, [column.name for column in cursor.description or ()])
        answer.changed = cursor.rowcount
        at_once = min(max(1, limits.bytes // BYTES_PER_ROW), limits.rows + 1)
        found: list[Any] = await cursor.fetchmany(at_once) if answer.columns else []
        while found and all(map(answer.take, found)):
            found = await cursor.fetchmany(at_once)
    return answer


def _keep_dates(connection: Any) -> None:
    """Give dates that Python has not, such as "infinity", as their text."""
    from psycopg import DataError
    from psycopg.types import datetime as kinds

    def lenient(kind: Any) -> Any:
        def load(self: Any, data: Any) -> Any:
            try:
                return kind.load(self, data)
            except DataError:
                return bytes(data).decode()

        return type(kind.__name__, (kind,), {"load": load})

    for name in ("Date", "Timestamp", "Timestamptz"):
        connection.adapters.register_loader(name.lower(), lenient(getattr(kinds, f"{name}Loader")))
