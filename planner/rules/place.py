"""Place: a plan's steps as stages, and who runs them (Halo, 2509.02121 §4; see planner.placement).

Not one of `RULES`: a placement is of a fleet, which is known when a run begins. What steps have in
common is in their estimates, so nothing is taken to be cheaper behind a parent.
"""

from collections.abc import Mapping, Sequence
from math import ceil

from ..graph import LLM, ToolCall, reads
from ..hardware import Hardware, ModelShape
from ..placement import Placement, Stage, Worker, place
from ..plan import Plan, PlanStep
from ..seconds import call_seconds, load_seconds

TOOL_S = 1.0  # a tool of which nothing is known
RUNNING = 64  # calls at once on an engine of which it is not known
NOTHING: Mapping[str, int] = {}


def place_plan(
    plan: Plan,
    rows: int,
    workers: Sequence[Worker],
    models: Mapping[str, tuple[Hardware, ModelShape]],
    tool_s: Mapping[str, float] | None = None,
    seed: int = 0,
) -> Placement:
    """Who answers which rows of which step of `plan`, in which order.

    `models` says for each model on what it runs and its shape; `tool_s` what tools take.
    Raises ValueError for a model that is not among them, or that no worker serves.
    """
    load_s = {name: load_seconds(*found) for name, found in models.items()}
    return place(stages_of(plan, rows, models, tool_s or {}), workers, rows, load_s, seed)


def stages_of(
    plan: Plan,
    rows: int,
    models: Mapping[str, tuple[Hardware, ModelShape]],
    tool_s: Mapping[str, float],
    running: Mapping[str, int] = NOTHING,
) -> list[Stage]:
    """The stages of a plan over `rows` rows, priced by its estimates.

    `running`: so many calls of a model an engine runs at once, where that is known.

    The body of an `each` goes with the `each`: its calls follow each other in one stage per step.
    """
    names = {step.id for step in plan.steps}
    found: list[Stage] = []
    for step in plan.steps:
        parents = tuple(name for name in reads(step.step) if name in names)
        calls = [inside for inside in (step, *step.body) if isinstance(inside.step, LLM)]
        for index, call in enumerate(calls):
            last = index == len(calls) - 1
            name = step.id if last else call.id
            found.append(_stage(call, name, parents, rows, models, running))
            parents = (name,)
        if not calls:
            found.append(Stage(step.id, None, parents, _tool_seconds(step, tool_s)))
    return found


def _stage(
    call: PlanStep,
    name: str,
    parents: tuple[str, ...],
    rows: int,
    models: Mapping[str, tuple[Hardware, ModelShape]],
    running: Mapping[str, int],
) -> Stage:
    model = call.step.model if isinstance(call.step, LLM) else ""
    if model not in models:
        raise ValueError(f"step {call.id!r} needs model {model!r}; known are {', '.join(models)}")
    seconds = call_seconds(*models[model], call.estimate, running.get(model, RUNNING))
    per_row = ceil(call.estimate.calls_per_row * rows) / rows
    return Stage(name, model, parents, seconds.alone_s, seconds.row_s * per_row, {})


def _tool_seconds(step: PlanStep, known: Mapping[str, float]) -> float:
    """What a tool takes: as given, else as earlier runs have taught."""
    if not isinstance(step.step, ToolCall):
        return 0.0
    learned = TOOL_S if step.estimate.tool_s is None else step.estimate.tool_s
    return known.get(step.step.tool, learned)
