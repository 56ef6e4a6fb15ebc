"""The placement of a plan on the workers that a run, or a workflow's settings, have for it.

What an engine runs on it does not tell, so all are taken to be alike (`HARDWARE`), and a model to
be that of its name: what counts is how much longer one step takes than another.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ...planner.hardware import MODELS, Hardware, ModelShape, preset
from ...planner.placement import Placement, Turns, Worker, fleet_bound, place
from ...planner.plan import Plan
from ...planner.rules.place import NOTHING, stages_of
from ..scheduler.loop import Scheduler
from .asking import Model

HARDWARE = "h100"
SHAPE = MODELS["llama-3.1-8b"]  # of a model whose name is not known

Pools = Mapping[str, Sequence[str]]  # the workers of each pool


@dataclass(frozen=True, slots=True)
class Placed:
    """A placement, and the seconds that none could beat (`planner.placement.fleet_bound`)."""

    placement: Placement
    bound_s: float


def place_on(
    plan: Plan,
    rows: int,
    pools: Pools,
    pool_of: Mapping[str, str],
    shapes: Mapping[str, tuple[Hardware, ModelShape]],
    running: Mapping[str, int] = NOTHING,
) -> Placed | None:
    """Who has which rows of which step, where models share the workers of their pool.

    `shapes` has what each model is, and runs on, `running` how many calls at once, where that is
    known. None where no step asks a model.
    """
    stages = [
        stage if stage.model is None else replace(stage, model=pool_of[stage.model])
        for stage in stages_of(plan, rows, shapes, {}, running)
    ]
    if all(stage.model is None for stage in stages):
        return None
    workers = [
        Worker(name, frozenset({pool}), pool) for pool, names in pools.items() for name in names
    ]
    return Placed(place(stages, workers, rows, {}), fleet_bound(stages, workers, rows))


def turns_on(
    plan: Plan, scheduler: Scheduler, models: Mapping[str, Model], rows: int
) -> Turns | None:
    """The turns of a plan on the workers that `scheduler` has; None for one pool of workers, whose
    equal shares are the placement."""
    pools = {model.pool: scheduler.workers_of(model.pool) for model in models.values()}
    if len(pools) < 2 or not all(pools.values()):
        return None
    pool_of = {name: model.pool for name, model in models.items()}
    hardware = preset(HARDWARE)
    shapes = {name: (hardware, shape_of(m.capabilities.model)) for name, m in models.items()}
    running = {name: model.capabilities.max_running for name, model in models.items()}
    found = place_on(plan, rows, pools, pool_of, shapes, running)
    return None if found is None else Turns(found.placement)


def shape_of(model: str) -> ModelShape:
    """The shape of the model of this name, with or without its owner's: Qwen/Qwen3-14B."""
    return MODELS.get(model.rpartition("/")[2].lower(), SHAPE)
