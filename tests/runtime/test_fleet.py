"""Several replicas behind one model: faults, deaths, returns and reports, in virtual time."""

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import anyio
import pytest

from tenter.runtime.backends.fake import FakeBackend
from tenter.runtime.calls import CallId, Capabilities, Chunk, Load, Request, SessionId
from tenter.runtime.clock import VirtualLoop, now
from tenter.runtime.errors import BackendUnavailable, InvalidConfig, TryAgain
from tenter.runtime.run.local import open_host
from tenter.runtime.scheduler.attempts import PATIENCE_S
from tenter.runtime.scheduler.core import Core
from tenter.runtime.scheduler.events import (
    CallBroke,
    Dispatch,
    PinJudged,
    ToolStarted,
    WorkerDown,
    WorkerLoad,
    WorkerUp,
)
from tenter.runtime.scheduler.loop import Answer, Scheduler
from tenter.runtime.trace import MemoryTrace


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualLoop}


class Replica(FakeBackend):
    """A server that dies, comes back and stumbles as it is told. Called a fake."""

    def __init__(self, latency_s: float = 1.0, max_running: int = 8) -> None:
        super().__init__(lambda prompt: prompt, latency_s, max_running)
        replace(self, remote=True, priorities=True)
        self.dead_until_s = 0.0
        self.swapped = False
        self.stumbles: Callable[[Request], TryAgain | None] = lambda request: None
        self.answered: list[str] = []
        self.started = 0
        self.others = Load()
        self.priorities: list[float] = []

    async def generate(self, request: Request) -> AsyncIterator[Chunk]:
        self.started += 1
        self.priorities.append(request.priority)
        self._live()
        async for chunk in super().generate(request):
            self._live()
            trouble = self.stumbles(request)
            if trouble is not None:
                raise trouble
            if chunk.finish == "stop":
                self.answered.append(request.call)
            yield chunk

    def _live(self) -> None:
        if now() < self.dead_until_s:
            raise BackendUnavailable("connection refused")

    def die(self, seconds: float) -> None:
        self.dead_until_s = now() + seconds
        for scope in list(self.running.values()):
            scope.cancel()

    async def recover(self) -> None:
        await anyio.sleep(self.dead_until_s - now() + 0.5)
        if self.swapped:
            raise BackendUnavailable("another model answers now")

    async def load(self) -> Load:
        return self.others


def replace(replica: FakeBackend, **settings: Any) -> None:
    """Change what `replica` says of itself."""
    able = replica.capabilities
    fields = {name: getattr(able, name) for name in Capabilities.__slots__}
    replica.capabilities = Capabilities(**fields | settings)


class Call:
    """A submission that remembers what it was told."""

    program, step, model, shared_tokens, gang = "p", "s", "m", 0, 0

    def __init__(self, name: str, **more: Any) -> None:
        self.request = Request(CallId(name), tuple(name.encode()), **more)
        self.answers: list[Answer] = []
        self.ended = asyncio.Event()

    def heard(self, chunk: Chunk) -> None:
        pass

    def lost(self) -> None:
        pass

    def done(self, answer: Answer) -> None:
        self.answers.append(answer)
        self.ended.set()


async def run_calls(
    replicas: list[Replica],
    count: int,
    during: Callable[[], Any] | None = None,
    trace: MemoryTrace | None = None,
) -> list[Answer]:
    workers = {f"m/{index}": replica for index, replica in enumerate(replicas)}
    async with Scheduler(Core(), workers, dict.fromkeys(workers, "m"), trace) as scheduler:
        scheduler.arrive("p", 0, "w", lambda: None)
        calls = [Call(f"c{index:04}") for index in range(count)]
        for call in calls:
            scheduler.submit(call)
        if during is not None:
            await during()
        for call in calls:
            await call.ended.wait()
        scheduler.core.check()
        assert not scheduler.core.calls
    assert all(len(call.answers) == 1 for call in calls)
    return [call.answers[0] for call in calls]


async def test_a_replica_that_dies_is_replaced_and_used_again_when_it_is_back() -> None:
    replicas = [Replica(), Replica()]
    trace = MemoryTrace()

    async def kill() -> None:
        await anyio.sleep(1.5)
        replicas[0].die(5.0)

    answers = await run_calls(replicas, 200, kill, trace)
    assert [answer.text for answer in answers] == [f"c{index:04}" for index in range(200)]
    answered = [call for replica in replicas for call in replica.answered]
    assert len(answered) == len(set(answered)) == 200
    (down,) = [at_s for at_s, item in trace.records if isinstance(item, WorkerDown)]
    ups = [at_s for at_s, item in trace.records if isinstance(item, WorkerUp)]
    assert down == 1.5 and 6.5 <= ups[-1] <= 7.5
    assert len(replicas[0].answered) > 50


async def test_with_all_replicas_gone_for_a_while_calls_wait() -> None:
    replicas = [Replica(), Replica()]

    async def kill() -> None:
        await anyio.sleep(1.5)
        for replica in replicas:
            replica.die(30.0)

    answers = await run_calls(replicas, 40, kill)
    assert [answer.error for answer in answers] == [None] * 40
    assert sum(replica.started for replica in replicas) <= 40 + 2 * 8 + 2


async def test_a_replica_that_comes_back_as_another_model_is_used_no_more() -> None:
    replica = Replica()
    replica.swapped = True

    async def kill() -> None:
        await anyio.sleep(0.5)
        replica.die(2.0)

    answers = await run_calls([replica], 4, kill)
    assert all("another model answers now" in (answer.error or "") for answer in answers)


async def test_a_replica_that_is_down_at_the_start_joins_later() -> None:
    replicas = [Replica(), Replica()]
    replicas[1].failure = "connection refused"
    replicas[1].dead_until_s = 3.0
    answers = await run_calls(replicas, 100)
    assert all(answer.error is None for answer in answers)
    assert replicas[1].answered


async def test_stumbles_are_retried_within_the_budget() -> None:
    replica = Replica(max_running=32)
    draw = random.Random(7)
    replica.stumbles = lambda request: TryAgain("503") if draw.random() < 0.1 else None
    answers = await run_calls([replica], 1000)
    assert all(answer.error is None for answer in answers)
    assert replica.started <= 1.2 * 1000


async def test_a_full_outage_costs_few_requests_and_ends_well() -> None:
    replica = Replica(max_running=32)
    replica.stumbles = lambda request: TryAgain("500") if now() < 30 else None
    began_s = 30.0

    async def slow_recovery() -> None:
        await anyio.sleep(max(0.0, began_s - now()))

    replica.recover = slow_recovery  # type: ignore[method-assign]
    answers = await run_calls([replica], 1000)
    assert all(answer.error is None for answer in answers)
    assert replica.started <= 1.1 * 1000


async def test_retry_after_is_kept_and_the_reason_is_told_in_the_end() -> None:
    replica, asked = Replica(latency_s=0.1, max_running=1), list[float]()

    def refuse(request: Request) -> TryAgain:
        asked.append(now())
        return TryAgain("http://a/generate: 429, the queue is full", after_s=7.0)

    replica.stumbles = refuse
    trace = MemoryTrace()
    (answer,) = await run_calls([replica], 1, trace=trace)
    assert answer.finish == "abort" and "429" in (answer.error or "")
    assert all(later - earlier >= 7.0 for earlier, later in itertools.pairwise(asked))
    assert PATIENCE_S <= asked[-1] - asked[0] < PATIENCE_S + 60.0
    assert sum(isinstance(item, CallBroke) for _, item in trace.records) == len(asked) < 20


async def test_it_is_said_why_a_replica_is_out_of_use(caplog: pytest.LogCaptureFixture) -> None:
    replica = Replica()
    replica.stumbles = lambda request: TryAgain("http://a: 500, no memory") if now() < 30 else None
    await run_calls([replica], 40)
    assert "m/0 is out of use until it answers again: http://a: 500, no memory" in caplog.text


async def test_being_turned_away_does_not_use_up_the_attempts_at_a_call() -> None:
    replica, count = Replica(), itertools.count()

    def stumble(request: Request) -> TryAgain | None:
        """Turned away six times, and broken off three times."""
        number = next(count)
        if number < 9:
            return TryAgain("429", after_s=1.0) if number % 3 else TryAgain("500")
        return None

    replica.stumbles = stumble
    (answer,) = await run_calls([replica], 1)
    assert answer.error is None and replica.started == 10


async def test_a_rate_limit_slows_calls_down_and_fails_none() -> None:
    replica, granted = Replica(latency_s=0.1, max_running=8), list[float]()

    def limit(request: Request) -> TryAgain | None:
        """Two calls a second are taken."""
        if sum(now() - at_s < 1.0 for at_s in granted) >= 2:
            return TryAgain("http://a/generate: 429, too many requests", after_s=1.0)
        granted.append(now())
        return None

    replica.stumbles = limit
    answers = await run_calls([replica], 600)
    assert all(answer.error is None for answer in answers)
    assert now() > PATIENCE_S  # longer than a server is waited for that answers nobody


async def test_what_others_run_there_is_left_room_for() -> None:
    replica = Replica(latency_s=1.0, max_running=8)
    replica.others = Load(running=14)
    trace = MemoryTrace()
    await run_calls([replica], 60, trace=trace)
    assert any(isinstance(item, WorkerLoad) for _, item in trace.records)
    begun = [at_s for at_s, item in trace.records if isinstance(item, Dispatch)]
    assert sum(4.0 < at_s <= 5.0 for at_s in begun) < 8


async def test_priorities_reach_servers_that_order_by_them() -> None:
    replica = Replica()
    await run_calls([replica], 2)
    assert replica.priorities == [0.0, 0.0]


async def test_closing_while_a_replica_is_away_leaves_nothing_behind() -> None:
    replica = Replica()
    workers, before = {"m/0": replica}, asyncio.all_tasks()
    async with Scheduler(Core(), workers, {"m/0": "m"}) as scheduler:
        scheduler.arrive("p", 0, "w", lambda: None)
        call = Call("c")
        scheduler.submit(call)
        await anyio.sleep(0.5)
        replica.die(1000.0)
        await anyio.sleep(1.0)
        assert not call.answers
    assert asyncio.all_tasks() == before


async def test_models_with_the_same_replicas_share_their_slots() -> None:
    backend = FakeBackend(latency_s=1.0, max_running=2)
    async with open_host({"a": backend, "b": backend}) as host:
        assert {model.pool for model in host.models.values()} == {"a"}
        assert list(host.scheduler.core.workers) == ["a/0"]


async def test_the_verdict_on_a_pin_is_in_the_trace() -> None:
    replica = Replica()
    trace = MemoryTrace()
    core = Core(hold=lambda pause: 9.0)
    async with Scheduler(core, {"m/0": replica}, {"m/0": "m"}, trace) as scheduler:
        scheduler.arrive("p", 0, "w", lambda: None)
        for name in ("one", "one and two"):
            call = Call(name, session=SessionId("s"))
            scheduler.submit(call)
            await call.ended.wait()
            scheduler.send(ToolStarted(program="p", step="t", tool="x", session="s"))
    verdicts = [item for _, item in trace.records if isinstance(item, PinJudged)]
    assert [verdict.held for verdict in verdicts] == [False]  # the fake caches nothing


async def test_a_burst_in_a_servers_own_line_does_not_make_it_serial_for_good() -> None:
    replica = Replica(latency_s=1.5)
    loads = iter([Load(running=8, waiting=5)])
    trace = MemoryTrace()

    async def load() -> Load:
        return next(loads, Load())

    replica.load = load  # type: ignore[method-assign]
    await run_calls([replica], 80, trace=trace)
    assert trace.records[-1][0] < 25.0  # on the virtual clock; one by one it would be 110


async def test_what_was_ordered_of_a_worker_dies_with_it_and_closing_does_not_wait_for_it() -> None:
    replica = Replica()
    retained: list[str] = []

    async def retain(session: SessionId, until_s: float | None) -> None:
        retained.append(session)
        await anyio.sleep(600.0)

    replica.retain = retain  # type: ignore[method-assign]
    core = Core(hold=lambda pause: None)
    async with Scheduler(core, {"m/0": replica}, {"m/0": "m"}) as scheduler:
        scheduler.arrive("p", 0, "w", lambda: None)
        for name in ("one", "two"):
            call = Call(name, session=SessionId(name))
            scheduler.submit(call)
            await call.ended.wait()
            scheduler.send(ToolStarted(program="p", step="t", tool="x", session=name))
        await anyio.sleep(1.0)
        replica.die(2.0)
        scheduler.submit(Call("three"))
        await anyio.sleep(10.0)
        assert retained == ["one"]
        call = Call("four", session=SessionId("four"))
        scheduler.submit(call)
        await call.ended.wait()
        scheduler.send(ToolStarted(program="p", step="t", tool="x", session="four"))
        await anyio.sleep(1.0)
        assert retained == ["one", "four"]
        left_s = now()
    assert now() - left_s < 5.0  # virtual seconds


def refuse(replica: Replica, refused: Callable[[Request], bool]) -> None:
    """Have `replica` answer 403 to these requests."""
    generate = replica.generate

    async def refusing(request: Request) -> AsyncIterator[Chunk]:
        if refused(request):
            raise InvalidConfig("http://a: status 403, blocked; set api_key")
        async for chunk in generate(request):
            yield chunk

    replica.generate = refusing  # type: ignore[method-assign]


async def test_a_call_that_is_refused_fails_alone() -> None:
    replica, trace = Replica(), MemoryTrace()
    refuse(replica, lambda request: request.call == "c0003")
    answers = await run_calls([replica], 8, trace=trace)
    assert [answer.finish for answer in answers] == ["stop"] * 3 + ["error"] + ["stop"] * 4
    assert "CallFailed: http://a: status 403, blocked" in (answers[3].error or "")
    assert not [item for _, item in trace.records if isinstance(item, WorkerDown | CallBroke)]


async def test_a_worker_that_refuses_all_is_used_again_when_it_takes_us() -> None:
    replica, started = Replica(max_running=4), Counter[str]()
    refuse(replica, lambda request: now() < 5.0)

    async def load() -> Load:
        if now() < 5.0:
            raise InvalidConfig("http://a: status 401; set api_key")
        return Load()

    async def recover() -> None:
        started["recover"] += 1
        await anyio.sleep(5.0 - now())

    replica.load, replica.recover = load, recover  # type: ignore[method-assign]
    answers = await run_calls([replica], 20)
    assert [answer.error for answer in answers] == [None] * 20
    assert started["recover"] == 1


async def test_a_key_that_is_refused_for_good_ends_the_calls_and_says_why() -> None:
    replica = Replica()
    refuse(replica, lambda request: True)

    async def load() -> Load:
        raise InvalidConfig("http://a: status 401; set api_key")

    replica.load = load  # type: ignore[method-assign]
    replica.recover = partial(anyio.sleep, 1e6)  # type: ignore[method-assign]
    answers = await run_calls([replica], 4)
    assert all("set api_key" in (answer.error or "") for answer in answers)


async def test_a_worker_that_comes_back_larger_is_used_as_it_is_now() -> None:
    replica, trace = Replica(max_running=4), MemoryTrace()
    replica.stumbles = lambda request: TryAgain("503") if now() < 5 else None

    async def restart() -> None:
        await anyio.sleep(max(0.0, 6.0 - now()))
        replace(replica, max_running=16)

    replica.recover = restart  # type: ignore[method-assign]
    answers = await run_calls([replica], 64, trace=trace)
    assert all(answer.error is None for answer in answers)
    begun = Counter(at_s for at_s, item in trace.records if isinstance(item, Dispatch))
    assert max(begun.values()) == 16
    assert [item.max_running for _, item in trace.records if isinstance(item, WorkerUp)] == [4, 16]


async def test_an_attempt_that_was_given_up_says_nothing_of_the_next_one() -> None:
    replicas = [Replica(latency_s=3.0, max_running=1), Replica(latency_s=3.0, max_running=1)]
    generate, downs = replicas[0].generate, MemoryTrace()

    async def slow_to_leave(request: Request) -> AsyncIterator[Chunk]:
        try:
            async for chunk in generate(request):
                yield chunk
        except asyncio.CancelledError:
            raise BackendUnavailable("the connection was lost as it was closed") from None

    replicas[0].generate = slow_to_leave  # type: ignore[method-assign]
    replicas[0].recover = partial(anyio.sleep, 0.5)  # type: ignore[method-assign]
    workers = {f"m/{index}": replica for index, replica in enumerate(replicas)}
    async with Scheduler(Core(), workers, dict.fromkeys(workers, "m"), downs) as scheduler:
        scheduler.arrive("p", 0, "w", lambda: None)
        call = Call("c")
        scheduler.submit(call)
        await anyio.sleep(1.0)
        scheduler.lose("m/0", "told by another call")
        await call.ended.wait()
    assert call.answers[0].text == "c"
    assert sum(isinstance(item, WorkerDown) for _, item in downs.records) == 1


async def test_a_hundred_deaths_lose_and_double_nothing() -> None:
    replicas = [Replica(latency_s=1.0) for _ in range(3)]
    draw = random.Random(11)

    async def kill() -> None:
        for _ in range(100):
            await anyio.sleep(draw.uniform(0.05, 2.0))
            draw.choice(replicas).die(draw.uniform(0.1, 3.0))

    answers = await run_calls(replicas, 3000, kill)
    texts = [answer.text for answer in answers if answer.error is None]
    assert len(texts) == len(set(texts))
    lost = [answer.error or "" for answer in answers if answer.error is not None]
    assert len(lost) < 30  # a call that outlives five workers is thought to kill them
    assert all("died" in error for error in lost)
