"""One program: a workflow for one input, from its arrival to its end."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from ...planner.graph import LLM, ToolCall
from ...tools import Tool
from ..errors import Drained, StepFailed, TenterError
from ..journal.base import StepRecord
from ..scheduler.core import DRAINED
from ..scheduler.events import ProgramEnded
from ..workflow import Workflow
from .context import current_program
from .host import Host, Owner
from .machine import Body, compile_graph
from .session import ChatSession
from .walk import Walk

Ended = Callable[[Any, Exception | None], None]
NOTHING: Mapping[str, StepRecord] = {}


class Programs:
    """Starts programs of one workflow; graphs are compiled once."""

    def __init__(self, host: Host, workflow: Workflow) -> None:
        self._host = host
        self.workflow = workflow
        self._body = compile_graph(workflow.graph) if workflow.graph is not None else None
        self.live: dict[str, Ended] = {}  # how each is ended

    def arrive(
        self,
        row: int,
        inputs: Mapping[str, Any],
        ended: Ended,
        recorded: Mapping[str, StepRecord] = NOTHING,
    ) -> None:
        """Announce a program for one row; `ended(value, error)` is called once."""
        owner = Owner(f"r{row}", row, recorded)

        def over(value: Any, error: Exception | None) -> None:
            if owner.ended:
                return
            owner.ended = True
            if owner.drained and error is None:  # its author's code went on without the step
                error = Drained(DRAINED)
            self.live.pop(owner.name, None)
            if error is not None:
                self._host.stop(owner)
            ended(value, error)
            message = str(error) if error is not None else None
            self._host.scheduler.send(
                ProgramEnded(program=owner.name, row=row, ok=error is None, error=message)
            )

        def start() -> None:
            if owner.ended:
                return
            if self._body is not None:
                Walk(self._host, owner, self._body, self.workflow.tools, over).start(inputs)
            else:
                program = AsyncProgram(self._host, owner, self.workflow)
                task = self._host.run_task(program.run(inputs, over))
                owner.task = task

        self.live[owner.name] = over
        self._host.scheduler.arrive(owner.name, row, self.workflow.name, start)

    def drain(self) -> None:
        """Let what runs end, and start nothing any more."""
        self._host.drain()

    def cancel(self, name: str) -> None:
        """Stop a program: its calls are aborted, its tools cancelled."""
        over = self.live.get(name)
        if over is not None:
            over(None, StepFailed("the program was cancelled"))


class AsyncProgram:
    """An `async def` workflow being run: what its awaited steps reach (`context.Program`).

    A step's path is its id and how often the program has come to it, so that a program that takes
    the same way again finds what it finished before it was stopped.
    """

    def __init__(self, host: Host, owner: Owner, workflow: Workflow, prefix: str = "") -> None:
        self.host = host
        self.owner = owner
        self._workflow = workflow
        self._prefix = prefix
        self._visits: dict[str, int] = {}
        self._bodies: dict[int, Body] = {}

    async def run(self, inputs: Mapping[str, Any], over: Ended) -> None:
        """Run the author's function; `over` is called once, whatever happens."""
        task = asyncio.current_task()
        try:
            value = await self._call(self._workflow, inputs)
        except asyncio.CancelledError:
            over(None, StepFailed("the program was cancelled"))
            if task is not None and task.cancelling():
                raise
        except TenterError as error:
            over(None, error)
        except Exception as error:
            over(None, StepFailed(f"{type(error).__name__}: {error}"))
        else:
            over(value, None)

    async def _call(self, workflow: Workflow, inputs: Mapping[str, Any]) -> Any:
        assert workflow.program is not None
        token = current_program.set(self)
        try:
            return await workflow.program(**inputs)
        finally:
            current_program.reset(token)

    def path(self, step: str) -> str:
        """The place of this visit of `step`; the first is the step's id itself."""
        visit = self._visits.get(step, 0)
        self._visits[step] = visit + 1
        return f"{self._prefix}{step}" if visit == 0 else f"{self._prefix}{step}#{visit}"

    async def llm(self, step: LLM, values: Mapping[str, Any]) -> Any:
        """Run one LLM step on values by field name; its JSON value."""
        waiter = _Waiter()
        asking = self.host.asking(step)
        self.host.answer(self.owner, self.path(step.id), asking, values, waiter.settle)
        return await waiter.future

    async def tool(self, step: ToolCall, values: Mapping[str, Any]) -> Any:
        """Run one tool step on argument values; its JSON value."""
        tool = self._workflow.tools.get(step.tool)
        if tool is None:
            known = ", ".join(sorted(self._workflow.tools)) or "none"
            raise StepFailed(f"there is no tool {step.tool!r}; known: {known}", step.id)
        return await self.use(tool, values, step.id)

    async def use(self, tool: Tool, values: Mapping[str, Any], step: str | None = None) -> Any:
        """Call `tool` as a step of this program."""
        waiter = _Waiter()
        name = step or tool.name
        self.host.use(self.owner, self.path(name), name, tool, values, waiter.settle)
        return await waiter.future

    async def workflow(self, workflow: Workflow, values: Mapping[str, Any]) -> Any:
        """Run another workflow as a part of this program; its JSON result."""
        prefix = f"{self.path(workflow.name)}."
        if workflow.graph is None:
            inner = AsyncProgram(self.host, self.owner, workflow, prefix)
            return await inner._call(workflow, values)
        body = self._bodies.get(id(workflow))
        if body is None:
            body = self._bodies[id(workflow)] = compile_graph(workflow.graph)
        waiter = _Waiter()
        Walk(self.host, self.owner, body, workflow.tools, waiter.settle, prefix).start(values)
        return await waiter.future

    def session(self, system: str | None = None, model: str = "default") -> ChatSession:
        """A new chat whose context grows turn by turn."""
        return ChatSession(self, system, model)


class _Waiter:
    """Turns a callback into something to await."""

    def __init__(self) -> None:
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def settle(self, value: Any, error: Exception | None) -> None:
        if self.future.done():
            return
        if error is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(value)
