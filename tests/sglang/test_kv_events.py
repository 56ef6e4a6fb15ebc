"""A real server's KV events, read into the blocks that a scheduler's map must forget."""

import asyncio
import json
import socket
import urllib.request
from collections.abc import AsyncIterator, Callable
from random import Random
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("zmq")

from tenter.runtime.backends.sglang import SGLangBackend, connect
from tenter.runtime.backends.sglang.evictions import evictions
from tenter.runtime.blocks import blocks_of
from tenter.runtime.calls import CallId, Request, Sampling

if TYPE_CHECKING:
    from servers import Server

pytestmark = pytest.mark.sglang

PATIENCE_S = 30.0
PROMPT_TOKENS = 700  # of which the pool of 4096 holds five
Prompt = tuple[int, ...]


@pytest.fixture(scope="module")
def endpoint() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture(scope="module")
def server(start_server: "Callable[..., Server]", endpoint: str) -> "Server":
    config = {"publisher": "zmq", "endpoint": endpoint, "bind": True, "topic": "kv"}
    flags = ("--page-size", "16", "--kv-events-config", json.dumps(config))
    return start_server("events", *flags)


@pytest.fixture
async def backend(server: "Server") -> AsyncIterator[SGLangBackend]:
    async with connect([server.url], retention="none") as (opened,):
        yield opened


@pytest.fixture
async def gone(endpoint: str, backend: SGLangBackend) -> AsyncIterator[list[Prompt]]:
    """What is told to be gone, from now on."""
    found: list[Prompt] = []

    async def listen() -> None:
        async for blocks in evictions(endpoint, "kv"):
            found.append(blocks)  # noqa: PERF401

    task = asyncio.create_task(listen())
    try:
        for number in range(100):  # a subscription takes effect after a while
            await ask(backend, prompt(10_000 + number, 40))
            await flush(backend)
            if found:
                break
            await asyncio.sleep(0.1)
        await quiet(found)
        found.clear()
        yield found
    finally:
        task.cancel()


async def flush(backend: SGLangBackend) -> None:
    """Empty the cache; the server is idle a moment after its last answer."""
    url = f"{backend.url}/flush_cache?timeout=10"

    def post() -> None:
        with urllib.request.urlopen(urllib.request.Request(url, method="POST"), timeout=20) as done:
            assert done.status == 200

    await asyncio.to_thread(post)


async def quiet(found: list[Prompt]) -> None:
    """Return when nothing has come for a while."""
    before = -1
    while before != len(found):
        before = len(found)
        await asyncio.sleep(0.5)


def prompt(seed: int, tokens: int = PROMPT_TOKENS) -> Prompt:
    random = Random(seed)
    return tuple(random.randrange(300, 1000) for _ in range(tokens))


async def ask(backend: SGLangBackend, tokens: Prompt) -> int:
    """How much of the prompt the server had."""
    request = Request(CallId(str(hash(tokens))), tokens, Sampling(max_tokens=1))
    (chunk,) = [chunk async for chunk in backend.generate(request)]
    assert chunk.usage is not None
    return chunk.usage.cached_tokens


async def told(found: list[Prompt], blocks: set[int]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not blocks <= {block for each in found for block in each}:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_what_the_pool_evicts_is_told_as_blocks_of_its_prompts(
    backend: SGLangBackend, gone: list[Prompt]
) -> None:
    prompts = [prompt(number) for number in range(9)]
    for tokens in prompts:
        await ask(backend, tokens)

    await told(gone, set(blocks_of(prompts[0])) | set(blocks_of(prompts[1])))
    told_gone = {block for each in gone for block in each}
    kept = blocks_of(prompts[-1])
    assert not told_gone & set(kept)
    assert told_gone <= {block for tokens in prompts for block in blocks_of(tokens)}
    assert await ask(backend, prompts[-1]) >= PROMPT_TOKENS - 16


async def test_a_shared_beginning_is_gone_only_with_its_own_pages(
    backend: SGLangBackend, gone: list[Prompt]
) -> None:
    shared = prompt(50, 320)
    for number in range(14):  # it is used again and again, so that it stays
        await ask(backend, (*shared, *prompt(60 + number, 400)))

    first = (*shared, *prompt(60, 400))
    own = set(blocks_of(first)) - set(blocks_of(shared))
    await told(gone, own)
    assert not {block for each in gone for block in each} & set(blocks_of(shared))
    assert await ask(backend, (*shared, *prompt(99, 100))) >= 320


async def test_a_flush_is_told_as_everything(backend: SGLangBackend, gone: list[Prompt]) -> None:
    await ask(backend, prompt(70))
    await flush(backend)
    async with asyncio.timeout(PATIENCE_S):
        while () not in gone:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert await ask(backend, prompt(70)) == 0


async def test_a_backend_knows_where_its_server_publishes(backend: SGLangBackend) -> None:
    events = backend.evictions()
    assert events is not None
    first = asyncio.ensure_future(anext(events))
    for _ in range(100):
        await ask(backend, prompt(80, 100))
        await flush(backend)
        if first.done():
            break
        await asyncio.sleep(0.1)
    assert first.result() == () or first.result()[0] in blocks_of(prompt(80, 100))
