"""Calling a tool safely: arguments checked, time and concurrency limited, retried where allowed."""

import asyncio
import inspect
import json
import math
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from random import Random
from typing import Any

import anyio
import anyio.to_thread
from anyio.lowlevel import RunVar
from pydantic_core import PydanticSerializationError, to_jsonable_python

from .registry import InvalidArguments, InvalidResult, NoEffect, Tool, ToolError, ToolTimeout

Sleep = Callable[[float], Awaitable[None]]

MAX_THREADS = 128  # of sync tools together, on one event loop
FIRST_BACKOFF_S = 0.1
LONGEST_BACKOFF_S = 5.0

_slots: RunVar[dict[Tool, anyio.CapacityLimiter]] = RunVar("tenter_tool_slots")
_threads: RunVar[anyio.CapacityLimiter] = RunVar("tenter_tool_threads")


async def call(
    tool: Tool,
    arguments: Mapping[str, Any],
    *,
    sleep: Sleep = anyio.sleep,
    random: Random | None = None,
) -> Any:
    """The JSON result of one call of `tool`; raises `ToolError`.

    Time limit and backoff count from when the tool has a slot. A sync function runs in a thread; a
    timeout or a cancel leaves it behind, since Python cannot stop a thread.
    """
    checked = tool.validate(arguments) if tool.validate else dict(arguments)
    if tool.max_concurrency is None:
        return await _within_time(tool, checked, sleep, random)
    async with _slot(tool):
        return await _within_time(tool, checked, sleep, random)


async def _within_time(
    tool: Tool, arguments: dict[str, Any], sleep: Sleep, random: Random | None
) -> Any:
    if tool.timeout_s is None:
        return to_json(tool.name, await _with_retries(tool, arguments, sleep, random))
    with anyio.move_on_after(tool.timeout_s):
        return to_json(tool.name, await _with_retries(tool, arguments, sleep, random))
    raise ToolTimeout(tool.name, f"took longer than timeout_s={tool.timeout_s:g}")


async def _with_retries(
    tool: Tool,
    arguments: dict[str, Any],
    sleep: Sleep,
    random: Random | None,
) -> Any:
    retries = tool.retries if tool.effect in ("pure", "idempotent") else 0
    for attempt in range(retries + 1):
        try:
            return await _run(tool, arguments)
        except (InvalidArguments, InvalidResult):
            raise  # another attempt would end alike
        except Exception as error:
            if attempt == retries:
                tries = f" ({retries + 1} attempts)" if retries else ""
                said = _said(error)
                raise ToolError(tool.name, f"{said}{tries}", error) from error
        await sleep(backoff_s(attempt, random or Random()))
    raise AssertionError("unreachable")


def backoff_s(attempt: int, random: Random) -> float:
    """How long to wait after failed attempt number `attempt` (from 0): doubling, jittered."""
    longest = min(FIRST_BACKOFF_S * 2**attempt, LONGEST_BACKOFF_S)
    return longest * random.uniform(0.5, 1.0)


async def _run(tool: Tool, arguments: dict[str, Any]) -> Any:
    """One attempt."""
    try:
        if _is_async(tool.function):
            return await tool.function(**arguments)
        result = await anyio.to_thread.run_sync(
            partial(tool.function, **arguments), abandon_on_cancel=True, limiter=_thread_limiter()
        )
        return await result if inspect.isawaitable(result) else result
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise ToolError(tool.name, "what it waited for was cancelled", error) from error


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004
    )


def _slot(tool: Tool) -> anyio.CapacityLimiter:
    """What holds the tool's concurrency down, on this event loop."""
    slots = _slots.get(None)
    if slots is None:
        slots = dict[Tool, anyio.CapacityLimiter]()
        _slots.set(slots)
    if tool not in slots:
        slots[tool] = anyio.CapacityLimiter(tool.max_concurrency or math.inf)
    return slots[tool]


def _thread_limiter() -> anyio.CapacityLimiter:
    limiter = _threads.get(None)
    if limiter is None:
        limiter = anyio.CapacityLimiter(MAX_THREADS)
        _threads.set(limiter)
    return limiter


def to_json(name: str, result: Any) -> Any:
    """`result` as JSON data: models, dataclasses, dates and tuples are converted."""
    if result is None or isinstance(result, str | bool | int):
        return result
    try:
        plain = to_jsonable_python(result)
        json.dumps(plain, allow_nan=False)
    except (PydanticSerializationError, ValueError, TypeError, RecursionError) as error:
        raise InvalidResult(
            name,
            f"returned {type(result).__name__}, which JSON cannot hold ({_spell(error)}): "
            "return text, numbers, lists, dicts or a Pydantic model",
            error,
        ) from None
    return plain


def did_nothing(error: BaseException) -> bool:
    """Whether a call that ended with `error` had no effect, by the tool's own word or for sure."""
    cause = error.cause if isinstance(error, ToolError) else None
    return any(isinstance(each, InvalidArguments | NoEffect) for each in (error, cause))


def _said(error: Exception) -> str:
    """What a failed attempt says."""
    if isinstance(error, NoEffect):
        return str(error)
    return error.message if isinstance(error, ToolError) else _spell(error)


def _spell(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
