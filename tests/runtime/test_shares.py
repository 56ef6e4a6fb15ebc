"""Several processes on one worker: fair shares, leases that end, a core that keeps to its share."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import anyio
import pytest

from tenter.planner.graph import Sampling
from tenter.runtime.backends.fake import FakeBackend
from tenter.runtime.calls import CallId, Chunk, Request
from tenter.runtime.clock import VirtualLoop, now
from tenter.runtime.fleet import lease, ledger
from tenter.runtime.fleet.claims import Book as Claimed
from tenter.runtime.fleet.claims import MemoryClaims
from tenter.runtime.fleet.lease import Lease
from tenter.runtime.fleet.ledger import Answer, Ask, LedgerAway, MemoryLedger
from tenter.runtime.fleet.membership import BEAT_S, Membership
from tenter.runtime.fleet.peers import Peers, together
from tenter.runtime.fleet.prefixes import MemoryDirectory, Prefixes, Seen
from tenter.runtime.fleet.shares import LEAST, Amount, fair_share
from tenter.runtime.scheduler.core import Core
from tenter.runtime.scheduler.demand import Demand, demands
from tenter.runtime.scheduler.events import (
    CallEnded,
    CallReady,
    Command,
    Dispatch,
    DropCall,
    ProgramArrived,
    Release,
    ToolStarted,
    WorkerDown,
    WorkerShare,
    WorkerUp,
)
from tenter.runtime.scheduler.loop import Answer as Said
from tenter.runtime.scheduler.loop import Scheduler


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualLoop}


# ---- who gets how much ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("needs", "shares"),
    [
        ([5000], [1200]),
        ([5000, 5000], [600, 600]),
        ([0, 0], [600, 600]),
        ([0, 5000], [75, 1125]),
        ([100, 400, 5000], [100, 400, 700]),
        ([100, 100, 100], [400, 400, 400]),
        ([300, 5000, 5000], [300, 450, 450]),
    ],
    ids=["alone", "both all", "neither", "one", "as each needs", "what is left", "max-min"],
)
def test_shares_are_max_min_fair(needs: list[int], shares: list[int]) -> None:
    assert shares == [
        fair_share(1200, need, needs[:place] + needs[place + 1 :])
        for place, need in enumerate(needs)
    ]


def test_shares_never_exceed_the_whole_and_starve_nobody() -> None:
    draw = random.Random(1)
    for _ in range(2000):
        needs = [draw.choice([0, 500, draw.randint(0, 3000)]) for _ in range(draw.randint(1, 7))]
        shares = [
            fair_share(1000, need, needs[:place] + needs[place + 1 :])
            for place, need in enumerate(needs)
        ]
        assert 1000 - len(needs) < sum(shares) <= 1000
        assert min(shares) >= 1000 // (LEAST * len(needs))


# ---- the core ------------------------------------------------------------------------------------


def ready(call: str, prompt: int = 90, session: str | None = None) -> CallReady:
    return CallReady(
        call=call, program="p", step="s", model="m", prompt_tokens=prompt, max_tokens=10,
        session=session,
    )  # fmt: skip


def done(call: str, prompt: int = 90) -> CallEnded:
    return CallEnded(call=call, program="p", step="s", finish="stop", prompt_tokens=prompt)


def share(tokens: int, slots: int = 8) -> WorkerShare:
    return WorkerShare(worker="w", kv_tokens=tokens, max_running=slots)


def dispatched(commands: list[Command]) -> list[str]:
    return [command.call for command in commands if isinstance(command, Dispatch)]


@pytest.fixture
def core() -> Core:
    core = Core(hold=lambda pause: 60.0)
    core.handle(WorkerUp(worker="w", model="m", max_running=8, kv_tokens=1000), 0)
    core.handle(ProgramArrived(program="p", row=0, workflow="w"), 0)
    return core


def test_calls_beyond_the_share_wait_until_it_grows(core: Core) -> None:
    core.handle(share(250), 0)
    sent = [name for name in "abcd" if dispatched(core.handle(ready(name), 0))]
    assert sent == ["a", "b"]
    assert dispatched(core.handle(share(360), 1)) == ["c"]
    assert dispatched(core.handle(share(1000, slots=3), 2)) == []
    assert dispatched(core.handle(done("a"), 3)) == ["d"]
    core.check()


def test_one_call_always_goes_and_only_the_whole_worker_is_too_small(core: Core) -> None:
    core.handle(share(0, slots=1), 0)
    assert dispatched(core.handle(ready("a", 900), 0)) == ["a"]
    assert dispatched(core.handle(ready("b", 900), 0)) == []
    (dropped,) = core.handle(ready("c", 1000), 0)
    assert isinstance(dropped, DropCall) and "1000 KV tokens of the largest" in dropped.reason
    assert dispatched(core.handle(done("a"), 1)) == ["b"]
    core.check()


def test_a_smaller_share_gives_up_pins_and_a_restart_keeps_it(core: Core) -> None:
    for name in "ab":
        core.handle(ready(name, session=name), 0)
        core.handle(done(name), 1)
        core.handle(ToolStarted(program="p", step="t", tool="x", session=name), 1)
    assert core.workers["w"].kv_pinned == 180
    released = [c.session for c in core.handle(share(100), 2) if isinstance(c, Release)]
    assert len(released) == 1 and core.workers["w"].kv_pinned == 90
    core.handle(WorkerDown(worker="w", returns=True, model="m"), 3)
    core.handle(WorkerUp(worker="w", model="m", max_running=8, kv_tokens=1000), 4)
    assert core.workers["w"].share_tokens == 100
    core.check()


def test_demand_is_what_runs_what_is_kept_and_what_waits(core: Core) -> None:
    core.handle(ready("a", session="a"), 0)
    core.handle(done("a"), 1)  # its context may be evicted, and would be wanted again
    core.handle(ready("b", session="b"), 1)
    core.handle(done("b"), 2)
    core.handle(ToolStarted(program="p", step="t", tool="x", session="b"), 2)
    core.handle(share(190, slots=1), 2)
    core.handle(ready("c"), 2)
    core.handle(ready("d"), 2)
    found = demands(core.workers, core.calls, core.sessions)
    assert found == {"w": Demand(190 + 90 + 100, 2)}


def test_a_process_told_to_leave_room_is_not_taken_for_the_smallest_of_all() -> None:
    """Its own limit is no limit of the worker."""
    modest = Lease(0)
    modest.told(Answer("1", Amount(100, 1), Amount(1000, 8), (Amount(5000, 8),)), 0)
    assert modest.ask(Amount(400, 2), Amount(5000, 9), Amount()).want == (400, 2)
    greedy = Lease(0)
    greedy.told(Answer("2", Amount(500, 4), Amount(1000, 8), (Amount(400, 2),)), 0)
    assert greedy.ask(Amount(1000, 8), Amount(5000, 9), Amount()).want == (600, 6)


# ---- leases --------------------------------------------------------------------------------------

WHOLE = Amount(1000, 8)


class Worker(FakeBackend):
    """An engine that several processes use; how much of it was ever taken at once."""

    def __init__(self) -> None:
        super().__init__(lambda prompt: prompt, latency_s=1.0, max_running=WHOLE.slots)
        self.capabilities = replace(self.capabilities, kv_tokens=WHOLE.tokens, place="w")
        self.held = self.most = 0

    async def generate(self, request: Request) -> AsyncIterator[Chunk]:
        need = len(request.token_ids) + request.sampling.max_tokens
        self.held += need
        self.most = max(self.most, self.held)
        try:
            async for chunk in super().generate(request):
                yield chunk
        finally:
            self.held -= need


class Call:
    """A call of 100 tokens."""

    program, step, model, shared_tokens, gang = "p", "s", "m", 0, 0

    def __init__(self, name: str, tell: Any) -> None:
        self.request = Request(CallId(name), (65,) * 90, Sampling(max_tokens=10))
        self._tell = tell

    def heard(self, chunk: Chunk) -> None:
        pass

    def lost(self) -> None:
        pass

    def done(self, answer: Said) -> None:
        assert answer.error is None, answer.error
        self._tell()


class Process:
    """A scheduler with its membership; `calls` are always waiting while it is `busy`."""

    def __init__(self, scheduler: Scheduler, member: Membership, name: str) -> None:
        self.scheduler = scheduler
        self.member = member
        self.name = name
        self.ended = self._sent = 0
        self.busy = False
        scheduler.arrive("p", 0, "w", lambda: None)

    def start(self, waiting: int = 20) -> None:
        self.busy = True
        for _ in range(waiting):
            self._next()

    def _next(self) -> None:
        self._sent += 1
        self.scheduler.submit(Call(f"{self.name}{self._sent}", self._over))

    def _over(self) -> None:
        self.ended += 1
        if self.busy:
            self._next()

    @property
    def share(self) -> Amount:
        worker = self.scheduler.core.workers["m/0"]
        return Amount(worker.share_tokens, worker.share_slots)


@asynccontextmanager
async def process(worker: Worker, book: Any, name: str = "a") -> AsyncIterator[Process]:
    async with Scheduler(Core(), {"m/0": worker}, {"m/0": "m"}) as scheduler:
        member = Membership(scheduler, {"m/0": "w"}, book, "the book")
        await member.begin()
        keeping = asyncio.create_task(member.keep())
        made = Process(scheduler, member, name)
        try:
            yield made
        finally:
            made.busy = False
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
            await member.close()


class Book(MemoryLedger):
    """A ledger that can be cut off."""

    def __init__(self) -> None:
        super().__init__(now)
        self.gone = False

    async def beat(self, place: str, ask: Ask) -> Answer | None:
        if self.gone:
            raise LedgerAway("nobody is there")
        return await super().beat(place, ask)


@pytest.mark.anyio
async def test_processes_do_not_overcommit_a_worker_and_each_gets_its_share() -> None:
    worker, book = Worker(), Book()
    async with process(worker, book, "a") as a, process(worker, book, "b") as b:
        a.start()
        await anyio.sleep(10)
        assert a.share.tokens >= 900, "the other one needs nothing"
        b.start()
        await anyio.sleep(10)
        assert abs(a.share.tokens - 500) < 20 and abs(b.share.tokens - 500) < 20
        assert a.share.slots == b.share.slots == 4
        before = a.ended, b.ended
        await anyio.sleep(20)
        assert b.ended - before[1] == pytest.approx(a.ended - before[0], rel=0.1)
        b.busy = False
        await anyio.sleep(20)
        assert a.share.tokens >= 900
        a.busy = False
        await anyio.sleep(5)
    assert worker.most <= 1000
    assert book.held("w") == (0, 0), "both have given back what they had"


@pytest.mark.anyio
async def test_two_that_do_not_coordinate_overcommit_it() -> None:
    worker = Worker()
    async with process(worker, Book(), "a") as a, process(worker, Book(), "b") as b:
        a.start()
        b.start()
        await anyio.sleep(10)
    assert worker.most > 1500


@pytest.mark.anyio
async def test_the_share_of_a_dead_process_returns_and_its_token_is_refused(
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker, book = Worker(), Book()
    async with process(worker, book, "b") as b:
        b.start()
        dead = Ask("", WHOLE, WHOLE, Amount(), WHOLE, Amount())
        first = await book.beat("w", dead)
        assert first is not None
        for _ in range(6):
            await anyio.sleep(BEAT_S)
            held = await book.beat("w", replace(dead, token=first.token))
        assert held is not None and held.granted.tokens > 300
        assert b.share.tokens < 700
        await anyio.sleep(ledger.LEASE_S + 2)
        assert b.share.tokens > 950
        assert await book.beat("w", replace(dead, token=first.token)) is None
        book._accounts["w"].members.clear()  # pyright: ignore  it was thought dead itself
        await anyio.sleep(2)
        assert b.share.tokens > 950
        assert "it leases anew" in caplog.text
        b.busy = False
        await anyio.sleep(3)


@pytest.mark.anyio
async def test_while_nobody_answers_shares_hold_and_then_are_split(
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker, book = Worker(), Book()
    async with process(worker, book, "a") as a, process(worker, book, "b") as b:
        a.start()
        await anyio.sleep(10)
        book.gone = True
        await anyio.sleep(lease.KEEP_S - 2)
        assert a.share.tokens >= 900
        await anyio.sleep(5)
        assert a.share == b.share == (500, 4)
        assert "an even share, by the number of processes known last: 2" in caplog.text
        book.gone = False
        await anyio.sleep(5)
        assert a.share.tokens >= 900
        assert "answers again" in caplog.text
        a.busy = False
        await anyio.sleep(3)
    assert worker.most <= 1000


@pytest.mark.anyio
async def test_a_ledger_that_was_emptied_gives_nobody_the_share_of_another() -> None:
    worker, book = Worker(), Book()
    async with process(worker, book, "a") as a, process(worker, book, "b") as b:
        a.start()
        b.start()
        for _ in range(5):
            await anyio.sleep(7)
            book.forget()
            for _ in range(30):
                await anyio.sleep(0.1)
                assert a.share.tokens + b.share.tokens <= 1000
        assert min(a.share.tokens, b.share.tokens) > 450
        a.busy = b.busy = False
        await anyio.sleep(3)
    assert worker.most <= 1000


async def test_what_has_begun_is_given_back_where_the_next_part_fails_to_begin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def broken(part: Prefixes) -> None:
        raise ValueError("no")

    monkeypatch.setattr(Prefixes, "begin", broken)
    accounts = MemoryLedger(now)
    peers = Peers(accounts, MemoryClaims(Claimed(), "a", now), MemoryDirectory(now), "the book")
    core, worker = Core(), Worker()
    async with Scheduler(core, {"w": worker}, {"w": "m"}) as scheduler:
        await anyio.sleep(0.1)
        with pytest.raises(ValueError, match="no"):
            async with together(peers, scheduler, {"w": "w"}, None, Seen()):
                raise AssertionError("it has not begun")
        assert accounts._accounts["w"].members == {}
