"""A run in this process: backends opened, scheduler started, programs run."""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any

from anyio import CancelScope

from ...kvpolicy import DEFAULT_POLICY, named
from ...planner.graph import LLM, Each, Repeat, Step
from ...tools.lifetime import close_all
from ..backends.base import Backend
from ..backends.registry import open_replicas
from ..errors import InvalidConfig, InvalidInput
from ..fleet.peers import Peers, open_peers, together
from ..fleet.prefixes import Seen
from ..journal.address import is_redis
from ..journal.base import Journal, StepRecord
from ..journal.memory import NoJournal
from ..journal.results import Results
from ..journal.results_thread import STORE_AFTER_S, ThreadedResults
from ..journal.store import Store, default_home
from ..predict.learned import Learned
from ..scheduler.core import Core
from ..scheduler.limits import Limits
from ..scheduler.loop import ATTEMPT_TIMEOUT_S, Hints, Scheduler, Submission
from ..scheduler.policies import DEFAULT_ORDER, ordered
from ..trace import Fanout, NoTrace, Trace
from ..workflow import NO_WISH, ModelSpec, Scheduling, Workflow
from .asking import Model
from .control import Control, Wish
from .host import Host
from .program import NOTHING, Programs
from .sharing import Sharing
from .speech import OnText

log = logging.getLogger(__name__)
Replicas = Sequence[Backend]
SHARED_AFTER_S = 0.05  # until a result is stored that other processes may wait for


def llm_steps(steps: Iterable[Step]) -> list[LLM]:
    """All LLM steps, those inside loops the judges of reasoning steps and small models too."""
    found: list[LLM] = []
    for step in steps:
        if isinstance(step, LLM):
            found.append(step)
            if step.reasoning is not None and step.reasoning.judge is not None:
                found.append(step.reasoning.judge)
            if step.cascade is not None:
                found.append(replace(step, model=step.cascade.model, cascade=None))
        elif isinstance(step, Each | Repeat):
            found.extend(llm_steps(step.body))
    return found


def model_specs(workflow: Workflow) -> dict[str, ModelSpec]:
    """The models that a workflow uses; `default` is the embedded engine unless it says otherwise."""
    specs = dict(workflow.models)
    if workflow.graph is None:
        used = {"default"} if not specs else set(specs)
    else:
        used = {step.model for step in llm_steps(workflow.graph.steps)}
    missing = used - specs.keys() - {"default"}
    if missing:
        known = ", ".join(sorted({*specs, "default"}))
        raise InvalidInput(f"there is no model {min(missing)!r}; known: {known}")
    if "default" in used:
        specs.setdefault("default", ModelSpec())
    return {name: spec for name, spec in specs.items() if name in used}


def pools(models: Mapping[str, ModelSpec]) -> dict[str, str]:
    """For each model the one whose workers serve it: models with equal settings share them."""
    same = {name: (spec.backend, spec.options) for name, spec in models.items()}
    return {name: next(o for o in same if same[o] == same[name]) for name in same}


@asynccontextmanager
async def open_backends(specs: Mapping[str, ModelSpec]) -> AsyncGenerator[dict[str, Replicas]]:
    """The replicas of each model, ready for use; models with equal settings share them."""
    async with AsyncExitStack() as stack:
        backends: dict[str, Replicas] = {}
        for name, pool in pools(specs).items():
            if pool == name:
                backends[name] = await stack.enter_async_context(open_replicas(specs[name]))
            else:
                backends[name] = backends[pool]
        yield backends


def model_fingerprint(backends: Mapping[str, Replicas]) -> str:
    """What tells these models from others."""
    prints = {name: b[0].capabilities.model_fingerprint for name, b in sorted(backends.items())}
    return json.dumps(prints)


class _Fleet:
    """Workers and models by name: models that share their replicas are one pool of workers."""

    def __init__(self, backends: Mapping[str, Backend | Replicas]) -> None:
        self.workers: dict[str, Backend] = {}
        self.serves: dict[str, str] = {}  # worker -> pool
        self.models: dict[str, Model] = {}
        pools: dict[int, str] = {}  # by the identity of a pool's first replica
        for name, given in backends.items():
            replicas = given if isinstance(given, Sequence) else (given,)
            first = replicas[0]
            pool = pools.setdefault(id(first), name)
            self.models[name] = Model(name, first.tokenizer, first.capabilities, pool)
            if pool == name:
                for index, backend in enumerate(replicas):
                    self.workers[f"{name}/{index}"] = backend
                    self.serves[f"{name}/{index}"] = name

    @property
    def places(self) -> dict[str, str]:
        """Workers that other processes may use too, by the name that these know them by."""
        able = {name: backend.capabilities for name, backend in self.workers.items()}
        return {name: each.place for name, each in able.items() if each.place}


@asynccontextmanager
async def open_results(wanted: bool, home: str | None = None) -> AsyncGenerator[Results | None]:
    """The result cache of `home`, if it is wanted."""
    if not wanted:
        yield None
        return
    shared = is_redis(default_home() if home is None else home)
    delay_s = SHARED_AFTER_S if shared else STORE_AFTER_S
    results = ThreadedResults(Store(home).results(), delay_s)
    try:
        yield results
    finally:
        with CancelScope(shield=True):
            await results.close()


@asynccontextmanager
async def open_host(
    backends: Mapping[str, Backend | Replicas],
    *,
    journal: Journal | None = None,
    trace: Trace | None = None,
    scheduling: Scheduling = NO_WISH,
    learned: Learned | None = None,
    results: Results | None = None,
    peers: Peers | None = None,
    max_programs: int = 1024,
    share: bool = True,
    seed: int = 0,
    resumed: bool = False,
    call_timeout_s: float | None = None,
    attempt_timeout_s: float | None = ATTEMPT_TIMEOUT_S,
    run: str = "",
) -> AsyncGenerator[Host]:
    """What programs run on: a scheduler over `backends` (model name -> its replicas, entered).

    With `learned`, what earlier runs have taught is what this one begins with, and it goes on
    learning; with `results`, what they have answered is not computed again, and with `peers` servers
    and equal work are shared with the processes that have the same. Raises InvalidConfig for a policy
    or a limit that does not exist.
    """
    trace = trace or NoTrace()
    core = _core(scheduling, max_programs, Random(seed))
    foretell: Callable[[Submission], Hints] | None = None
    if learned is not None:
        trace = Fanout(trace, learned)
        core.kept.durations.merge(learned.durations().snapshot())
        foretell = partial(_foretell, learned)
    fleet = _Fleet(backends)
    places = fleet.places
    seen = Seen() if peers is not None and len(places) > 1 else None
    if seen is not None:
        trace = Fanout(trace, seen)
    failure: BaseException | None = None
    try:
        async with (
            Scheduler(
                core, fleet.workers, fleet.serves, trace, attempt_timeout_s, foretell
            ) as scheduler,
            together(peers, scheduler, places, results if share else None, seen) as flights,
            asyncio.TaskGroup() as tasks,
        ):
            host = Host(
                scheduler,
                fleet.models,
                journal or NoJournal(),
                trace,
                tasks,
                sharing=Sharing() if share else None,
                seed=seed,
                resumed=resumed,
                call_timeout_s=call_timeout_s,
                drafts=journal is not None and not isinstance(journal, NoJournal),
                run=run,
                tenant=scheduling.tenant,
                learned=learned,
                results=results if share else None,
                flights=flights,
            )
            if "pack" in scheduling.without:
                host.packs = None
            try:
                yield host
            except BaseException as error:
                failure, host.closing = error, True
                raise _BodyFailed from None  # has the groups cancel their tasks
    except* _BodyFailed:
        pass  # raised below: within `except*` it would come out in a group
    finally:
        await close_all()  # what its tools kept open
    if failure is not None:
        raise failure from None


def _core(scheduling: Scheduling, max_programs: int, random: Random) -> Core:
    try:
        order = ordered(scheduling.order or DEFAULT_ORDER)
        hold = named(scheduling.retention or DEFAULT_POLICY)
    except ValueError as error:
        raise InvalidConfig(str(error)) from None
    limits = Limits.read(scheduling.limits)
    return Core(order, hold, max_programs, limits=limits, random=random)


def _foretell(learned: Learned, call: Submission) -> Hints:
    request = call.request
    return learned.ask(
        request.call,
        call.program,
        call.step,
        len(request.token_ids),
        0 if request.choices else request.sampling.max_tokens,
        shared_tokens=call.shared_tokens,
        token_ids=request.token_ids,
        schema=request.schema is not None,
        session=request.session is not None,
    )


class _BodyFailed(Exception):
    """Stands for the body's own error while the task groups end, so that it comes out bare."""


async def run_program(
    host: Host,
    workflow: Workflow,
    inputs: Mapping[str, Any],
    control: Control | None = None,
    *,
    programs: Programs | None = None,
    recorded: Mapping[str, StepRecord] = NOTHING,
    on_text: OnText | None = None,
) -> Any:
    """One program on `host`; its JSON result. Others may run there at the same time.

    Cancelling the caller cancels it, and so does a wish that comes in by `control`. `programs` is
    the workflow's, if it was compiled for `host` before; steps that are `recorded`, by path, are not
    done again; `on_text` is told what its chats say.
    """
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def ended(value: Any, error: Exception | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)

    running = programs or Programs(host, workflow)
    row = host.next_row()
    name = f"r{row}"
    if control is not None:
        control.attach(lambda: _stop(host, running, name, control.wish))
    running.arrive(row, inputs, ended, recorded, on_text)
    if control is not None and control.wish > Wish.RUN:  # before there was anybody to tell
        _stop(host, running, name, control.wish)
    try:
        return await future
    except asyncio.CancelledError:
        running.cancel(name)
        raise
    finally:
        if control is not None:
            control.detach()


def _stop(host: Host, running: Programs, name: str, wish: Wish) -> None:
    """Let what runs end, where it is recorded and can be gone on from there, or break it off."""
    if wish == Wish.DRAIN and not isinstance(host.journal, NoJournal):
        running.drain()
    else:
        running.cancel(name)


def bind(workflow: Workflow, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of a workflow with its defaults filled in; InvalidInput names what is wrong."""
    known = {given.name for given in workflow.inputs}
    unknown = [name for name in inputs if name not in known]
    if unknown:
        names = ", ".join(sorted(known)) or "none"
        raise InvalidInput(f"{workflow.name}: there is no input {unknown[0]!r}; it takes {names}")
    bound: dict[str, Any] = {}
    for given in workflow.inputs:
        if given.name in inputs:
            bound[given.name] = inputs[given.name]
        elif given.required:
            raise InvalidInput(f"{workflow.name}: input {given.name!r} is missing")
        else:
            bound[given.name] = given.default
    return bound


async def run_workflow(
    workflow: Workflow,
    inputs: Mapping[str, Any],
    *,
    backends: Mapping[str, Backend | Replicas] | None = None,
    trace: Trace | None = None,
    cache: bool | None = None,
    home: str | None = None,
    **options: Any,
) -> Any:
    """Run `workflow` once and return its JSON result.

    `backends` (by model name, entered) are used instead of those that the workflow names. `cache`
    says whether results of earlier runs in `home` answer (None: as the workflow says); `options`
    are those of `open_host`.
    """
    async with AsyncExitStack() as stack:
        means = await open_means(stack, workflow, backends, cache, home, options)
        host = await stack.enter_async_context(open_host(means, trace=trace, **options))
        return await run_program(host, workflow, bind(workflow, inputs))


async def open_means(
    stack: AsyncExitStack,
    workflow: Workflow,
    backends: Mapping[str, Backend | Replicas] | None,
    cache: bool | None,
    home: str | None,
    options: dict[str, Any],
) -> Mapping[str, Backend | Replicas]:
    """The backends of a run of its own, and into `options` what it shares with others of `home`."""
    if "results" not in options:
        opened = open_results(workflow.cache if cache is None else cache, home)
        options["results"] = await stack.enter_async_context(opened)
    if "peers" not in options:
        options["peers"] = await stack.enter_async_context(open_peers(home))
    options.setdefault("scheduling", workflow.scheduling)
    if backends is not None:
        return backends
    return await stack.enter_async_context(open_backends(model_specs(workflow)))
