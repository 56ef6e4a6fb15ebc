"""The simulated backend: the engine's batching and cache in virtual time."""

from dataclasses import replace
from typing import Any

import anyio
import pytest

from tenter.planner.graph import LLM, Graph, Ref, Sampling
from tenter.planner.hardware import HARDWARE, MODELS, kv_capacity_tokens, step_seconds
from tenter.planner.prompt import Prompt
from tenter.runtime.backends.sim import SimulatedBackend
from tenter.runtime.calls import CallId, Chunk, Request, SessionId
from tenter.runtime.clock import VirtualLoop, now
from tenter.runtime.errors import CallFailed, InvalidConfig
from tenter.runtime.journal.memory import NoJournal
from tenter.runtime.run.control import Control
from tenter.runtime.run.local import open_host
from tenter.runtime.run.program import Programs
from tenter.runtime.run.rows import Row, RowRun
from tenter.runtime.workflow import Input, Workflow


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualLoop}


def request(name: str, prompt: int = 64, output: int = 8, first: int = 0, **more: Any) -> Request:
    tokens = tuple(range(first, first + prompt))
    return Request(CallId(name), tokens, Sampling(max_tokens=output), **more)


def whole(request: Request) -> int:
    return request.sampling.max_tokens


async def last(backend: SimulatedBackend, asked: Request) -> Chunk:
    chunks = [chunk async for chunk in backend.generate(asked)]
    return chunks[-1]


async def test_a_call_takes_its_roofline_time() -> None:
    async with SimulatedBackend(output_tokens=whole) as backend:
        chunk = await last(backend, request("a", prompt=1000, output=3))
    shape = HARDWARE["h100"], MODELS["llama-3.1-8b"]
    steps = [(1000, 0, 500_000.0), (1, 1000, 1000.5), (1, 1001, 1001.5)]
    assert now() == pytest.approx(sum(step_seconds(*shape, *step) for step in steps))
    assert chunk.usage is not None and chunk.usage.output_tokens == 3
    assert chunk.finish == "stop" and len(chunk.token_ids) == 3


async def test_a_shared_prefix_is_computed_once_even_while_it_is_being_computed() -> None:
    async with SimulatedBackend(output_tokens=whole) as backend:
        usages: list[Any] = []

        async def one(name: str) -> None:
            usages.append((await last(backend, request(name, prompt=512))).usage)

        async with anyio.create_task_group() as tasks:
            for name in "abcd":
                tasks.start_soon(one, name)
        cached = sorted(usage.cached_tokens for usage in usages)
        assert cached[0] == 0 and min(cached[1:]) >= 496


async def test_a_pin_keeps_kv_under_pressure_until_its_deadline() -> None:
    async with SimulatedBackend(kv_tokens=1024, output_tokens=whole) as backend:

        async def cached_after_pressure(name: str) -> int:
            for first in range(5):
                await last(backend, request(f"{name}{first}", 512, 1, first=10_000 * (first + 1)))
            usage = (await last(backend, request(name, 256, 1, session=SessionId("s")))).usage
            assert usage is not None
            return usage.cached_tokens

        await last(backend, request("first", 256, 1, session=SessionId("s")))
        await backend.retain(SessionId("s"), None)
        assert await cached_after_pressure("pinned") >= 240
        await backend.release(SessionId("s"))
        assert await cached_after_pressure("released") == 0


async def test_an_abort_ends_the_stream_and_frees_its_pages() -> None:
    async with SimulatedBackend(output_tokens=whole) as backend:

        async def abort() -> None:
            await anyio.sleep(0.05)
            await backend.abort(CallId("a"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(abort)
            chunk = await last(backend, request("a", output=100_000))
        assert chunk.finish == "abort" and now() == pytest.approx(0.05)
        assert (await backend.load()).running == 0


async def test_choices_cost_one_prefill_and_no_decoding() -> None:
    async with SimulatedBackend() as backend:
        chunk = await last(backend, request("a", choices=((1,), (2, 3))))
        assert chunk.choice_logprobs is not None and len(chunk.choice_logprobs) == 2
        assert backend.replica.steps == 1


async def test_the_same_seed_gives_the_same_times() -> None:
    async def run(seed: int) -> list[float]:
        async with SimulatedBackend(seed=seed) as backend:
            started_s = now()
            ends = list[float]()
            for name in "abc":
                await last(backend, request(name, output=500))
                ends.append(round(now() - started_s, 9))
            return ends

    assert await run(1) == await run(1) != await run(2)


async def test_a_thousand_rows_run_on_the_simulator_in_virtual_minutes() -> None:
    """The live scheduler, the live driver; only the tensors are missing."""
    step = LLM(
        id="s",
        prompt=Prompt("A long shared instruction. " * 20 + "{{ x }}"),
        args=(("x", Ref("x")),),
        sampling=Sampling(max_tokens=200),
    )
    workflow = Workflow("w", (Input("x"),), Graph("w", ("x",), (step,), Ref("s")))
    async with SimulatedBackend() as backend, open_host({"default": backend}) as host:
        host.share_prefixes([step])
        sink = _Count()
        rows = (Row(row, {}, {"x": str(row)}) for row in range(1000))
        status = await RowRun(Programs(host, workflow), NoJournal(), sink, Control()).run(rows)
        assert status == "done" and sink.count == 1000
        assert 1 < now() < 600
        assert (await backend.load()).kv_pinned_tokens > 0


class _Count:
    held = 0

    def __init__(self) -> None:
        self.count = 0

    def put(self, row: Row, value: Any, error: str | None) -> None:
        assert error is None
        self.count += 1


def test_unknown_hardware_and_too_large_models_are_named() -> None:
    with pytest.raises(InvalidConfig, match="no hardware 'tpu'; there is a100, h100"):
        SimulatedBackend(hardware="tpu")
    with pytest.raises(InvalidConfig, match="leaves no room for KV on h100; give kv_tokens"):
        SimulatedBackend(model="llama-3.1-70b")


def test_the_roofline_is_bound_by_arithmetic_or_by_reading() -> None:
    gpu, model = HARDWARE["h100"], MODELS["llama-3.1-8b"]
    gpu = replace(gpu, overhead_s=0.0)
    decode, prefill = step_seconds(gpu, model, 1, 1000), step_seconds(gpu, model, 8192, 0)
    assert decode == pytest.approx((16.06e9 + 131_072 * 1000) / (3.35e12 * 0.72))
    assert prefill == pytest.approx(2 * 8.03e9 * 8192 / (989.5e12 * 0.65))
    assert 300_000 < kv_capacity_tokens(gpu, model) < 500_000


async def test_an_answer_is_found_in_the_cache_by_the_turn_that_quotes_it() -> None:
    def answer(asked: Request) -> range:
        return range(asked.token_ids[-1] + 1, asked.token_ids[-1] + 1 + 100)

    async with SimulatedBackend(answer=answer) as backend:
        first = await last(backend, request("a", prompt=200, output=1000))
        assert first.token_ids == tuple(range(200, 300))
        usage = (await last(backend, request("b", prompt=400, output=1000))).usage
        assert usage is not None and usage.cached_tokens >= 299 - 16


async def test_a_pin_ends_at_its_time() -> None:
    async with SimulatedBackend(kv_tokens=1024, output_tokens=whole) as backend:
        await last(backend, request("a", 256, 1, session=SessionId("s")))
        await backend.retain(SessionId("s"), now() + 5.0)
        assert (await backend.load()).kv_pinned_tokens == 256
        await anyio.sleep(6.0)
        await last(backend, request("b", 32, 1, first=5000))
        assert (await backend.load()).kv_pinned_tokens == 0


async def test_the_call_that_goes_on_with_a_session_uses_up_its_pin() -> None:
    async with SimulatedBackend(output_tokens=whole) as backend:
        await last(backend, request("a", 256, 1, session=SessionId("s")))
        await backend.retain(SessionId("s"), None)
        await last(backend, request("b", 300, 1, session=SessionId("s")))
        assert (await backend.load()).kv_pinned_tokens == 0


async def test_who_has_the_smaller_priority_goes_first() -> None:
    async with SimulatedBackend(max_running=1, output_tokens=whole) as backend:
        ended: list[str] = []

        async def one(name: str, priority: float) -> None:
            await last(backend, request(name, first=len(name) * 1000, priority=priority))
            ended.append(name)

        async with anyio.create_task_group() as tasks:
            for name, priority in (("a", 5.0), ("bb", 3.0), ("ccc", 1.0)):
                tasks.start_soon(one, name, priority)
        assert ended == ["ccc", "bb", "a"]
        assert backend.capabilities.priorities


async def test_a_streamed_answer_comes_token_by_token() -> None:
    async with SimulatedBackend(output_tokens=whole) as backend:
        times_s: list[float] = []
        async for chunk in backend.generate(request("a", output=5, stream=True)):
            times_s.append(now())
            assert len(chunk.token_ids) == 1
        assert len(times_s) == 5 and times_s == sorted(set(times_s))


async def test_a_large_model_is_served_by_several_gpus() -> None:
    async with SimulatedBackend("4xh100", "llama-3.1-70b", output_tokens=whole) as backend:
        assert (await last(backend, request("a"))).finish == "stop"


async def test_a_call_that_can_never_run_fails() -> None:
    async with SimulatedBackend(kv_tokens=1024, output_tokens=whole) as backend:
        with pytest.raises(CallFailed, match=r"1,000 tokens and its answer of 100 do not fit"):
            await last(backend, request("a", 1000, 100))
