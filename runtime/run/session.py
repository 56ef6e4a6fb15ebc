"""A chat session of an `async def` workflow: an append-only context whose KV waits for its tools."""

import asyncio
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import msgspec

from ...planner.graph import Sampling
from ...tools import Tool
from ..calls import CallId, Chunk, Message, Request, SessionId, ToolSpec
from ..clock import now
from ..errors import StepFailed, ToolFailed
from ..journal.base import StepRecord
from ..scheduler.events import CallShared
from ..scheduler.loop import Answer
from .asking import check_answer, seed_for, without_thought
from .context import HasTool
from .draft import CHUNK_TOKENS, GROWTH, Draft, is_draft

if TYPE_CHECKING:
    from .program import AsyncProgram

TOOL_CALL = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)


class ChatSession:
    """One conversation with one model (`context.Session`).

    `messages` is what has been said. Every turn's prompt extends the previous one, so the engine
    finds it in the cache; while a tool runs, the scheduler decides how long it stays there.
    """

    def __init__(self, program: "AsyncProgram", system: str | None, model: str) -> None:
        if model not in program.host.models:
            known = ", ".join(sorted(program.host.models))
            raise StepFailed(f"there is no model {model!r}; known: {known}")
        self._program = program
        self._model = program.host.models[model]
        self._name = SessionId(f"{program.owner.name}/{program.path('session')}")
        self.messages: list[Message] = [Message("system", system)] if system else []
        self._context: _Context | None = None

    async def ask(
        self,
        content: str,
        tools: Iterable[Tool | HasTool] = (),
        sampling: Sampling | None = None,
    ) -> Message:
        """Append a user turn and the model's answer; returns the assistant's message."""
        self.messages.append(Message("user", content))
        return await self._turn(_tools(tools), sampling or Sampling())

    async def give(
        self,
        results: Iterable[Any],
        tools: Iterable[Tool | HasTool] = (),
        sampling: Sampling | None = None,
    ) -> Message:
        """Append the results of the last message's tool calls, in order, and the model's answer."""
        for result in results:
            text = result if isinstance(result, str) else json.dumps(result)
            self.messages.append(Message("tool", text))
        return await self._turn(_tools(tools), sampling or Sampling())

    async def run(
        self,
        content: str,
        tools: Iterable[Tool | HasTool] = (),
        sampling: Sampling | None = None,
        max_turns: int = 10,
    ) -> str:
        """Ask, call the tools that the model wants, hand it their results, until it answers.

        A tool that fails, does not exist or is called wrongly is told to the model as its
        result. Raises StepFailed after `max_turns` turns without an answer.
        """
        known = _tools(tools)
        message = await self.ask(content, known, sampling)
        for _ in range(max_turns - 1):
            if not message.tool_calls:
                return message.content
            calls = [self._call(known, name, arguments) for name, arguments in message.tool_calls]
            message = await self.give(await asyncio.gather(*calls), known, sampling)
        if message.tool_calls:
            raise StepFailed(f"the agent still calls tools after {max_turns} turns; allow more")
        return message.content

    async def _call(self, tools: list[Tool], name: str, arguments: str) -> Any:
        tool = next((tool for tool in tools if tool.name == name), None)
        if tool is None:
            known = ", ".join(tool.name for tool in tools) or "none"
            return f"error: there is no tool {name!r}; there is {known}"
        try:
            values = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            return f"error: the arguments are not JSON: {error}"
        if not isinstance(values, dict):
            return "error: the arguments must be a JSON object"
        self._program.owner.session = self._name  # whose KV waits for this tool
        try:
            return await self._program.use(tool, cast("Mapping[str, Any]", values))
        except ToolFailed as error:
            return f"error: {error}"

    async def _turn(self, tools: list[Tool], sampling: Sampling) -> Message:
        program, host, owner = self._program, self._program.host, self._program.owner
        specs = tuple(ToolSpec(t.name, t.description, t.parameters) for t in tools)
        path = program.path("turn", [self._model.name, sampling, self.messages, specs])
        record = owner.recorded.get(path)
        prompt = self._prompt(specs)
        if record is not None and not is_draft(record):
            host.note(CallShared(program=owner.name, step="turn", how="journal"))
            found = msgspec.json.decode(record.value, type=_Said | str)
            said = _Said(found) if isinstance(found, str) else found  # 0.1.0 kept the text alone
        else:
            answer = await self._generate(path, prompt, specs, sampling)
            said = _Said(answer.text, answer.token_ids)
            await self._keep(StepRecord(owner.row, path, msgspec.json.encode(said)))
        message = read_turn(said.text)
        self.messages.append(message)
        self._context = _Context((*prompt, *said.token_ids), tuple(self.messages), specs)
        if not said.token_ids:  # a backend that hands out text alone
            self._context = None
        return message

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

    async def _generate(
        self,
        path: str,
        prompt: tuple[int, ...],
        specs: tuple[ToolSpec, ...],
        sampling: Sampling,
    ) -> Answer:
        host, owner, model = self._program.host, self._program.owner, self._model
        if sampling.temperature > 0 and sampling.seed is None:
            sampling = replace(sampling, seed=seed_for(host.seed, owner.row, path))
        draft = host.draft(owner, path, model, sampling.max_tokens)
        request = Request(
            call=CallId(f"{owner.name}/{path}"),
            token_ids=prompt,
            sampling=sampling,
            session=self._name,
            deadline_s=now() + host.call_timeout_s if host.call_timeout_s else None,
            stream=draft is not None,
            chunk_tokens=CHUNK_TOKENS,
            chunk_growth=GROWTH,
            drawn=draft.drawn if draft is not None else (),
            messages=tuple(self.messages),
            tools=specs,
        )
        owner.session = self._name
        turn = _Turn(request, owner.name, model.pool, draft)
        host.scheduler.submit(turn)
        answer = await turn.answer
        try:
            check_answer(answer, path)
        except Exception as error:
            owner.note(error)
            raise
        return answer

    async def _keep(self, record: StepRecord) -> None:
        durable: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def then() -> None:
            if not durable.done():
                durable.set_result(None)

        self._program.host.journal.record(record, then)
        await durable


class _Said(msgspec.Struct):
    """What the model said in one turn, as the journal keeps it."""

    text: str
    token_ids: tuple[int, ...] = ()


class _Context(NamedTuple):
    """The tokens of a chat up to its last answer, and the messages they were made of."""

    token_ids: tuple[int, ...]
    said: tuple[Message, ...]
    specs: tuple[ToolSpec, ...]

    def begins(self, messages: list[Message]) -> bool:
        """Whether `messages` go on where this ends."""
        return len(messages) > len(self.said) and tuple(messages[: len(self.said)]) == self.said

    def followed_by(self, rest: list[int], eos_ids: frozenset[int]) -> tuple[int, ...]:
        """With `rest` behind it, which begins with the end of the turn: said once, not twice."""
        if self.token_ids[-1] in eos_ids:
            ends = [place for place, token in enumerate(rest) if token in eos_ids]
            rest = rest[ends[0] + 1 :] if ends else rest
        return (*self.token_ids, *rest)


class _Turn:
    """One turn on its way through the scheduler (a `Submission`): never shared with others."""

    step = "turn"
    shared_tokens = 0
    gang = 0

    def __init__(self, request: Request, program: str, model: str, draft: Draft | None) -> None:
        self.request = request
        self.program = program
        self.model = model
        self.answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._draft = draft

    def heard(self, chunk: Chunk) -> None:
        """Write down a growing answer."""
        if self._draft is not None:
            self._draft.heard(chunk)

    def lost(self) -> None:
        """The answer begins anew."""
        if self._draft is not None:
            self._draft.restart()

    def done(self, answer: Answer) -> None:
        """Hand the answer to the program, if it still waits."""
        if not self.answer.done():
            self.answer.set_result(answer)


def _tools(tools: Iterable[Tool | HasTool]) -> list[Tool]:
    return [tool if isinstance(tool, Tool) else tool.tool for tool in tools]


def read_turn(text: str) -> Message:
    """The assistant's message in `text`, with the tool calls in it (Hermes and Qwen style).

    A call that cannot be read stays in the content, where the author or the model sees it.
    """
    answer = without_thought(text)
    calls: list[tuple[str, str]] = []
    for found in TOOL_CALL.finditer(answer):
        try:
            call = json.loads(found[1])
            calls.append((str(call["name"]), json.dumps(call.get("arguments", {}))))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
    content = TOOL_CALL.sub("", answer).strip() if calls else answer
    return Message("assistant", content, tuple(calls))
