"""The OpenAI backend against SGLang's own /v1/chat/completions."""

import asyncio
import json
import urllib.request
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest

from tenter.runtime.calls import CallId, Chunk, Message, Request, Sampling, ToolSpec
from tenter.runtime.clock import now
from tenter.runtime.errors import CallFailed, InvalidConfig
from tenter.runtime.models import tiny_path
from tenter.runtime.run.asking import without_thought
from tenter.runtime.tokenizer import HFTokenizer

pytest.importorskip("aiohttp")

from tenter.runtime.backends.openai import OpenAIBackend

if TYPE_CHECKING:
    from servers import Server

pytestmark = pytest.mark.sglang

TOKENIZER = HFTokenizer(tiny_path())
CHAT = (Message("user", "Which team handles this ticket?\n\nThe parcel 7 never arrived."),)
LOAD = ToolSpec(
    "load", "Loads a file.", '{"type":"object","properties":{"name":{"type":"string"}}}'
)
TEAM = {
    "type": "object",
    "properties": {"team": {"type": "string", "enum": ["billing", "shipping"]}},
    "required": ["team"],
    "additionalProperties": False,
}


@pytest.fixture
async def backend(sglang_stock: "Server") -> AsyncIterator[OpenAIBackend]:
    async with OpenAIBackend(sglang_stock.url, tokenizer=tiny_path()) as opened:
        yield opened


def a_request(name: str = "a", **changes: Any) -> Request:
    messages, tools = changes.setdefault("messages", CHAT), changes.get("tools", ())
    ids = tuple(TOKENIZER.chat(list(messages), tools))
    return Request(CallId(name), ids, deadline_s=now() + 60, **changes)


async def chunks_of(backend: OpenAIBackend, request: Request) -> list[Chunk]:
    return [chunk async for chunk in backend.generate(request)]


async def running(server: "Server") -> int:
    """Calls that the server itself says it has."""

    def ask() -> int:
        with urllib.request.urlopen(f"{server.url}/v1/loads", timeout=10) as answer:
            loads = json.load(answer)["loads"]
        return sum(load["num_running_reqs"] + load["num_waiting_reqs"] for load in loads)

    return await asyncio.to_thread(ask)


async def until_running(server: "Server", wanted: bool) -> None:
    async with asyncio.timeout(10):  # the whole of an endless call takes longer
        while (await running(server) > 0) is not wanted:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def test_what_the_server_says_of_itself(
    sglang_stock: "Server", backend: OpenAIBackend
) -> None:
    assert backend.capabilities.model
    assert backend.capabilities.context_tokens > 1000
    await backend.recover()  # it is there
    with pytest.raises(InvalidConfig, match="has no model 'gpt'"):
        async with OpenAIBackend(sglang_stock.url, model="gpt"):
            pass


async def test_plain_and_streamed_answers_agree(backend: OpenAIBackend) -> None:
    drawn = Sampling(max_tokens=24)
    [plain] = await chunks_of(backend, a_request("plain", sampling=drawn))
    chunks = await chunks_of(backend, a_request("streamed", sampling=drawn, stream=True))

    assert plain.text
    assert "".join(chunk.text for chunk in chunks) == plain.text
    assert len(chunks) > 2
    for last in (plain, chunks[-1]):
        assert last.finish in ("stop", "length")
        assert last.usage is not None
        assert last.usage.prompt_tokens == len(a_request().token_ids)
        assert 0 < last.usage.output_tokens <= 24


async def test_a_length_limit_and_a_stop_string(backend: OpenAIBackend) -> None:
    limit = Sampling(max_tokens=3, ignore_eos=True)
    [short] = await chunks_of(backend, a_request(sampling=limit))
    assert (short.finish, short.usage and short.usage.output_tokens) == ("length", 3)
    [whole] = await chunks_of(backend, a_request(sampling=Sampling(max_tokens=24)))
    stop = whole.text[2:4]
    [cut] = await chunks_of(backend, a_request(sampling=Sampling(max_tokens=24, stop=(stop,))))
    assert (cut.text, cut.finish) == (whole.text[: whole.text.index(stop)], "stop")


async def test_a_schema_holds(backend: OpenAIBackend) -> None:
    request = a_request(schema=json.dumps(TEAM), sampling=Sampling(max_tokens=64))
    [chunk] = await chunks_of(backend, request)

    assert chunk.finish == "stop"
    assert json.loads(without_thought(chunk.text))["team"] in ("billing", "shipping")


async def test_a_schema_that_the_server_refuses(backend: OpenAIBackend) -> None:
    with pytest.raises(CallFailed, match="set schemas to false"):
        await chunks_of(backend, a_request(schema='{"type": "foo"}'))


async def test_a_choice(backend: OpenAIBackend) -> None:
    names = ("billing", "shipping", "support")
    choices = tuple((*TOKENIZER.encode(name), *TOKENIZER.end_of_turn_ids) for name in names)
    [chunk] = await chunks_of(backend, a_request(choices=choices))

    assert chunk.choice_logprobs is not None
    assert sorted(chunk.choice_logprobs) == [-1e9, -1e9, 0.0]


async def test_tools_and_their_results_reach_the_template(backend: OpenAIBackend) -> None:
    chat = (
        Message("user", "Load a."),
        Message("assistant", "", (("load", '{"name": "a"}'),)),
        Message("tool", "it is empty"),
    )
    request = a_request(messages=chat, tools=(LOAD,), sampling=Sampling(max_tokens=4))
    [chunk] = await chunks_of(backend, request)
    [bare] = await chunks_of(backend, a_request(messages=chat[:1], sampling=Sampling(max_tokens=4)))

    assert chunk.usage is not None
    assert bare.usage is not None
    # The template prints tools as this server spells them, which is not to the token as we do.
    added_tokens = len(request.token_ids) - len(TOKENIZER.chat(list(chat[:1])))
    assert chunk.usage.prompt_tokens >= bare.usage.prompt_tokens + added_tokens


@pytest.mark.parametrize("streamed", [True, False], ids=["stream", "plain"])
@pytest.mark.parametrize("by", ["abort", "cancel"])
async def test_a_call_that_is_stopped_leaves_nothing_running(
    sglang_stock: "Server", backend: OpenAIBackend, streamed: bool, by: str
) -> None:
    endless = Sampling(max_tokens=3500, ignore_eos=True)
    request = a_request("endless", sampling=endless, stream=streamed)
    call = asyncio.ensure_future(chunks_of(backend, request))
    await until_running(sglang_stock, True)
    if by == "abort":
        await backend.abort(CallId("endless"))
        assert (await call)[-1].finish == "abort"
    else:
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    await until_running(sglang_stock, False)

    assert (await backend.load()).running == 0
