"""A trace of a live run replays into the same commands, under every order and with limits."""

import asyncio
from typing import Any, get_args

import msgspec
import pytest

from tenter.runtime.backends.fake import FakeBackend
from tenter.runtime.calls import Chunk, Request
from tenter.runtime.clock import VirtualLoop
from tenter.runtime.scheduler.core import Core
from tenter.runtime.scheduler.events import (
    CallReady,
    Command,
    Event,
    ProgramArrived,
    ProgramEnded,
    ToolEnded,
    ToolStarted,
)
from tenter.runtime.scheduler.limits import Limit, Limits
from tenter.runtime.scheduler.loop import Answer, Scheduler
from tenter.runtime.scheduler.policies import ORDERS
from tenter.runtime.trace import MemoryTrace

LIMITS = Limits(
    models={"m": Limit(max_running=3, tokens_per_minute=5_000)},
    tenants={"*": Limit(max_running=2)},
    working_set=0.5,
    past_future=True,
)


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualLoop}


class Call:
    """A turn of a program's session."""

    step, model, shared_tokens, gang = "s", "m", 0, 0

    def __init__(self, program: str, index: int) -> None:
        self.program = program
        self.request = Request(
            f"{program}/{index}",  # type: ignore[arg-type]
            tuple(range(20 + 10 * index)),
            session=f"{program}/s",  # type: ignore[arg-type]
        )
        self.ended = asyncio.Event()

    def heard(self, chunk: Chunk) -> None:
        pass

    def lost(self) -> None:
        pass

    def done(self, answer: Answer) -> None:
        self.ended.set()


async def agent(scheduler: Scheduler, name: str, row: int) -> None:
    started = asyncio.Event()
    scheduler.arrive(name, row, "w", started.set)
    await started.wait()
    for index in range(4):
        call = Call(name, index)
        scheduler.submit(call)
        await call.ended.wait()
        about = {"program": name, "step": "t", "tool": "x", "session": f"{name}/s"}
        scheduler.send(ToolStarted(**about))
        await asyncio.sleep(0.3 * (row % 4))
        scheduler.send(ToolEnded(**about, seconds=0.3 * (row % 4), ok=True))
    scheduler.send(ProgramEnded(program=name, row=row, ok=True))


@pytest.mark.parametrize("limits", [Limits(), LIMITS], ids=["free", "limited"])
@pytest.mark.parametrize("order", [*ORDERS, "fair:shortest-remaining"])
async def test_a_live_run_replays(order: str, limits: Limits) -> None:
    def core() -> Core:
        return Core(order, lambda pause: 0.5, max_programs=6, limits=limits)

    trace = MemoryTrace()
    backends = {f"m/{index}": FakeBackend(latency_s=0.5, max_running=2) for index in range(2)}
    async with Scheduler(core(), backends, dict.fromkeys(backends, "m"), trace) as scheduler:
        async with asyncio.TaskGroup() as tasks:
            for row in range(12):
                tasks.create_task(agent(scheduler, f"p{row}", row))
        assert not scheduler.core.calls
    again, decided = core(), list[Command]()
    replayed = 0
    for at_s, record in trace.records:
        if isinstance(record, get_args(Event)):
            assert decided == [], "the live run decided less"
            decided = again.handle(record, at_s)  # type: ignore[arg-type]
            replayed += 1
        elif isinstance(record, get_args(Command)):
            assert decided.pop(0) == record
    assert replayed > 12 * 4 * 4


def test_traces_from_before_tenants_and_predictions_are_read() -> None:
    old = b'{"type":"ProgramArrived","program":"p","row":0,"workflow":"w"}'
    arrived = msgspec.json.decode(old, type=ProgramArrived)
    assert (arrived.tenant, arrived.weight, arrived.deadline_s) == ("", 1.0, None)
    old = (
        b'{"type":"CallReady","call":"c","program":"p","step":"s","model":"m",'
        b'"prompt_tokens":1,"max_tokens":2}'
    )
    ready = msgspec.json.decode(old, type=CallReady)
    assert ready.remaining_tokens is None and ready.expected_tokens is None
