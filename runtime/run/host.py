"""What the programs of one run share: models, tools, results, the journal and the scheduler."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from itertools import count
from secrets import token_hex
from typing import Any

from ...planner.graph import LLM
from ..calls import CallId
from ..errors import InvalidWorkflow, Problem
from ..fleet.flights import Flights
from ..journal.base import Journal
from ..journal.results import Results
from ..predict.learned import Learned
from ..reasoning.nouns import Outcome
from ..reasoning.pool import Thinking
from ..reasoning.shadow import Shadows
from ..reasoning.strategy import Step
from ..scheduler.events import CancelCall, Change, Continue, Drain, Pause
from ..scheduler.loop import Scheduler
from ..trace import Trace
from .asking import Asking, Model
from .cascades import Cascades
from .chat_work import TurnWork
from .draft import WORTH_TOKENS, Draft
from .gate import Gate
from .owner import Owner
from .packs import Member, Packs
from .planned import Planned
from .sharing import Settled, Sharing
from .step_results import StepResults
from .tool_steps import ToolSteps
from .trust import EMPTY, Toolbox
from .work import LLMWork, RowCall

MAX_ASKING = 4096  # compiled steps that are kept: programs may make new ones for each row


class Host(StepResults):
    """Performs steps for programs: answered from the journal, shared with equal work, or done.

    Every result is recorded before it is handed on.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        models: Mapping[str, Model],
        journal: Journal,
        trace: Trace,
        tasks: asyncio.TaskGroup,
        sharing: Sharing | None = None,
        seed: int = 0,
        resumed: bool = False,
        call_timeout_s: float | None = None,
        drafts: bool = True,
        run: str = "",
        tenant: str | None = None,
        learned: Learned | None = None,
        results: Results | None = None,
        flights: Flights | None = None,
    ) -> None:
        super().__init__(scheduler, journal, trace, tasks, sharing, resumed, results, flights)
        self.models = models
        self.seed = seed
        self.run = run
        self._drafts = drafts
        self._tenant = tenant
        self._learned = learned
        self.tools = ToolSteps(self, run or token_hex(8))
        self.gate = Gate()
        self.planned: Planned | None = None  # of a run over rows
        self.cascades: Cascades | None = None  # of a run over rows
        self.packs: Packs | None = Packs(self)  # None: each row has prompts of its own
        self.call_timeout_s = call_timeout_s
        self.thinking = Thinking()  # what settled reasoning steps leave to others
        self.shadows = learned.known.shadows if learned is not None else Shadows()
        self.observe_thought: Callable[[int, Step, Outcome], None] | None = None  # by row
        self._asking: dict[int, Asking] = {}  # by the id of its step, which it keeps alive
        self._side_tasks: dict[str, set[asyncio.Task[None]]] = {}  # tools and agents, by program
        self._rows = count()  # of programs that are no rows of a table
        self._parts: dict[tuple[str, str], tuple[asyncio.Task[None], bytes | None]] = {}
        self._withdrawn: set[CallId | asyncio.Task[None]] = set()
        self._effects: set[asyncio.Task[None]] = set()  # of them, tools that are never repeated

    def arrive(
        self,
        owner: Owner,
        workflow: str,
        inputs: Mapping[str, Any],
        start: Callable[[], None],
    ) -> None:
        """Announce a program; `start` is called when it may run."""
        tenant = "" if self._tenant is None else str(inputs.get(self._tenant))
        owner.tenant = tenant
        expected = self._learned.expected_work_tokens(workflow) if self._learned else None
        self.scheduler.arrive(owner.name, owner.row, workflow, start, tenant, expected)

    # ---- LLM steps --------------------------------------------------------------------------------

    def asking(self, step: LLM) -> Asking:
        """`step` compiled for the model that it names."""
        found = self._asking.get(id(step))
        if found is None:
            model = self.models.get(step.model)
            if model is None:
                known = ", ".join(sorted(self.models)) or "none"
                message = f"step {step.id!r}: there is no model {step.model!r}; known: {known}"
                raise InvalidWorkflow([Problem(message)])
            if len(self._asking) >= MAX_ASKING:
                self._asking.clear()
            found = self._asking[id(step)] = Asking(step, model)
        return found

    def answer(
        self,
        owner: Owner,
        path: str,
        asking: Asking,
        values: Mapping[str, Any],
        done: Settled,
        toolbox: Toolbox = EMPTY,
    ) -> None:
        """Run an LLM step; `done(value, error)` is called once, perhaps before this returns.

        An agent calls the tools of `toolbox` that its step names; so does a scorer.
        """
        if self.cascades is not None:
            done = self.cascades.told(owner.row, path, done)
        if owner.recorded and self.answered_before(owner, path, asking.step.id, done):
            return
        if self.planned is not None:
            step = self.planned.variant(owner.row, asking.step)
            asking = asking if step is asking.step else self.asking(step)
        chat = asking.chat(values)
        signature = asking.signature(chat) if self.sharing is not None else None
        call = RowCall(owner, path, asking, chat, values, signature, done)
        if asking.step.reasoning is not None:
            from .reason_step import ReasonWork  # which needs a host in turn

            work = ReasonWork(self, owner, path, asking, chat, signature, done, toolbox)
            signature, start = work.signature, work.start
        elif asking.step.reduce is not None:
            from .reduce_step import ReduceWork  # which asks a host in turn

            start = ReduceWork(self, call).start
        elif asking.step.loop is None:
            start = LLMWork(self, call).start
            if asking.step.pack is not None and self.packs is not None:
                start = partial(self.packs.add, Member(call, start))
            elif self.cascades is not None:
                start = self.cascades.start_of(call) or start
        else:
            from .agent_step import AgentWork  # which runs steps of its own, on this host

            work = AgentWork(self, owner, path, asking, chat, signature, done, toolbox)
            signature, start = work.signature, work.start
        self.share(owner, path, asking.step.id, signature, start, done)

    def draft(
        self, owner: Owner, path: str, model: Model, max_tokens: int, schema: str | None = None
    ) -> Draft | None:
        """Where an answer is written down while it grows; None where that is not worth it."""
        resumes = model.capabilities.resumes
        able = resumes == "all" or (resumes == "text" and schema is None)
        if not self._drafts or not able or max_tokens <= WORTH_TOKENS:
            return None
        return Draft(self.journal, owner.row, path, owner.recorded.get(path))

    def next_row(self) -> int:
        """The row of a program that is one of its own."""
        return next(self._rows)

    def stop(self, owner: Owner) -> None:
        """Cancel what still runs for a program, except its calls, which the scheduler stops."""
        self.scheduler.forget(owner.name)
        for task in tuple(self._side_tasks.pop(owner.name, ())):
            if owner.stopped is None or task not in self._effects:
                task.cancel()
        if owner.task is not None and owner.task is not asyncio.current_task():
            owner.task.cancel()

    def withdraw(self, owner: Owner, path: str) -> None:
        """The program does not wait for its step at `path` any more: break it off.

        What others wait for goes on, and so does what has an effect.
        """
        call = CallId(f"{owner.name}/{path}")
        part, signature = self._parts.get((owner.name, path), (None, None))
        work = self.scheduler.submitted(call)
        if isinstance(work, LLMWork | TurnWork):
            signature = work.signature
        if owner.ended or self.closing or self._awaited(signature):
            return
        self.gate.forget(owner.name, path)
        if part is not None:
            self._withdrawn.add(part)
            part.cancel()
        elif isinstance(work, LLMWork | TurnWork):
            self._withdrawn.add(call)
            self.scheduler.send(CancelCall(call=call))

    def was_withdrawn(self, call: CallId) -> bool:
        """Whether a call that has ended was broken off; told once."""
        if call not in self._withdrawn:
            return False
        self._withdrawn.discard(call)
        return True

    def _awaited(self, signature: bytes | None) -> bool:
        """Whether others wait for the same."""
        return self.sharing is not None and self.sharing.awaited(signature)

    def drain(self) -> None:
        """Let what runs end, and start nothing any more."""
        self.draining = True
        self.scheduler.send(Drain())
        self.gate.open()  # what waited there hears that nothing starts any more

    def pause(self) -> None:
        """Let what runs end, and hold back what would start, until `go_on`."""
        self.gate.close()
        self.scheduler.send(Pause())
        if self._flights is not None:
            self._flights.paused = True

    def go_on(self) -> None:
        """Start what `pause` has held back."""
        self.scheduler.send(Continue())
        if self._flights is not None:
            self._flights.paused = False
        self.gate.open()

    @property
    def paused(self) -> bool:
        """Whether what would start is held back."""
        return self.gate.shut

    @property
    def spent(self) -> bool:
        """Whether the token budget is used up."""
        return self.scheduler.core.spent

    def change(self, change: Change) -> None:
        """Go on with other settings."""
        self.scheduler.send(change)

    # ---- the rest ---------------------------------------------------------------------------------------

    def run_task(self, work: Any) -> asyncio.Task[None]:
        """Run a coroutine as a child of the run."""
        return self._tasks.create_task(work)

    def run_for(
        self,
        owner: Owner,
        work: Coroutine[Any, Any, None],
        effect: bool = False,
        signature: bytes | None = None,
        path: str | None = None,
    ) -> asyncio.Task[None]:
        """Run a part of a program, which is cancelled with it.

        One that has an `effect` comes to its end where the program only stops, to be resumed. What
        has a `signature` is abandoned if it is cancelled, perhaps before it has begun. The step at
        `path` can be withdrawn.
        """
        task = self._tasks.create_task(work)
        if effect:
            self._effects.add(task)
            task.add_done_callback(self._effects.discard)
        self._side_tasks.setdefault(owner.name, set()).add(task)
        task.add_done_callback(lambda task: self._part_over(owner, signature, path, task))
        if path is not None and not effect:
            self._parts[owner.name, path] = task, signature
        return task

    def _part_over(
        self, owner: Owner, signature: bytes | None, path: str | None, task: asyncio.Task[None]
    ) -> None:
        if path is not None:
            self._parts.pop((owner.name, path), None)
        mine = self._side_tasks.get(owner.name)
        if mine is not None:
            mine.discard(task)
            if not mine:
                del self._side_tasks[owner.name]
        withdrawn = task in self._withdrawn
        self._withdrawn.discard(task)
        # Where neither holds the whole run ends, and nobody can take over.
        if task.cancelled() and (owner.ended or withdrawn):
            self.abandon(signature)

    def share_prefixes(self, steps: list[LLM]) -> None:
        """Have the fixed beginnings of these steps' prompts computed once and pinned."""
        for step in steps:
            if step.loop is not None:
                continue  # its turns begin with its tools too, and follow one another anyway
            model = self.models[step.model]
            prefix = self.asking(step).prefix()
            if len(prefix) >= model.capabilities.page_tokens:
                asking = self.asking(step)
                asking.shared_tokens, asking.group = len(prefix), f"prefix/{step.id}"
                self.scheduler.share_prefix(asking.group, model.pool, prefix)
