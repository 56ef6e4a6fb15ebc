"""Servers that speak OpenAI's chat completions, by a fake one: answers, faults, tools, choices."""

import asyncio
import itertools
import json
import math
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("aiohttp")

from bad_server import (
    BadServer,
    Fault,
    answer,
    cut,
    empty,
    events,
    grammar_error,
    half,
    html,
    reset,
    stall,
    status,
)

from tenter.planner.graph import Sampling
from tenter.runtime.backends.base import Backend
from tenter.runtime.backends.estimate import EstimatedTokenizer
from tenter.runtime.backends.openai import OpenAIBackend
from tenter.runtime.backends.openai_answer import Text, chosen, read_part
from tenter.runtime.backends.openai_ask import messages_of
from tenter.runtime.calls import CallId, Chunk, Message, Request, SessionId, ToolSpec
from tenter.runtime.clock import VirtualLoop, now
from tenter.runtime.errors import (
    BackendUnavailable,
    CallFailed,
    InvalidConfig,
    TenterError,
    TryAgain,
)
from tenter.runtime.run.asking import without_thought
from tenter.runtime.run.turns import read_turn

TOKENIZER = EstimatedTokenizer()
CHAT = (Message("system", "Be brief."), Message("user", "hello"))


@pytest.fixture
async def server() -> AsyncIterator[BadServer]:
    async with BadServer() as running:
        yield running


@pytest.fixture
async def backend(server: BadServer) -> AsyncIterator[OpenAIBackend]:
    async with OpenAIBackend(server.url, stall_timeout_s=0.2) as opened:
        yield opened


def a_request(name: str = "a", **changes: Any) -> Request:
    messages = changes.pop("messages", CHAT)
    ids = tuple(TOKENIZER.chat(list(messages)))
    return Request(CallId(name), ids, messages=messages, **changes)


def choose_from(*choices: str) -> tuple[tuple[int, ...], ...]:
    return tuple((*TOKENIZER.encode(choice), *TOKENIZER.end_of_turn_ids) for choice in choices)


async def chunks_of(backend: Backend, request: Request) -> list[Chunk]:
    return [chunk async for chunk in backend.generate(request)]


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


# -- answers


async def test_a_plain_answer(server: BadServer, backend: OpenAIBackend) -> None:
    [chunk] = await chunks_of(backend, a_request(sampling=Sampling(max_tokens=5)))

    assert len(chunk.text) == 5
    assert chunk.finish == "length"
    assert chunk.usage is not None
    assert chunk.usage.output_tokens == 5
    [body] = server.bodies["/v1/chat/completions"]
    assert body == {
        "model": "fake-model",
        "messages": [{"role": m.role, "content": m.content} for m in CHAT],
        "max_tokens": 5,
        "temperature": 0.0,
    }


async def test_a_streamed_answer_is_the_plain_one(
    server: BadServer, backend: OpenAIBackend
) -> None:
    [plain] = await chunks_of(backend, a_request())
    chunks = await chunks_of(backend, a_request(stream=True))

    assert len(chunks) == 9
    assert "".join(chunk.text for chunk in chunks) == plain.text
    assert all(chunk.finish is None and chunk.usage is None for chunk in chunks[:-1])
    last = chunks[-1]
    assert last.finish == "stop"
    assert last.usage is not None
    assert last.usage.prompt_tokens > last.usage.cached_tokens > 0  # the fake saw it before
    assert last.usage.output_tokens == 9


async def test_chunks_are_as_long_as_the_request_wants(backend: OpenAIBackend) -> None:
    chunks = await chunks_of(backend, a_request(stream=True, chunk_tokens=3))

    assert [len(chunk.text) for chunk in chunks] == [3, 3, 2]


async def test_sampling_goes_along(server: BadServer, backend: OpenAIBackend) -> None:
    drawn = Sampling(7, 0.5, top_k=4, top_p=0.9, stop=("X",), seed=3, ignore_eos=True)
    await chunks_of(backend, a_request(sampling=drawn, schema='{"type": "object"}'))

    body = server.bodies["/v1/chat/completions"][0]
    wanted = {
        "max_tokens": 7,
        "temperature": 0.5,
        "top_k": 4,
        "top_p": 0.9,
        "stop": ["X"],
        "seed": 3,
    }
    assert wanted.items() <= body.items()
    assert body["ignore_eos"] is True
    assert body["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "answer", "strict": True, "schema": {"type": "object"}},
    }


async def test_a_server_without_schemas_is_told_in_words(server: BadServer) -> None:
    async with OpenAIBackend(server.url, schemas=False) as backend:
        assert not backend.capabilities.schemas
        await chunks_of(backend, a_request(schema='{"type": "object"}'))

    body = server.bodies["/v1/chat/completions"][0]
    assert "response_format" not in body
    assert body["messages"][-1]["content"].startswith("hello\n\nAnswer with JSON")
    assert '{"type": "object"}' in body["messages"][-1]["content"]


async def test_thoughts_come_in_front_of_the_answer(
    server: BadServer, backend: OpenAIBackend
) -> None:
    server.answer_tokens = 0
    server.message = {"reasoning_content": "let me see", "content": "4"}
    for streamed in (False, True):
        chunks = await chunks_of(backend, a_request(stream=streamed))
        text = "".join(chunk.text for chunk in chunks)

        assert text == "<think>\nlet me see\n</think>\n\n4"
        assert without_thought(text) == "4"


def test_thoughts_that_are_streamed_open_and_close_once() -> None:
    text = Text()
    parts: list[dict[str, Any]] = [{"reasoning_content": "a"}, {"reasoning": "b"}, {"content": "c"}]
    deltas = [*parts, {"content": None}, {"content": "d"}]
    said = [text.add(read_part({"choices": [{"delta": delta}]}, "")) for delta in deltas]

    assert "".join(said) + text.end() == "<think>\nab\n</think>\n\ncd"
    alone = Text()
    assert alone.add(read_part({"choices": [{"delta": {"reasoning": "x"}}]}, "")) == "<think>\nx"
    assert alone.end() == "\n</think>\n\n"


# -- tools


async def test_tools_and_their_results_are_tied_by_ids(
    server: BadServer, backend: OpenAIBackend
) -> None:
    schema = '{"type":"object","properties":{"x":{"type":"number"}}}'
    chat = (
        Message("user", "go"),
        Message("assistant", "", (("add", '{"x": 1}'), ("sub", "{}"))),
        Message("tool", "one"),
        Message("tool", "two"),
        Message("assistant", "", (("add", "{}"),)),
        Message("tool", "three"),
    )
    await chunks_of(backend, a_request(messages=chat, tools=(ToolSpec("add", "adds", schema),)))

    body = server.bodies["/v1/chat/completions"][0]
    assert body["tools"] == [
        {
            "type": "function",
            "function": {"name": "add", "description": "adds", "parameters": json.loads(schema)},
        }
    ]
    said = body["messages"]
    first = [call["id"] for call in said[1]["tool_calls"]]
    assert said[1]["tool_calls"][0]["function"] == {"name": "add", "arguments": '{"x": 1}'}
    assert [said[2]["tool_call_id"], said[3]["tool_call_id"]] == first
    assert said[5]["tool_call_id"] == said[4]["tool_calls"][0]["id"]
    assert len({*first, said[5]["tool_call_id"]}) == 3


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "stream"])
async def test_tool_calls_come_back_as_a_model_writes_them(
    server: BadServer, backend: OpenAIBackend, streamed: bool
) -> None:
    arguments = {"text": 'a "b" </tool_call> </think> é', "n": [1]}
    server.answer_tokens = 0
    server.message = {
        "content": None,
        "tool_calls": [
            {"index": 0, "id": "x", "function": {"name": "f", "arguments": json.dumps(arguments)}},
            {"index": 1, "id": "y", "function": {"name": "g", "arguments": ""}},
        ],
    }
    chunks = await chunks_of(backend, a_request(stream=streamed))
    message = read_turn("".join(chunk.text for chunk in chunks))

    assert message.content == ""
    assert [name for name, _ in message.tool_calls] == ["f", "g"]
    assert [json.loads(given) for _, given in message.tool_calls] == [arguments, {}]


def test_a_tool_call_that_comes_in_pieces() -> None:
    text = Text()
    pieces: list[dict[str, Any]] = [
        {"index": 0, "function": {"name": "f", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"a"'}},
        {"index": 1, "function": {"name": "g", "arguments": "not JSON"}},
        {"index": 0, "function": {"arguments": ": 1}"}},
        {"index": 2, "function": {"name": "h", "arguments": {"b": 2}}},
    ]
    for piece in pieces:
        assert text.add(read_part({"choices": [{"delta": {"tool_calls": [piece]}}]}, "")) == ""

    calls = read_turn(text.end()).tool_calls
    assert calls == (("f", '{"a": 1}'), ("g", '"not JSON"'), ("h", '{"b": 2}'))


def test_a_result_without_a_call_still_has_an_id() -> None:
    assert messages_of((Message("tool", "x"),))[0]["tool_call_id"]


# -- choices


@pytest.mark.parametrize("schemas", [True, False])
async def test_a_choice_is_written_and_read(server: BadServer, schemas: bool) -> None:
    server.message = {"content": '{"choice": "no"}' if schemas else "No."}
    async with OpenAIBackend(server.url, schemas=schemas) as backend:
        assert not backend.capabilities.choices
        request = a_request(choices=choose_from("yes", "no"), stream=True)
        [chunk] = await chunks_of(backend, request)

    assert chunk.text == ""
    assert chunk.choice_logprobs is not None
    assert chunk.choice_logprobs[1] == 0.0 > chunk.choice_logprobs[0]
    assert all(map(math.isfinite, chunk.choice_logprobs))
    body = server.bodies["/v1/chat/completions"][0]
    if schemas:
        schema = body["response_format"]["json_schema"]["schema"]
        assert schema["properties"]["choice"]["enum"] == ["yes", "no"]
    else:
        assert body["messages"][-1]["content"].endswith('nothing else: "yes", "no"')
    assert body["temperature"] == 0.0
    assert body["max_tokens"] >= 32


async def test_an_answer_that_is_none_of_the_choices(
    server: BadServer, backend: OpenAIBackend
) -> None:
    server.message = {"content": "perhaps"}
    with pytest.raises(CallFailed, match=r"'perhaps' is none of the choices \['yes', 'no'\]"):
        await chunks_of(backend, a_request(choices=choose_from("yes", "no")))


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('{"choice": "no"}', 1),
        ('<think>yes or no</think>{"choice":"yes"}', 0),
        ('"no"', 1),
        ("No.", 1),
        ("**yes**", 0),
        ("The answer is: not sure", 2),
        ("the answer is no", 1),
        ("yes or no", None),
        ("nobody knows", None),
        ("", None),
        ("{}", None),
        ('{"choice": 7}', None),
        ("[" * 10_000, None),
    ],
)
def test_which_choice_an_answer_names(text: str, place: int | None) -> None:
    assert chosen(text, ["yes", "no", "not sure"]) == place


def test_choices_that_differ_in_case_or_punctuation_alone() -> None:
    assert [chosen(text, ["a", "A", "A*"]) for text in ("a", "A", "A*", '"A"')] == [0, 1, 2, 1]


@given(st.text(), st.lists(st.text(), min_size=1, unique=True))
def test_any_answer_names_a_choice_or_none(text: str, choices: list[str]) -> None:
    place = chosen(text, choices)

    assert place is None or 0 <= place < len(choices)


# -- what goes wrong


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (status(503, "1"), TryAgain),
        (status(429), TryAgain),
        (status(400), CallFailed),
        (status(401), CallFailed),
        (html(), TryAgain),
        (empty(), TryAgain),
        (answer(b"null"), TryAgain),
        (answer(b"[1]"), TryAgain),
        (answer(b'{"choices": 3}'), TryAgain),
        (answer(b'{"choices": []}'), TryAgain),
        (answer(b'{"choices": [{"message": {"content": "x"}}]}'), TryAgain),
        (answer(b'{"choices": [{"message": {"content": ["x"]}}]}'), TryAgain),
        (cut(), TryAgain),
        (half(), TryAgain),
        (stall(), TryAgain),
        (reset(), TryAgain),
    ],
    ids=lambda case: getattr(case, "kind", "") + str(getattr(case, "body", b""))[2:40],
)
async def test_every_fault_has_its_error(
    server: BadServer, fault: Fault, kind: type[TenterError], streamed: bool
) -> None:
    async with OpenAIBackend(server.url, model="fake-model", stall_timeout_s=0.2) as backend:
        await asyncio.sleep(0)
        server.next(fault, fault)
        with pytest.raises(kind) as failure:
            await chunks_of(backend, a_request(stream=streamed))

        assert isinstance(failure.value, TryAgain) == (kind is TryAgain)
        assert server.url in str(failure.value)
        assert (await backend.load()).running == 0


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (b'{"message": "too long", "code": 400}', CallFailed),
        (b'{"message": "overloaded", "code": 503}', TryAgain),
        (b'{"message": "slow down", "code": 429}', TryAgain),
        (b'"broken"', TryAgain),
        (b"{}", TryAgain),
        (b'{"message": "x", "code": "invalid"}', TryAgain),
    ],
)
async def test_an_error_in_the_middle_of_a_stream(
    server: BadServer, backend: OpenAIBackend, error: bytes, kind: type[TenterError]
) -> None:
    server.next(events(b'{"choices": []}', b'{"error": ' + error + b"}", b"[DONE]"))
    with pytest.raises(kind, match="the server says") as failure:
        await chunks_of(backend, a_request(stream=True))
    assert type(failure.value) is kind


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "stream"])
async def test_an_answer_that_the_server_gave_up_is_asked_for_again(
    server: BadServer, backend: OpenAIBackend, streamed: bool
) -> None:
    said = {"content": "half of it"}
    choice = {"delta": said, "message": said, "finish_reason": "abort"}
    body = json.dumps({"choices": [choice]}).encode()
    server.next(events(body, b"[DONE]") if streamed else answer(body))
    with pytest.raises(TryAgain, match=rf"{server.url}.*the server aborted the call"):
        await chunks_of(backend, a_request(stream=streamed))


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "stream"])
async def test_an_error_within_an_answer_does_not_show_the_key(
    server: BadServer, monkeypatch: pytest.MonkeyPatch, streamed: bool
) -> None:
    key = "sk-CANARY-" + "x1y2" * 10
    monkeypatch.setenv("SERVER_KEY", key)
    message = f"{'a ' * 240}{key}"
    async with OpenAIBackend(server.url, api_key="SERVER_KEY") as backend:
        for error in (message, {"message": message, "code": 400}, {"why": [key]}):
            body = json.dumps({"error": error}).encode()
            server.next(events(body, b"[DONE]") if streamed else answer(body))
            with pytest.raises(CallFailed, match="the server says") as failure:
                await chunks_of(backend, a_request(stream=streamed))
            assert "sk-C" not in str(failure.value)


def test_counts_that_cannot_be_are_mended() -> None:
    details = {"cached_tokens": 70}
    counts = {"prompt_tokens": 5, "completion_tokens": -2, "prompt_tokens_details": details}
    usage = read_part({"usage": counts}, "").usage
    assert usage is not None
    found = usage.usage(0.0, 0.0)
    assert (found.prompt_tokens, found.cached_tokens, found.output_tokens) == (5, 5, 0)


NAMES = ["choices", "delta", "message", "content", "tool_calls", "function", "name", "arguments"]
NAMES += ["usage", "prompt_tokens", "error", "code", "finish_reason", "index", "reasoning"]


def objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.dictionaries(st.sampled_from(NAMES), inner, max_size=3)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | objects(inner),
    max_leaves=12,
)


@settings(max_examples=500, deadline=None)
@given(st.lists(JSON, max_size=4))
def test_any_json_is_a_part_of_an_answer_or_one_of_two_errors(values: list[Any]) -> None:
    text = Text()
    try:
        said = "".join(text.add(read_part(value, "here")) for value in values) + text.end()
    except CallFailed as error:  # TryAgain is one, too
        assert str(error).startswith("here: ")
    else:
        read_turn(said)


async def test_a_refused_schema_names_the_option(server: BadServer, backend: OpenAIBackend) -> None:
    server.next(grammar_error())
    with pytest.raises(CallFailed, match="json grammar.*set schemas to false"):
        await chunks_of(backend, a_request(schema="{}"))


async def test_a_finish_that_is_no_end_of_an_answer(
    server: BadServer, backend: OpenAIBackend
) -> None:
    said = b'{"choices": [{"message": {"content": "x"}, "finish_reason": "content_filter"}]}'
    server.next(answer(said))
    with pytest.raises(CallFailed, match="content_filter"):
        await chunks_of(backend, a_request())


async def test_a_server_that_does_not_count(server: BadServer, backend: OpenAIBackend) -> None:
    said = b'{"choices": [{"message": {"content": "12345678"}, "finish_reason": "stop"}]}'
    server.next(answer(said))
    request = a_request()
    [chunk] = await chunks_of(backend, request)

    assert chunk.usage is not None
    assert chunk.usage.prompt_tokens == len(request.token_ids)
    assert chunk.usage.output_tokens == 2  # estimated


async def test_counts_that_cannot_be_are_estimated(
    server: BadServer, backend: OpenAIBackend
) -> None:
    said = (
        b'{"choices": [{"message": {"content": "12345678"}, "finish_reason": "stop"}], '
        b'"usage": {"prompt_tokens": 4, "completion_tokens": 1000000000000000}}'
    )
    server.next(answer(said))
    [chunk] = await chunks_of(backend, a_request())

    assert chunk.usage is not None and chunk.usage.output_tokens == 2


async def test_a_request_without_messages(backend: OpenAIBackend) -> None:
    with pytest.raises(CallFailed, match="takes messages"):
        await chunks_of(backend, Request(CallId("a"), (1, 2)))


async def test_a_deadline_ends_the_call(server: BadServer, backend: OpenAIBackend) -> None:
    server.token_s = 0.05
    with pytest.raises(TryAgain, match="took longer than"):
        await chunks_of(backend, a_request(deadline_s=now() + 0.1))
    await until(lambda: not server.running)


# -- stopping


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "stream"])
async def test_an_abort_closes_the_connection(
    server: BadServer, backend: OpenAIBackend, streamed: bool
) -> None:
    server.token_s, server.answer_tokens = 0.01, 10_000
    request = a_request(stream=streamed, sampling=Sampling(max_tokens=9999))
    call = asyncio.ensure_future(chunks_of(backend, request))
    await until(lambda: server.running)
    assert (await backend.load()).running == 1
    with pytest.raises(CallFailed, match="running already"):
        await chunks_of(backend, request)
    await backend.abort(CallId("a"))
    chunks = await call

    assert [chunk.finish for chunk in chunks][-1] == "abort"
    assert (await backend.load()).running == 0
    await until(lambda: not server.running and server.disconnected == 1)
    await backend.abort(CallId("a"))  # unknown by now: no effect


async def test_an_abort_between_two_chunks(server: BadServer, backend: OpenAIBackend) -> None:
    server.token_s, server.answer_tokens = 0.01, 10_000
    stream = backend.generate(a_request(stream=True, sampling=Sampling(max_tokens=9999)))
    first = await anext(stream)
    await backend.abort(CallId("a"))
    rest = [chunk async for chunk in stream]

    assert first.text
    assert [chunk.finish for chunk in rest] == ["abort"]
    await until(lambda: not server.running)


async def test_leaving_the_backend_ends_its_calls(server: BadServer) -> None:
    server.token_s, server.answer_tokens = 0.01, 10_000
    async with OpenAIBackend(server.url) as backend:
        call = asyncio.ensure_future(
            chunks_of(backend, a_request(sampling=Sampling(max_tokens=9999)))
        )
        await until(lambda: server.running)
    assert [chunk.finish for chunk in await call] == ["abort"]
    await until(lambda: not server.running)


# -- the server itself


async def test_what_it_can_do(server: BadServer) -> None:
    async with OpenAIBackend(server.url, max_running=3) as backend:
        able = backend.capabilities
        session = SessionId("s")
        await backend.retain(session, None)
        await backend.warm(session, (1, 2))
        await backend.release(session)

    assert (able.name, able.model, able.max_running) == ("openai", "fake-model", 3)
    assert able.context_tokens == 8192  # as the server says
    assert able.remote
    assert able.retention == "none"
    assert server.url not in able.model_fingerprint
    assert dict(server.requests) == {"/v1/models": 1}


@pytest.mark.parametrize("ending", ["", "/", "/v1", "/v1/"])
async def test_the_url_with_and_without_v1(server: BadServer, ending: str) -> None:
    async with OpenAIBackend(server.url + ending) as backend:
        assert await chunks_of(backend, a_request())


async def test_a_url_with_a_path_of_its_own(server: BadServer) -> None:
    async with OpenAIBackend(server.url + "/v1beta/openai", model="m"):
        assert dict(server.requests) == {"/v1beta/openai/models": 1}


def models(*names: str) -> Fault:
    return answer(json.dumps({"data": [{"id": name} for name in names]}).encode())


async def test_one_of_several_models(server: BadServer) -> None:
    server.next(models("b", "a"), models("b", "a"), path="/v1/models")
    with pytest.raises(InvalidConfig, match="these models: a, b; set model to one"):
        async with OpenAIBackend(server.url):
            pass
    async with OpenAIBackend(server.url, model="a", context_tokens=99) as backend:
        assert backend.capabilities.model == "a"
        assert backend.capabilities.context_tokens == 99


async def test_a_model_that_the_server_does_not_have(server: BadServer) -> None:
    with pytest.raises(InvalidConfig, match="has no model 'other'; it has fake-model"):
        async with OpenAIBackend(server.url, model="other"):
            pass


async def test_a_server_without_a_list_of_models_is_taken_at_its_word(server: BadServer) -> None:
    server.next(status(404), status(404), path="/v1/models")
    async with OpenAIBackend(server.url, model="m") as backend:
        assert backend.capabilities.model == "m"
        assert await chunks_of(backend, a_request())
    with pytest.raises(CallFailed, match="status 404"):
        async with OpenAIBackend(server.url):
            pass


@pytest.mark.parametrize("fault", [status(503), answer(b"[]"), html()], ids=["503", "list", "html"])
async def test_a_server_that_cannot_say_what_it_serves(server: BadServer, fault: Fault) -> None:
    server.next(fault, path="/v1/models")
    with pytest.raises(BackendUnavailable, match="/v1/models"):
        async with OpenAIBackend(server.url):
            pass


async def test_a_server_that_comes_back(server: BadServer, backend: OpenAIBackend) -> None:
    await server.stop()
    with pytest.raises(BackendUnavailable):
        await chunks_of(backend, a_request())
    assert backend.failure is not None
    await server.start()
    await backend.recover()

    assert backend.failure is None
    assert await chunks_of(backend, a_request())


async def test_another_model_in_its_place_is_no_recovery(
    server: BadServer, backend: OpenAIBackend
) -> None:
    server.model = "another"
    with pytest.raises(BackendUnavailable, match="no model 'fake-model'; it has another"):
        await backend.recover()


@pytest.mark.parametrize(
    "anyio_backend", [("asyncio", {"loop_factory": VirtualLoop})], ids=["virtual"]
)
async def test_waits_double_with_jitter_and_heed_the_server(anyio_backend: Any) -> None:
    backend = OpenAIBackend("http://h", model="m", jitter=random.Random(1))
    asked_s: list[float] = []

    async def get(path: str, timeout_s: float) -> Any:
        asked_s.append(now())
        if len(asked_s) == 5:
            raise TryAgain("busy", after_s=100.0)
        if len(asked_s) < 12:
            raise BackendUnavailable("gone")
        return {"data": [{"id": "m"}]}

    backend._client.get = get  # no socket in virtual time
    await backend.recover()

    waits = [after - before for before, after in itertools.pairwise(asked_s)]
    assert waits[4] == 100.0
    bounds = [0.5, 1, 2, 4, 100, 15, 15, 15, 15, 15, 15]
    assert all(bound / 2 <= wait <= bound for wait, bound in zip(waits, bounds, strict=True))
    assert len({round(wait, 3) for wait in waits[5:]}) > 3


# -- secrets, settings and the estimate of tokens


async def test_the_key_is_read_from_the_environment(
    server: BadServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.api_key = "canary"
    monkeypatch.setenv("FAKE_KEY", "canary")
    async with OpenAIBackend(server.url, api_key="FAKE_KEY") as backend:
        assert await chunks_of(backend, a_request())
    monkeypatch.setenv("FAKE_KEY", "stale-canary")
    with pytest.raises(InvalidConfig) as failure:
        async with OpenAIBackend(server.url, api_key="FAKE_KEY"):
            pass
    assert "canary" not in str(failure.value)


def test_a_key_in_place_of_its_variable_is_not_shown() -> None:
    with pytest.raises(InvalidConfig, match="names the environment variable") as failure:
        OpenAIBackend("http://h", api_key="sk-canary")
    assert "canary" not in str(failure.value)
    with pytest.raises(InvalidConfig, match="NO_SUCH_KEY: this environment variable is not set"):
        OpenAIBackend("http://h", api_key="NO_SUCH_KEY")


def test_settings_out_of_range() -> None:
    with pytest.raises(InvalidConfig, match="max_running=0"):
        OpenAIBackend("http://h", max_running=0)


@given(st.text(), st.text())
def test_an_estimate_gives_the_text_back_and_keeps_beginnings(one: str, two: str) -> None:
    plain = one.encode("utf-8", "replace").decode()
    ids = TOKENIZER.encode(one)
    shared = len(plain.encode()) // 4

    assert TOKENIZER.decode([*ids, *TOKENIZER.end_of_turn_ids]) == plain
    assert all(0 <= token < 2**32 for token in ids)
    assert not set(ids) & TOKENIZER.eos_ids
    assert TOKENIZER.encode(one + two)[:shared] == ids[:shared]


def test_a_longer_chat_begins_with_the_shorter_one() -> None:
    short = TOKENIZER.chat(list(CHAT), (ToolSpec("f", "does", "{}"),))
    longer = [*CHAT, Message("assistant", "hi", (("f", "{}"),)), Message("tool", "3")]

    assert TOKENIZER.chat(longer, (ToolSpec("f", "does", "{}"),))[: len(short) - 1] == short[:-1]
