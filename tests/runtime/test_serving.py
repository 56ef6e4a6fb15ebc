"""Many requests on one runtime, and what their models say, told while they say it."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import anyio
import pytest
from pydantic import BaseModel
from typist import Typist

from tenter.runtime import agent, llm, open_runtime, session, tool, workflow
from tenter.runtime.backends.fake import FakeBackend
from tenter.runtime.clock import VirtualLoop
from tenter.runtime.errors import InvalidConfig, InvalidInput, InvalidWorkflow, StepFailed
from tenter.runtime.run.speech import Piece
from tenter.runtime.workflow import Scheduling


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualLoop}


class Answer(BaseModel):
    text: str


@tool(effect="pure")
async def look(place: str) -> str:
    """Look somewhere."""
    return f"dust in the {place}"


@workflow
async def chat(question: str, history: list[dict[str, Any]] | None = None) -> list[Any]:
    talk = session("be brief", messages=history or [])
    await talk.run(question, tools=[look])
    return talk.messages


@workflow
async def answer(question: str) -> Answer:
    return Answer(text=(await session().ask(question)).content)


seeker = agent("Where is {{ thing }}?", tools=[look])
mood = llm("How is {{ thing }}?", choices=["good", "bad"])


@workflow
def seek(thing: str) -> str:
    return seeker(thing=thing)


@workflow
def feel(thing: str) -> str:
    return mood(thing=thing)


def call(place: str) -> str:
    order = {"name": "look", "arguments": {"place": place}}
    return f"<tool_call>{json.dumps(order)}</tool_call>"


async def test_requests_run_at_the_same_time_and_end_one_by_one() -> None:
    backend = FakeBackend(lambda prompt: prompt.upper(), latency_s=10)
    async with open_runtime(answer, backends={"default": backend}) as runtime:
        asked = [asyncio.ensure_future(runtime.run(answer, {"question": q})) for q in "abc"]
        await anyio.sleep(1)
        assert len(backend.running) == 3
        asked[1].cancel()
        await anyio.sleep(1)
        assert len(backend.running) == 2, "the call of the one is broken off, no other"
        assert [await asked[0], await asked[2]] == [Answer(text="A"), Answer(text="C")]
        with pytest.raises(asyncio.CancelledError):
            await asked[1]


async def test_workflows_of_all_kinds_share_a_runtime() -> None:
    backend = FakeBackend(lambda prompt: "here")
    async with open_runtime(answer, seek, feel, backends={"default": backend}) as runtime:
        assert await runtime.run(seek, {"thing": "it"}) == "here"
        assert await runtime.run(feel, {"thing": "it"}) in ("good", "bad")
        assert await runtime.run(feel.workflow, {"thing": "it"}) in ("good", "bad")
        with pytest.raises(InvalidInput, match="did you mean 'thing'"):
            await runtime.run(seek, {"thin": "it"})


async def test_what_runs_at_the_end_is_stopped_and_its_caller_told() -> None:
    backend = FakeBackend(latency_s=100)
    async with open_runtime(answer, feel, backends={"default": backend}) as runtime:
        late = asyncio.ensure_future(runtime.run(answer, {"question": "a"}))
        later = asyncio.ensure_future(runtime.run(feel, {"thing": "a"}))
        await anyio.sleep(1)
    for each in (late, later):
        with pytest.raises(StepFailed, match="cancelled"):
            await each
    with pytest.raises(StepFailed, match="the runtime is closed"):
        await runtime.run(answer, {"question": "b"})


async def test_workflows_that_disagree_about_a_model_are_refused() -> None:
    @workflow(models={"default": {"backend": "fake", "reply": "a"}})
    def one(thing: str) -> str:
        return mood(thing=thing)

    @workflow(models={"default": {"backend": "fake", "reply": "b"}})
    def other(thing: str) -> str:
        return mood(thing=thing)

    with pytest.raises(InvalidConfig, match="other: its model 'default' is another"):
        async with open_runtime(one, other):
            pass


async def test_workflows_that_disagree_about_scheduling_run_where_it_is_said() -> None:
    other = replace(feel.workflow, scheduling=Scheduling(order="fcfs"))
    backends = {"default": FakeBackend()}
    with pytest.raises(InvalidConfig, match="say scheduling="):
        async with open_runtime(seek, other, backends=backends):
            pass
    async with open_runtime(seek, other, backends=backends, scheduling=Scheduling()) as runtime:
        assert await runtime.run(other, {"thing": "it"}) in ("good", "bad")


async def test_text_is_told_as_it_comes_without_the_calls_in_it() -> None:
    backend = Typist(f"I look.\n{call('attic')}", "Dust < dirt!", "Dust < dirt.")
    pieces: list[Piece] = []
    async with open_runtime(chat, backends={"default": backend}) as runtime:
        said = await runtime.run(chat, {"question": "well?"}, on_text=pieces.append)
    assert "".join(piece.text for piece in pieces) == "I look.\nDust < dirt."
    assert len(pieces) > 4
    assert {piece.chat for piece in pieces} == {"session"}
    assert said[-1]["content"] == "Dust < dirt."


async def test_a_bare_call_is_not_told_and_an_answer_that_begins_like_one_is() -> None:
    bare = json.dumps({"name": "look", "parameters": {"place": "attic"}})
    pieces: list[Piece] = []
    async with open_runtime(seek, backends={"default": Typist(bare, '{"a": 1}')}) as runtime:
        await runtime.run(seek, {"thing": "it"}, on_text=pieces.append)
    assert "".join(piece.text for piece in pieces) == '{"a": 1}'


async def test_a_listener_that_raises_fails_its_own_request() -> None:
    def gone(piece: Piece) -> None:
        raise ConnectionError("the client is gone")

    async with open_runtime(answer, backends={"default": Typist("a long answer")}) as runtime:
        with pytest.raises(StepFailed, match="the client is gone"):
            await runtime.run(answer, {"question": "a"}, on_text=gone)


@pytest.mark.parametrize("error", [ConnectionError("gone"), asyncio.CancelledError()])
async def test_a_listener_that_raises_fails_no_other_request(error: BaseException) -> None:
    def gone(piece: Piece) -> None:
        raise error

    backend = Typist("a long answer", "a long answer", "another")
    async with open_runtime(answer, backends={"default": backend}) as runtime:
        fails = asyncio.ensure_future(runtime.run(answer, {"question": "a"}, on_text=gone))
        joins = asyncio.ensure_future(runtime.run(answer, {"question": "a"}))
        with pytest.raises(StepFailed, match="gone|CancelledError"):
            await fails
        assert await joins == Answer(text="a long answer")
        assert await runtime.run(answer, {"question": "b"}) != await joins


async def test_a_listener_that_raises_fails_no_equal_agent() -> None:
    def gone(piece: Piece) -> None:
        raise ConnectionError("gone")

    async with open_runtime(seek, backends={"default": Typist("in it", "in it")}) as runtime:
        fails = asyncio.ensure_future(runtime.run(seek, {"thing": "it"}, on_text=gone))
        joins = asyncio.ensure_future(runtime.run(seek, {"thing": "it"}))
        with pytest.raises(StepFailed, match="gone"):
            await fails
        assert await joins == "in it"


async def test_what_is_given_up_is_told_no_more() -> None:
    pieces: list[Piece] = []

    @workflow
    async def two(x: int) -> int:
        equal = asyncio.ensure_future(session().ask("a"))
        await anyio.sleep(0.05)
        other = asyncio.ensure_future(session().ask("a"))
        await anyio.sleep(0.2)
        equal.cancel()
        await other
        return x

    async with open_runtime(two, backends={"default": Typist("a rather long answer")}) as runtime:
        await runtime.run(two, {"x": 1}, on_text=pieces.append)
    told = {each.chat: "" for each in pieces}
    for each in pieces:
        told[each.chat] += each.text
    assert told == {"session": "a rather", "session#1": "a rather long answer"}


async def test_a_chat_goes_on_in_the_next_request() -> None:
    backend = FakeBackend(lambda prompt: "hello", remember=True)
    async with open_runtime(chat, backends={"default": backend}) as runtime:
        history = await runtime.run(chat, {"question": "a"})
        await runtime.run(chat, {"question": "b", "history": json.loads(json.dumps(history))})
        with pytest.raises(InvalidWorkflow, match=r"messages are those of a chat.*'content'|role"):
            await runtime.run(chat, {"question": "b", "history": [{"role": "user"}]})
    assert backend.asked[1].count("be brief") == 1
    assert backend.asked[1].endswith("user: a\nassistant: hello\nuser: b")


async def broken(x: int) -> int:
    """Break."""
    return {}["key"]


@workflow
async def wrong(x: int) -> int:
    return {}["other"]


@workflow
async def grouped(x: int) -> int:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(tool(effect="pure")(broken)(x=x))
    return x


async def test_errors_of_an_authors_code_say_their_lines() -> None:
    async with open_runtime(backends={"default": FakeBackend()}) as runtime:
        with pytest.raises(StepFailed, match=r"^KeyError: 'other' \(test_serving.py:\d+\)$"):
            await runtime.run(wrong, {"x": 1})
        with pytest.raises(StepFailed, match="^step 'broken': tool 'broken': KeyError") as caught:
            await runtime.run(grouped, {"x": 1})
    assert "test_serving.py:" in caught.value.__notes__[0], "beside the message: no model reads it"


async def test_an_error_that_cannot_say_what_it_is_fails_its_own_request() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    @workflow
    async def mute(x: int) -> int:
        raise Mute

    async with open_runtime(mute, answer, backends={"default": FakeBackend()}) as runtime:
        with pytest.raises(StepFailed, match="Mute"):
            await runtime.run(mute, {"x": 1})
        await runtime.run(answer, {"question": "a"})


async def test_a_result_is_what_its_annotation_promises() -> None:
    @workflow
    async def counted(thing: str) -> int:
        return (await session().ask(thing)).content

    @workflow
    def told(thing: str) -> Answer:
        return {"words": mood(thing=thing)}

    async with open_runtime(backends={"default": FakeBackend()}) as runtime:
        for each in (counted.workflow, told.workflow):
            with pytest.raises(StepFailed, match=f"the result of {each.name!r}"):
                await runtime.run(each, {"thing": "it"})
