"""The program that the current task runs for: what an `async def` workflow's awaited steps reach."""

from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from typing import Any, Protocol

from ...planner.graph import LLM, Sampling, ToolCall
from ...tools import Tool
from ..calls import Message
from ..workflow import Workflow
from .trust import EMPTY, Toolbox, Trust


class HasTool(Protocol):
    """What `@tool` makes of a function."""

    @property
    def tool(self) -> Tool: ...


class Session(Protocol):
    """An append-only chat with one model, whose KV cache is kept while tools run."""

    @property
    def messages(self) -> list[Message]:
        """What has been said."""
        ...

    @property
    def trust(self) -> Trust:
        """Whose words it has read, and what its model may do all the same."""
        ...

    async def ask(
        self,
        content: str,
        tools: Iterable[Tool | HasTool] = (),
        sampling: Sampling | None = None,
        schema: str | None = None,
        untrusted: str | None = None,
    ) -> Message:
        """Append a user turn and the model's answer; returns the assistant's message.

        `schema` (JSON Schema as text) holds the answer to it. `untrusted` says where `content`
        comes from, if not from somebody who may choose what tools do. Without an answer, nothing
        is appended.
        """
        ...

    async def give(
        self,
        results: Iterable[Any],
        tools: Iterable[Tool | HasTool] = (),
        sampling: Sampling | None = None,
    ) -> Message:
        """Append the results of the last message's tool calls, in order, and the model's answer."""
        ...

    async def run(
        self,
        content: str,
        tools: Iterable[Tool | HasTool] = (),
        sampling: Sampling | None = None,
        max_turns: int = 10,
        max_tokens: int | None = None,
        schema: str | None = None,
        untrusted: str | None = None,
        speculate: bool = False,
    ) -> Any:
        """Ask, call the tools that the model wants, hand it their results, until it answers.

        The answer is text, or a JSON value of `schema`. Calls of one turn run at once. A tool that
        fails, does not exist, is refused or called wrongly is told to the model as its result, and
        a call that cannot be read gets one turn to be said again. Raises StepFailed after
        `max_turns` turns, or once the model has written `max_tokens` tokens, without an answer.
        With `speculate` calls of pure tools start while the turn that asks for them is still being
        written.
        """
        ...

    async def compact(
        self, keep_last: int = 0, summary: str | None = None, sampling: Sampling | None = None
    ) -> str:
        """Put a summary in the place of what was said, but for the last `keep_last` messages.

        The system prompt stays, and so does what the chat is not trusted for. A kept result of a
        tool keeps the call that it answers. Without `summary` the model is asked for one. What is
        replaced is part of no later prompt, and the next turn lets go of its KV. Returns the
        summary; "" where there was nothing to replace.
        """
        ...


class Program(Protocol):
    """One run of a workflow for one input, seen from inside."""

    async def llm(self, step: LLM, values: Mapping[str, Any], toolbox: Toolbox = EMPTY) -> Any:
        """Run one LLM step on values by field name; the JSON result (text, choice, object).

        `toolbox` has the tools of a step that is an agent.
        """
        ...

    async def tool(self, step: ToolCall, values: Mapping[str, Any]) -> Any:
        """Run one tool step on argument values; the tool is found in `Workflow.tools`, or in
        those that the program has used before."""
        ...

    async def workflow(self, workflow: Workflow, values: Mapping[str, Any]) -> Any:
        """Run another workflow as a part of this program; its JSON result."""
        ...

    async def use(self, tool: Tool, values: Mapping[str, Any], step: str | None = None) -> Any:
        """Call `tool` as a step of this program; its JSON result."""
        ...

    def session(
        self, system: str | None = None, model: str = "default", trust: Trust | None = None
    ) -> Session:
        """A new chat whose context grows turn by turn."""
        ...


current_program: ContextVar[Program | None] = ContextVar("tenter_program", default=None)
