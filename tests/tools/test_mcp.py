"""Tools of a real MCP server process, over stdio and over HTTP."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from tenter.tools import InvalidArguments, InvalidTool, ToolError, call
from tenter.tools.context import ToolContext, enter
from tenter.tools.lifetime import close_all
from tenter.tools.mcp import mcp_tools

pytestmark = pytest.mark.slow

SERVER = str(Path(__file__).with_name("mcp_server.py"))
COMMAND = [sys.executable, SERVER]


@pytest.fixture(name="url", scope="module")
def url_fixture() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([*COMMAND, str(port)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}/mcp"
    process.kill()
    process.wait()


async def test_over_http(url: str) -> None:
    tools = {tool.name: tool for tool in mcp_tools(url, prefix="shop_")}
    assert await call(tools["shop_price"], {"item": "chair", "count": 2}) == 10
    with pytest.raises(ToolError, match="cannot be asked|Error executing"):
        await call(tools["shop_fail"], {})
    await close_all()


async def test_progress_of_a_server_tells_the_time_left() -> None:
    told: list[float] = []
    tools = {tool.name: tool for tool in mcp_tools(COMMAND)}
    enter(ToolContext(report_eta=told.append))
    assert await call(tools["steps"], {}) == "done"
    assert len(told) == 1 and told[0] > 0, "one of the two says of how much"
    enter(ToolContext())
    await close_all()


async def test_over_stdio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY", "secret")
    monkeypatch.setenv("KEY", "shown")
    made = mcp_tools(COMMAND, environment={"GIVEN": "env:KEY"}, effects={"large": "pure"})
    tools = {tool.name: tool for tool in made}
    assert tools["price"].description == "What so many of an item cost."
    assert (tools["price"].effect, tools["large"].effect) == ("once", "pure")
    assert await call(tools["price"], {"item": "ab"}) == 2
    with pytest.raises(InvalidArguments, match="count"):
        await call(tools["price"], {"item": "ab", "count": "two"})
    with pytest.raises(ToolError):
        await call(tools["fail"], {})
    assert "bytes left out" in await call(tools["large"], {})
    seen = await call(tools["variables"], {})
    assert "GIVEN" in seen
    assert "CANARY" not in seen
    await close_all()


async def test_a_server_that_dies_is_started_again() -> None:
    tools = {tool.name: tool for tool in mcp_tools(COMMAND, only=["price", "die"], trusted=True)}
    assert tools["price"].effect == "idempotent"
    with pytest.raises(ToolError):
        await call(tools["die"], {})
    assert await call(tools["price"], {"item": "ab"}) == 2
    await close_all()


@pytest.mark.parametrize("code", [-32000, -32603, 7])
async def test_the_error_of_one_call_leaves_the_others_alone(code: int) -> None:
    tools = {tool.name: tool for tool in mcp_tools(COMMAND)}
    answers: list[str] = []

    async def hold() -> None:
        answers.append(await call(tools["hold"], {}))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hold)
        assert await call(tools["price"], {"item": "ab"}) == 2
        with pytest.raises(ToolError, match="not today"):
            await call(tools["refuse"], {"code": code})
        assert await call(tools["release"], {}) == "released", "by the same process"
    assert answers == ["held"]
    await close_all()


async def test_the_time_limit_of_one_call_leaves_the_others_alone() -> None:
    tools = {tool.name: tool for tool in mcp_tools(COMMAND)}
    tools["hold"] = replace(tools["hold"], timeout_s=0.1)
    with pytest.raises(ToolError, match="timeout_s"):
        await call(tools["hold"], {})
    assert await call(tools["release"], {}) == "released"
    assert await call(tools["hold"], {}) == "held", "of the same process"
    await close_all()


def test_what_cannot_be_asked_is_refused_when_the_tools_are_made() -> None:
    with pytest.raises(InvalidTool, match="cannot be asked"):
        mcp_tools([sys.executable, "-c", "pass"])
    with pytest.raises(InvalidTool, match="cannot be asked"):
        mcp_tools("http://127.0.0.1:9/mcp")
    with pytest.raises(InvalidTool, match="no such tool"):
        mcp_tools(COMMAND, only=["prices"])
