"""Reasoning steps on a real server: probes find the cache, what is decided is aborted."""

from typing import TYPE_CHECKING, Any

import anyio
import pytest

from tenter.runtime import reason, run_workflow, workflow
from tenter.runtime.backends.registry import open_replicas
from tenter.runtime.scheduler.events import Abort, CallEnded, CallReady, Dispatch, Reasoned
from tenter.runtime.trace import MemoryTrace
from tenter.runtime.workflow import ModelSpec

if TYPE_CHECKING:
    from servers import Server

pytestmark = [pytest.mark.sglang, pytest.mark.slow]


async def run(server: "Server", step: Any, question: str) -> tuple[Any, MemoryTrace, Any]:
    """The answer, the trace, and what the server runs afterwards."""

    @workflow
    def answer(x: str) -> str:
        return step(x=x)

    trace = MemoryTrace()
    async with open_replicas(ModelSpec(backend="sglang", options={"url": server.url})) as replicas:
        backends = {"default": replicas}
        found = await run_workflow(answer.workflow, {"x": question}, backends=backends, trace=trace)
        with anyio.fail_after(30):
            while (load := await replicas[0].load()).running:  # noqa: ASYNC110
                await anyio.sleep(0.1)
    return found, trace, load


async def test_samples_enter_together_and_the_late_ones_are_aborted(
    sglang_plugin: "Server",
) -> None:
    step = reason(
        "Compute {{ x }}. Think hard.",
        strategy="first-finish",
        n=6,
        k=2,
        max_tokens=240,
        temperature=1.0,
        top_p=1.0,
    )
    found, trace, load = await run(sglang_plugin, step, "23 + 45 - 12")
    assert found is not None
    records = [record for _, record in trace.records]
    ready = [record for record in records if isinstance(record, CallReady)]
    assert {record.gang for record in ready[:6]} == {6}
    first = [i for i, record in enumerate(records) if isinstance(record, Dispatch)][:6]
    assert first == list(range(first[0], first[0] + 6))
    assert any(isinstance(record, Abort) for record in records)
    assert load.running == load.waiting == 0


async def test_a_probe_computes_little_more_than_its_suffix(sglang_plugin: "Server") -> None:
    rule = {"version": 1, "name": "soon", "start_tokens": 8, "step_tokens": 4, "agree": 2}
    step = reason(
        "Compute {{ x }}. Think hard.",
        rule=rule,
        max_tokens=400,
        temperature=1.0,
        top_p=1.0,
        suffix="</think>\n",
        answer_tokens=8,
        budget_tokens=5_000,
    )
    _, trace, _ = await run(sglang_plugin, step, "31 + 17 - 9 + 22")
    (told,) = [record for _, record in trace.records if isinstance(record, Reasoned)]
    ends = [r for _, r in trace.records if isinstance(r, CallEnded) and ".probe" in r.call]
    assert ends
    assert told.probe_tokens > 0
    for end in ends:
        assert end.prompt_tokens - end.cached_tokens <= 16


async def test_a_branch_of_a_search_computes_what_its_parent_drew_last(
    sglang_plugin: "Server",
) -> None:
    async def short(thought: str) -> float:
        return 1 / (1 + len(thought))

    step = reason(
        "Compute {{ x }}. Think hard.",
        strategy="rebase",
        scorer=short,
        width=6,
        step_tokens=12,
        until="\n",
        max_tokens=160,
        temperature=1.0,
        top_p=1.0,
    )
    found, trace, load = await run(sglang_plugin, step, "64 + 15 - 28")
    assert found
    records = [record for _, record in trace.records]
    ends = [record for record in records if isinstance(record, CallEnded)]
    first = min(end.prompt_tokens for end in ends)
    grown = [end for end in ends if end.prompt_tokens > first]
    assert grown
    for end in grown:
        assert end.prompt_tokens - end.cached_tokens <= 16
    assert load.running == load.waiting == 0
