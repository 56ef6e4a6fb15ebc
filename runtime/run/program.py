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
from .codec import decode, encode, identity
from .context import current_program
from .early import EarlyCall
from .host import Host
from .machine import Body, compile_graph
from .owner import Owner
from .raised import failure_of
from .session import ChatSession
from .speech import OnText
from .trust import EMPTY, Toolbox, Trust
from .waiter import Waiter
from .walk import Walk

Ended = Callable[[Any, Exception | None], None]
NOTHING: Mapping[str, StepRecord] = {}


class Programs:
    """Starts programs of one workflow; graphs are compiled once."""

    takes_all = False

    def __init__(self, host: Host, workflow: Workflow) -> None:
        self._host = host
        self.workflow = workflow
        self._body = compile_graph(workflow.graph) if workflow.graph is not None else None
        self.live: dict[str, Ended] = {}  # how each is ended
        self._waiting: dict[str, Ended] = {}  # of them, those that were not started yet

    def arrive(
        self,
        row: int,
        inputs: Mapping[str, Any],
        ended: Ended,
        recorded: Mapping[str, StepRecord] = NOTHING,
        on_text: OnText | None = None,
    ) -> None:
        """Announce a program for one row; `ended(value, error)` is called once."""
        owner = Owner(f"r{row}", row, recorded, on_text=on_text)

        def over(value: Any, error: Exception | None) -> None:
            if owner.ended:
                return
            owner.ended = True
            if error is None and self._body is not None:
                error = self._misfit(value)
            if owner.stopped is not None:  # its author's code may have gone on without the step
                error = owner.stopped
            self.live.pop(owner.name, None)
            self._waiting.pop(owner.name, None)
            if error is not None:
                self._host.stop(owner)
            ended(value, error)
            self._host.scheduler.send(self._end(owner, error))

        def start() -> None:
            self._waiting.pop(owner.name, None)
            if owner.ended:
                return
            if self._body is not None:
                Walk(self._host, owner, self._body, self.workflow.tools, over).start(inputs)
            else:
                program = AsyncProgram(self._host, owner, self.workflow)
                task = self._host.run_task(program.run(inputs, over))
                owner.task = task

        self.live[owner.name] = self._waiting[owner.name] = over
        self._host.arrive(owner, self.workflow.name, inputs, start)

    def _misfit(self, value: Any) -> Exception | None:
        """Why a graph's result is not what its author's annotation promises, if it is not."""
        try:
            if self.workflow.convert is not None:
                self.workflow.convert(value)
        except TenterError as error:
            return error
        return None

    def _end(self, owner: Owner, error: Exception | None) -> ProgramEnded:
        ok, host = error is None, self._host
        stopped = not ok and (host.draining or owner.stopped is not None)
        message = None if ok else str(error)
        return ProgramEnded(
            program=owner.name, row=owner.row, ok=ok, error=message, stopped=stopped
        )

    def refuse(self, row: int, problem: str) -> None:
        """Note a row that no program can be run for."""
        ended = ProgramEnded(program=f"r{row}", row=row, ok=False, error=problem)
        self._host.scheduler.send(ended)

    def drain(self) -> None:
        """Let what runs end, and start nothing any more."""
        self._host.drain()
        for over in tuple(self._waiting.values()):
            over(None, Drained(DRAINED))

    def cancel(self, name: str) -> None:
        """Stop a program: its calls are aborted, its tools cancelled."""
        over = self.live.get(name)
        if over is not None:
            over(None, StepFailed("the program was cancelled"))


class AsyncProgram:
    """An `async def` workflow being run: what its awaited steps reach (`context.Program`).

    A step's path is its id, its values, and how often the program has come to it with them. So a
    program that is resumed finds what it finished before, also where branches race, and is never
    handed the result of another step. Tools with an effect are counted, whatever their values.
    """

    def __init__(self, host: Host, owner: Owner, workflow: Workflow, prefix: str = "") -> None:
        self.host = host
        self.owner = owner
        self._workflow = workflow
        self._prefix = prefix
        self._visits: dict[str, int] = {}
        self._bodies: dict[int, tuple[Workflow, Body]] = {}  # by id; kept, so that ids stay

    async def run(self, inputs: Mapping[str, Any], over: Ended) -> None:
        """Run the author's function; `over` is called once, whatever happens."""
        task = asyncio.current_task()
        try:
            value = await self._call(self._workflow, inputs)
        except asyncio.CancelledError:
            if task is not None and task.cancelling():
                self.owner.ended = True  # it was cancelled, or the whole run ends: not its fault
                raise
            over(None, StepFailed("the program was cancelled"))
        except TenterError as error:
            over(None, error)
        except Exception as error:
            over(None, failure_of(error))
        else:
            over(value, None)

    async def _call(self, workflow: Workflow, inputs: Mapping[str, Any]) -> Any:
        assert workflow.program is not None
        token = current_program.set(self)
        try:
            return await workflow.program(**inputs)
        finally:
            current_program.reset(token)

    def path(self, step: str, values: Any = None) -> str:
        """The place of this visit of `step` with `values`."""
        if values is not None:
            step = f"{step}@{identity(values)}"
        visit = self._visits.get(step, 0)
        self._visits[step] = visit + 1
        return self.place(step) if visit == 0 else f"{self.place(step)}#{visit}"

    def place(self, step: str) -> str:
        """The place of the first visit of a step."""
        return f"{self._prefix}{step}"

    async def llm(self, step: LLM, values: Mapping[str, Any], toolbox: Toolbox = EMPTY) -> Any:
        """Run one LLM step on values by field name; its JSON value."""
        waiter = Waiter()
        asking = self.host.asking(step)
        path = self.path(step.id, [asking.identity, values])
        self.host.answer(self.owner, path, asking, values, waiter.settle, toolbox)
        return _own(await self.result(waiter, path))

    async def tool(self, step: ToolCall, values: Mapping[str, Any]) -> Any:
        """Run one tool step on argument values; its JSON value."""
        tool = self._workflow.tools.get(step.tool)
        if tool is None:
            known = ", ".join(sorted(self._workflow.tools)) or "none"
            raise StepFailed(f"there is no tool {step.tool!r}; known: {known}", step.id)
        return await self.use(tool, values, step.id)

    async def use(
        self,
        tool: Tool,
        values: Mapping[str, Any],
        step: str | None = None,
        early: EarlyCall | None = None,
        path: str | None = None,
    ) -> Any:
        """Call `tool` as a step of this program; `early` is that call, if it was started before.

        Its `path` is given where the order in which calls start does not tell them apart.
        """
        waiter = Waiter()
        name = step or tool.name
        path = path or self.path(name, None if tool.effect == "once" else values)
        self.host.tools.use(self.owner, path, name, tool, values, waiter.settle, early)
        return _own(await self.result(waiter, path))

    async def result(self, waiter: Waiter, path: str) -> Any:
        """What the step at `path` gives; it is broken off where its author's code gives it up."""
        try:
            return await waiter.future
        except asyncio.CancelledError:
            self.host.withdraw(self.owner, path)
            raise

    async def workflow(self, workflow: Workflow, values: Mapping[str, Any]) -> Any:
        """Run another workflow as a part of this program; its JSON result."""
        prefix = f"{self.path(workflow.name, values)}."
        if workflow.graph is None:
            inner = AsyncProgram(self.host, self.owner, workflow, prefix)
            return await inner._call(workflow, values)
        if id(workflow) not in self._bodies:
            self._bodies[id(workflow)] = workflow, compile_graph(workflow.graph)
        _, body = self._bodies[id(workflow)]
        waiter = Waiter()
        Walk(self.host, self.owner, body, workflow.tools, waiter.settle, prefix).start(values)
        return _own(await waiter.future)

    def session(
        self, system: str | None = None, model: str = "default", trust: Trust | None = None
    ) -> ChatSession:
        """A new chat whose context grows turn by turn."""
        return ChatSession(self, system, model, trust)


def _own(value: Any) -> Any:
    """A value for the author's code to change: equal work elsewhere was given the same one."""
    return decode(encode(value)) if isinstance(value, list | dict) else value
