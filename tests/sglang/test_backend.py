"""The backend on a real server: the embedded engine's answers, and nothing left behind."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from random import Random
from typing import TYPE_CHECKING, Any

import anyio
import jsonschema
import pytest

from tenter.runtime.backends.base import Backend
from tenter.runtime.backends.embedded import EmbeddedBackend
from tenter.runtime.backends.sglang import SGLangBackend, ask_server, connect, findings
from tenter.runtime.backends.sglang.touches import COMPUTED_TOKENS
from tenter.runtime.calls import CallId, Chunk, Message, Request, Sampling, SessionId
from tenter.runtime.clock import now
from tenter.runtime.errors import BackendUnavailable, CallFailed
from tenter.runtime.models import tiny_path
from tenter.runtime.tokenizer import HFTokenizer

if TYPE_CHECKING:
    from collections.abc import Callable

    from servers import Server

pytestmark = pytest.mark.sglang

TOKENIZER = HFTokenizer(tiny_path())
TICKETS = (
    "Classify the review: good taste, bad smell",
    "Compute 17 + 25 + 9. Think hard.",
    "Which team handles this ticket?\n\nDear team, the parcel 7 never arrived.",
    "Describe this style of beer in a few words: Russian Imperial Stout",
)
PROMPTS = [tuple(TOKENIZER.chat([Message("user", text)])) for text in TICKETS]
TEAMS = ("billing", "shipping", "returns", "technical support")
CHOICES = tuple((*TOKENIZER.encode(team), *TOKENIZER.end_of_turn_ids) for team in TEAMS)
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {
            "team": {"enum": list(TEAMS)},
            "urgent": {"type": "boolean"},
            "level": {"type": "integer", "minimum": 1, "maximum": 5},
        },
        "required": ["team", "urgent", "level"],
        "additionalProperties": False,
    }
)


def request(number: int, **fields: Any) -> Request:
    fields.setdefault("sampling", Sampling(max_tokens=40))
    name = fields.pop("call", f"call {number}")
    return Request(CallId(name), PROMPTS[number % len(PROMPTS)], **fields)


async def ask(backend: Backend, asked: Request) -> list[Chunk]:
    return [chunk async for chunk in backend.generate(asked)]


async def together(backend: Backend, asked: Sequence[Request]) -> list[list[Chunk]]:
    return list(await asyncio.gather(*(ask(backend, each) for each in asked)))


def said(chunks: list[Chunk]) -> tuple[str, tuple[int, ...], str | None]:
    text = "".join(chunk.text for chunk in chunks)
    return text, tuple(t for chunk in chunks for t in chunk.token_ids), chunks[-1].finish


def embedded(asked: Sequence[Request]) -> list[list[Chunk]]:
    """What the embedded engine answers."""

    async def run() -> list[list[Chunk]]:
        async with EmbeddedBackend(tiny_path(), threads=1, kv_tokens=8192) as engine:
            return await together(engine, asked)

    return anyio.run(run)


@pytest.fixture
async def backend(sglang_stock: "Server") -> AsyncIterator[SGLangBackend]:
    async with connect([sglang_stock.url]) as (opened,):
        yield opened


async def idle(backend: SGLangBackend) -> None:
    """Waits until the server runs nothing; its load is stale by up to a second."""
    async with asyncio.timeout(10.0):
        while (load := await backend.load()).running or load.waiting:  # noqa: ASYNC110
            await asyncio.sleep(0.2)


GREEDY = [request(number) for number in range(len(PROMPTS))]
STOPS = Sampling(max_tokens=40, stop=("=", "er", "ing t"))


@pytest.fixture(scope="module")
def engine() -> dict[str, list[list[Chunk]]]:
    """Answers of the embedded engine, each of them computed once."""
    asked = {
        "greedy": GREEDY,
        "stops": [request(n, sampling=STOPS) for n in range(len(PROMPTS))],
        "choices": [request(n, choices=CHOICES) for n in range(len(PROMPTS))],
        "logprobs": [request(n, logprobs=True) for n in range(len(PROMPTS))],
    }
    return {name: embedded(each) for name, each in asked.items()}


async def test_what_a_server_can_do_is_what_it_was_started_with(
    sglang_stock: "Server", sglang_sessions: "Server"
) -> None:
    stock, sessions = await ask_server(sglang_stock.url), await ask_server(sglang_sessions.url)
    assert (stock.retentions[0], stock.enable_priority_scheduling) == ("touch", False)
    assert (sessions.retentions[0], sessions.enable_priority_scheduling) == ("sessions", True)
    assert stock.max_total_num_tokens == 4096
    assert stock.schemas
    assert stock.fingerprint == sessions.fingerprint
    topics = {one.topic: one for one in findings(sessions)}
    assert not topics["priority"].flag
    assert not topics["metrics"].flag


@pytest.mark.parametrize("how", ["whole", "streamed", "grouped"])
async def test_answers_are_the_embedded_engines(
    backend: SGLangBackend, engine: dict[str, list[list[Chunk]]], how: str
) -> None:
    fields: dict[str, Any] = {"streamed": {"stream": True}, "grouped": {"group": "g"}}.get(how, {})
    answers = await together(backend, [request(n, **fields) for n in range(len(PROMPTS))])
    assert list(map(said, answers)) == list(map(said, engine["greedy"]))


@pytest.mark.parametrize("streamed", [False, True])
async def test_stop_strings_cut_where_the_embedded_engine_cuts(
    backend: SGLangBackend, engine: dict[str, list[list[Chunk]]], streamed: bool
) -> None:
    asked = [request(n, sampling=STOPS, stream=streamed) for n in range(len(PROMPTS))]
    assert list(map(said, await together(backend, asked))) == list(map(said, engine["stops"]))
    assert any(said(each)[2] == "stop" and "=" not in said(each)[0] for each in engine["stops"])


async def test_log_probabilities_are_the_embedded_engines(
    backend: SGLangBackend, engine: dict[str, list[list[Chunk]]]
) -> None:
    answers = await together(backend, [request(n, logprobs=True) for n in range(len(PROMPTS))])
    for ours, theirs in zip(answers, engine["logprobs"], strict=True):
        assert ours[-1].logprobs == pytest.approx(theirs[-1].logprobs, abs=1e-3)


async def test_choices_are_scored_as_the_embedded_engine_does_with_one_prefill(
    backend: SGLangBackend, engine: dict[str, list[list[Chunk]]]
) -> None:
    answers = await together(backend, [request(n, choices=CHOICES) for n in range(len(PROMPTS))])
    for ours, theirs in zip(answers, engine["choices"], strict=True):
        assert ours[-1].choice_logprobs == pytest.approx(theirs[-1].choice_logprobs, abs=1e-3)
    long = tuple(Random(3).randrange(300, 1000) for _ in range(600))
    before = await computed(backend)
    (chunk,) = await ask(backend, Request(CallId("long"), long, choices=CHOICES))
    assert chunk.usage is not None
    assert chunk.usage.prompt_tokens == 600
    assert await computed(backend) - before < 600 + 2 * sum(map(len, CHOICES))


async def computed(backend: SGLangBackend) -> float:
    """Prompt tokens that the server has computed; its load is refreshed within a second."""
    await asyncio.sleep(1.5)
    return (await backend.load()).counters[COMPUTED_TOKENS]


async def test_an_answer_goes_on_where_it_was_cut_off(
    backend: SGLangBackend, engine: dict[str, list[list[Chunk]]]
) -> None:
    text, tokens, finish = said(engine["greedy"][1])
    for cut in (1, 5, len(tokens) - 1):
        answer = await ask(backend, request(1, drawn=tokens[:cut], stream=cut == 5))
        assert said(answer) == (text, tokens, finish)
        assert answer[-1].usage is not None
        assert answer[-1].usage.output_tokens == len(tokens) - cut


async def test_what_the_server_refuses_names_the_server(
    backend: SGLangBackend, sglang_stock: "Server"
) -> None:
    with pytest.raises(CallFailed, match="grammar") as caught:
        await ask(backend, request(0, schema='{"type": 5}'))
    assert sglang_stock.url in str(caught.value)
    for bad in ((), (1, 10**9), tuple(range(1, 2000)) * 3):
        with pytest.raises(CallFailed):
            await ask(backend, Request(CallId("bad"), bad))
    assert said(await ask(backend, request(0)))[2] == "stop"


async def test_one_bad_member_does_not_spoil_its_batch(backend: SGLangBackend) -> None:
    asked = [request(n, group="g", schema=None if n else '{"type": 5}') for n in range(4)]
    answers = await asyncio.gather(*(ask(backend, each) for each in asked), return_exceptions=True)
    assert isinstance(answers[0], CallFailed)
    assert not any(isinstance(each, BaseException) for each in answers[1:])


async def test_an_answer_is_cut_to_the_servers_room(backend: SGLangBackend) -> None:
    sampling = Sampling(max_tokens=100_000, ignore_eos=True)
    task = asyncio.create_task(ask(backend, request(0, sampling=sampling)))
    await asyncio.sleep(0.5)
    await backend.abort(CallId("call 0"))
    assert said(await task)[2] == "abort"


async def test_many_calls_at_once(backend: SGLangBackend) -> None:
    asked = [request(n, stream=n % 2 == 0) for n in range(200)]
    answers = await together(backend, asked)
    assert [said(each) for each in answers[4:]] == [said(each) for each in answers[:-4]]
    await idle(backend)


LONG = Sampling(max_tokens=3000, ignore_eos=True)


@pytest.mark.parametrize("streamed", [False, True])
async def test_an_abort_leaves_nothing_running(backend: SGLangBackend, streamed: bool) -> None:
    task = asyncio.create_task(ask(backend, request(0, sampling=LONG, stream=streamed)))
    await asyncio.sleep(0.3)
    await backend.abort(CallId("call 0"))
    chunks = await task
    assert chunks[-1].finish == "abort"
    assert chunks[-1].usage is not None
    assert 0 < chunks[-1].usage.output_tokens < 2900
    await idle(backend)


async def test_cancels_at_random_moments_leave_nothing_running(backend: SGLangBackend) -> None:
    random = Random(11)

    def fields(number: int) -> dict[str, Any]:
        kinds: list[dict[str, Any]] = [{}, {"stream": True}, {"group": "g"}, {"choices": CHOICES}]
        return kinds[number % 4]

    for number in range(50):
        asked = request(number, sampling=LONG, **fields(number))
        task = asyncio.create_task(ask(backend, asked))
        await asyncio.sleep(random.choice([0.0, random.uniform(0, 0.02), random.uniform(0, 0.2)]))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await idle(backend)


async def test_leaving_the_backend_leaves_nothing_running(sglang_stock: "Server") -> None:
    async with connect([sglang_stock.url]) as (backend,):
        asked = [request(n, sampling=LONG, group="g" if n % 2 else None) for n in range(6)]
        tasks = [asyncio.create_task(ask(backend, each)) for each in asked]
        await asyncio.sleep(0.3)
    assert {said(await task)[2] for task in tasks} == {"abort"}
    async with connect([sglang_stock.url]) as (other,):
        await idle(other)


async def test_a_deadline_ends_a_call(backend: SGLangBackend) -> None:
    with pytest.raises(CallFailed, match="took longer"):
        await ask(backend, request(0, sampling=LONG, deadline_s=now() - 0.5))
    await idle(backend)


async def test_calls_of_a_higher_priority_overtake(sglang_sessions: "Server") -> None:
    async with connect([sglang_sessions.url]) as (backend,):
        room = backend.capabilities.max_running
        ended: list[str] = []

        async def one(name: str, priority: float) -> None:
            sampling = Sampling(max_tokens=60, ignore_eos=True)
            await ask(backend, request(0, call=name, priority=priority, sampling=sampling))
            ended.append(name)

        async with asyncio.TaskGroup() as tasks:
            for number in range(room):
                tasks.create_task(one(f"running {number}", 0.0))
            await asyncio.sleep(0.1)
            for number in range(room):
                tasks.create_task(one(f"late {number}", 9.0))
            await asyncio.sleep(0.05)
            for number in range(3):
                tasks.create_task(one(f"early {number}", 1.0))
        places = {kind: [ended.index(n) for n in ended if n.startswith(kind)] for kind in KINDS}
        assert sum(places["early"]) / 3 < sum(places["late"]) / room


KINDS = ("running", "early", "late")


# ---- a server of our own: it is killed in the end ------------------------------------------------


@pytest.fixture(scope="module")
def own_server(start_server: "Callable[..., Server]") -> "Server":
    """Streams what is new only, evicts by priority, and has no blanks in what a grammar holds."""
    flags = ("--incremental-streaming-output", "--constrained-json-disable-any-whitespace")
    return start_server("own", *flags, "--radix-eviction-policy", "priority")


async def test_a_server_that_streams_what_is_new(
    own_server: "Server", engine: dict[str, list[list[Chunk]]]
) -> None:
    async with connect([own_server.url]) as (backend,):
        assert backend.info.incremental_streaming_output
        for fields in ({"stream": True}, {}, {"group": "g"}, {"stream": True, "group": "g"}):
            asked = [request(n, **fields) for n in range(len(PROMPTS))]
            answers = await together(backend, asked)
            assert list(map(said, answers)) == list(map(said, engine["greedy"]))
        asked = [request(n, stream=True, logprobs=True) for n in range(len(PROMPTS))]
        for ours, theirs in zip(await together(backend, asked), engine["logprobs"], strict=True):
            values = [value for chunk in ours for value in chunk.logprobs or ()]
            assert values == pytest.approx(theirs[-1].logprobs, abs=1e-3)


async def test_answers_to_a_schema_validate(own_server: "Server") -> None:
    drawn = Sampling(max_tokens=200, temperature=1.0)
    async with connect([own_server.url]) as (backend,):
        asked = [request(n, schema=SCHEMA, sampling=drawn, stream=n % 2 == 0) for n in range(24)]
        for answer in await together(backend, asked):
            assert said(answer)[2] == "stop"
            jsonschema.validate(json.loads(said(answer)[0]), json.loads(SCHEMA))


async def test_a_server_that_evicts_by_priority_keeps_what_sessions_left(
    own_server: "Server",
) -> None:
    random = Random(5)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(random.randrange(300, 1000) for _ in range(count))

    async with connect([own_server.url]) as (backend,):
        assert backend.capabilities.retention == "priority"
        one = Sampling(max_tokens=1)
        kept, lost = tokens(500), tokens(500)
        session = SessionId("agent")
        await ask(backend, Request(CallId("kept"), kept, one, session=session))
        await ask(backend, Request(CallId("lost"), lost, one))
        for number in range(8):
            await ask(backend, Request(CallId(f"other {number}"), tokens(800), one))
        found: list[int] = []
        for prompt in (kept, lost):
            usage = (await ask(backend, Request(CallId("again"), prompt, one)))[-1].usage
            assert usage is not None
            found.append(usage.cached_tokens)
        assert found[0] >= 498
        assert found[1] < 250


async def test_a_killed_server_is_lost_and_used_again(own_server: "Server") -> None:
    async with connect([own_server.url]) as (backend,):
        asked = [request(n, sampling=LONG, stream=n % 2 == 0) for n in range(4)]
        tasks = [asyncio.create_task(ask(backend, each)) for each in asked]
        await asyncio.sleep(0.3)
        own_server.kill()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(each) for each in answers] == [BackendUnavailable] * 4
        assert own_server.url in (backend.failure or "")
        recovery = asyncio.create_task(backend.recover())
        await asyncio.to_thread(own_server.restart)
        async with asyncio.timeout(30.0):
            await recovery
        assert said(await ask(backend, request(0)))[2] == "stop"
