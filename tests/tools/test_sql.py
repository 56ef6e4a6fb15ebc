"""SQL tools: reads that cannot write, whatever a model says; bounded answers; three databases."""

import asyncio
import sqlite3
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenter.tools import InvalidArguments, InvalidTool, ToolError, call, sql_embedded
from tenter.tools.call import did_nothing
from tenter.tools.sql import _address, sql_tool
from tenter.tools.sql_rows import plain
from tenter.tools.sql_text import SQLRefused, read_sql

WRITES = [
    "DELETE FROM orders",
    "UPDATE orders SET total = 0",
    "INSERT INTO orders VALUES (9, 1)",
    "DROP TABLE orders",
    "SELECT 1; DROP TABLE orders",
    "WITH gone AS (DELETE FROM orders RETURNING *) SELECT * FROM gone",
    "SELECT * INTO copy FROM orders",
    "SELECT * FROM orders FOR UPDATE",
    "CREATE TABLE more (x int)",
    "TRUNCATE orders",
    "COPY orders TO PROGRAM 'cat'",
    "COPY (SELECT 1) TO '/tmp/x'",
    "SELECT pg_read_file('/etc/passwd')",
    "SELECT lo_export(1, '/tmp/x')",
    "SELECT * FROM dblink('host=a', 'select 1') AS t(x int)",
    "SELECT pg_terminate_backend(1)",
    "SELECT set_config('a.b', 'c', false)",
    "SET default_transaction_read_only = off",
    "BEGIN",
    "COMMIT",
    "VACUUM",
    "CALL doom()",
    "DO $$ BEGIN DELETE FROM orders; END $$",
    "GRANT ALL ON orders TO public",
    "ALTER TABLE orders ADD x int",
    "EXPLAIN ANALYZE DELETE FROM orders",
    "PREPARE x AS DELETE FROM orders",
    "LISTEN x",
    "",
    "nonsense here",
    "SELECT 1 --\n; DELETE FROM orders",
]


@pytest.mark.parametrize("sql", WRITES)
def test_a_reading_tool_refuses_what_is_no_single_select(sql: str) -> None:
    with pytest.raises(SQLRefused):
        read_sql(sql, "postgresql")


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT load_extension('x')",
        "ATTACH 'other.db' AS o",
        "PRAGMA writable_schema = 1",
        "SELECT writefile('x', 'y')",
        "REPLACE INTO orders VALUES (1, 2)",
    ],
)
def test_a_reading_tool_of_sqlite_refuses_it(sql: str) -> None:
    with pytest.raises(SQLRefused):
        read_sql(sql, "sqlite")


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_text('/etc/passwd')",
        "COPY orders TO 'x.csv'",
        "INSTALL httpfs",
        "SELECT getenv('HOME')",
    ],
)
def test_a_reading_tool_of_duckdb_refuses_it(sql: str) -> None:
    with pytest.raises(SQLRefused):
        read_sql(sql, "duckdb")


def test_equal_statements_have_one_normal_form_and_tell_their_tables() -> None:
    one = read_sql("select  Total from ORDERS o join people p on o.id=p.id -- note", "postgresql")
    two = read_sql("SELECT total\nFROM orders AS o JOIN people AS p ON o.id = p.id", "postgresql")
    assert one.text == two.text
    assert one.reads == {"orders", "people"}
    assert not one.changes
    change = read_sql("update orders set total = (select 1 from people)", "postgresql", write=True)
    assert change.writes == {"orders"}
    assert change.reads == {"people"}


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(sql: str) -> None:
    for engine in ("postgresql", "sqlite", "duckdb"):
        try:
            read_sql(sql, engine)
        except SQLRefused:
            continue


def test_deep_nesting_is_refused_or_read_in_time() -> None:
    with pytest.raises(SQLRefused):
        read_sql("SELECT " + "(" * 20_000 + "1" + ")" * 20_000, "postgresql")


@pytest.fixture(name="orders")
def orders_fixture(tmp_path: Path) -> Path:
    path = tmp_path / "orders.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE orders (id INTEGER, total REAL, note TEXT, raw BLOB)")
        rows = [(i, i / 2, "n" * i, b"\x00\xff") for i in range(500)]
        connection.executemany("INSERT INTO orders VALUES (?, ?, ?, ?)", rows)
    connection.close()
    return path


async def test_a_model_asks_sqlite(orders: Path) -> None:
    tool = sql_tool("ask", f"sqlite:///{orders}")
    found = await call(tool, {"sql": "SELECT id, total, raw FROM orders WHERE id = 3"})
    assert found == {"columns": ["id", "total", "raw"], "rows": [[3, 1.5, "[2 bytes]"]]}
    assert tool.effect == "idempotent"


async def test_a_fixed_query_takes_typed_parameters(orders: Path) -> None:
    query = "SELECT count(*) AS n FROM orders WHERE id < :below AND note <> ':below'"
    tool = sql_tool("count", f"sqlite:///{orders}", query=query, parameters={"below": int})
    assert (await call(tool, {"below": 10}))["rows"] == [[10]]
    with pytest.raises(InvalidArguments, match="below"):
        await call(tool, {"below": "1 OR 1=1"})


async def test_an_answer_is_cut_and_says_so(orders: Path) -> None:
    found = await call(
        sql_tool("ask", f"sqlite:///{orders}", max_rows=5), {"sql": "SELECT id FROM orders"}
    )
    assert len(found["rows"]) == 5
    assert "first 5 rows" in found["cut"]
    small = sql_tool("ask", f"sqlite:///{orders}", max_bytes=1000, max_rows=500)
    found = await call(small, {"sql": "SELECT note FROM orders ORDER BY id DESC"})
    assert len(found["rows"]) < 3


async def test_sqlite_itself_refuses_a_write_that_the_parser_let_through(
    orders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blind = read_sql("SELECT 1", "sqlite")
    monkeypatch.setattr("tenter.tools.sql.read_sql", lambda *_: blind)
    tool = sql_tool("ask", f"sqlite:///{orders}")
    for sql in ("DELETE FROM orders", "ATTACH 'x.db' AS x", "PRAGMA query_only = 0"):
        with pytest.raises(ToolError):
            await call(tool, {"sql": sql})
    assert (await call(tool, {"sql": "SELECT count(*) FROM orders"}))["rows"] == [[500]]
    assert not (orders.parent / "x.db").exists()


async def test_a_statement_without_an_end_is_interrupted(orders: Path) -> None:
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
    tool = sql_tool("ask", f"sqlite:///{orders}", timeout_s=0.2)
    with pytest.raises(ToolError, match="took longer"):
        await call(tool, {"sql": endless})


async def test_a_writing_tool_says_how_many_rows(orders: Path) -> None:
    tool = sql_tool(
        "close",
        f"sqlite:///{orders}",
        query="UPDATE orders SET total = 0 WHERE id = :id",
        parameters={"id": int},
        write=True,
    )
    assert tool.effect == "once"
    assert tool.sensitive
    assert await call(tool, {"id": 7}) == {"changed": 1}


@pytest.mark.parametrize("sql", ["UPDATE orders SET nope = 1", "INSERT INTO orders SELECT 1"])
async def test_a_statement_that_was_not_committed_had_no_effect(orders: Path, sql: str) -> None:
    tool = sql_tool("change", f"sqlite:///{orders}", write=True)
    with pytest.raises(ToolError, match="OperationalError") as raised:
        await call(tool, {"sql": sql})
    assert did_nothing(raised.value)


async def test_an_answer_is_bounded_while_it_is_read(orders: Path) -> None:
    tool = sql_tool("ask", f"sqlite:///{orders}", max_bytes=50_000)
    tracemalloc.start()
    found = await call(tool, {"sql": "SELECT hex(zeroblob(5000000)) AS x FROM orders"})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found["rows"]) < 10 and "cut" in found
    assert peak < 100_000_000, "of 500 rows with 10 MB each"
    with pytest.raises(ToolError, match="too big"):
        await call(tool, {"sql": "SELECT hex(zeroblob(100000000))"})


async def test_a_text_that_is_no_utf8_does_not_fail_the_answer(orders: Path) -> None:
    tool = sql_tool("ask", f"sqlite:///{orders}")
    found = await call(tool, {"sql": "SELECT CAST(x'61ff' AS TEXT) AS t"})
    assert found["rows"] == [["a\ufffd"]]


async def test_sqlite_itself_refuses_a_function_that_the_parser_let_through(
    orders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blind = read_sql("SELECT 1", "sqlite")
    monkeypatch.setattr("tenter.tools.sql.read_sql", lambda *_: blind)
    strict = sql_tool("ask", f"sqlite:///{orders}")
    with pytest.raises(ToolError, match="sqlite_compileoption_used"):
        await call(strict, {"sql": "SELECT sqlite_compileoption_used('x')"})
    mine = sql_tool("ask", f"sqlite:///{orders}", functions=["sqlite_compileoption_used"])
    assert (await call(mine, {"sql": "SELECT sqlite_compileoption_used('x')"}))["rows"] == [[0]]
    usual = "SELECT note LIKE 'a%', note GLOB 'a*', '[1]' ->> 0, '[1]' -> 0 FROM orders LIMIT 1"
    assert (await call(strict, {"sql": usual}))["rows"] == [[0, 0, 1, "1"]]


async def test_slow_statements_take_no_thread_from_name_lookups(orders: Path) -> None:
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(1))
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(call, sql_tool("ask", f"sqlite:///{orders}"), {"sql": endless})
        assert await asyncio.to_thread(int, "7") == 7
        tasks.cancel_scope.cancel()


async def test_a_cancel_is_not_lost_between_opening_and_asking(
    orders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupt before the statement has begun does nothing: it is said again."""
    begun = threading.Event()
    reached = sql_embedded._answer

    def slow(connection: Any, sql: str, values: Any, write: bool, limits: Any, gone: Any) -> Any:
        begun.set()
        gone.wait()  # interrupted once by now, or soon
        return reached(connection, sql, values, write, limits, threading.Event())

    monkeypatch.setattr(sql_embedded, "_answer", slow)
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
    task = asyncio.create_task(call(sql_tool("ask", f"sqlite:///{orders}"), {"sql": endless}))
    await asyncio.to_thread(begun.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("12.50", 12.5),
        ("3.3333333333333333", 3.3333333333333335),
        ("12345678901234567.89", "12345678901234567.89"),
        ("12345678901234567890", 12345678901234567890),
        ("0E-20", 0),
        ("NaN", "nan"),
        ("-Infinity", "-infinity"),
        ("1e5000", "1E+5000"),
    ],
)
def test_a_numeric_stays_what_it_is(value: str, kept: object) -> None:
    found = plain(Decimal(value))
    assert found == kept and type(found) is type(kept)


async def test_duckdb_reads_beside_a_writer_of_the_same_file(tmp_path: Path) -> None:
    import duckdb

    path = tmp_path / "d.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE t AS SELECT i FROM range(100) r(i)")
    write = sql_tool("put", f"duckdb:///{path}", write=True)
    read = sql_tool("ask", f"duckdb:///{path}")
    asked: list[Any] = []

    async def ask(tool: Any, sql: str) -> None:
        asked.append(await call(tool, {"sql": sql}))

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(ask, write, "INSERT INTO t SELECT i FROM range(1000) r(i)")
            tasks.start_soon(ask, read, "SELECT count(*) > 0 AS some FROM t")
    assert len(asked) == 10
    assert (await call(read, {"sql": "SELECT count(*) FROM t"}))["rows"] == [[5100]]


async def test_duckdb_holds_a_read_beside_a_writer_to_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import duckdb

    path = tmp_path / "d.duckdb"
    settings: dict[str, Any] = {"enable_external_access": "false", "lock_configuration": "true"}
    settings |= sql_embedded.DUCKDB_LIMITS
    blind = read_sql("SELECT 1", "duckdb")
    monkeypatch.setattr("tenter.tools.sql.read_sql", lambda *_: blind)
    with duckdb.connect(str(path), config=settings) as writer:
        writer.execute("CREATE TABLE t (i INTEGER)")
        with pytest.raises(ToolError, match="read-only"):
            await call(sql_tool("ask", f"duckdb:///{path}"), {"sql": "INSERT INTO t VALUES (1)"})


@pytest.mark.parametrize("password", ["a/b@c#d?e%f:g", "half/secret", "p@ssw0rd", "x%41y"])
async def test_a_password_of_any_characters_stays_in_its_place(
    password: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from psycopg.conninfo import conninfo_to_dict

    monkeypatch.setenv("SHOP_PW", password)
    address, secrets = _address("postgresql://me:env:SHOP_PW@127.0.0.1:1/shop")
    assert conninfo_to_dict(address)["password"] == password
    assert conninfo_to_dict(address)["host"] == "127.0.0.1"
    assert password in secrets


async def test_no_piece_of_a_password_in_a_wrong_url_is_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SHOP", "postgresql://me:Sup3r/Hidden@Part#word@127.0.0.1:1/shop")
    with pytest.raises(ToolError) as caught:
        await call(sql_tool("ask", "env:SHOP"), {"sql": "SELECT 1"})
    assert not [
        piece for piece in ("Sup3r", "Hidden", "Part", "word@") if piece in str(caught.value)
    ]


def test_functions_are_names(orders: Path) -> None:
    for wrong in ("near", ["a b"], ["a("], [""]):
        with pytest.raises(InvalidTool, match="functions is a list of names"):
            sql_tool("ask", f"sqlite:///{orders}", functions=wrong)


async def test_duckdb_reads_tables_and_no_files(tmp_path: Path) -> None:
    import duckdb

    path = tmp_path / "d.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE t AS SELECT i, i * 1.5 AS x FROM range(10) r(i)")
    (tmp_path / "secret.csv").write_text("a\n1\n")
    tool = sql_tool("ask", f"duckdb:///{path}")
    assert (await call(tool, {"sql": "SELECT sum(i) AS s FROM t"}))["rows"] == [[45]]
    with pytest.raises((ToolError, InvalidArguments)):
        await call(tool, {"sql": f"SELECT * FROM '{tmp_path}/secret.csv'"})


@pytest.mark.parametrize(
    ("database", "said"),
    [
        ("mysql://host/x", "postgresql://"),
        ("postgresql://me:hunter2@host/x", "password"),
        ("env:NO_SUCH_VARIABLE", "NO_SUCH_VARIABLE"),
    ],
)
def test_a_wrong_database_is_refused_when_the_tool_is_made(database: str, said: str) -> None:
    with pytest.raises(InvalidTool, match=said) as caught:
        sql_tool("ask", database)
    assert "hunter2" not in str(caught.value)


@pytest.mark.slow
class TestPostgres:
    """On a real server."""

    async def test_reads_and_writes(self, postgres: str) -> None:
        make = sql_tool("make", postgres, write=True)
        await call(make, {"sql": "DROP TABLE IF EXISTS orders"})
        await call(make, {"sql": "CREATE TABLE orders (id int, total numeric, at date)"})
        added = await call(
            make,
            {
                "sql": "INSERT INTO orders SELECT i, i * 1.25, '2026-01-01' FROM generate_series(1, 300) i"
            },
        )
        assert added == {"changed": 300}
        with pytest.raises(ToolError, match="InvalidTextRepresentation") as raised:
            await call(make, {"sql": "INSERT INTO orders VALUES (1, 2, NULL), ('x', 2, NULL)"})
        assert did_nothing(raised.value)
        ask = sql_tool("ask", postgres)
        found = await call(ask, {"sql": "SELECT id, total, at FROM orders WHERE id % 100 = 1"})
        assert found["rows"][0] == [1, 1.25, "2026-01-01"]
        fixed = sql_tool(
            "of",
            postgres,
            query="SELECT total FROM orders WHERE id = :id AND '50%' = '50%'",
            parameters={"id": int},
        )
        assert (await call(fixed, {"id": 4}))["rows"] == [[5]]

    async def test_the_server_refuses_what_the_parser_let_through(
        self, postgres: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make = sql_tool("make", postgres, write=True)
        await call(make, {"sql": "CREATE TABLE IF NOT EXISTS kept AS SELECT 1 AS x"})
        blind = read_sql("SELECT 1", "postgresql")
        monkeypatch.setattr("tenter.tools.sql.read_sql", lambda *_: blind)
        ask = sql_tool("ask", postgres)
        for sql in (*WRITES[:4], "DELETE FROM kept", "SELECT 1; DELETE FROM kept"):
            with pytest.raises(ToolError):
                await call(ask, {"sql": sql})
        assert (await call(ask, {"sql": "SELECT count(*) FROM kept"}))["rows"] == [[1]]

    async def test_a_slow_statement_is_stopped_on_the_server(self, postgres: str) -> None:
        ask = sql_tool("ask", postgres, timeout_s=0.3)
        slow = "SELECT count(*) FROM generate_series(1, 1000000000)"
        with pytest.raises(ToolError):
            await call(ask, {"sql": slow})
        still = await call(
            sql_tool("watch", postgres),
            {"sql": "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%1000000000)'"},
        )
        assert still["rows"] == [[0]]

    async def test_a_name_after_a_point_calls_no_function(self, postgres: str) -> None:
        """As the server would: (x).f is f(x)."""
        ask = sql_tool("ask", postgres)
        for sql in (
            "SELECT ('/etc/hostname'::text).pg_read_file",
            "SELECT f.pg_read_file FROM concat('/etc/', 'hostname') AS f",
        ):
            with pytest.raises(InvalidArguments, match="may call a function"):
                await call(ask, {"sql": sql})

    async def test_ordinary_questions_are_answered(self, postgres: str) -> None:
        ask = sql_tool("ask", postgres)
        for sql, rows in (
            ("SELECT e.key, e.value FROM jsonb_each('{\"a\": 1}') AS e", [["a", 1]]),
            ("SELECT u.x, u.n FROM unnest(ARRAY['b']) WITH ORDINALITY AS u(x, n)", [["b", 1]]),
            ("SELECT g.i FROM generate_series(1, 2) AS g(i)", [[1], [2]]),
            (r"SELECT E'a\tb', 'it''s', 'c\d'", [["a\tb", "it's", "c\\d"]]),
            (
                "SELECT 'infinity'::date, '0044-03-15 BC'::timestamp",
                [["infinity", "0044-03-15 00:00:00 BC"]],
            ),
            ("SELECT 1e19::numeric + 0.25, 'NaN'::numeric", [["10000000000000000000.25", "nan"]]),
        ):
            assert (await call(ask, {"sql": sql}))["rows"] == rows

    async def test_wide_rows_are_fetched_one_by_one(self, postgres: str) -> None:
        ask = sql_tool("ask", postgres)
        tracemalloc.start()
        found = await call(ask, {"sql": "SELECT repeat('x', 8000000) FROM generate_series(1, 90)"})
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(found["rows"]) == 3 and peak < 100_000_000

    async def test_a_large_answer_is_not_fetched_whole(self, postgres: str) -> None:
        ask = sql_tool("ask", postgres, max_rows=10)
        found: Any = await call(ask, {"sql": "SELECT generate_series(1, 100000000)"})
        assert len(found["rows"]) == 10
