"""A chat's tokens: every turn's prompt is that of the last one, its answer, and what is new."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import pytest

from tenter.planner.graph import Sampling
from tenter.runtime.backends.fake import FakeBackend
from tenter.runtime.backends.registry import open_replicas
from tenter.runtime.calls import Chunk, Message, Request
from tenter.runtime.clock import VirtualLoop
from tenter.runtime.errors import Drained
from tenter.runtime.journal.memory import MemoryJournal
from tenter.runtime.models import tiny_path
from tenter.runtime.run.context import current_program
from tenter.runtime.run.control import Control
from tenter.runtime.run.local import open_host
from tenter.runtime.run.program import Programs
from tenter.runtime.run.rows import Limits, Row, RowRun
from tenter.runtime.run.session import UNANSWERED
from tenter.runtime.scheduler.events import ToolStarted
from tenter.runtime.tokenizer import HFTokenizer
from tenter.runtime.trace import MemoryTrace
from tenter.runtime.workflow import Input, ModelSpec, Scheduling, Workflow
from tenter.tools.python import python_tool


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualLoop}


def current() -> Any:
    return current_program.get()


class Speller(FakeBackend):
    """Spells its answers as no tokenizer would: a byte is said as 300 plus itself. Called a fake."""

    def __init__(self, *answers: str, closed: bool = True) -> None:
        super().__init__()
        self.requests: list[Request] = []
        self._answers = iter(answers)
        self._closed = closed

    async def generate(self, request: Request) -> AsyncIterator[Chunk]:
        self.requests.append(request)
        async for chunk in super().generate(request):
            text = next(self._answers)
            ids = (*(300 + byte for byte in text.encode()), *((256,) if self._closed else ()))
            yield Chunk(text=text, token_ids=ids, finish=chunk.finish, usage=chunk.usage)


class Sink:
    """Keeps what it is given."""

    held = 0

    def __init__(self) -> None:
        self.values: dict[int, Any] = {}

    def put(self, row: Row, value: Any, error: str | None) -> None:
        assert error is None, error
        self.values[row.row] = value


async def run(
    backend: FakeBackend,
    talk: Callable[..., Any],
    journal: MemoryJournal | None = None,
    resumed: bool = False,
) -> Any:
    async def work(x: str) -> Any:
        return await talk(current().session("be brief"))

    workflow = Workflow("w", (Input("x"),), program=work)
    journal = journal or MemoryJournal()
    async with open_host({"default": backend}, journal=journal, resumed=resumed) as host:
        sink = Sink()
        rows = RowRun(
            Programs(host, workflow), journal, sink, Control(), (), Limits(), resumed=resumed
        )
        await rows.run(iter([Row(0, {}, {"x": "0"})]))
    return sink.values.get(0)


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "cut off"])
async def test_each_turn_extends_the_last_one_token_by_token(closed: bool) -> None:
    backend = Speller("one", "two", "three", closed=closed)

    async def talk(chat: Any) -> str:
        await chat.ask("a")
        await chat.ask("b")
        return (await chat.ask("c")).content

    assert await run(backend, talk) == "three"
    first, second, third = (request.token_ids for request in backend.requests)
    said = tuple(300 + byte for byte in b"one")
    assert second[: len(first) + 3] == (*first, *said)
    assert second[len(first) + 3 :] == (256, *b"\nuser: b")
    assert third[: len(second)] == second


async def test_other_tools_or_messages_taken_back_have_the_chat_rendered_anew() -> None:
    backend = Speller("one", "two", "three")

    async def talk(chat: Any) -> None:
        await chat.ask("a")
        del chat.messages[1:]
        await chat.ask("b")

    await run(backend, talk)
    assert bytes(backend.requests[1].token_ids) == b"system: be brief\nuser: b"


async def test_messages_that_the_author_rewrote_are_what_the_model_reads() -> None:
    backend = Speller("one", "two")

    async def talk(chat: Any) -> None:
        await chat.ask("a")
        chat.messages[:] = [Message("system", "be long"), Message("user", "so far: a, one")] * 2
        await chat.ask("b")

    await run(backend, talk)
    assert bytes(backend.requests[1].token_ids).startswith(b"system: be long")


async def test_a_question_without_an_answer_is_taken_back() -> None:
    backend = FakeBackend(lambda prompt: prompt[-1:].upper(), latency_s=5)

    async def talk(chat: Any) -> list[Message]:
        await chat.ask("a")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await chat.ask("b")
        await chat.ask("c")
        return chat.messages

    said = await run(backend, talk)
    assert [each.content for each in said] == ["be brief", "a", "A", "c", "C"]


async def test_a_call_that_nobody_answered_is_answered_before_the_next_question() -> None:
    backend = Speller('<tool_call>{"name": "look", "arguments": {}}</tool_call>', "fine")

    async def talk(chat: Any) -> list[Message]:
        await chat.ask("a")
        await chat.ask("never mind")
        return chat.messages

    said = [(each.role, each.content) for each in (await run(backend, talk))[3:]]
    assert said == [("tool", UNANSWERED), ("user", "never mind"), ("assistant", "fine")]


async def test_a_tool_keeps_the_chat_that_called_it_and_no_other() -> None:
    asked = '<tool_call>{"name": "look", "arguments": {}}</tool_call>'
    backend = Speller(asked, "hello", "done")
    trace = MemoryTrace()

    async def look() -> str:
        return "seen"

    async def work(x: str) -> None:
        one, two = current().session("be brief"), current().session("be kind")
        message = await one.ask("a", [tool])
        await two.ask("b")
        assert message.tool_calls == (("look", "{}"),)
        await one.give([await one.use(tool, {})], [tool])

    tool = python_tool(look, effect="pure")
    async with open_host({"default": backend}, trace=trace) as host:
        ended = anyio.Event()
        programs = Programs(host, Workflow("w", (Input("x"),), program=work))
        programs.arrive(0, {"x": ""}, lambda value, error: ended.set())
        await ended.wait()
    (started,) = [item for _, item in trace.records if isinstance(item, ToolStarted)]
    assert started.session == "r0/session"


async def test_a_resumed_chat_goes_on_with_the_same_tokens() -> None:
    journal, turns = MemoryJournal(), 1

    async def talk(chat: Any) -> None:
        await chat.ask("a")
        if turns > 1:
            await chat.ask("b")
        else:
            raise_drained()

    def raise_drained() -> None:
        raise Drained("stopped")

    first = Speller("one")
    await run(first, talk, journal)
    turns = 2
    resumed = Speller("two")
    await run(resumed, talk, journal, resumed=True)
    whole = Speller("one", "two")
    await run(whole, talk)
    assert [request.token_ids for request in resumed.requests] == [whole.requests[1].token_ids]


async def test_what_follows_an_answer_is_what_the_template_would_have_said() -> None:
    tokenizer = HFTokenizer(tiny_path())
    chat = [Message("system", "be brief"), Message("user", "hi"), Message("assistant", "ho")]
    new = [Message("tool", "7"), Message("tool", "8")]
    follow = tokenizer.follow(new)
    assert follow is not None
    opened = tokenizer.chat(chat[:2])
    assert [*opened, *tokenizer.encode("ho"), *follow] == tokenizer.chat([*chat, *new])


@pytest.mark.slow
def test_the_tiny_model_finds_its_whole_last_turn_in_the_cache() -> None:
    usages: list[tuple[int, int, int]] = []

    async def main() -> None:
        spec = ModelSpec(options={"threads": 1})
        async with open_replicas(spec) as (backend,), open_host({"default": backend}) as host:
            send = host.scheduler.core.handle

            def spy(event: Any, now_s: float) -> Any:
                if type(event).__name__ == "CallEnded":
                    usages.append((event.prompt_tokens, event.cached_tokens, event.output_tokens))
                return send(event, now_s)

            host.scheduler.core.handle = spy  # type: ignore[method-assign]

            async def work(x: str) -> None:
                chat = current().session("You are a calculator. " * 20)
                for question in ("Compute 12 + 30.", "Compute 7 + 8.", "Compute 5 + 6."):
                    await chat.ask(question, sampling=Sampling(max_tokens=40))

            programs = Programs(host, Workflow("w", (Input("x"),), program=work))
            ended = anyio.Event()
            programs.arrive(0, {"x": ""}, lambda value, error: ended.set())
            await ended.wait()

    anyio.run(main)
    assert len(usages) == 3
    for (prompt, _, output), (_, cached, _) in itertools.pairwise(usages):
        assert cached >= prompt + output - 1 - 16  # whole pages; the last token has no KV


class TestCompaction:
    async def test_a_summary_takes_the_place_of_what_was_said(self) -> None:
        backend = Speller("one", "two", "in short: a, b", "three")

        async def talk(chat: Any) -> list[str]:
            await chat.ask("a")
            await chat.ask("b")
            assert await chat.compact(keep_last=1) == "in short: a, b"
            await chat.ask("c")
            return [message.content for message in chat.messages]

        said = await run(backend, talk)
        assert said == [
            "be brief",
            "What was said before, in short:\n\nin short: a, b",
            "two",
            "c",
            "three",
        ]
        asked, after = backend.requests[2], backend.requests[3]
        assert [message.content for message in asked.messages[:4]] == ["be brief", "a", "one", "b"]
        assert b"one" not in bytes(token for token in after.token_ids if token < 256)

    async def test_the_summary_is_asked_for_on_what_is_in_the_cache(self) -> None:
        backend = Speller("one", "short")

        async def talk(chat: Any) -> None:
            await chat.ask("a")
            await chat.compact()

        await run(backend, talk)
        turn, aside = backend.requests
        said = tuple(300 + byte for byte in b"one")
        assert aside.token_ids[: len(turn.token_ids) + 3] == (*turn.token_ids, *said)

    async def test_a_result_is_not_parted_from_its_call(self) -> None:
        asked = '<tool_call>{"name": "look", "arguments": {}}</tool_call>'

        async def look() -> str:
            return "seen"

        async def talk(chat: Any) -> list[str]:
            tool = python_tool(look, effect="pure")
            await chat.run("a", [tool])
            assert await chat.compact(keep_last=2, summary="short") == "short"
            return [message.role for message in chat.messages]

        roles = ["system", "user", "assistant", "tool", "assistant"]
        assert await run(Speller(asked, "done"), talk) == roles

    async def test_nothing_to_replace_is_left_alone(self) -> None:
        async def talk(chat: Any) -> int:
            assert await chat.compact() == ""
            await chat.ask("a")
            assert await chat.compact(keep_last=2) == ""
            with pytest.raises(ValueError, match="keep_last"):
                await chat.compact(keep_last=-1)
            return len(chat.messages)

        assert await run(Speller("one"), talk) == 3

    async def test_distrust_outlives_what_caused_it(self) -> None:
        async def talk(chat: Any) -> list[str]:
            await chat.ask("a", untrusted="a page")
            await chat.compact(summary="nothing")
            return list(chat.trust.sources)

        assert await run(Speller("one"), talk) == ["a page"]

    async def test_what_is_replaced_is_kept_no_longer(self) -> None:
        """A tool's pause pins the short context from then on, not the long one."""
        asked = '<tool_call>{"name": "look", "arguments": {}}</tool_call>'
        pinned: list[int] = []

        async def look() -> str:
            await anyio.sleep(1)
            worker = next(iter(host.scheduler.core.workers.values()))
            pinned.append(worker.kv_pinned)
            return "seen"

        async def work(x: str) -> None:
            tool = python_tool(look, effect="idempotent")
            chat = current().session("be brief")
            await chat.run("a" * 4000, [tool])
            await chat.compact(summary="short")
            await chat.run("b", [tool])

        chat, held = Speller(asked, "one", asked, "two"), Scheduling(retention="forever")
        async with open_host({"default": chat}, scheduling=held) as host:
            ended = anyio.Event()
            programs = Programs(host, Workflow("w", (Input("x"),), program=work))
            programs.arrive(0, {"x": ""}, lambda value, error: ended.set())
            await ended.wait()
        long, short = pinned
        assert long > 4000
        assert 0 < short < 600

    async def test_a_resumed_chat_is_compacted_alike(self) -> None:
        journal, turns = MemoryJournal(), 1

        async def talk(chat: Any) -> None:
            await chat.ask("a")
            await chat.compact()
            if turns == 1:
                raise Drained("stopped")
            await chat.ask("b")

        await run(Speller("one", "short"), talk, journal)
        turns = 2
        resumed = Speller("two")
        await run(resumed, talk, journal, resumed=True)
        (request,) = resumed.requests
        said = ["What was said before, in short:\n\nshort", "b"]
        assert [message.content for message in request.messages][1:] == said
