"""What one process has had computed, others find: a directory of prefixes that is only advice."""

from typing import Any

import anyio
import pytest

from tenter.runtime.blocks import FINE_TOKENS, blocks_of
from tenter.runtime.clock import VirtualLoop, now
from tenter.runtime.fleet.ledger import LedgerAway
from tenter.runtime.fleet.prefixes import AGE_S, EXCHANGE_S, PIECE, MemoryDirectory, Prefixes, Seen
from tenter.runtime.scheduler.core import Core
from tenter.runtime.scheduler.events import (
    BlocksHeld,
    CallEnded,
    CallReady,
    Dispatch,
    DropCall,
    ProgramArrived,
    WorkerUp,
)
from tenter.runtime.trace import Record


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualLoop}


DOCUMENT = tuple(range(1000))
BLOCKS = blocks_of(DOCUMENT)


def ready(call: str = "c", tokens: tuple[int, ...] = DOCUMENT) -> CallReady:
    return CallReady(
        call=call, program="p", step="s", model="m", prompt_tokens=len(tokens), max_tokens=1,
        blocks=blocks_of(tokens),
    )  # fmt: skip


def told(seen: Seen, *records: Record, at_s: float = 0.0) -> None:
    for record in records:
        seen.write(at_s, record)


SENT = Dispatch(call="c", worker="m/0", priority=0)
DONE = CallEnded(call="c", program="p", step="s", finish="stop")
SIZED = [(block, FINE_TOKENS) for block in BLOCKS]


def test_what_was_computed_is_told_once_in_a_while() -> None:
    seen = Seen()
    told(seen, ready(), SENT, DONE)
    assert seen.take("m/0") == SIZED and seen.take("m/0") == []
    told(seen, ready(), SENT, DONE, at_s=1.0)
    assert seen.take("m/0") == []
    told(seen, ready(), SENT, DONE, at_s=AGE_S)
    assert seen.take("m/0") == SIZED
    broken = CallEnded(call="c", program="p", step="s", finish="error")
    told(seen, ready("c", (7,) * 200), SENT, broken)
    told(seen, ready("d", (8,) * 200), DropCall(call="d", reason="nobody wants it"))
    assert seen.take("m/0") == []


class Process:
    """The exchange of one process, and what its scheduler heard."""

    def __init__(self, directory: MemoryDirectory, capacity: int = 100_000) -> None:
        self.seen = Seen()
        self.heard: list[BlocksHeld] = []
        self.part = Prefixes(
            self.seen, {"m/0": "w"}, lambda worker: capacity, directory, self.heard.append
        )  # pyright: ignore[reportArgumentType]

    @property
    def blocks(self) -> list[tuple[int, int]]:
        return [block for event in self.heard for block in event.blocks]


@pytest.mark.anyio
async def test_what_one_has_computed_the_other_finds() -> None:
    directory = MemoryDirectory(now)
    one, two = Process(directory), Process(directory)
    async with anyio.create_task_group() as group:
        for each in (one, two):
            group.start_soon(each.part.keep)
        told(one.seen, ready(), SENT, DONE)
        await anyio.sleep(3 * EXCHANGE_S)
        assert two.blocks == SIZED and not one.blocks
        late = Process(directory)
        await late.part.begin()
        assert late.blocks == SIZED
        await anyio.sleep(AGE_S)
        late = Process(directory)
        await late.part.begin()
        assert not late.blocks, "it has grown old"
        group.cancel_scope.cancel()


@pytest.mark.anyio
async def test_a_worker_has_no_more_entries_than_it_can_hold() -> None:
    directory = MemoryDirectory(now)
    one, two = (Process(directory, capacity=20 * FINE_TOKENS) for _ in range(2))
    for call in range(10):
        told(one.seen, ready("c", (call,) * 400), SENT, DONE)
    await one.part.begin()
    await two.part.begin()
    assert len(two.blocks) == 20


@pytest.mark.anyio
async def test_many_entries_come_piece_by_piece_and_none_is_missed() -> None:
    directory = MemoryDirectory(now)
    entries = [(number, FINE_TOKENS) for number in range(2 * PIECE + 10)]
    await directory.exchange("w", 0, 10_000, entries)
    two = Process(directory, 10_000 * FINE_TOKENS)
    await two.part.begin()
    assert two.blocks == entries


@pytest.mark.anyio
async def test_without_the_directory_everybody_goes_on() -> None:
    class Gone(MemoryDirectory):
        async def exchange(self, *args: Any) -> Any:
            raise LedgerAway("nobody is there")

    one = Process(Gone(now))
    await one.part.begin()
    assert not one.heard


def test_calls_go_where_others_have_had_their_prefix_computed() -> None:
    def chosen(*events: Any) -> str:
        core = Core()
        for name in ("m/0", "m/1"):
            core.handle(WorkerUp(worker=name, model="m", max_running=8, kv_tokens=10_000), 0)
        core.handle(ProgramArrived(program="p", row=0, workflow="w"), 0)
        for event in events:
            core.handle(event, 0)
        (sent,) = core.handle(ready(), 0)
        assert isinstance(sent, Dispatch)
        core.check()
        return sent.worker

    assert chosen() == "m/0"
    assert chosen(BlocksHeld(worker="m/1", blocks=tuple(SIZED))) == "m/1"
