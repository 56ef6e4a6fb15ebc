"""What the programs of one run share: models, tools, results, the journal and the scheduler."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from hashlib import blake2b
from secrets import token_hex
from typing import Any

from ...planner.graph import LLM
from ...tools import Tool
from ...tools.call import call as call_tool
from ...tools.context import ToolContext, enter
from ...tools.secrets import named, redact, redact_data, used
from ..clock import now
from ..errors import (
    Drained,
    InvalidWorkflow,
    JournalError,
    Problem,
    StepFailed,
    ToolFailed,
)
from ..journal.base import Journal, StepRecord
from ..predict.learned import Learned
from ..reasoning.nouns import Outcome
from ..reasoning.strategy import Step
from ..scheduler.core import DRAINED
from ..scheduler.events import CallShared, Drain, ToolEnded, ToolStarted
from ..scheduler.loop import Scheduler
from ..trace import Record, Trace
from .asking import Asking, Model
from .codec import decode, encode, identity
from .draft import WORTH_TOKENS, Draft, is_draft
from .owner import Owner
from .sharing import Settled, Sharing
from .trust import EMPTY, Toolbox
from .work import LLMWork

MAX_ASKING = 4096  # compiled steps that are kept: programs may make new ones for each row
WITHDRAWN = b"false"  # the intent of a tool with an effect that was not started after all


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
    ) -> None:
        self.scheduler = scheduler
        self.models = models
        self.journal = journal
        self.sharing = sharing
        self._trace = trace
        self._tasks = tasks
        self.seed = seed
        self._resumed = resumed
        self._drafts = drafts
        self._run = run or token_hex(8)
        self._tenant = tenant
        self._learned = learned
        self._secrets = named()
        self.draining = False
        self.call_timeout_s = call_timeout_s
        self.observe_thought: Callable[[int, Step, Outcome], None] | None = None  # by row
        self._asking: dict[int, Asking] = {}  # by the id of its step, which it keeps alive
        self._side_tasks: dict[str, set[asyncio.Task[None]]] = {}  # tools and agents, by program

    def arrive(
        self,
        owner: Owner,
        workflow: str,
        inputs: Mapping[str, Any],
        start: Callable[[], None],
    ) -> None:
        """Announce a program; `start` is called when it may run."""
        tenant = "" if self._tenant is None else str(inputs.get(self._tenant))
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

        An agent calls the tools of `toolbox` that its step names.
        """
        if owner.recorded and self._answered_before(owner, path, asking.step.id, done):
            return
        chat = asking.chat(values)
        signature = asking.signature(chat) if self.sharing is not None else None
        if asking.step.reasoning is not None:
            from .reason_step import ReasonWork  # which needs a host in turn

            start = ReasonWork(self, owner, path, asking, chat, signature, done).start
        elif asking.step.loop is None:
            start = LLMWork(self, owner, path, asking, chat, signature, done).start
        else:
            from .agent_step import AgentWork  # which runs steps of its own, on this host

            work = AgentWork(self, owner, path, asking, chat, signature, done, toolbox)
            signature, start = work.signature, work.start
        self._share(owner, asking.step.id, signature, start, done)

    def _answered_before(self, owner: Owner, path: str, step: str, done: Settled) -> bool:
        record = owner.recorded.get(path)
        if record is None or is_draft(record):
            return False
        self.note(CallShared(program=owner.name, step=step, how="journal"))
        done(decode(record.value), None)
        return True

    def _share(
        self,
        owner: Owner,
        step: str,
        signature: bytes | None,
        start: Callable[[], None],
        done: Settled,
    ) -> None:
        """Answer from equal work if there is any; otherwise `start`."""
        sharing = self.sharing
        if sharing is None or signature is None:
            start()
        elif sharing.known(signature):
            self.note(CallShared(program=owner.name, step=step, how="cached"))
            done(sharing.result(signature), None)
        elif sharing.in_flight(signature):

            def settled(value: Any, error: Exception | None) -> None:
                owner.note(error)
                done(value, error)

            sharing.join(
                signature, settled, lambda: self._share(owner, step, signature, start, done)
            )
            self.note(CallShared(program=owner.name, step=step, how="joined"))
        elif self._resumed:
            sharing.begin(signature)
            self._tasks.create_task(self._look_up(owner, step, signature, start, done))
        else:
            sharing.begin(signature)
            start()

    async def _look_up(
        self, owner: Owner, step: str, signature: bytes, start: Callable[[], None], done: Settled
    ) -> None:
        """A resumed run may have recorded equal work before it was stopped."""
        found: Mapping[bytes, bytes] = {}
        with suppress(JournalError):  # a broken one tells the run; a damaged record is made anew
            found = await self.journal.results([signature])
        if signature not in found or self.sharing is None:
            start()
            return
        value = decode(found[signature])
        self.note(CallShared(program=owner.name, step=step, how="journal"))
        self.sharing.finish(signature, value)
        done(value, None)

    def record(
        self,
        owner: Owner,
        path: str,
        value: Any,
        signature: bytes | None,
        done: Settled,
        sync: bool = False,
        keep_s: float | None = None,
    ) -> None:
        """Write down a step's value, then hand it on, to those too who wait for equal work.

        `sync`: not even a power cut may undo it. `keep_s`: it answers equal work only so long.
        """

        def durable() -> None:
            if signature is not None and self.sharing is not None:
                self.sharing.finish(signature, value, keep_s)
            done(value, None)

        try:
            lasting = signature if keep_s is None else None  # by then, a resumed run asks anew
            record = StepRecord(owner.row, path, encode(value), lasting)
            self.journal.record(record, durable, sync)
        except JournalError as error:
            self.failed(signature, error, done)
        except (TypeError, ValueError) as error:  # such as half a surrogate pair
            self.failed(signature, StepFailed(f"the result is not JSON: {error}", path), done)

    def failed(self, signature: bytes | None, error: Exception, done: Settled) -> None:
        """A step has failed, and so has equal work."""
        if signature is not None and self.sharing is not None:
            self.sharing.fail(signature, error)
        done(None, error)

    def abandon(self, signature: bytes | None) -> None:
        """A step's program has ended before it: somebody else who waits must do the work."""
        if signature is not None and self.sharing is not None:
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
    ) -> None:
        """Run a tool step; `done(value, error)` is called once, perhaps before this returns."""
        if self.draining:
            owner.stopped = Drained(DRAINED, step)
            done(None, owner.stopped)
            return
        if tool.effect == "once" and self._differs(owner, path, values):
            message = (
                f"tool {tool.name!r} had been started with other arguments when the run stopped; "
                "the program does not take the same way again"
            )
            done(None, StepFailed(message, step))
            return
        if owner.recorded and self._answered_before(owner, path, step, done):
            return
        signature = self._tool_signature(tool, values) if tool.effect == "pure" else None
        session = owner.session  # that spoke last: others of the program may, before this starts

        def start() -> None:
            if owner.ended:
                self.abandon(signature)
                return
            work = self._use(owner, path, step, tool, values, session, signature, done)
            self.run_for(owner, work)

        if tool.effect == "once":
            self._declare(owner, path, step, tool, values, start, done)
        else:
            self._share(owner, step, signature, start, done)

    def _tool_signature(self, tool: Tool, values: Mapping[str, Any]) -> bytes | None:
        if self.sharing is None:
            return None
        try:
            same = tool.identity(values) if tool.identity else dict(values)
        except ValueError:  # arguments that the tool itself will refuse, and say why
            return None
        kind = ["tool", tool.name, tool.source_hash, same]
        return blake2b(encode(kind, order="sorted"), digest_size=16).digest()

    def _declare(
        self,
        owner: Owner,
        path: str,
        step: str,
        tool: Tool,
        values: Mapping[str, Any],
        start: Callable[[], None],
        done: Settled,
    ) -> None:
        """Write down that a tool with an effect starts, so that it is never silently repeated."""
        intent = f"{path}?"
        record = owner.recorded.get(intent)
        if record is not None and record.value != WITHDRAWN:
            message = (
                f"tool {tool.name!r} had been started when the run stopped, and may have had its "
                "effect; it is not repeated. Declare it idempotent if it may be"
            )
            done(None, ToolFailed(message, step))
            return

        def declared() -> None:
            if owner.ended:
                with suppress(JournalError):
                    self.journal.record(StepRecord(owner.row, intent, WITHDRAWN))
            else:
                start()

        try:
            record = StepRecord(owner.row, intent, encode(identity(values)))
            self.journal.record(record, declared, sync=True)
        except JournalError as error:
            done(None, error)

    def _differs(self, owner: Owner, path: str, values: Mapping[str, Any]) -> bool:
        """Whether a tool was started at this place with other arguments, by an earlier attempt."""
        record = owner.recorded.get(f"{path}?")
        if record is None:
            return False
        given = decode(record.value)
        return isinstance(given, str) and given != identity(values)

    async def _use(
        self,
        owner: Owner,
        path: str,
        step: str,
        tool: Tool,
        values: Mapping[str, Any],
        session: str | None,
        signature: bytes | None,
        done: Settled,
    ) -> None:
        send, word = self.scheduler.send, _first_word(values)
        started_s = now()
        send(
            ToolStarted(
                program=owner.name,
                step=step,
                tool=tool.name,
                session=session,
                eta_s=tool.eta_s,
                word=word,
            )
        )
        error: Exception | None = None
        value: Any = None
        try:
            enter(ToolContext(self._key(owner, path)))
            data = encode(await call_tool(tool, values))
            value = redact_data(decode(data), data, self._secrets | used())
        except asyncio.CancelledError:
            if owner.ended:  # otherwise the whole run ends, and nobody can take over
                self.abandon(signature)
            raise
        except Exception as failure:
            error = ToolFailed(redact(f"{failure}", self._secrets | used()), step)
        send(
            ToolEnded(
                program=owner.name,
                step=step,
                tool=tool.name,
                seconds=now() - started_s,
                ok=error is None,
                session=session,
                error=str(error) if error else None,
                word=word,
            )
        )
        if owner.ended:
            self.abandon(signature)
        elif error is not None:
            self.failed(signature, error, done)
        else:
            once = tool.effect == "once"
            self.record(owner, path, value, signature, done, sync=once, keep_s=tool.memo_s)

    def _key(self, owner: Owner, path: str) -> str:
        """What a service may know a call again by, after a retry or a resume."""
        place = f"{self._run}/{owner.row}/{path}".encode("utf-8", "surrogatepass")
        return blake2b(place, digest_size=16).hexdigest()

    def stop(self, owner: Owner) -> None:
        """Cancel what still runs for a program, except its calls, which the scheduler stops."""
        self.scheduler.forget(owner.name)
        for task in tuple(self._side_tasks.pop(owner.name, ())):
            task.cancel()
        if owner.task is not None and owner.task is not asyncio.current_task():
            owner.task.cancel()

    def drain(self) -> None:
        """Let what runs end, and start nothing any more."""
        self.draining = True
        self.scheduler.send(Drain())

    # ---- the rest ---------------------------------------------------------------------------------------

    def run_task(self, work: Any) -> asyncio.Task[None]:
        """Run a coroutine as a child of the run."""
        return self._tasks.create_task(work)

    def run_for(self, owner: Owner, work: Coroutine[Any, Any, None]) -> None:
        """Run a part of a program, which is cancelled with it."""
        task = self._tasks.create_task(work)
        self._side_tasks.setdefault(owner.name, set()).add(task)
        task.add_done_callback(lambda task: self._part_over(owner.name, task))

    def _part_over(self, program: str, task: asyncio.Task[None]) -> None:
        mine = self._side_tasks.get(program)
        if mine is not None:
            mine.discard(task)
            if not mine:
                del self._side_tasks[program]

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


def _first_word(values: Mapping[str, Any]) -> str:
    """A hash of the first word of a tool's first argument: traces hold no text of arguments."""
    first = next(iter(values.values()), None)
    words = first.split(maxsplit=1) if isinstance(first, str) else ()
    return blake2b(words[0].encode("utf-8", "replace"), digest_size=4).hexdigest() if words else ""
