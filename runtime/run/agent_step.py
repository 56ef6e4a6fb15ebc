"""An agent as a step: a chat of its own that calls tools until it can answer."""

import asyncio
from collections.abc import Mapping
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from ...planner.graph import LLM, Loop, names_in
from ...tools import Tool
from ..calls import Message
from ..errors import StepFailed
from ..workflow import Workflow
from .asking import Asking
from .context import current_program
from .owner import Owner
from .program import AsyncProgram
from .session import ChatSession
from .sharing import Settled
from .trust import Toolbox, Trust

if TYPE_CHECKING:
    from .host import Host

INPUTS = "the step's inputs"  # what its chat reads first, and somebody else may have written


class AgentWork:
    """One agent step of one program.

    It is a part of its program: its turns and tool calls are recorded below the step's path, so
    that it goes on where it was stopped, and it is cancelled with it.
    """

    def __init__(
        self,
        host: "Host",
        owner: Owner,
        path: str,
        asking: Asking,
        chat: list[Message],
        signature: bytes | None,
        done: Settled,
        toolbox: Toolbox,
    ) -> None:
        step = asking.step
        assert step.loop is not None
        self._host = host
        self._owner = owner
        self._path = path
        self._step = step
        self._loop: Loop = step.loop
        self._chat = chat
        self._done = done
        self._toolbox = toolbox
        self._tools = [_named(name, step, toolbox.tools) for name in self._loop.tools]
        self.signature = signature and _with_tools(signature, self._tools)

    def start(self) -> None:
        """Let it run, unless its program has ended."""
        if self._owner.ended:
            self._host.abandon(self.signature)
        else:
            self._host.run_for(self._owner, self._run())

    async def _run(self) -> None:
        host, owner = self._host, self._owner
        try:
            value, error = await self._act(), None
        except asyncio.CancelledError:
            if owner.ended:  # otherwise the whole run ends, and nobody can take over
                host.abandon(self.signature)
            raise
        except Exception as failure:
            value, error = None, self._told(failure)
        if owner.ended:
            host.abandon(self.signature)
        elif error is not None:
            host.failed(self.signature, error, self._done)
        else:
            host.record(owner, self._path, value, self.signature, self._done)

    async def _act(self) -> Any:
        """The agent's answer."""
        step, loop = self._step, self._loop
        inside = Workflow(step.id, (), program=self._act, tools=self._toolbox.tools)
        program = AsyncProgram(self._host, self._owner, inside, f"{self._path}.")
        current_program.set(program)  # of this task: what its tools run as a part of it
        *system, user = self._chat
        trust = Trust(frozenset(loop.allow), self._toolbox.approve or loop.approve)
        told = system[0].content if system else None
        session = ChatSession(program, told, step.model, trust, step.id)
        try:
            return await session.run(
                user.content,
                self._tools,
                step.sampling,
                loop.max_turns,
                loop.max_tokens,
                step.schema,
                INPUTS if _reads(step) else None,
            )
        finally:
            session.end()

    def _told(self, error: Exception) -> Exception:
        """An error that tells its step."""
        if type(error) is StepFailed and not error.step:
            return StepFailed(str(error), self._step.id)
        return error


def _reads(step: LLM) -> bool:
    """Whether its prompt holds anything but the author's own words."""
    return any(True for _, value in step.args for _ in names_in(value))


def _named(name: str, step: LLM, tools: Mapping[str, Tool]) -> Tool:
    tool = tools.get(name)
    if tool is None:
        known = ", ".join(sorted(tools)) or "none"
        raise StepFailed(f"there is no tool {name!r}; known: {known}", step.id)
    return tool


def _with_tools(signature: bytes, tools: list[Tool]) -> bytes:
    """The signature of an agent: equal agents have equal tools."""
    digest = blake2b(signature, digest_size=16)
    for tool in tools:
        digest.update(f"{tool.name}\0{tool.source_hash}\0{tool.parameters}\0".encode())
    return digest.digest()
