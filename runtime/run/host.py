"""What the programs of one run share: models, tools, results, the journal and the scheduler."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from functools import partial
from math import inf
from secrets import token_hex
from typing import Any

from msgspec.structs import replace

from ...planner.graph import LLM
from ...tools import Tool
from ..calls import Usage
from ..clock import now
from ..errors import InvalidWorkflow, JournalError, Problem, StepFailed
from ..fleet.flights import Flights
from ..journal.base import Journal, StepRecord
from ..journal.results import Kept, Results
from ..predict.learned import Learned
from ..reasoning.nouns import Outcome
from ..reasoning.pool import Thinking
from ..reasoning.shadow import Shadows
from ..reasoning.strategy import Step
from ..scheduler.events import CallShared, Change, Continue, Drain, Pause, ToolStarted
from ..scheduler.loop import NO_USAGE, Scheduler
from ..trace import Record, Trace
from .asking import Asking, Model
from .cascades import Cascades
from .codec import decode, encode, is_json
from .draft import WORTH_TOKENS, Draft, is_draft
from .early import EarlyCall
from .gate import Gate
from .owner import Owner
from .packs import Member, Packs
from .planned import Planned
from .sharing import Settled, Sharing
from .tool_steps import ToolSteps
from .trust import EMPTY, Toolbox
from .work import LLMWork

MAX_ASKING = 4096  # compiled steps that are kept: programs may make new ones for each row


class Host:
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
        self.scheduler = scheduler
        self.models = models
        self.journal = journal
        self.sharing = sharing
        self.results = results
        self._flights = flights
        self._trace = trace
        self._tasks = tasks
        self.seed = seed
        self._resumed = resumed
        self._drafts = drafts
        self._tenant = tenant
        self._learned = learned
        self._tool_steps = ToolSteps(self, run or token_hex(8))
        self.draining = False
        self.closing = False  # the whole run ends: nobody can take over
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
        if asking.step.reasoning is not None:
            from .reason_step import ReasonWork  # which needs a host in turn

            work = ReasonWork(self, owner, path, asking, chat, signature, done, toolbox)
            signature, start = work.signature, work.start
        elif asking.step.reduce is not None:
            from .reduce_step import ReduceWork  # which asks a host in turn

            work = ReduceWork(self, owner, path, asking, chat, values, signature, done)
            start = work.start
        elif asking.step.loop is None:
            start = LLMWork(self, owner, path, asking, chat, signature, done, values).start
            if asking.step.pack is not None and self.packs is not None:
                member = Member(owner, path, asking, chat, values, signature, done, start)
                start = partial(self.packs.add, member)
            elif self.cascades is not None:
                args = (owner, path, asking, chat, values, signature, done)
                start = self.cascades.start_of(*args) or start
        else:
            from .agent_step import AgentWork  # which runs steps of its own, on this host

            work = AgentWork(self, owner, path, asking, chat, signature, done, toolbox)
            signature, start = work.signature, work.start
        self.share(owner, path, asking.step.id, signature, start, done)

    def answered_before(
        self, owner: Owner, path: str, step: str, done: Settled, tool: str = ""
    ) -> bool:
        """Whether the journal has a step's value; then it is handed on."""
        record = owner.recorded.get(path)
        if record is None or is_draft(record):
            return False
        self.note(CallShared(program=owner.name, step=step, how="journal", tool=tool))
        done(decode(record.value), None)
        return True

    def share(
        self,
        owner: Owner,
        path: str,
        step: str,
        signature: bytes | None,
        start: Callable[[], None],
        done: Settled,
        started: ToolStarted | None = None,
        local: bool = False,
    ) -> None:
        """Answer from equal work if there is any; otherwise `start`.

        `started` is what the scheduler hears where it is a tool's: the KV of a session that waits
        for the call of another is kept too. `local`: its result answers this run alone.
        """
        sharing, tool = self.sharing, started.tool if started is not None else ""
        if sharing is None or signature is None:
            start()
        elif sharing.known(signature):
            self.note(CallShared(program=owner.name, step=step, how="cached", tool=tool))
            done(sharing.result(signature), None)
        elif sharing.in_flight(signature):

            def settled(value: Any, error: Exception | None) -> None:
                owner.note(error)
                done(value, error)

            def retry() -> None:
                if not owner.ended:
                    self.share(owner, path, step, signature, start, done, started, local)

            sharing.join(signature, settled, retry)
            self.note(CallShared(program=owner.name, step=step, how="joined", tool=tool))
            if started is not None and started.session is not None:
                self.scheduler.send(replace(started, joined=True))
        elif self._resumed or (self.results is not None and not local):
            sharing.begin(signature)
            looking = self._look_up(owner, path, step, signature, start, done, tool, local)
            self._tasks.create_task(looking)
        else:
            sharing.begin(signature)
            start()

    async def _look_up(
        self,
        owner: Owner,
        path: str,
        step: str,
        signature: bytes,
        start: Callable[[], None],
        done: Settled,
        tool: str,
        local: bool,
    ) -> None:
        """Equal work of this run before it was stopped, or of another one, has perhaps an answer."""
        found: Mapping[bytes, bytes] = {}
        if self._resumed:
            with suppress(JournalError):  # a broken one tells the run; what is damaged is made anew
                found = await self.journal.results([signature])
        if signature in found and self.sharing is not None:
            value = decode(found[signature])
            self.note(CallShared(program=owner.name, step=step, how="journal", tool=tool))
            self.sharing.finish(signature, value)
            done(value, None)
            return
        kept = None
        if not owner.ended and not local:
            kept = await self.find_result(owner, step, signature, tool, wait=True)
        if kept is None:
            start()
        else:
            value = decode(kept.value)
            self.record(owner, path, value, signature, done, keep_s=kept.left_s, known=True)

    async def find_result(
        self, owner: Owner, step: str, key: bytes, tool: str = "", wait: bool = False
    ) -> Kept | None:
        """What the result cache has under `key`; a find is noted.

        With `wait`, equal work that another process does is waited for. What is not found is then
        this process's to do, until `record`, `failed` or `abandon`.
        """
        kept = None if self.results is None else await self.results.find(key)
        if kept is None and wait and self._flights is not None:
            kept = await self._flights.enter(key, lambda: owner.ended or self.draining)
        if kept is None or not is_json(kept.value):
            return None
        self.note(
            CallShared(
                program=owner.name,
                step=step,
                how="result-cache",
                tool=tool,
                prompt_tokens=kept.prompt_tokens,
                output_tokens=kept.output_tokens,
            )
        )
        return kept

    async def has_result(self, signature: bytes) -> bool:
        """Whether this run before it was stopped, or another one, has left a result of equal work."""
        if self._resumed:
            with suppress(JournalError):
                if signature in await self.journal.results([signature]):
                    return True
        return self.results is not None and await self.results.find(signature) is not None

    def record(
        self,
        owner: Owner,
        path: str,
        value: Any,
        signature: bytes | None,
        done: Settled,
        sync: bool = False,
        keep_s: float | None = None,
        usage: Usage = NO_USAGE,
        known: bool = False,
    ) -> None:
        """Write down a step's value, then hand it on, to those too who wait for equal work.

        `sync`: not even a power cut may undo it. `keep_s`: it answers equal work only so long.
        `usage` is what it took; `known`: the result cache has it already, or is not to have it.
        """

        def durable() -> None:
            if signature is not None and self.sharing is not None:
                self.sharing.finish(signature, value, keep_s)
            done(value, None)

        try:
            lasting = signature if keep_s is None else None  # by then, a resumed run asks anew
            record = StepRecord(owner.row, path, encode(value), lasting)
            self.journal.record(record, durable, sync)
            if signature is not None and known:
                self._leave(signature, kept=False)
            elif signature is not None:
                self._keep_result(signature, record.value, usage, keep_s)
        except JournalError as error:
            self.failed(signature, error, done)
        except (TypeError, ValueError) as error:  # such as half a surrogate pair
            self.failed(signature, StepFailed(f"the result is not JSON: {error}", path), done)

    def _keep_result(self, key: bytes, value: bytes, usage: Usage, keep_s: float | None) -> None:
        """Let later runs find a result; one that was given no end by what was read is not theirs."""
        lasting = keep_s is None or 0 < keep_s < inf
        if self.results is not None and lasting:
            self.results.keep(key, Kept(value, usage.prompt_tokens, usage.output_tokens, keep_s))
        self._leave(key, lasting)

    def _leave(self, key: bytes, kept: bool) -> None:
        """Work that other processes may wait for is over; `kept`: they will find its result."""
        if self._flights is not None:
            self._flights.leave(key, kept)

    def failed(self, signature: bytes | None, error: Exception, done: Settled) -> None:
        """A step has failed, and so has equal work of this process."""
        if signature is not None and self.sharing is not None:
            self.sharing.fail(signature, error)
            self._leave(signature, kept=False)
        done(None, error)

    def abandon(self, signature: bytes | None) -> None:
        """A step's program has ended before it: somebody else who waits must do the work."""
        if signature is not None and self.sharing is not None and not self.closing:
            self._leave(signature, kept=False)
            self.sharing.give_up(signature)

    def draft(
        self, owner: Owner, path: str, model: Model, max_tokens: int, schema: str | None = None
    ) -> Draft | None:
        """Where an answer is written down while it grows; None where that is not worth it."""
        resumes = model.capabilities.resumes
        able = resumes == "all" or (resumes == "text" and schema is None)
        if not self._drafts or not able or max_tokens <= WORTH_TOKENS:
            return None
        return Draft(self.journal, owner.row, path, owner.recorded.get(path))

    # ---- tool steps -----------------------------------------------------------------------------------

    def use(
        self,
        owner: Owner,
        path: str,
        step: str,
        tool: Tool,
        values: Mapping[str, Any],
        done: Settled,
        early: EarlyCall | None = None,
    ) -> None:
        """Run a tool step; `done(value, error)` is called once, perhaps before this returns.

        `early` is the same call, if it was started before its turn had ended.
        """

        def start() -> None:
            if not owner.ended:
                self._tool_steps.use(owner, path, step, tool, values, done, early)

        if self.gate.shut:
            self.gate.wait(start)
        else:
            start()

    def use_early(
        self, owner: Owner, turn: str, session: str, tool: Tool, values: Mapping[str, Any]
    ) -> EarlyCall | None:
        """Start a call of a turn that has not ended; None where that is of no use."""
        return self._tool_steps.start_early(owner, turn, session, tool, values)

    def changed(self, written: frozenset[str]) -> None:
        """A tool writes, or has written, to these: what was read of them answers nobody any more."""
        if written and self.sharing is not None:
            self.sharing.changed(written)

    def stop(self, owner: Owner) -> None:
        """Cancel what still runs for a program, except its calls, which the scheduler stops."""
        self.scheduler.forget(owner.name)
        for task in tuple(self._side_tasks.pop(owner.name, ())):
            if owner.stopped is None or task not in self._effects:
                task.cancel()
        if owner.task is not None and owner.task is not asyncio.current_task():
            owner.task.cancel()

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
    ) -> asyncio.Task[None]:
        """Run a part of a program, which is cancelled with it.

        One that has an `effect` comes to its end where the program only stops, to be resumed. What
        has a `signature` is abandoned if it is cancelled, perhaps before it has begun.
        """
        task = self._tasks.create_task(work)
        if effect:
            self._effects.add(task)
            task.add_done_callback(self._effects.discard)
        self._side_tasks.setdefault(owner.name, set()).add(task)
        task.add_done_callback(lambda task: self._part_over(owner, signature, task))
        return task

    def _part_over(self, owner: Owner, signature: bytes | None, task: asyncio.Task[None]) -> None:
        mine = self._side_tasks.get(owner.name)
        if mine is not None:
            mine.discard(task)
            if not mine:
                del self._side_tasks[owner.name]
        if task.cancelled() and owner.ended:  # else the whole run ends, and nobody can take over
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

    def note(self, record: Record) -> None:
        """Write down what is no event of the scheduler: work saved, rows refused."""
        self._trace.write(now(), record)
