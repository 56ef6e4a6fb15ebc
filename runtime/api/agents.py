"""Agents as steps: a model with tools, in plain workflows and in `async def` ones."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import TypeAdapter

from ...planner.graph import LLM, Loop
from ...tools import Tool
from ...tools.arguments import arguments
from ..run.context import HasTool, Program, current_program
from ..run.trust import Approve, Toolbox
from .handles import LLMStep, check_name
from .identity import step_identity
from .places import here, refuse
from .prompts import prompt_of, sampling_of
from .tracing import current_tracer
from .types import adapter_of, schema_text


def agent(
    prompt: str,
    *,
    tools: Iterable[Tool | HasTool] = (),
    system: str | None = None,
    output: Any = None,
    model: str = "default",
    max_turns: int = 10,
    max_tokens: int | None = None,
    turn_tokens: int = 256,
    allow: Iterable[str] = (),
    approve: Approve | None = None,
    speculate: bool = False,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int | None = None,
    name: str | None = None,
) -> "AgentStep":
    """A model that calls `tools` until it can answer; used as a step, like `llm(...)`.

    Its answer is text, or with `output` a value of that type. `max_turns` bounds its turns,
    `turn_tokens` what it writes in one of them, and `max_tokens` what it writes in all of them;
    reaching a limit without an answer fails the step. What its prompt is given, and what tools say,
    is untrusted: tools that have an effect or are sensitive run only where `allow` names them or
    where `approve` says True: a function, in an `async def` workflow, or "pause": the program stops
    until somebody has answered by `tenter approve` and resumed the run. With `speculate` calls of
    pure tools start while the turn that asks for them is still being written.
    """
    check_name(name, "an agent")
    adapter = None if output is None or output is str else adapter_of(output, "output")
    if approve is not None and approve != "pause" and not callable(approve):  # pyright: ignore[reportUnnecessaryComparison]
        raise refuse(f'approve is a function or "pause", not {approve!r}')
    known = tools_by_name(tools)
    sampling = sampling_of(turn_tokens, temperature, top_k, top_p, (), seed)
    for what, limit in (("max_turns", max_turns), ("max_tokens", max_tokens)):
        if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise refuse(f"{what} is a whole number, not {limit!r}")
    loop = Loop(
        tools=tuple(known),
        max_turns=max_turns,
        max_tokens=max_tokens,
        allow=tuple(allow),
        pure=pure(known.values()),
        approve="pause" if approve == "pause" else None,
        speculate=speculate,
    )
    step = LLM(
        id=name or "agent",
        prompt=prompt_of(prompt, "prompt"),
        system=None if system is None else prompt_of(system, "system"),
        model=model,
        sampling=sampling,
        schema=schema_text(adapter.json_schema()) if adapter else None,
        loop=loop,
        place=here(),
    )
    return AgentStep(step, adapter, name, Toolbox(known, approve))


def pure(tools: Iterable[Tool]) -> bool:
    """Whether an agent with these tools does nothing but answer."""
    return all(tool.effect == "pure" for tool in tools)


class AgentStep(LLMStep):
    """An agent, ready to be used in workflows: called with the fields of its prompt."""

    def __init__(
        self, step: LLM, output: TypeAdapter[Any] | None, name: str | None, toolbox: Toolbox
    ) -> None:
        super().__init__(step, output, name)
        self.toolbox = toolbox

    def __call__(self, **values: Any) -> Any:
        tracer = current_tracer.get()
        if tracer is not None:
            if callable(self.toolbox.approve):
                raise refuse(
                    "approve= asks somebody while the agent runs, which a plain `def` cannot: "
                    'name the tools in allow=, write approve="pause", or make the workflow '
                    "`async def`"
                )
            for tool in self.toolbox.tools.values():
                tracer.know_tool(tool)
        return super().__call__(**values)

    def as_tool(self, name: str, description: str) -> Tool:
        """A tool that hands over to this agent: another agent calls it with the prompt's fields.

        Agents with equal system prompts share their beginning in the KV cache. The agent has its
        own turns, limits and rules; one that may use tools with an effect on its own is itself a
        sensitive tool, so that what an agent has read cannot reach them through another one. An
        agent whose prompt has no fields has read nothing yet, and may use all its tools.
        """
        check_name(name, "a tool")
        parameters, validate = arguments(name, {field: {"type": "string"} for field in self.fields})
        loop = self.step.loop or Loop()
        tools = self.toolbox.tools
        allowed = [t for t in tools.values() if t.name in loop.allow or not self.fields]
        repeatable = loop.pure and self.step.sampling.deterministic
        identity = step_identity(name, self.step, tools)
        return Tool(
            name=name,
            description=description,
            parameters=parameters,
            function=self._hand_over,
            effect="pure" if repeatable else "idempotent",  # what it calls is recorded by itself
            timeout_s=None,
            source_hash=hashlib.blake2b(identity.encode(), digest_size=16).hexdigest(),
            validate=validate,
            sensitive=any(tool.effect == "once" or tool.sensitive for tool in allowed),
        )

    async def _hand_over(self, **values: Any) -> Any:
        if current_program.get() is None:
            raise refuse(
                "an agent is called outside of a workflow: call it in a @workflow function"
            )
        return await self(**values)

    async def _result(self, program: Program, step: LLM, values: Mapping[str, Any]) -> Any:
        return await program.llm(step, values, self.toolbox)


def tools_by_name(tools: Iterable[Tool | HasTool]) -> dict[str, Tool]:
    """The tools by name."""
    found: dict[str, Tool] = {}
    if hasattr(tools, "tool"):
        raise refuse("tools is a list, such as tools=[search]")
    for given in tools:
        tool = given if isinstance(given, Tool) else getattr(given, "tool", None)
        if not isinstance(tool, Tool):
            raise refuse(f"a tool of an agent is made with @tool or is a Tool, not {given!r}")
        if found.setdefault(tool.name, tool) != tool:
            raise refuse(f"two tools are called {tool.name!r}: give one of them another name=")
    return found
