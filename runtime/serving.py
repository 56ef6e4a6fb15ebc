"""One runtime for many requests: what a web application keeps open while it serves."""

from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from .api import WorkflowHandle
from .backends.base import Backend
from .errors import InvalidConfig, StepFailed
from .fleet.peers import open_peers
from .run.host import Host
from .run.local import (
    Replicas,
    bind,
    model_specs,
    open_backends,
    open_host,
    open_results,
    run_program,
)
from .run.program import Programs
from .run.speech import OnText
from .workflow import ModelSpec, Scheduling, Workflow

__all__ = ["Runtime", "open_runtime"]


class Runtime:
    """Runs workflows at the same time, on the same models; made by `open_runtime`."""

    def __init__(self, host: Host, named: Collection[Workflow] = ()) -> None:
        self._host = host
        self._named = {id(workflow) for workflow in named}  # whose graphs stay compiled
        self._programs: dict[int, Programs] = {}  # by the identity of the workflow, kept alive
        self._closed = False

    async def run(
        self,
        workflow: WorkflowHandle | Workflow,
        inputs: Mapping[str, Any],
        *,
        on_text: OnText | None = None,
    ) -> Any:
        """Run `workflow` for one input and return its result, as its `arun` would.

        `on_text` is called with each `Piece` of text that models write in its chats and agents, calls
        of tools left out. Cancelling this cancels the program, its calls and its tools, and no other.
        """
        if self._closed:
            raise StepFailed("the runtime is closed: run workflows inside its `async with`")
        if isinstance(workflow, Workflow):
            return await self._run(workflow, inputs, on_text)
        plain = workflow.plain(inputs)
        return workflow.converted(await self._run(workflow.workflow, plain, on_text))

    async def _run(
        self, workflow: Workflow, inputs: Mapping[str, Any], on_text: OnText | None
    ) -> Any:
        programs = self._programs.get(id(workflow))
        if programs is None:
            self._check_models(workflow)
            programs = self._programs[id(workflow)] = Programs(self._host, workflow)
        bound = bind(workflow, inputs)
        try:
            return await run_program(
                self._host, workflow, bound, programs=programs, on_text=on_text
            )
        finally:
            if not programs.live and id(workflow) not in self._named:
                self._programs.pop(id(workflow), None)

    def _check_models(self, workflow: Workflow) -> None:
        missing = model_specs(workflow).keys() - self._host.models.keys()
        if missing:
            known = ", ".join(sorted(self._host.models)) or "none"
            raise InvalidConfig(
                f"{workflow.name}: its model {min(missing)!r} is not open; open are {known}: name "
                "the workflow in open_runtime(...)"
            )

    def close(self) -> None:
        """Stop what still runs: those who wait for it get an error."""
        self._closed = True
        for programs in self._programs.values():
            for name in tuple(programs.live):
                programs.cancel(name)


@asynccontextmanager
async def open_runtime(
    *workflows: WorkflowHandle | Workflow,
    backends: Mapping[str, Backend | Replicas] | None = None,
    cache: bool = False,
    home: str | None = None,
    **options: Any,
) -> AsyncGenerator[Runtime]:
    """The models of `workflows`, loaded once, and a scheduler for all that is run on them.

    `backends` (by model name, entered) are used instead, as in tests. `cache`: whether results of
    earlier runs in `home` answer; `options` are those of `open_host`, such as `max_programs`. At
    the end, what still runs is stopped. Raises InvalidConfig where workflows disagree about a
    model of one name, or about the scheduling.
    """
    plain = [each if isinstance(each, Workflow) else each.workflow for each in workflows]
    async with AsyncExitStack() as stack:
        results = await stack.enter_async_context(open_results(cache, home))
        peers = await stack.enter_async_context(open_peers(home))
        if backends is None:
            backends = await stack.enter_async_context(open_backends(_specs(plain)))
        if plain and "scheduling" not in options:
            options["scheduling"] = _scheduling(plain)
        opened = open_host(backends, results=results, peers=peers, **options)
        runtime = Runtime(await stack.enter_async_context(opened), plain)
        try:
            yield runtime
        finally:
            runtime.close()


def _specs(workflows: list[Workflow]) -> dict[str, ModelSpec]:
    """The models of all, by name."""
    if not workflows:
        raise InvalidConfig("open_runtime(...) takes the workflows to run, or backends=")
    specs: dict[str, ModelSpec] = {}
    for workflow in workflows:
        for name, spec in model_specs(workflow).items():
            if specs.setdefault(name, spec) != spec:
                raise InvalidConfig(
                    f"{workflow.name}: its model {name!r} is another than that of the workflows "
                    "before it: give it another name"
                )
    return specs


def _scheduling(workflows: list[Workflow]) -> Scheduling:
    first = workflows[0]
    for other in workflows[1:]:
        if other.scheduling != first.scheduling:
            raise InvalidConfig(
                f"{first.name} and {other.name} want to be scheduled differently: say "
                "scheduling=Scheduling(...) in open_runtime(...)"
            )
    return first.scheduling
