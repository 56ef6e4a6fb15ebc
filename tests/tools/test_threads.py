"""Sync tools run in threads, so these tests are on real time."""

import threading

import anyio
import pytest

from tenter.tools import ToolError, ToolTimeout, call, python_tool


async def test_a_sync_function_runs_in_a_thread() -> None:
    def where(x: int) -> str:
        return f"{threading.current_thread() is threading.main_thread()} {x}"

    assert await call(python_tool(where), {"x": 1}) == "False 1"


async def test_a_sync_function_that_raises() -> None:
    def broken() -> str:
        raise KeyError("x")

    with pytest.raises(ToolError, match="KeyError: 'x'"):
        await call(python_tool(broken), {})


async def test_a_thread_is_left_behind_at_the_time_limit() -> None:
    go_on = threading.Event()

    def slow() -> None:
        go_on.wait(10)

    try:
        with pytest.raises(ToolTimeout):
            await call(python_tool(slow, timeout_s=0.01), {})
    finally:
        go_on.set()


async def test_a_cancel_does_not_wait_for_the_thread() -> None:
    go_on, started = threading.Event(), threading.Event()

    def slow() -> None:
        started.set()
        go_on.wait(10)

    async def cancel_when_started() -> None:
        while not started.is_set():
            await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call, python_tool(slow), {})
            tasks.start_soon(cancel_when_started)
    finally:
        go_on.set()


async def test_a_sync_function_may_return_a_coroutine() -> None:
    async def later() -> str:
        return "done"

    def now() -> object:
        return later()

    assert await call(python_tool(now), {}) == "done"
