"""A chat session of an `async def` workflow: an append-only context whose KV waits for its tools."""

import asyncio
from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from ...planner.graph import Sampling
from ...tools import Tool
from ..calls import Message, SessionId, ToolSpec
from ..errors import ApprovalWanted, StepFailed
from ..journal.base import StepRecord
from ..journal.memory import NoJournal
from ..scheduler.events import ApprovalAsked, CallShared, SessionEnded
from ..trace import Record
from .agent import AgentLimits, agent_loop, said_of
from .chat_work import ChatContext, Said, Turn, TurnWork, read_said
from .context import HasTool
from .draft import is_draft
from .early import EarlyCalls, may_be_early
from .effects import check_named_alike
from .speech import Teller
from .trust import Approval, Trust, approval_id
from .turns import read_turn
from .waiter import Waiter

if TYPE_CHECKING:
    from .program import AsyncProgram


SUMMARISE = "Summarise this conversation: what was asked, what was found, what is left to do."
SUMMARY = "What was said before, in short:"
UNANSWERED = "error: this call was cut off; there is no result"


class ChatSession:
    """One conversation with one model (`context.Session`).

    `messages` is what has been said. Every turn's prompt extends the previous one, so the engine
    finds it in the cache; while a tool runs, the scheduler decides how long it stays there.
    """

    def __init__(
        self,
        program: "AsyncProgram",
        system: str | None,
        model: str,
        trust: Trust | None = None,
        step: str = "turn",
    ) -> None:
        if model not in program.host.models:
            known = ", ".join(sorted(program.host.models))
            raise StepFailed(f"there is no model {model!r}; known: {known}")
        self._program = program
        self._step = step  # that its turns are counted under
        self._model = program.host.models[model]
        place = program.path("session")
        self._calls = f"{place.removeprefix(program.place(''))}."  # before the names of its calls
        self._chat = place
        self._name = SessionId(f"{program.owner.name}/{place}")
        self.messages: list[Message] = [Message("system", system)] if system else []
        self.trust = trust or Trust()
        self.output_tokens = 0  # that the model has written in it
        self.cut = False  # whether its last answer ended at the limit of its turn
        self._context: ChatContext | None = None
        self._tools: list[Tool] = []  # of its last turn
        self._speculates = False
        self._early: EarlyCalls | None = None  # of its last turn

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
        if untrusted is not None:
            self.trust.taint(untrusted)
        open_calls = self.messages[-1].tool_calls if self.messages else ()
        said = [*(Message("tool", UNANSWERED) for _ in open_calls), Message("user", content)]
        return await self._turn_after(said, _tools(tools), sampling, schema)

    async def give(
        self,
        results: Iterable[Any],
        tools: Iterable[Tool | HasTool] = (),
        sampling: Sampling | None = None,
    ) -> Message:
        """Append the results of the last message's tool calls, in order, and the model's answer.

        Without an answer, nothing is appended.
        """
        for name, _ in self.messages[-1].tool_calls if self.messages else ():
            self.trust.taint(f"a result of tool {name!r}")
        return await self._turn_after(said_of(results), _tools(tools), sampling)

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

        See `agent.agent_loop`. The answer is text, or a JSON value of `schema`. With `speculate`
        calls of pure tools start while the turn that asks for them is still being written.
        """
        if untrusted is not None:
            self.trust.taint(untrusted)
        limits = AgentLimits(max_turns, max_tokens)
        self._speculates = speculate
        try:
            return await agent_loop(self, content, _tools(tools), sampling, limits, schema)
        finally:
            self._speculates = False
            self._drop_early()

    async def compact(
        self, keep_last: int = 0, summary: str | None = None, sampling: Sampling | None = None
    ) -> str:
        """Put a summary in the place of what was said, but for the last `keep_last` messages.

        The system prompt stays, and so does what the chat is not trusted for. A kept result of a
        tool keeps the call that it answers. Without `summary` the model is asked for one. What is
        replaced is part of no later prompt, and its KV is let go at once. Returns the summary; ""
        where there was nothing to replace.
        """
        if keep_last < 0:
            raise ValueError(f"keep_last is 0 or more, not {keep_last}")
        first = 1 if self.messages and self.messages[0].role == "system" else 0
        last = max(first, len(self.messages) - keep_last)
        while first < last < len(self.messages) and self.messages[last].role == "tool":
            last -= 1
        if last <= first:
            return ""
        if summary is None:
            replaced = self.messages[:last]
            summary = (await self._aside(replaced, SUMMARISE, sampling)).strip()
        self.messages[first:last] = [Message("user", f"{SUMMARY}\n\n{summary}")]
        self._context = None
        self.end()
        self._name = SessionId(f"{self.program}/{self._program.path('session')}")
        return summary

    def end(self) -> None:
        """Nobody goes on with this context: its KV may go before the program ends."""
        ended = SessionEnded(program=self.program, session=self._name)
        self._program.host.scheduler.send(ended)

    # ---- for the agent loop ----------------------------------------------------------------------

    @property
    def name(self) -> str:
        return self._name

    @property
    def program(self) -> str:
        return self._program.owner.name

    def place(self, tool: Tool, values: Mapping[str, Any]) -> str:
        """Where a call that the model asks for is recorded: to be asked for in the order of its
        turn, whatever that of approvals is, and for those too that are refused."""
        if tool.effect != "once":
            return self._program.path(tool.name, values)
        check_named_alike(self._program.owner, self._program.place(tool.name), tool.name)
        return self._program.path(f"{self._calls}{tool.name}")

    async def use(self, tool: Tool, values: Mapping[str, Any], path: str | None = None) -> Any:
        """Call `tool`, while this session's KV waits for it."""
        self._program.owner.session = self._name
        early = self._early.find(tool, values) if self._early is not None else None
        return await self._program.use(tool, values, early=early, path=path)

    def note(self, record: Record) -> None:
        """Write down what is no event of the scheduler."""
        self._program.host.note(record)

    def stop(self, path: str, approval: Approval) -> ApprovalWanted:
        """The program stops here, at a question; the error to raise."""
        owner, tool = self._program.owner, approval.tool
        recorded = not isinstance(self._program.host.journal, NoJournal)
        wanted = ApprovalWanted(tool, approval_id(owner.row, path), recorded)
        owner.note(wanted)
        self.note(
            ApprovalAsked(program=self.program, tool=tool, sources=approval.sources, id=wanted.id)
        )
        return wanted

    def check_stopped(self) -> None:
        """Raise what has stopped the program, if anything has."""
        if self._program.owner.stopped is not None:
            raise self._program.owner.stopped

    def path(self, step: str, values: Any) -> str:
        """The place of this visit of `step`."""
        return self._program.path(step, values)

    def recorded(self, path: str) -> bytes | None:
        """What an earlier attempt recorded at `path`."""
        found = self._program.owner.recorded.get(path)
        return None if found is None else found.value

    async def record(self, path: str, value: bytes) -> None:
        """Record `value` at `path`, before anybody acts on it."""
        await self._keep(StepRecord(self._program.owner.row, path, value))

    # ---- turns -----------------------------------------------------------------------------------

    async def _turn_after(
        self,
        said: list[Message],
        tools: list[Tool],
        sampling: Sampling | None,
        schema: str | None = None,
    ) -> Message:
        """The model's answer to `said`, which is taken back where there is none."""
        before = list(self.messages)
        self.messages += said
        try:
            return await self._turn(tools, sampling or Sampling(), schema)
        except BaseException:
            self.messages[:] = before
            raise

    async def _turn(
        self,
        tools: list[Tool],
        sampling: Sampling,
        schema: str | None = None,
        aside: bool = False,
    ) -> Message:
        program, host, owner = self._program, self._program.host, self._program.owner
        specs = tuple(ToolSpec(t.name, t.description, t.parameters) for t in tools)
        what = [self._model.name, sampling, self.messages, specs, *([schema] if schema else ())]
        path = program.path("turn", what)
        self._drop_early()
        record = owner.recorded.get(path)
        prompt = self._prompt(specs)
        teller = None
        if owner.on_text is not None and not aside:
            teller = Teller(self._chat, owner.on_text, bool(tools))
        if record is not None and not is_draft(record):
            host.note(CallShared(program=owner.name, step=self._step, how="journal"))
            said = read_said(msgspec.Raw(record.value))
        else:
            if self._speculates:
                self._early = self._early_calls(path, tools)
            messages = tuple(self.messages)
            turn = Turn(path, prompt, messages, specs, sampling, schema, self._name)
            said = await self._say(turn, teller)
        message = read_turn(said.text, [tool.name for tool in tools])
        if teller is not None:
            teller.ended(said.text, bool(message.tool_calls))
            if teller.failure is not None:
                raise teller.failure
        if self._early is not None:
            self._early.keep(message.tool_calls)
        written = said.token_ids or tuple(self._model.tokenizer.encode(said.text))
        self.output_tokens += len(written)
        closed = written[-1:] and written[-1] in self._model.tokenizer.eos_ids
        self.cut = len(written) >= sampling.max_tokens and not closed
        self.messages.append(message)
        self._tools = tools
        self._context = ChatContext((*prompt, *said.token_ids), tuple(self.messages), specs)
        if not said.token_ids:  # a backend that hands out text alone
            self._context = None
        return message

    async def _aside(
        self, messages: list[Message], question: str, sampling: Sampling | None
    ) -> str:
        """The answer to a question about `messages` that does not become part of the chat."""
        kept, context = self.messages, self._context
        self.messages = [*messages, Message("user", question)]
        try:
            said = await self._turn(self._tools, sampling or Sampling(), aside=True)
        finally:
            self.messages, self._context = kept, context
        if said.tool_calls:
            raise StepFailed("the model called a tool instead of summing up: give a summary=")
        return said.content

    def _prompt(self, specs: tuple[ToolSpec, ...]) -> tuple[int, ...]:
        """The tokens of the next turn: an exact extension of those of the last one.

        The answer's own tokens are kept as they were drawn; rendering the chat anew could spell
        them otherwise, and every later turn would be computed from there. With other tools, or
        where the author changed what was said, the chat is rendered as a whole.
        """
        known, tokenizer = self._context, self._model.tokenizer
        if known is not None and known.specs == specs and known.begins(self.messages):
            rest = tokenizer.follow(self.messages[len(known.said) :], specs)
            if rest is not None:
                return known.followed_by(rest, tokenizer.eos_ids)
        return tuple(tokenizer.chat(self.messages, specs))

    async def _say(self, turn: Turn, teller: Teller | None) -> Said:
        """What the model says; once for all who ask for the same, where that is repeatable."""
        program, host, waiter = self._program, self._program.host, Waiter()
        key = None if host.sharing is None else turn.key(self._model)
        hearers = [each for each in (self._early, teller) if each is not None]
        work = TurnWork(
            host, program.owner, self._step, self._model, turn, key, waiter.settle, hearers
        )
        if teller is not None:
            teller.failed = partial(waiter.settle, None)
        host.share(program.owner, turn.path, self._step, key, work.start, waiter.settle)
        try:
            return read_said(await program.result(waiter, turn.path))
        except BaseException:
            if teller is not None:
                if teller.failure is not None:
                    host.withdraw(program.owner, turn.path)
                teller.close()
            raise

    def _early_calls(self, turn: str, offered: list[Tool]) -> EarlyCalls | None:
        """What starts the calls of the turn at that path before it ends, if any may."""
        early = [tool for tool in offered if may_be_early(tool)]
        tools = self._program.host.tools
        start = partial(tools.start_early, self._program.owner, turn, self._name)
        return EarlyCalls(early, start) if early else None

    def _drop_early(self) -> None:
        """Nobody has asked for what is left of the last turn's early calls."""
        if self._early is not None:
            self._early.close()
            self._early = None

    async def _keep(self, record: StepRecord) -> None:
        durable: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def then() -> None:
            if not durable.done():
                durable.set_result(None)

        self._program.host.journal.record(record, then)
        await durable


def _tools(tools: Iterable[Tool | HasTool]) -> list[Tool]:
    return [tool if isinstance(tool, Tool) else tool.tool for tool in tools]
