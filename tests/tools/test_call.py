"""Calling tools on virtual time."""

import asyncio
from datetime import date
from itertools import pairwise
from random import Random
from typing import Any

import anyio
import pytest
from pydantic import BaseModel

from tenter.runtime.clock import VirtualLoop, now
from tenter.tools import (
    InvalidArguments,
    InvalidResult,
    NoEffect,
    Tool,
    ToolError,
    ToolTimeout,
    call,
    python_tool,
)
from tenter.tools.call import backoff_s, did_nothing


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualLoop}


def failing(times: int, **limits: Any) -> tuple[Tool, list[float]]:
    """A tool that fails so many times, and when it was called."""
    calls: list[float] = []

    async def fetch(url: str) -> str:
        calls.append(now())
        if len(calls) <= times:
            raise ConnectionError("no route")
        return url

    return python_tool(fetch, **limits), calls


async def test_arguments_are_checked_before_the_call() -> None:
    tool, calls = failing(0)

    with pytest.raises(InvalidArguments, match="url: Field required"):
        await call(tool, {})
    assert calls == []
    assert await call(tool, {"url": "x"}) == "x"


async def test_an_error_names_the_tool_and_keeps_its_cause() -> None:
    tool, _ = failing(1)

    with pytest.raises(ToolError) as caught:
        await call(tool, {"url": "x"})
    assert str(caught.value) == "tool 'fetch': ConnectionError: no route"
    assert isinstance(caught.value.cause, ConnectionError)
    assert caught.value.__cause__ is caught.value.cause


async def test_what_is_cancelled_inside_a_tool_is_its_error() -> None:
    async def fetch() -> str:
        part = asyncio.ensure_future(asyncio.sleep(1))
        part.cancel()
        return await part

    with pytest.raises(ToolError, match="what it waited for was cancelled"):
        await call(python_tool(fetch, timeout_s=5), {})


@pytest.mark.parametrize("effect", ["pure", "idempotent"])
async def test_what_may_be_repeated_is_retried_with_growing_pauses(effect: Any) -> None:
    tool, calls = failing(3, effect=effect, retries=3)
    started_s = now()

    assert await call(tool, {"url": "x"}, random=Random(1)) == "x"
    pauses = [after - before for before, after in pairwise(calls)]
    assert calls[0] == started_s
    assert [0.05 * 2**n <= pause <= 0.1 * 2**n for n, pause in enumerate(pauses)] == [True] * 3


async def test_retries_end_and_say_how_many_there_were() -> None:
    tool, calls = failing(9, effect="pure", retries=2)

    with pytest.raises(ToolError, match=r"ConnectionError: no route \(3 attempts\)"):
        await call(tool, {"url": "x"})
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("error", "nothing", "said"),
    [
        (NoEffect("there is none left"), True, "tool 'take': there is none left"),
        (OSError("cut off"), False, "tool 'take': OSError: cut off"),
    ],
)
async def test_a_tool_may_say_that_it_has_done_nothing(
    error: Exception, nothing: bool, said: str
) -> None:
    async def take() -> str:
        raise error

    with pytest.raises(ToolError) as raised:
        await call(python_tool(take), {})
    assert (did_nothing(raised.value), str(raised.value)) == (nothing, said)


async def test_once_is_once() -> None:
    tool, calls = failing(1, effect="once")
    object.__setattr__(tool, "retries", 5)  # as if somebody had got around the check

    with pytest.raises(ToolError):
        await call(tool, {"url": "x"})
    assert len(calls) == 1


def test_backoff_is_jittered_and_bounded() -> None:
    random = Random(3)

    assert len({backoff_s(0, random) for _ in range(20)}) == 20
    assert all(2.5 <= backoff_s(50, random) <= 5.0 for _ in range(20))


async def test_the_time_limit_covers_all_attempts() -> None:
    tool, calls = failing(99, effect="pure", retries=99, timeout_s=1.0)
    started_s = now()

    with pytest.raises(ToolTimeout, match="took longer than timeout_s=1"):
        await call(tool, {"url": "x"})
    assert now() - started_s == pytest.approx(1.0)
    assert 3 <= len(calls) <= 8


async def test_a_timeout_of_the_tools_own_is_an_error_of_the_tool() -> None:
    async def fetch() -> str:
        raise TimeoutError("server slow")

    with pytest.raises(ToolError) as caught:
        await call(python_tool(fetch), {})
    assert not isinstance(caught.value, ToolTimeout)
    assert str(caught.value) == "tool 'fetch': TimeoutError: server slow"


async def test_no_more_than_max_concurrency_run_at_once() -> None:
    running, most = 0, 0

    async def fetch(n: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await anyio.sleep(1.0)
        running -= 1
        return n

    tool = python_tool(fetch, max_concurrency=3, timeout_s=1.5)
    started_s = now()
    async with anyio.create_task_group() as tasks:
        for n in range(9):
            tasks.start_soon(call, tool, {"n": n})

    assert most == 3
    assert now() - started_s == pytest.approx(3.0)  # the wait for a slot is not the tool's time


async def test_cancelling_cancels_the_tool() -> None:
    ended: list[str] = []

    async def fetch() -> str:
        try:
            await anyio.sleep(100)
        finally:
            ended.append("cancelled")
        return "never"

    with anyio.move_on_after(1):
        await call(python_tool(fetch), {})
    assert ended == ["cancelled"]


class Found(BaseModel):
    name: str
    on: date


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (Found(name="x", on=date(2024, 1, 2)), {"name": "x", "on": "2024-01-02"}),
        ((1, [2, {"a": None}]), [1, [2, {"a": None}]]),
        (None, None),
        (1.5, 1.5),
    ],
)
async def test_results_become_json(result: Any, expected: Any) -> None:
    async def fetch() -> Any:
        return result

    assert await call(python_tool(fetch), {}) == expected


@pytest.mark.parametrize("result", [float("nan"), [float("inf")], object(), {"a": print}])
async def test_results_that_json_cannot_hold(result: Any) -> None:
    async def fetch() -> Any:
        return result

    with pytest.raises(InvalidResult, match="which JSON cannot hold"):
        await call(python_tool(fetch), {})
