"""SQLite and DuckDB, asked in threads of their own."""

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
from anyio.lowlevel import RunVar

from .ending import to_its_end
from .sql_functions import ALLOWED
from .sql_rows import Answer, Limits, statement_failed

MAX_THREADS = 32  # of embedded databases together, on one event loop
LOOK_S = 0.05
GRACE_S = 5.0  # for a statement to notice that it was interrupted
SQLITE_CELL_BYTES = 64 << 20
IN_USE = "different configuration", "file handle conflict"  # how DuckDB says it, opened or closing
DUCKDB_LIMITS = {"memory_limit": "4GiB", "max_temp_directory_size": "16GiB"}

_threads: RunVar[anyio.CapacityLimiter] = RunVar("tenter_sql_threads")
Connect = Callable[[threading.Event], Any]  # the event: nobody waits any more


async def ask_sqlite(
    path: Path,
    sql: str,
    values: Mapping[str, Any],
    write: bool,
    limits: Limits,
    functions: frozenset[str],
) -> Answer:
    """Run one statement; the functions that a reading one calls are checked by SQLite too."""
    import sqlite3

    mode = "rw" if write else "ro"
    forbidden = {sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH, sqlite3.SQLITE_PRAGMA}
    callable_ = ALLOWED | functions | {"glob", "match", "regexp", "->", "->>"}

    def authorize(action: int, first: str | None, second: str | None, *_: str | None) -> int:
        """Asked before each part of a statement is compiled: no other file, no setting."""
        refused = action in forbidden
        if action == sqlite3.SQLITE_FUNCTION:
            name = (second or "").lower()
            refused = name == "load_extension" if write else name not in callable_
        return sqlite3.SQLITE_DENY if refused else sqlite3.SQLITE_OK

    def connect(_: threading.Event) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode={mode}",
            uri=True,
            timeout=limits.timeout_s,
            check_same_thread=False,
        )
        connection.text_factory = _text
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, SQLITE_CELL_BYTES)
        connection.execute(f"PRAGMA query_only = {int(not write)}")
        connection.set_authorizer(authorize)
        return connection

    return await _in_thread(connect, sql, values, write, limits)


def _text(stored: bytes) -> str:
    """SQLite keeps any bytes as a text."""
    return stored.decode("utf-8", "replace")


async def ask_duckdb(
    path: Path, sql: str, values: Mapping[str, Any], write: bool, limits: Limits
) -> Answer:
    """Run one statement; one process opens a file once, to read or to write.

    So a reader beside a writer is one of its transactions, and a writer waits for readers to end.
    """
    import duckdb

    settings: dict[str, Any] = {
        "enable_external_access": "false",
        "lock_configuration": "true",
        **DUCKDB_LIMITS,
    }

    def connect(gone: threading.Event) -> Any:
        while True:
            for read_only in (False,) if write else (True, False):
                try:
                    connection = duckdb.connect(str(path), read_only=read_only, config=settings)
                except duckdb.Error as error:
                    if not any(why in str(error) for why in IN_USE) or gone.is_set():
                        raise
                else:
                    if not write and not read_only:
                        connection.execute("BEGIN TRANSACTION READ ONLY")
                    return connection
            time.sleep(LOOK_S)

    return await _in_thread(connect, sql, values, write, limits)


async def _in_thread(
    connect: Connect, sql: str, values: Mapping[str, Any], write: bool, limits: Limits
) -> Answer:
    """Run a statement of an embedded database; a cancel interrupts it and waits for its end."""
    opened: list[Any] = []
    begun, gone = threading.Event(), threading.Event()

    def run() -> Answer:
        begun.set()
        connection = connect(gone)
        opened.append(connection)
        try:
            return _answer(connection, sql, values, write, limits, gone)
        finally:
            connection.close()

    async def stop() -> None:
        gone.set()
        if not begun.is_set():
            task.cancel()
        for _ in range(round(GRACE_S / LOOK_S)):
            for connection in opened:
                with suppress(Exception):  # it is closed by now
                    connection.interrupt()  # again, should the last one have come too early
            await asyncio.wait([task], timeout=LOOK_S)
            if task.done():
                return

    task = asyncio.ensure_future(anyio.to_thread.run_sync(run, limiter=_limiter()))
    task.add_done_callback(lambda task: task.cancelled() or task.exception())
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await to_its_end(stop())
        raise


def _answer(
    connection: Any,
    sql: str,
    values: Mapping[str, Any],
    write: bool,
    limits: Limits,
    gone: threading.Event,
) -> Answer:
    if gone.is_set():
        raise TimeoutError
    try:
        cursor = connection.execute(sql, dict(values)) if values else connection.execute(sql)
    except Exception as error:
        raise statement_failed(error) from error
    answer = Answer(limits, [str(column[0]) for column in cursor.description or ()])
    row = cursor.fetchone() if answer.columns else None
    while row is not None and answer.take(row) and not gone.is_set():
        row = cursor.fetchone()
    if write:
        connection.commit()
    answer.changed = getattr(cursor, "rowcount", -1)
    return answer


def _limiter() -> anyio.CapacityLimiter:
    """Of threads for this alone: a slow statement keeps nothing else from a thread."""
    limiter = _threads.get(None)
    if limiter is None:
        limiter = anyio.CapacityLimiter(MAX_THREADS)
        _threads.set(limiter)
    return limiter
