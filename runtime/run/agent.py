"""The agent loop: ask, call the tools that the model wants, hand it their results, until it answers."""

import asyncio
import inspect
import json
from collections.abc import Awaitable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import msgspec

from ...planner.graph import Sampling
from ...tools import Tool
from ..calls import Message
from ..errors import OutcomeUnknown, OutputInvalid, StepFailed, ToolFailed
from ..scheduler.events import ToolRefused
from .answers import parse_json
from .codec import decode, encode
from .effects import QUESTION
from .trust import ASKS, Approval
from .turns import malformed

if TYPE_CHECKING:
    from .session import ChatSession

FINAL = "Now give your final answer as JSON."
REPAIRS = 1  # turns in a row that may be spent on saying a tool call again


@dataclass(frozen=True, slots=True)
class AgentLimits:
    """How long an agent may go on: turns of the model, and tokens that it writes in all of them.

    No turn is given more tokens than are left, so that the limit is never passed.
    """

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
    budget = _Budget(session, sampling or Sampling(), limits)
    message = await session.ask(content, tools, budget.turn())
    repairs = 0
    for turn in range(1, limits.max_turns + 1):
        wrong = malformed(message)
        if not message.tool_calls and (wrong is None or repairs >= REPAIRS):
            budget.check_answer()
            return message.content if schema is None else await _final(session, budget, schema)
        if turn >= limits.max_turns:
            raise StepFailed(
                f"the agent still calls tools after {turn} turns; allow more by max_turns"
            )
        if message.tool_calls:
            calls = [_asked(session, tools, *call) for call in message.tool_calls]
            results = await _all(_answer(session, call) for call in calls)
            message = await session.give(results, tools, budget.turn())
            repairs = 0
        else:
            repairs += 1
            message = await session.ask(f"error: {wrong}. Say it again.", tools, budget.turn())
    raise AssertionError("unreachable")


async def _all(calls: Iterable[Awaitable[Any]]) -> list[Any]:
    """The results of all; where one stops the program, the others come to their ends first."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


class _Budget:
    """The tokens that an agent may still write."""

    def __init__(self, session: "ChatSession", sampling: Sampling, limits: AgentLimits) -> None:
        self._session = session
        self._sampling = sampling
        self._limit = limits.max_tokens
        self._before = session.output_tokens

    def turn(self) -> Sampling:
        """The sampling of the next turn; raises StepFailed where nothing is left."""
        if self._limit is None:
            return self._sampling
        left = self._limit - self._written
        if left <= 0:
            raise self._spent()
        return replace(self._sampling, max_tokens=min(left, self._sampling.max_tokens))

    def check_answer(self) -> None:
        """Raise StepFailed where the answer was cut off for want of tokens."""
        if self._limit is not None and self._session.cut and self._written >= self._limit:
            raise self._spent()

    @property
    def _written(self) -> int:
        return self._session.output_tokens - self._before

    def _spent(self) -> StepFailed:
        return StepFailed(
            f"the agent has written {self._written} tokens without an answer; "
            "allow more by max_tokens"
        )


async def _final(session: "ChatSession", budget: _Budget, schema: str) -> Any:
    """The answer as JSON: what was said if it is that, else a turn held to the schema."""
    last = session.messages[-1]
    try:
        return parse_json(last.content, schema, session.name)
    except OutputInvalid:
        said = await session.ask(FINAL, (), budget.turn(), schema)
        return parse_json(said.content, schema, session.name)


@dataclass(frozen=True, slots=True)
class _Call:
    """A call that a turn asks for. Its `path` is given before any of its turn starts: who approves
    of them, or how long that takes, does not change which is which."""

    tool: Tool
    values: Mapping[str, Any]
    path: str


def _asked(session: "ChatSession", tools: list[Tool], name: str, arguments: str) -> "_Call | str":
    """One tool call of a turn, or what the model is told of one that cannot be made."""
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
    return _Call(tool, given, session.place(tool, given))


async def _answer(session: "ChatSession", call: _Call | str) -> Any:
    """What the model is told of a call."""
    if isinstance(call, str):
        return call
    tool, given = call.tool, call.values
    if not session.trust.permits(tool) and not await _approved(session, tool, given):
        refusal = session.trust.refusal(tool)
        sources = tuple(session.trust.sources)
        session.note(ToolRefused(program=session.program, tool=tool.name, sources=sources))
        return f"error: {refusal}"
    try:
        return await session.use(tool, given, call.path)
    except ToolFailed as error:
        session.check_stopped()  # by an agent that it was handed over to
        if isinstance(error, OutcomeUnknown) and session.trust.approve == "pause":
            await _ask_author(session, tool, given, error)
        return f"error: {error}"


async def _ask_author(
    session: "ChatSession", tool: Tool, values: Mapping[str, Any], error: OutcomeUnknown
) -> None:
    """Stop until the author of the tool has said what came of a call; he may not know either.

    Raises ApprovalWanted.
    """
    path = f"{error.path}{QUESTION}"
    known = session.recorded(path)
    if known is not None and decode(known) is False:
        return
    approval = Approval(tool.name, dict(values), ())
    await session.record(path, encode(approval.question()))
    raise session.stop(path, approval)


async def _approved(session: "ChatSession", tool: Tool, values: Mapping[str, Any]) -> bool:
    """Whether somebody lets the call run; the answer is recorded, and not asked for again.

    Raises ApprovalWanted where the program is to stop until there is an answer.
    """
    approve = session.trust.approve
    if approve is None:
        return False
    path = session.path(f"{ASKS}.{tool.name}", values)
    known = session.recorded(path)
    answer = None if known is None else decode(known)
    if isinstance(answer, bool):
        return answer
    approval = Approval(tool.name, dict(values), tuple(session.trust.sources))
    if approve == "pause":
        if known is None:
            await session.record(path, encode(approval.question()))
        raise session.stop(path, approval)
    given = approve(approval)
    answer = await given if inspect.isawaitable(given) else given
    await session.record(path, encode(answer is True))
    return answer is True


def said_of(results: Iterable[Any]) -> list[Message]:
    """Results of tools as messages for the model."""
    return [
        Message("tool", each if isinstance(each, str) else msgspec.json.encode(each).decode())
        for each in results
    ]
