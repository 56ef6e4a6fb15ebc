"""Ready tools (requests, SQL, programs, files) inside workflows: in YAML, in Python, run for real."""

import asyncio
import sqlite3
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from tenter.runtime import run_workflow, tool, workflow
from tenter.runtime.clock import VirtualLoop
from tenter.runtime.errors import InvalidWorkflow
from tenter.runtime.spec import dump, load, loads
from tenter.tools import file_tools, sql_tool, tool_context
from tenter.tools.lifetime import kept_open

YAML = """
version: 1
name: look
inputs: {id: integer}
tools:
  order:
    sql: sqlite:///orders.db
    query: SELECT total FROM orders WHERE id = :id
    parameters: {id: integer}
    effect: pure
  note:
    files: notes
    tool: read_file
  words:
    shell: [wc]
    folder: notes
    effect: idempotent
steps:
  found: {tool: order}
  text: {tool: note, with: {path: a.txt}}
  count: {tool: words, with: {argv: [wc, -w, a.txt]}}
output:
  total: "{{ found.rows[0][0] }}"
  text: "{{ text }}"
  words: "{{ count.stdout }}"
"""


@pytest.fixture(name="folder")
def folder_fixture(tmp_path: Path) -> Path:
    with sqlite3.connect(tmp_path / "orders.db") as connection:
        connection.execute("CREATE TABLE orders (id INTEGER, total REAL)")
        connection.execute("INSERT INTO orders VALUES (7, 2.5)")
    connection.close()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("three small words")
    (tmp_path / "look.yaml").write_text(YAML)
    return tmp_path


async def test_yaml_describes_tools_without_python(folder: Path) -> None:
    found = load(folder / "look.yaml")
    result = await run_workflow(found, {"id": 7}, backends={})
    assert result == {"total": 2.5, "text": "three small words", "words": "3 a.txt\n"}
    assert loads(dump(found), str(folder / "look.yaml")).tools.keys() == found.tools.keys()
    assert load(folder / "look.yaml").fingerprint == found.fingerprint


def test_yaml_allows_functions_of_a_database(folder: Path) -> None:
    sql = "sql: sqlite:///orders.db, query: 'SELECT near(total) FROM orders'"
    text = "version: 1\nname: x\ntools: {a: {%s}}\nsteps:\n  s: {tool: a}\noutput: '{{ s }}'\n"
    with pytest.raises(InvalidWorkflow, match="near"):
        loads(text % sql, str(folder / "x.yaml"))
    for allowed in ("near", "[near, far]"):
        found = loads(text % f"{sql}, functions: {allowed}", str(folder / "x.yaml"))
        assert loads(dump(found), str(folder / "x.yaml")).fingerprint == found.fingerprint
    with pytest.raises(InvalidWorkflow, match="functions is a list of names"):
        loads(text % f"{sql}, functions: 'a b'", str(folder / "x.yaml"))


async def test_a_ready_tool_is_a_step_of_python_workflows(folder: Path) -> None:
    read = tool(file_tools(folder / "notes")[0])
    order = tool(
        sql_tool(
            "order",
            f"sqlite:///{folder / 'orders.db'}",
            query="SELECT total FROM orders WHERE id = :id",
            parameters={"id": int},
        )
    )

    @workflow
    def static(id: int) -> dict[str, Any]:
        return {"order": order(id=id), "text": read("a.txt")}

    @workflow
    async def program(id: int) -> Any:
        return [await order(id), await read(path="a.txt")]

    made = await run_workflow(static.workflow, {"id": 7}, backends={})
    assert made == {"order": {"columns": ["total"], "rows": [[2.5]]}, "text": "three small words"}
    ran = await run_workflow(program.workflow, {"id": 7}, backends={})
    assert ran == [made["order"], made["text"]]


@pytest.mark.parametrize(
    ("tools", "said"),
    [
        ("{a: {sql: 'mysql://x'}}", "postgresql://"),
        ("{a: {sql: 'sqlite:///x', query: 'DELETE FROM t'}}", "only reads"),
        ("{a: {http: 'https://x/{id}'}}", "id"),
        ("{a: {http: 'https://x/', method: BREW}}", "GET, POST"),
        ("{a: {shell: [no-such-program], folder: .}}", "no-such-program"),
        ("{a: {shell: [ls]}}", "folder"),
        ("{a: {files: ., tool: eat_file}}", "read_file"),
        ("{a: {http: 'https://x/', python: 'a:b'}}", "keep one"),
        ("{a: {htp: 'https://x/'}}", "http"),
    ],
)
def test_a_wrong_tool_is_told_with_its_place(tools: str, said: str) -> None:
    text = f"version: 1\nname: x\ntools: {tools}\nsteps:\n  s: {{tool: a}}\noutput: '{{{{ s }}}}'\n"
    with pytest.raises(InvalidWorkflow) as caught:
        loads(text, "x.yaml")
    problem = caught.value.problems[0]
    assert said in problem.message
    assert problem.line == 3


async def test_a_tool_is_told_a_key_that_no_other_call_has() -> None:
    keys: list[str] = []

    @tool(effect="idempotent", retries=1)
    def send(to: str) -> str:
        keys.append(tool_context().key)
        if len(keys) == 1:
            raise OSError("once more")
        return to

    @workflow
    async def program() -> Any:
        return [await send("a"), await send("a"), await send("b")]

    assert await run_workflow(program.workflow, {}, backends={}) == ["a", "a", "b"]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


def test_a_memo_grows_old() -> None:
    asked: list[int] = []

    @tool(effect="pure", memo_s=60)
    async def rate(currency: str) -> int:
        asked.append(1)
        return len(asked)

    @workflow
    async def program() -> Any:
        first = [await rate("eur"), await rate("eur")]
        await anyio.sleep(61)
        return [*first, await rate("eur")]

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        assert runner.run(run_workflow(program.workflow, {}, backends={})) == [1, 1, 2]


async def test_what_tools_keep_open_is_closed_with_the_run() -> None:
    closed: list[str] = []

    @asynccontextmanager
    async def opened() -> AsyncGenerator[str]:
        yield "connection"
        closed.append("connection")

    @tool(effect="pure")
    async def use() -> str:
        return await kept_open("it", opened)

    @workflow
    async def program() -> Any:
        return [await use(), list(closed)]

    assert await run_workflow(program.workflow, {}, backends={}) == ["connection", []]
    assert closed == ["connection"]
