"""An agent as a step: a chat of its own that calls tools until it can answer."""

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
from .long_step import LongStep
from .owner import Owner
from .program import AsyncProgram
from .session import ChatSession
from .sharing import Settled
from .trust import Toolbox, Trust

if TYPE_CHECKING:
    from .host import Host

INPUTS = "the step's inputs"  # what its chat reads first, and somebody else may have written


class AgentWork(LongStep):
    """One agent step of one program: its turns and tool calls."""

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
        self._step = step
        self._loop: Loop = step.loop
        self._chat = chat
        self._toolbox = toolbox
        self._tools = [_named(name, step, toolbox.tools) for name in self._loop.tools]
        super().__init__(host, owner, path, signature and _with_tools(signature, self._tools), done)

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
                loop.speculate,
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
