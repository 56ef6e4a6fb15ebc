"""A run on a Ray cluster: its rows go to shards, each in a process of the cluster, near its models.

The run stays what it is elsewhere: it reads, orders and records the rows, and writes them in the
order of the input (`jobs.run`). Shards run the programs, and have everything recorded by the run
(`slot`), so they keep nothing, share no folder, and may die at any time.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from math import ceil

import msgspec

from ...planner.plan import Tokens
from ..clock import now
from ..errors import BackendUnavailable, InvalidInput, RunMismatch
from ..jobs.engine import Begin, Work
from ..jobs.job import Job
from ..jobs.spec import portable
from ..jobs.work import first_model
from ..table_stats import tokens_of_spec
from ..trace import Fanout
from . import messages
from .cluster import Cluster, ProcessLost, connected
from .failures import raised
from .messages import Beginning, Hello, Opening
from .placing import PLACING_S, Placed
from .sharding import Sharding, may_move
from .slot import Slot
from .work import RayWork
from .worker import Worker


@asynccontextmanager
async def open_cluster(job: Job) -> AsyncGenerator["RayEngine"]:
    """The shards of a job, with their models open. Raises TenterError for what cannot be."""
    spec = job.spec
    async with (
        connected(spec.ray_address, spec.shards) as cluster,
        open_shards(job, cluster) as engine,
    ):
        yield engine


@asynccontextmanager
async def open_shards(job: Job, cluster: Cluster) -> AsyncGenerator["RayEngine"]:
    """The shards of a job on `cluster`."""
    engine = RayEngine(job, cluster)
    try:
        await engine.open()
        yield engine
    finally:
        await engine.close()


class RayEngine:
    """A job's shards. Implements `jobs.engine.Engine`."""

    def __init__(self, job: Job, cluster: Cluster) -> None:
        self._job = job
        self._cluster = cluster
        self._needs = {"CPU": 1.0, **job.spec.ray_resources}
        self._shards = job.spec.shards or cluster.default_shards(self._needs)
        self._there: dict[int, Placed] = {}
        self.model_fingerprint = ""
        first = job.models.get(first_model(job.workflow))
        self.tokens = Tokens() if first is None else tokens_of_spec(first)
        self.concurrency = 0

    async def open(self) -> None:
        """Place the shards, and have them open their models."""
        room = self._cluster.room(self._needs)
        if room < self._shards:
            needs = ", ".join(f"{name}={amount:g}" for name, amount in self._needs.items())
            raise InvalidInput(
                f"--shards {self._shards}: the Ray cluster has room for {room} processes with "
                f"{needs} each; ask for fewer shards, or for less with --ray-resources"
            )
        placed = [asyncio.create_task(self._place(shard)) for shard in range(self._shards)]
        try:
            there = await asyncio.gather(*placed)
        except ProcessLost as lost:
            raise BackendUnavailable(f"Ray places no shards: {lost}") from None
        finally:
            for task in placed:
                task.cancel()
            await asyncio.gather(*placed, return_exceptions=True)
        hellos = [placed.hello for placed in there]
        able = [hello.concurrency for hello in hellos]
        self.concurrency = max(able) if hellos[0].shared else sum(able)
        self.model_fingerprint = hellos[0].model_fingerprint
        for shard, hello in enumerate(hellos):
            self._check(shard, hello)

    @asynccontextmanager
    async def begin(self, begin: Begin) -> AsyncGenerator[Work]:
        """The programs of one run, in all shards."""
        trace = begin.trace if begin.learned is None else Fanout(begin.trace, begin.learned)
        moves = begin.plan is None or may_move(begin.plan)
        work = RayWork(self._sharding(begin), trace, self._shards, moves)
        begun = self._beginning(begin)
        for shard in range(self._shards):
            first = self._there[shard]
            slot = Slot(shard, self._place, first, begun, begin.journal, work, work.level)
            work.slots.append(slot)
        serving = [asyncio.create_task(slot.serve(work.give_up)) for slot in work.slots]
        try:
            yield work
        finally:
            for task in serving:
                task.cancel()
            await asyncio.gather(*serving, return_exceptions=True)
        await asyncio.gather(*(slot.end() for slot in work.slots))

    async def close(self) -> None:
        """End all processes."""
        await asyncio.gather(*(placed.process.end() for placed in self._there.values()))

    async def _place(self, shard: int) -> Placed:
        """A process for a shard, with its models open."""
        process = self._cluster.place(Worker, self._needs)
        try:
            answer = await process.ask("open", messages.encode(self._opening()), PLACING_S)
            hello = messages.decode_hello(answer)
            shift_s = now() - hello.now_s
            if hello.failure is not None:
                raise raised(hello.failure, shard, hello.host)
            if self.model_fingerprint:
                self._check(shard, hello)
        except BaseException:
            process.kill()
            raise
        placed = self._there[shard] = Placed(process, hello, shift_s)
        return placed

    def _check(self, shard: int, hello: Hello) -> None:
        if hello.model_fingerprint != self.model_fingerprint:
            raise RunMismatch(
                f"shard {shard} on {hello.host} has another model or tokenizer than the others; "
                "all machines of the cluster must serve the same one"
            )

    def _opening(self) -> Opening:
        spec = asdict(portable(self._job.spec))
        return Opening(msgspec.json.encode(spec), self._job.workflow.fingerprint, self._shards)

    def _beginning(self, begin: Begin) -> Callable[[bool], Beginning]:
        stats = None if begin.plan is None else self._job.statistics().to_json()
        constants = tuple(sorted(self._job.constants))
        concurrency = ceil(begin.concurrency / self._shards)

        def beginning(resumed: bool) -> Beginning:
            return Beginning(
                run=begin.run,
                concurrency=concurrency,
                stats=stats,
                constants=constants,
                pins=begin.pins,
                resumed=resumed or begin.resumed,
                seed=begin.seed,
            )

        return beginning

    def _sharding(self, begin: Begin) -> Sharding:
        plan = begin.plan
        order = "order" not in self._job.without
        if plan is None:
            return Sharding(None, (), self._shards, order)
        return Sharding(plan.graph, plan.row_order.columns, self._shards, order)
