"""Equal pure work of several processes is done once, and nobody waits for it in vain."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import anyio
import pytest

from tenter.runtime import llm, tool, workflow
from tenter.runtime.backends.fake import FakeBackend
from tenter.runtime.clock import VirtualLoop, now
from tenter.runtime.errors import StepFailed
from tenter.runtime.fleet.claims import LEASE_S, STORE_S, Book, Claims, ClaimsAway, MemoryClaims
from tenter.runtime.fleet.flights import HEARING_LOOK_S, LAST_LOOK_S, REST_S, Flights
from tenter.runtime.fleet.ledger import MemoryLedger
from tenter.runtime.fleet.peers import Peers
from tenter.runtime.fleet.prefixes import MemoryDirectory
from tenter.runtime.journal import MemoryResults
from tenter.runtime.journal.results import Kept
from tenter.runtime.run.local import open_host, run_program, run_workflow
from tenter.runtime.scheduler.events import CallShared
from tenter.runtime.trace import MemoryTrace
from tenter.runtime.workflow import Workflow

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualLoop}


class Shared:
    """What processes have in common: a cache, and a book of claims."""

    def __init__(self) -> None:
        self.results = MemoryResults(clock=now)
        self.book = Book()
        self.latency_s = 20.0
        self.asked: list[str] = []

    def answer(self, prompt: str) -> str:
        self.asked.append(prompt)
        return "said"

    def claims(self, name: str) -> MemoryClaims:
        return MemoryClaims(self.book, name, now)

    async def run(self, flow: Workflow, name: str, claims: Claims | None = None) -> MemoryTrace:
        peers = Peers(
            MemoryLedger(now), claims or self.claims(name), MemoryDirectory(now), "the book"
        )
        trace = MemoryTrace()
        value = await run_workflow(
            flow,
            {"text": "a"},
            backends={"default": FakeBackend(self.answer, self.latency_s)},
            results=self.results,
            peers=peers,
            trace=trace,
        )
        assert value in ("said", "A")
        return trace


def shared(trace: MemoryTrace) -> list[str]:
    return [record.how for _, record in trace.records if isinstance(record, CallShared)]


@workflow
def one(text: str) -> str:
    return llm("Say {{ text }}", name="echo")(text=text)


@workflow
def drawn(text: str) -> str:
    return llm("Say {{ text }}", name="echo", temperature=1.0)(text=text)


async def test_who_is_first_does_it_and_the_others_have_the_result() -> None:
    common = Shared()
    async with asyncio.TaskGroup() as group:
        runs = [group.create_task(common.run(one.workflow, name)) for name in "abc"]
    assert len(common.asked) == 1
    assert sorted(shared(run.result()) for run in runs) == [[], ["result-cache"], ["result-cache"]]
    assert 20 <= now() < 20.2  # they are told, and need not look in time


class Deaf(MemoryClaims):
    """Claims that count how often they are asked about; nobody is told of ends where it is `cut`."""

    asked = 0

    def __init__(self, common: Shared, name: str, cut: bool) -> None:
        super().__init__(common.book, name, now)
        self._cut = cut

    async def claim(self, key: bytes) -> bool:
        self.asked += 1
        return await super().claim(key)

    async def hear(self, begun: Callable[[], None], over: Callable[[bytes], None]) -> None:
        if self._cut:
            raise ClaimsAway("nobody may listen")
        await super().hear(begun, over)


@pytest.mark.parametrize("cut", [False, True], ids=["told", "not told"])
async def test_who_waits_looks_seldom_where_it_is_told_and_often_where_not(cut: bool) -> None:
    common = Shared()
    claims = Deaf(common, "b", cut)
    async with asyncio.TaskGroup() as group:
        group.create_task(common.run(one.workflow, "a"))
        await anyio.sleep(0.1)
        waiting = group.create_task(common.run(one.workflow, "b", claims))
    assert shared(waiting.result()) == ["result-cache"]
    assert now() < common.latency_s + 2 * LAST_LOOK_S
    often = common.latency_s / LAST_LOOK_S
    assert claims.asked > often - 5 if cut else claims.asked < often / 2


async def test_a_result_on_its_way_is_waited_for_though_who_made_it_has_ended() -> None:
    """Found by the fault campaign: its claim ended with it, and the work was done once more."""
    common = Shared()
    mine, other = common.claims("a"), common.claims("b")
    await mine.beat()
    assert await mine.claim(b"x")
    await mine.end(b"x", kept=True)
    await mine.rest()
    assert not await other.claim(b"x")
    await anyio.sleep(STORE_S)
    assert await other.claim(b"x")


async def test_work_that_is_drawn_is_each_ones_own() -> None:
    common = Shared()
    async with asyncio.TaskGroup() as group:
        for name in "ab":
            group.create_task(common.run(drawn.workflow, name))
    assert len(common.asked) == 2


made: list[float] = []


@tool(effect="pure")
async def upper(text: str) -> str:
    made.append(now())
    await anyio.sleep(20)
    return text.upper()


@workflow
def shout(text: str) -> str:
    return upper(text=text)


async def test_pure_tools_too() -> None:
    made.clear()
    common = Shared()
    async with asyncio.TaskGroup() as group:
        for name in "ab":
            group.create_task(common.run(shout.workflow, name))
    assert len(made) == 1


class Dying(MemoryClaims):
    """Claims of a process that hangs: it gives no sign of life after the first one."""

    lives = True

    async def beat(self) -> None:
        if self.lives:
            await super().beat()
        self.lives = False


async def test_the_work_of_one_that_gives_no_sign_of_life_is_taken_over() -> None:
    common = Shared()
    async with asyncio.TaskGroup() as group:
        group.create_task(common.run(one.workflow, "a", Dying(common.book, "a", now)))
        await anyio.sleep(0.1)
        group.create_task(common.run(one.workflow, "b"))
    assert len(common.asked) == 2
    assert now() <= common.latency_s + LEASE_S + 2 * HEARING_LOOK_S


class Failing(Shared):
    """Its first call fails."""

    def answer(self, prompt: str) -> str:
        said = super().answer(prompt)
        if len(self.asked) == 1:
            raise ValueError("no")
        return said


@pytest.mark.parametrize("end", ["fails", "is cancelled"])
async def test_work_that_came_to_nothing_is_done_by_the_next(end: str) -> None:
    common = Failing() if end == "fails" else Shared()
    common.latency_s = 1.0
    async with asyncio.TaskGroup() as group:
        first = group.create_task(_outcome(common.run(one.workflow, "a")))
        await anyio.sleep(0.5)
        second = group.create_task(common.run(one.workflow, "b"))
        await anyio.sleep(0.3)
        if end == "is cancelled":
            first.cancel()
    assert shared(second.result()) == []
    assert now() < 4


async def _outcome(work: Any) -> None:
    with suppress(StepFailed):
        await work


async def test_others_do_not_wait_for_a_run_that_is_paused() -> None:
    common = Shared()
    peers = Peers(MemoryLedger(now), common.claims("a"), MemoryDirectory(now), "the book")
    backends = {"default": FakeBackend(lambda prompt: "said", latency_s=300.0)}
    async with open_host(backends, results=common.results, peers=peers) as host:
        mine = asyncio.ensure_future(run_program(host, one.workflow, {"text": "a"}))
        await anyio.sleep(1)
        host.pause()
        await common.run(one.workflow, "b")
        assert now() < 30
        host.go_on()
        assert await mine == "said"


async def test_who_waits_and_is_cancelled_waits_no_more() -> None:
    common = Shared()
    async with asyncio.TaskGroup() as group:
        group.create_task(common.run(one.workflow, "a"))
        await anyio.sleep(1)
        waiting = group.create_task(common.run(one.workflow, "b"))
        await anyio.sleep(1)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert now() < 3
    assert len(common.asked) == 1


class Cut(MemoryClaims):
    """Claims that cannot be asked about while they are `gone`."""

    gone = True

    async def claim(self, key: bytes) -> bool:
        if self.gone:
            raise ClaimsAway("nobody is there")
        return await super().claim(key)


async def test_without_claims_everybody_goes_on_alone(caplog: pytest.LogCaptureFixture) -> None:
    common = Shared()
    async with asyncio.TaskGroup() as group:
        for name in "ab":
            group.create_task(common.run(one.workflow, name, Cut(common.book, name, now)))
    assert len(common.asked) == 2
    assert "equal work of others is not waited for" in caplog.text


async def test_claims_are_asked_about_again_after_a_while() -> None:
    common = Shared()
    claims = Cut(common.book, "a", now)
    flights = Flights(claims, common.results)
    await flights.begin()
    assert await flights.enter(b"x", wanted) is None
    claims.gone = False
    other = common.claims("b")
    await other.beat()
    assert await other.claim(b"x") and await flights.enter(b"x", wanted) is None
    await anyio.sleep(REST_S)
    await other.beat()
    waiting = asyncio.ensure_future(flights.enter(b"x", wanted))
    await anyio.sleep(1)
    assert not waiting.done()
    common.results.keep(b"x", Kept(b"1"))
    assert await waiting == Kept(b"1")


def wanted() -> bool:
    return False


class Mute(MemoryClaims):
    """Claims whose ends nobody hears of while they are `gone`."""

    gone = True

    async def end(self, key: bytes, kept: bool) -> None:
        if self.gone:
            raise ClaimsAway("nobody is there")
        await super().end(key, kept)


async def test_the_end_of_work_that_could_not_be_told_is_told_later() -> None:
    common = Shared()
    claims = Mute(common.book, "a", now)
    flights, other = Flights(claims, common.results), Flights(common.claims("b"), common.results)
    await flights.begin()
    await other.begin()
    giving_signs = asyncio.ensure_future(flights.keep())
    for key in (b"x", b"y"):
        assert await flights.enter(key, wanted) is None
        flights.leave(key, kept=False)
    await anyio.sleep(1)
    claims.gone = False
    assert await other.enter(b"x", wanted) is None
    assert await other.enter(b"y", wanted) is None
    assert now() < REST_S + LEASE_S
    flights.stop()
    await giving_signs
