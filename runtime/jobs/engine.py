"""Where a job's programs run: in this process, or in those of a Ray cluster (`ray.driver`)."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from ...planner.plan import Plan, Tokens
from ..fleet.peers import open_peers
from ..journal.base import Journal
from ..operate.steering import Steerable
from ..predict import Learned
from ..run.host import Host
from ..run.local import Replicas, llm_steps, model_fingerprint, open_backends, open_host
from ..run.planned import Planned
from ..run.program import Programs
from ..run.rows import RowOrder, RowPrograms
from ..trace import Trace
from ..workflow import Scheduling
from .job import Job
from .work import RowWork, concurrency_of, tokens_by


@dataclass(frozen=True, slots=True)
class Begin:
    """What the programs of a run begin with.

    `plan` is that of a static workflow. With `pins`, what all prompts of a step begin with is kept
    in the cache. `resumed`: the journal may have rows and steps already.
    """

    run: str
    plan: Plan | None
    journal: Journal
    trace: Trace
    learned: Learned | None
    scheduling: Scheduling
    concurrency: int
    pins: bool = False
    resumed: bool = False
    seed: int = 0


class Work(Protocol):
    """What runs the programs of a run: started by row, in the order of `planned`, and steered."""

    @property
    def programs(self) -> RowPrograms: ...

    @property
    def planned(self) -> RowOrder | None: ...

    @property
    def host(self) -> Steerable: ...


@dataclass(frozen=True, slots=True)
class LocalWork:
    """The programs of a run, or of a shard of one, in this process."""

    programs: Programs
    planned: Planned | None
    host: Host


class Engine(Protocol):
    """Where a job's programs run; its models are there, and answer."""

    @property
    def model_fingerprint(self) -> str: ...

    @property
    def tokens(self) -> Tokens:
        """How the first model counts."""
        ...

    @property
    def concurrency(self) -> int:
        """Programs at once, if nobody says."""
        ...

    def begin(self, begin: Begin) -> AbstractAsyncContextManager[Work]:
        """The programs of one run, ready to be started."""
        ...


class LocalEngine:
    """Programs in this process, on `backends`."""

    def __init__(self, job: Job, backends: Mapping[str, Replicas]) -> None:
        self._job = job
        self._backends = backends
        self.model_fingerprint = model_fingerprint(backends)
        self.tokens = tokens_by(job.workflow, backends)
        self.concurrency = concurrency_of(backends)

    def begin(self, begin: Begin) -> AbstractAsyncContextManager[Work]:
        return open_work(self._job, self._backends, begin)


@asynccontextmanager
async def open_engine(job: Job) -> AsyncGenerator[Engine]:
    """The engine that the job names. Raises BackendUnavailable where its models do not answer."""
    if job.spec.engine == "ray":
        from ..ray.driver import open_cluster

        async with open_cluster(job) as cluster:
            yield cluster
    else:
        async with open_backends(job.models) as backends:
            yield LocalEngine(job, backends)


@asynccontextmanager
async def open_work(
    rows: RowWork, backends: Mapping[str, Replicas], begin: Begin
) -> AsyncGenerator[LocalWork]:
    """The programs of a run, or of a shard of one, in this process."""
    async with (
        rows.results() as results,
        open_peers(rows.spec.home) as peers,
        open_host(
            backends,
            journal=begin.journal,
            trace=begin.trace,
            scheduling=begin.scheduling,
            learned=begin.learned,
            results=results,
            peers=peers,
            attempt_timeout_s=rows.spec.call_timeout_s,
            max_programs=begin.concurrency,
            share=rows.consolidate,
            seed=begin.seed,
            resumed=begin.resumed,
            run=begin.run,
        ) as host,
    ):
        plan, workflow = begin.plan, rows.workflow
        if plan is not None:
            workflow = replace(workflow, graph=plan.graph)
        if workflow.graph is not None and begin.pins:
            host.share_prefixes(llm_steps(workflow.graph.steps))
        planned = host.planned = rows.planned(plan, host)
        yield LocalWork(Programs(host, workflow), planned, host)
