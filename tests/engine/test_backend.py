"""The embedded backend: on a thread under a real loop, and inline under virtual time."""

import asyncio
import gc
import math
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from tenter.runtime.backends.base import Backend
from tenter.runtime.backends.embedded import EmbeddedBackend
from tenter.runtime.calls import CallId, Chunk, Request, SessionId
from tenter.runtime.clock import VirtualLoop, now
from tenter.runtime.errors import BackendUnavailable, CallFailed, InvalidInput

Checkpoint = Callable[[str], Path]
Ask = Callable[..., Request]
Greedy = Callable[[str, list[int], int], tuple[int, ...]]

PROMPT = [40, 41, 42, 50, 60, 70, 80] * 5
A = SessionId("a")

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=[False, True], ids=["thread", "inline"])
def backend(request: pytest.FixtureRequest, checkpoint: Checkpoint) -> EmbeddedBackend:
    return EmbeddedBackend(checkpoint("qwen3"), inline=request.param)


async def answer(backend: Backend, request: Request) -> Chunk:
    chunks = [chunk async for chunk in backend.generate(request)]
    return chunks[-1]


async def test_it_answers(backend: EmbeddedBackend, ask: Ask, greedy: Greedy) -> None:
    found: dict[int, Chunk] = {}

    async def one(i: int) -> None:
        found[i] = await answer(backend, ask(str(i), PROMPT[i:]))

    async with backend, anyio.create_task_group() as tasks:
        for i in range(6):
            tasks.start_soon(one, i)

    assert {i: chunk.token_ids for i, chunk in found.items()} == {
        i: greedy("qwen3", PROMPT[i:], 12) for i in range(6)
    }


async def test_capabilities_are_those_of_the_model(backend: EmbeddedBackend) -> None:
    async with backend:
        found = backend.capabilities
        assert (found.name, found.context_tokens, found.page_tokens) == ("embedded", 512, 16)
        assert found.kv_tokens == 64 * 512
        assert found.retention == "pins"
        assert found.schemas
        assert found.choices
        assert len(found.model_fingerprint) == 32
        assert backend.tokenizer.eos_ids == {2}


async def test_closing_the_stream_aborts_the_call(backend: EmbeddedBackend, ask: Ask) -> None:
    async with backend:
        stream = backend.generate(ask("a", PROMPT, max_tokens=400, stream=True))
        async for _ in stream:
            break
        await stream.aclose()

        await backend.abort(CallId("unknown"))  # what was posted before it is done now
        load = await backend.load()
        assert (load.running, load.waiting) == (0, 0)
        assert load.counters["aborted"] == 1


async def test_cancelling_the_caller_aborts_the_call(backend: EmbeddedBackend, ask: Ask) -> None:
    async with backend:
        with anyio.move_on_after(0.02):
            await answer(backend, ask("a", PROMPT, max_tokens=470))
        await backend.abort(CallId("unknown"))
        assert (await backend.load()).running == 0


async def test_abort_ends_the_stream(backend: EmbeddedBackend, ask: Ask) -> None:
    async with backend, anyio.create_task_group() as tasks:
        stream = backend.generate(ask("a", PROMPT, max_tokens=400, stream=True))
        chunks = [await anext(stream), await anext(stream)]
        tasks.start_soon(backend.abort, CallId("a"))
        chunks += [chunk async for chunk in stream]

        assert chunks[-1].finish == "abort"
        assert chunks[-1].usage is not None
        assert sum(len(chunk.token_ids) for chunk in chunks) < 400


async def test_sessions_are_kept(backend: EmbeddedBackend, ask: Ask) -> None:
    async with backend:
        await backend.warm(A, tuple(PROMPT))
        await backend.retain(A, now() + 1000)
        assert (await backend.load()).kv_pinned_tokens == 32
        await backend.fork(A, SessionId("b"))
        await backend.release(A)
        assert (await backend.load()).kv_pinned_tokens == 0
        usage = (await answer(backend, ask("b", PROMPT, session=SessionId("b")))).usage
        assert usage is not None
        assert usage.cached_tokens == 32


async def test_a_call_that_is_too_long_fails_alone(
    backend: EmbeddedBackend, ask: Ask, greedy: Greedy
) -> None:
    async with backend:
        with pytest.raises(CallFailed, match="600 tokens"):
            await answer(backend, ask("long", [5] * 600))
        assert (await answer(backend, ask("a", PROMPT))).token_ids == greedy("qwen3", PROMPT, 12)


async def test_a_call_name_is_used_once_at_a_time(backend: EmbeddedBackend, ask: Ask) -> None:
    async with backend:
        stream = backend.generate(ask("a", PROMPT, max_tokens=100, stream=True))
        await anext(stream)
        with pytest.raises(CallFailed, match="running already"):
            await answer(backend, ask("a", PROMPT))
        await stream.aclose()


async def test_a_crash_ends_every_call(
    backend: EmbeddedBackend, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise RuntimeError("out of sorts")

    async with backend:
        monkeypatch.setattr("tenter.runtime.engine.model.Model.forward", crash)
        with pytest.raises(BackendUnavailable, match="out of sorts"):
            await answer(backend, ask("a", PROMPT))
        with pytest.raises(BackendUnavailable, match="out of sorts"):
            await answer(backend, ask("b", PROMPT))
        with pytest.raises(BackendUnavailable, match="out of sorts"):
            await backend.load()


async def test_leaving_ends_what_runs(backend: EmbeddedBackend, ask: Ask) -> None:
    async with backend:
        stream = backend.generate(ask("a", PROMPT, max_tokens=400, stream=True))
        await anext(stream)
    chunks = [chunk async for chunk in stream]

    assert chunks[-1].finish == "abort"
    with pytest.raises(BackendUnavailable):
        await backend.load()


async def test_it_can_be_entered_again(backend: EmbeddedBackend, ask: Ask, greedy: Greedy) -> None:
    for _ in range(2):
        async with backend:
            found = await answer(backend, ask("a", PROMPT))
            assert found.token_ids == greedy("qwen3", PROMPT, 12)
    gc.collect()


async def test_outside_of_with_it_is_unavailable(backend: EmbeddedBackend, ask: Ask) -> None:
    with pytest.raises(BackendUnavailable, match="async with"):
        await answer(backend, ask("a", PROMPT))


async def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"no config\.json"):
        async with EmbeddedBackend(tmp_path):
            pass


async def test_settings_are_checked(checkpoint: Checkpoint) -> None:
    with pytest.raises(InvalidInput, match="float16.*float32, bfloat16"):
        async with EmbeddedBackend(checkpoint("qwen3"), dtype="float16"):  # type: ignore[arg-type]
            pass
    with pytest.raises(InvalidInput, match="nonsense"):
        async with EmbeddedBackend(checkpoint("qwen3"), device="nonsense"):
            pass


async def test_bfloat16_runs(checkpoint: Checkpoint, ask: Ask) -> None:
    async with EmbeddedBackend(checkpoint("qwen2"), dtype="bfloat16") as backend:
        found = await answer(backend, ask("a", PROMPT, choices=None))
        assert len(found.token_ids) == 12


def test_inline_steps_take_their_price_on_virtual_time(
    checkpoint: Checkpoint, ask: Ask, greedy: Greedy
) -> None:
    async def main() -> tuple[Chunk, float]:
        inline = EmbeddedBackend(
            checkpoint("qwen3"), inline=True, step_cost_s=lambda step: 1.0 + step.prefill_tokens
        )
        async with inline as backend:
            await backend.retain(A, now() + 100)
            chunk = await answer(backend, ask("a", PROMPT, session=A))
            took_s = now()
            await anyio.sleep(100 - took_s - 0.5)
            assert (await backend.load()).kv_pinned_tokens == 32
            await anyio.sleep(1)
            await answer(backend, ask("b", [9]))
            assert (await backend.load()).kv_pinned_tokens == 0
            return chunk, took_s

    chunk, took_s = anyio.run(main, backend_options={"loop_factory": VirtualLoop})

    assert chunk.token_ids == greedy("qwen3", PROMPT, 12)
    assert took_s == 35 + 12
    assert chunk.usage is not None
    assert chunk.usage.decode_s + chunk.usage.prefill_s == pytest.approx(46)
    assert math.isclose(chunk.usage.queue_s, 0)


def test_the_thread_does_not_outlive_its_loop(checkpoint: Checkpoint, ask: Ask) -> None:
    async def main() -> None:
        async with EmbeddedBackend(checkpoint("qwen3")) as backend:
            asyncio.get_running_loop().call_soon(lambda: None)
            await answer(backend, ask("a", PROMPT))

    asyncio.run(main())
    asyncio.run(main())
