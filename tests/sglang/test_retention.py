"""What keeps a session's KV on real servers, judged by what the next turn finds in the cache."""

import asyncio
from collections.abc import AsyncIterator
from random import Random
from typing import TYPE_CHECKING

import pytest

from tenter.runtime.backends.sglang import SGLangBackend, connect
from tenter.runtime.calls import CallId, Message, Request, Sampling, SessionId, Usage
from tenter.runtime.clock import now
from tenter.runtime.models import tiny_path
from tenter.runtime.tokenizer import HFTokenizer

if TYPE_CHECKING:
    from servers import Server

pytestmark = pytest.mark.sglang

TOKENIZER = HFTokenizer(tiny_path())
POOL_TOKENS = 4096
AGENT_TOKENS = 500
TURN_TOKENS = 24
ANSWER = Sampling(max_tokens=TURN_TOKENS, ignore_eos=True)
NOTHING = Sampling(max_tokens=1)


@pytest.fixture(params=["pins", "sessions"])
async def backend(
    request: pytest.FixtureRequest, sglang_plugin: "Server", sglang_sessions: "Server"
) -> AsyncIterator[SGLangBackend]:
    servers = {"pins": sglang_plugin, "sessions": sglang_sessions}
    async with connect([servers[request.param].url]) as (opened,):
        assert opened.capabilities.retention == request.param
        yield opened


def context(seed: int, tokens: int = AGENT_TOKENS) -> tuple[int, ...]:
    """A prompt that no other test has."""
    random = Random(seed)
    return tuple(random.randrange(300, 1000) for _ in range(tokens))


async def turn(
    backend: SGLangBackend, prompt: tuple[int, ...], session: str | None = None
) -> tuple[tuple[int, ...], Usage]:
    """The context after one turn, and what it cost."""
    named = SessionId(session) if session is not None else None
    sampling = ANSWER if session is not None else NOTHING
    call = CallId(f"{session} of {len(prompt)}: {prompt[:8]}")
    asked = Request(call, prompt, sampling, session=named)
    chunks = [chunk async for chunk in backend.generate(asked)]
    usage = chunks[-1].usage
    assert usage is not None
    return (*prompt, *(token for chunk in chunks for token in chunk.token_ids)), usage


async def fill(backend: SGLangBackend, seed: int, pools: float = 1.5) -> None:
    """Other traffic: new prompts that fill the pool so many times."""
    for number in range(round(pools * POOL_TOKENS / 800)):
        await turn(backend, context(seed * 1000 + number, 800))


def found(usage: Usage) -> bool:
    """Whether the turn found the whole context of the turn before it."""
    return usage.cached_tokens >= AGENT_TOKENS + TURN_TOKENS - 2


async def test_a_pin_outlives_other_traffic_and_its_lack_does_not(
    backend: SGLangBackend,
) -> None:
    for pinned in (False, True):
        seed = 10 + pinned
        history, _ = await turn(backend, context(seed), "agent")
        if pinned:
            await backend.retain(SessionId("agent"), now() + 60.0)
        else:
            await backend.release(SessionId("agent"))
        await fill(backend, seed)
        _, usage = await turn(backend, (*history, 5, 6, 7), "agent")
        assert found(usage) == pinned
        assert pinned or usage.cached_tokens < AGENT_TOKENS / 2
    await backend.release(SessionId("agent"))


async def test_a_pin_that_has_ended_gives_its_memory_back(backend: SGLangBackend) -> None:
    history, _ = await turn(backend, context(20), "agent")
    await backend.retain(SessionId("agent"), now() + 1.0)
    await asyncio.sleep(1.2)
    await fill(backend, 20)
    await fill(backend, 21)
    _, usage = await turn(backend, (*history, 5, 6, 7))
    assert usage.cached_tokens < AGENT_TOKENS / 2


async def test_a_pin_is_renewed_after_the_grace(backend: SGLangBackend) -> None:
    history, _ = await turn(backend, context(30), "agent")
    await asyncio.sleep(2.5)
    await backend.retain(SessionId("agent"), None)
    await fill(backend, 30)
    _, usage = await turn(backend, (*history, 5, 6, 7), "agent")
    assert found(usage)
    await backend.release(SessionId("agent"))


async def test_pins_for_more_than_the_pool_block_nobody(backend: SGLangBackend) -> None:
    names = [f"agent {number}" for number in range(2 * POOL_TOKENS // AGENT_TOKENS)]
    for number, name in enumerate(names):
        await turn(backend, context(100 + number), name)
        await backend.retain(SessionId(name), None)
    async with asyncio.timeout(60.0):
        _, usage = await turn(backend, context(99, 3800))
    assert usage.prompt_tokens == 3800
    for name in names:
        await backend.release(SessionId(name))


async def test_greedy_answers_do_not_depend_on_pins(backend: SGLangBackend) -> None:
    chat = tuple(TOKENIZER.chat([Message("user", "Compute 17 + 25 + 9. Think hard.")]))
    answers: list[tuple[int, ...]] = []
    for pinned in (True, False):
        prompt = chat
        for number in range(3):
            prompt, _ = await turn(backend, prompt, "agent")
            if pinned:
                await backend.retain(SessionId("agent"), None)
            await fill(backend, 40 + number, 0.8)
            prompt = (*prompt, 5, 6, 7)
        await backend.release(SessionId("agent"))
        answers.append(prompt)
    assert answers[0] == answers[1]


async def test_a_warm_prefix_is_kept_while_it_is_promised(backend: SGLangBackend) -> None:
    prefix = context(50)
    await backend.warm(SessionId("prefix"), prefix)
    await backend.retain(SessionId("prefix"), None)
    await fill(backend, 50)
    _, usage = await turn(backend, (*prefix, 5, 6, 7))
    assert usage.cached_tokens >= AGENT_TOKENS - 1
    await backend.release(SessionId("prefix"))
    await fill(backend, 51)
    await fill(backend, 52)
    _, usage = await turn(backend, (*prefix, 8, 9))
    assert usage.cached_tokens < AGENT_TOKENS / 2


async def test_leaving_gives_every_pin_back(backend: SGLangBackend) -> None:
    async with connect([backend.url]) as (other,):
        history, _ = await turn(other, context(60), "agent")
        await other.retain(SessionId("agent"), None)
        await fill(other, 60)
        assert found((await turn(other, history))[1])
    await fill(backend, 61)
    await fill(backend, 62)
    _, usage = await turn(backend, (*history, 5))
    assert usage.cached_tokens < AGENT_TOKENS / 2


@pytest.mark.parametrize("promised", [False, True])
async def test_touches_keep_a_promised_prefix_on_a_stock_server(
    sglang_stock: "Server", promised: bool
) -> None:
    async with connect([sglang_stock.url]) as (backend,):
        assert backend.capabilities.retention == "touch"
        history, _ = await turn(backend, context(70 + promised), "agent")
        if promised:
            await backend.retain(SessionId("agent"), None)
        await asyncio.sleep(1.5)
        for number in range(12):  # slow traffic, of twice the pool
            await turn(backend, context(7000 + 100 * promised + number, 700))
            await asyncio.sleep(0.6)
        _, usage = await turn(backend, (*history, 5, 6, 7), "agent")
        assert found(usage) == promised
