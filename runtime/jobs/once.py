"""A workflow for one input: nothing is kept."""

from collections.abc import Mapping
from typing import Any

from ..fleet.peers import open_peers
from ..load import load_workflow
from ..report.tally import Tally
from ..run.control import Control
from ..run.local import bind, open_backends, open_host, open_results, run_program
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
) -> Any:
    """Run a workflow for one input and return its JSON result; no run is kept.

    `cache`: whether results of earlier runs in `home` answer (None: as the workflow says).
    """
    workflow = load_workflow(workflow_ref)
    specs = models_of(workflow, models or {})
    schemas = {given.name: given.schema for given in workflow.inputs if given.name in inputs}
    bound = bind(workflow, coerce(inputs, schemas, "input"))
    wanted = workflow.cache if cache is None else cache
    async with (
        open_results(wanted, home) as results,
        open_peers(home) as peers,
        open_backends(specs) as backends,
        open_host(backends, trace=tally, results=results, peers=peers) as host,
    ):
        return await run_program(host, workflow, bound, control)
