"""Processes on one replica that share it through a ledger, against processes that do not.

    python benchmarks/fleet.py [--quick] [--data DIR]

Agents with growing contexts that pause for tools, in two processes (each a scheduler with a core of
its own) on one simulated replica: Llama 3.1 8B on an H100, whose KV holds about half of all their
contexts at once, and all those of one process. `apart`: each process takes the replica for its own.
`shared`: each leases its share, by what it needs. `one`: all agents in one process, the best that
shares can come to. Recomputed tokens are prompt tokens that the replica computed beyond those that
nobody had computed before; the completion time is that of the last agent. `ratio` is shared over
apart.

With ledger "memory" time is virtual and the ledger is in the process. With ledger "redis" time is
real, and it is a redis-server of the benchmark's own on the loopback, left out where there is none;
the load is smaller, and how long a beat takes is reported beside it.
"""

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from _common import Figures, one_thread
from _redis import redis_server
from msgspec.structs import replace as changed

one_thread()

from tenter.kvpolicy import DEFAULT_POLICY, named
from tenter.planner.graph import Sampling
from tenter.runtime.backends.sim import SimulatedBackend
from tenter.runtime.calls import CallId, Chunk, Load, Request, SessionId
from tenter.runtime.clock import VirtualLoop, now
from tenter.runtime.fleet.ledger import Answer as Answered
from tenter.runtime.fleet.ledger import Ask, Ledger, MemoryLedger
from tenter.runtime.fleet.ledger_redis import RedisLedger
from tenter.runtime.fleet.link import Link
from tenter.runtime.fleet.membership import BEAT_S, Membership
from tenter.runtime.journal.address import parse_redis
from tenter.runtime.scheduler.core import Core
from tenter.runtime.scheduler.events import ProgramEnded, ToolEnded, ToolStarted
from tenter.runtime.scheduler.loop import Answer, Scheduler

PLACE, WORKER, MODEL = "replica", "m/0", "m"
WORDS = 50_000


@dataclass(frozen=True, slots=True)
class LoadOf:
    """`agents` of all processes; each has `turns`, and its tools take `tool_s` in the mean."""

    agents: int
    turns: int
    kv_tokens: int
    prompt_tokens: int = 2_000
    answer_tokens: int = 80
    result_tokens: int = 400
    tool_s: float = 4.0
    arrive_s: float = 20.0  # within which they all begin

    @property
    def new_tokens(self) -> int:
        """Prompt tokens that have to be computed once, at least."""
        return self.agents * (self.prompt_tokens + (self.turns - 1) * self.result_tokens)


QUICK = LoadOf(agents=128, turns=12, kv_tokens=450_000)
VIRTUAL = LoadOf(agents=128, turns=24, kv_tokens=750_000)
REAL = LoadOf(agents=32, turns=4, kv_tokens=60_000, tool_s=1.0, arrive_s=1.0)


def words(seed: str, count: int) -> tuple[int, ...]:
    draw = random.Random(seed)
    return tuple(draw.randrange(WORDS) for _ in range(count))


# ---- one replica ---------------------------------------------------------------------------------


def replica(load: LoadOf) -> SimulatedBackend:
    """The engine; a call's answer is its name's."""

    def answer(request: Request) -> tuple[int, ...]:
        return words(request.call, load.answer_tokens)

    backend = SimulatedBackend(kv_tokens=load.kv_tokens, answer=answer)
    backend.capabilities = replace(backend.capabilities, remote=True, place=PLACE)
    return backend


class Seat:
    """The replica as one process sees it: what it names is told apart from what others name."""

    failure: str | None = None

    def __init__(self, backend: SimulatedBackend, process: str) -> None:
        self._backend = backend
        self._process = process
        self.capabilities = backend.capabilities
        self.tokenizer = backend.tokenizer

    def _name(self, name: str) -> str:
        return f"{self._process}.{name}"

    async def generate(self, request: Request) -> AsyncIterator[Chunk]:
        session = None if request.session is None else SessionId(self._name(request.session))
        mine = changed(request, call=CallId(self._name(request.call)), session=session)
        async for chunk in self._backend.generate(mine):
            yield chunk

    async def abort(self, call: CallId) -> None:
        await self._backend.abort(CallId(self._name(call)))

    async def retain(self, session: SessionId, until_s: float | None) -> None:
        await self._backend.retain(SessionId(self._name(session)), until_s)

    async def release(self, session: SessionId) -> None:
        await self._backend.release(SessionId(self._name(session)))

    async def warm(self, session: SessionId, token_ids: tuple[int, ...]) -> None:
        raise NotImplementedError

    async def load(self) -> Load:
        return await self._backend.load()

    def evictions(self) -> None:
        return

    async def recover(self) -> None:
        await self._backend.recover()


# ---- agents --------------------------------------------------------------------------------------


class Turn:
    """One call of an agent."""

    step, model, shared_tokens, gang = "turn", MODEL, 0, 0

    def __init__(self, request: Request, program: str) -> None:
        self.request = request
        self.program = program
        self.answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def heard(self, chunk: Chunk) -> None:
        pass

    def lost(self) -> None:
        pass

    def done(self, answer: Answer) -> None:
        self.answer.set_result(answer)


async def agent(scheduler: Scheduler, load: LoadOf, name: str) -> None:
    """Its turns, one after another, each over all that was said before."""
    draw = random.Random(name)
    await asyncio.sleep(draw.uniform(0, load.arrive_s))
    started = asyncio.Event()
    scheduler.arrive(name, 0, "agent", started.set)
    await started.wait()
    context = words(f"{name} asks", load.prompt_tokens)
    for turn in range(load.turns):
        sampling = Sampling(max_tokens=load.answer_tokens)
        request = Request(CallId(f"{name}/{turn}"), context, sampling, session=SessionId(name))
        call = Turn(request, name)
        scheduler.submit(call)
        answer = await call.answer
        assert answer.error is None, answer.error
        if turn == load.turns - 1:
            break
        seconds = draw.expovariate(1 / load.tool_s)
        scheduler.send(ToolStarted(program=name, step="t", tool="tool", session=name))
        await asyncio.sleep(seconds)
        ended = ToolEnded(
            program=name, step="t", tool="tool", seconds=seconds, ok=True, session=name
        )
        scheduler.send(ended)
        context = (*context, *answer.token_ids, *words(f"{name} {turn}", load.result_tokens))
    scheduler.send(ProgramEnded(program=name, row=0, ok=True))


@asynccontextmanager
async def process(
    backend: SimulatedBackend, name: str, ledger: Ledger | None
) -> AsyncIterator[Scheduler]:
    """A scheduler of its own, with a lease on the replica where there is a ledger."""
    core = Core(hold=named(DEFAULT_POLICY))
    async with Scheduler(core, {WORKER: Seat(backend, name)}, {WORKER: MODEL}) as scheduler:
        if ledger is None:
            yield scheduler
            return
        member = Membership(scheduler, {WORKER: PLACE}, ledger, "the ledger")
        await member.begin()
        keeping = asyncio.create_task(member.keep())
        try:
            yield scheduler
        finally:
            member.stop()
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
            await member.close()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one load."""

    recomputed_tokens: int
    seconds: float
    preemptions: int


async def served(load: LoadOf, ledgers: Sequence[Ledger | None]) -> Outcome:
    """All agents, shared out evenly over as many processes as there are `ledgers`."""
    async with AsyncExitStack() as stack:
        backend = await stack.enter_async_context(replica(load))
        processes = [
            await stack.enter_async_context(process(backend, f"p{number}", ledger))
            for number, ledger in enumerate(ledgers)
        ]
        begun_s = now()
        async with asyncio.TaskGroup() as group:
            for number in range(load.agents):
                scheduler = processes[number % len(processes)]
                group.create_task(agent(scheduler, load, f"a{number}"))
        engine = backend.replica
        recomputed = engine.prefilled_tokens - load.new_tokens
        return Outcome(recomputed, now() - begun_s, engine.batch.preemptions)


# ---- figures -------------------------------------------------------------------------------------


async def compared(
    figures: Figures, load: LoadOf, two: Sequence[Ledger], kind: str, best: bool = True
) -> None:
    """All ways in turn; the best only where it is asked for."""
    found = {"apart": await served(load, [None, None]), "shared": await served(load, two)}
    if best:
        found["one"] = await served(load, [None])
    setup = {"ledger": kind, "processes": 2, "agents": load.agents, "turns": load.turns}
    setup |= {"kv_tokens": load.kv_tokens}
    for way, each in found.items():
        about = {**setup, "way": way}
        figures.add("recomputed_tokens", each.recomputed_tokens, unit="tokens", **about)
        figures.add("completion_s", each.seconds, unit="s", **about)
        figures.add("preemptions", each.preemptions, **about)
    apart, shared = found["apart"], found["shared"]
    ratio = shared.recomputed_tokens / max(1, apart.recomputed_tokens)
    figures.add("recomputed_ratio", ratio, 1.0, **setup)
    figures.add("completion_ratio", shared.seconds / apart.seconds, 1.0, **setup)


def in_virtual_time(figures: Figures, load: LoadOf) -> None:
    async def run() -> None:
        ledger = MemoryLedger(now)
        await compared(figures, load, [ledger, ledger], "memory")

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(run())


async def through_redis(figures: Figures, load: LoadOf, port: int, quick: bool) -> None:
    links = [Link(parse_redis(f"redis://127.0.0.1:{port}/0")) for _ in range(2)]
    try:
        timed = [Timed(link) for link in links]
        await compared(figures, load, timed, "redis", best=not quick)
        took = [seconds for each in timed for seconds in each.took]
        figures.add(
            "beat_ms", 1e3 * statistics.median(took), unit="ms", every_s=BEAT_S, beats=len(took)
        )
    finally:
        for link in links:
            await link.close()


class Timed(RedisLedger):
    """Notes how long its beats take."""

    def __init__(self, link: Link) -> None:
        super().__init__(link)
        self.took: list[float] = []

    async def beat(self, place: str, ask: Ask) -> Answered | None:
        began_s = time.perf_counter()
        try:
            return await super().beat(place, ask)
        finally:
            self.took.append(time.perf_counter() - began_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="within 50 s")
    parser.add_argument("--data", help="not used: the load is made")
    quick = parser.parse_args().quick
    figures = Figures("fleet")
    in_virtual_time(figures, QUICK if quick else VIRTUAL)
    with (
        tempfile.TemporaryDirectory(prefix="tenter-fleet-") as folder,
        redis_server(Path(folder) / "redis") as port,
    ):
        if port is None:
            print("redis-server or redis-py is not here: its figures are left out", file=sys.stderr)
        else:
            load = replace(REAL, turns=3) if quick else REAL
            asyncio.run(through_redis(figures, load, port, quick))
    figures.table("Two processes on one replica, with shares and without")


if __name__ == "__main__":
    main()
