"""Steps that their author's code gives up: they are broken off, unless others wait for them."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import anyio
import pytest
from typist import Typist

from tenter.runtime import agent, llm, reason, reduce, session, tool, workflow
from tenter.runtime.backends.fake import FakeBackend
from tenter.runtime.clock import VirtualLoop, now
from tenter.runtime.run.local import open_host, run_program, run_workflow
from tenter.runtime.scheduler.events import ToolEnded
from tenter.runtime.trace import MemoryTrace

LOG: list[str] = []  # how the tools of this module ended


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualLoop}


async def wait(s: float) -> str:
    """Wait."""
    try:
        await anyio.sleep(s)
    except asyncio.CancelledError:
        LOG.append("cancelled")
        raise
    LOG.append("ended")
    return "waited"


rest = tool(effect="pure", name="rest")(wait)
pay = tool(effect="once", name="pay")(wait)
sum_up = llm("Sum up: {{ text }}")
think = reason("How many? {{ text }}", strategy="self-consistency", n=4, max_tokens=50)
helper = agent("Help: {{ text }}", tools=[rest])
total = reduce("Sum:{% for part in parts %} {{ part }}{% endfor %}", over="parts", max_tokens=8)


class Slow(FakeBackend):
    """Takes 10 s, and asks for a tool first where it can. A fake."""

    def __init__(self) -> None:
        super().__init__(self._said, latency_s=10)

    def _said(self, prompt: str) -> str:
        order = json.dumps({"name": "rest", "arguments": {"s": 100}})
        wants = "Help" in prompt and "tool:" not in prompt
        return f"<tool_call>{order}</tool_call>" if wants else "done"


async def gave_up(work: Any, s: float) -> bool:
    """Whether `work` took longer than `s` seconds."""
    try:
        async with asyncio.timeout(s):
            await work
    except TimeoutError:
        return True
    return False


async def after(work: Any, s: float) -> int:
    """What still runs on the model when `work` was given up `s` seconds after it began."""
    backend = Slow()

    @workflow
    async def given_up(x: int) -> int:
        assert await gave_up(work(), s)
        await anyio.sleep(0.1)
        return len(backend.running)

    return await run_workflow(given_up.workflow, {"x": 1}, backends={"default": backend})


@pytest.mark.parametrize(
    "work",
    [
        lambda: session().ask("hello"),
        lambda: sum_up(text="a"),
        lambda: think(text="a"),
        lambda: helper(text="a"),
        lambda: asyncio.gather(sum_up(text="a"), session().run("b")),
    ],
    ids=["turn", "llm step", "reason step", "agent step", "several"],
)
async def test_calls_that_nobody_waits_for_are_broken_off(work: Any) -> None:
    assert await after(work, 3) == 0


async def test_a_tool_is_cancelled_and_an_effect_is_not() -> None:
    trace = MemoryTrace()
    LOG.clear()

    @workflow
    async def given_up(x: int) -> float:
        for each in (rest, pay):
            assert await gave_up(each(s=5), 1)
        await anyio.sleep(10)
        return now()

    await run_workflow(given_up.workflow, {"x": 1}, backends={"default": Slow()}, trace=trace)
    assert LOG == ["cancelled", "ended"]
    ends = [(each.tool, each.ok) for _, each in trace.records if isinstance(each, ToolEnded)]
    assert ends == [("rest", False), ("pay", True)], "a chat's KV waits for neither"


async def test_the_tool_of_an_agent_that_is_given_up_is_cancelled() -> None:
    LOG.clear()
    assert await after(lambda: helper(text="a"), 15) == 0
    assert LOG == ["cancelled"]


async def test_what_another_waits_for_goes_on() -> None:
    backend = Slow()

    @workflow
    async def two(x: int) -> list[Any]:
        return list(await asyncio.gather(gave_up(sum_up(text="a"), 5), sum_up(text="a")))

    result = await run_workflow(two.workflow, {"x": 1}, backends={"default": backend})
    assert result == [True, "done"]


async def test_what_was_given_up_can_be_asked_for_again() -> None:
    backend = Slow()

    @workflow
    async def again(x: int) -> str:
        assert await gave_up(sum_up(text="a"), 5)
        return await sum_up(text="a")

    assert await run_workflow(again.workflow, {"x": 1}, backends={"default": backend}) == "done"


async def test_the_folds_of_a_tree_are_broken_off() -> None:
    backend = Slow()
    backend.capabilities = replace(backend.capabilities, context_tokens=60)

    @workflow
    async def given_up(x: int) -> tuple[int, int]:
        assert await gave_up(total(parts=[str(n) * 10 for n in range(30)]), 3)
        before = len(backend.running)
        await anyio.sleep(0.1)
        return before, len(backend.running)

    result = await run_workflow(given_up.workflow, {"x": 1}, backends={"default": backend})
    assert result[0] > 1
    assert result[1] == 0


async def test_a_call_that_was_started_early_is_cancelled_when_its_turn_is_over() -> None:
    LOG.clear()
    order = json.dumps({"name": "rest", "arguments": {"s": 100}})
    backend = Typist(f"<tool_call>{order}</tool_call>")

    @workflow
    async def given_up(x: int) -> int:
        assert await gave_up(session().run("a", tools=[rest], speculate=True), 20)
        await anyio.sleep(200)
        return x

    await run_workflow(given_up.workflow, {"x": 1}, backends={"default": backend})
    assert LOG == ["cancelled"]


@pytest.mark.parametrize("work", [lambda: sum_up(text="a"), lambda: session().ask("a")])
async def test_a_program_that_ends_before_what_it_gave_up_leaves_nothing(work: Any) -> None:
    @workflow
    async def given_up(x: int) -> bool:
        return await gave_up(work(), 1)

    async with open_host({"default": Slow()}) as host:
        assert await run_program(host, given_up.workflow, {"x": 1})
        await anyio.sleep(30)
        assert not host._withdrawn
        assert not host._parts


async def test_a_tool_that_is_given_up_while_the_run_is_paused_never_starts() -> None:
    LOG.clear()

    @workflow
    async def waits(x: int) -> bool:
        return await gave_up(pay(s=1), 1) and not await gave_up(asyncio.sleep(20), 30)

    async with open_host({"default": Slow()}) as host:
        running = asyncio.ensure_future(run_program(host, waits.workflow, {"x": 1}))
        host.gate.close()
        await anyio.sleep(5)
        host.gate.open()
        assert await running
    assert LOG == []
