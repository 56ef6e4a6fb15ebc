"""A workflow for one input, by its reference: nothing is kept of it, unless it has a name."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..fleet.peers import open_peers
from ..load import load_workflow
from ..report.tally import Tally
from ..run.control import Control
from ..run.local import bind, open_backends, open_host, open_results, run_program
from ..run.recorded import run_recorded
from ..tables import coerce
from .work import models_of


async def run_once(
    workflow_ref: str,
    inputs: Mapping[str, Any],
    *,
    models: Mapping[str, str] | None = None,
    home: str | None = None,
    control: Control | None = None,
    tally: Tally | None = None,
    cache: bool | None = None,
    run: str | None = None,
) -> Any:
    """Run a workflow for one input and return its JSON result.

    `cache`: whether results of earlier runs in `home` answer (None: as the workflow says). With
    `run` it is recorded under this name, and goes on where it stopped (`run_recorded`).
    """
    workflow = load_workflow(workflow_ref)
    specs = models_of(workflow, models or {})
    schemas = {given.name: given.schema for given in workflow.inputs if given.name in inputs}
    bound = bind(workflow, coerce(inputs, schemas, "input"))
    if run is not None:
        return await run_recorded(
            replace(workflow, models=specs),
            bound,
            run,
            home=home,
            control=control,
            trace=tally,
            cache=cache,
        )
    wanted = workflow.cache if cache is None else cache
    async with (
        open_results(wanted, home) as results,
        open_peers(home) as peers,
        open_backends(specs) as backends,
        open_host(backends, trace=tally, results=results, peers=peers) as host,
    ):
        return await run_program(host, workflow, bound, control)
