"""The agent loop: ask, call the tools that the model wants, hand it their results, until it answers."""

import asyncio
import inspect
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import msgspec

from ...planner.graph import Sampling
from ...tools import Tool
from ..calls import Message
from ..errors import OutputInvalid, StepFailed, ToolFailed
from ..scheduler.events import ToolRefused
from .answers import parse_json
from .codec import decode, encode
from .trust import Approval
from .turns import malformed

if TYPE_CHECKING:
    from .session import ChatSession

FINAL = "Now give your final answer as JSON."
REPAIRS = 1  # turns in a row that may be spent on saying a tool call again


@dataclass(frozen=True, slots=True)
class AgentLimits:
    """How long an agent may go on: turns of the model, and tokens that it writes in all of them."""

    max_turns: int = 10
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.max_turns < 1 or (self.max_tokens is not None and self.max_tokens < 1):
            raise ValueError("max_turns and max_tokens are 1 or more")


async def agent_loop(
    session: "ChatSession",
    content: str,
    tools: list[Tool],
    sampling: Sampling | None,
    limits: AgentLimits,
    schema: str | None = None,
) -> Any:
    """The agent's answer: text, or with `schema` (JSON Schema as text) a JSON value.

    Calls of one turn run at once. A tool that fails, does not exist, is refused or called wrongly
    is told to the model as its result; a call that cannot be read gets one more turn that says
    what is wrong with it. Raises StepFailed where the limits are reached without an answer.
    """
    message = await session.ask(content, tools, sampling)
    repairs = 0
    for turn in range(1, limits.max_turns + 1):
        wrong = malformed(message)
        if not message.tool_calls and (wrong is None or repairs >= REPAIRS):
            return message.content if schema is None else await _final(session, sampling, schema)
        _check(session, limits, turn)
        if message.tool_calls:
            calls = [_call(session, tools, *call) for call in message.tool_calls]
            message = await session.give(await asyncio.gather(*calls), tools, sampling)
            repairs = 0
        else:
            repairs += 1
            message = await session.ask(f"error: {wrong}. Say it again.", tools, sampling)
    raise AssertionError("unreachable")


def _check(session: "ChatSession", limits: AgentLimits, turn: int) -> None:
    if turn >= limits.max_turns:
        raise StepFailed(f"the agent still calls tools after {turn} turns; allow more by max_turns")
    if limits.max_tokens is not None and session.output_tokens >= limits.max_tokens:
        raise StepFailed(
            f"the agent has written {session.output_tokens} tokens without an answer; "
            "allow more by max_tokens"
        )


async def _final(session: "ChatSession", sampling: Sampling | None, schema: str) -> Any:
    """The answer as JSON: what was said if it is that, else a turn held to the schema."""
    last = session.messages[-1]
    try:
        return parse_json(last.content, schema, session.name)
    except OutputInvalid:
        said = await session.ask(FINAL, (), sampling, schema)
        return parse_json(said.content, schema, session.name)


async def _call(session: "ChatSession", tools: list[Tool], name: str, arguments: str) -> Any:
    """One tool call that the model asked for; what it is told of it."""
    tool = next((tool for tool in tools if tool.name == name), None)
    if tool is None:
        known = ", ".join(tool.name for tool in tools) or "none"
        return f"error: there is no tool {name!r}; there is {known}"
    try:
        values = json.loads(arguments)
    except (ValueError, RecursionError) as error:
        return f"error: the arguments are not JSON: {error}"
    if not isinstance(values, dict):
        return "error: the arguments must be a JSON object"
    given = cast("Mapping[str, Any]", values)
    if not session.trust.permits(tool) and not await _approved(session, tool, given):
        refusal = session.trust.refusal(tool)
        sources = tuple(session.trust.sources)
        session.note(ToolRefused(program=session.program, tool=tool.name, sources=sources))
        return f"error: {refusal}"
    try:
        return await session.use(tool, given)
    except ToolFailed as error:
        return f"error: {error}"


async def _approved(session: "ChatSession", tool: Tool, values: Mapping[str, Any]) -> bool:
    """Whether somebody lets the call run; the answer is recorded, and not asked for again."""
    approve = session.trust.approve
    if approve is None:
        return False
    path = session.path(f"approve.{tool.name}", values)
    known = session.recorded(path)
    if known is not None:
        return decode(known) is True
    given = approve(Approval(tool.name, dict(values), tuple(session.trust.sources)))
    answer = await given if inspect.isawaitable(given) else given
    await session.record(path, encode(answer is True))
    return answer is True


def said_of(results: Iterable[Any]) -> list[Message]:
    """Results of tools as messages for the model."""
    return [
        Message("tool", each if isinstance(each, str) else msgspec.json.encode(each).decode())
        for each in results
    ]
