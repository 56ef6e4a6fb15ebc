"""Cascade: a small model answers first, where the author allows it (LOTUS, 2407.11418).

Its answers may differ from those of the step's own model in a share that the author bounds, so only
steps that say `cascade` are marked, and the plan says so. Steps of loops are left out: what vouches
for the share is a sample of rows.
"""

from dataclasses import replace

from ..graph import LLM
from ..plan import Context, Expected, Plan, PlanStep
from ..several import EXPECTED_ROUTED


def cascade(plan: Plan, context: Context) -> Plan:
    """The plan with the steps marked that another model answers first."""
    notes: list[str] = []
    steps = tuple(_marked(step, notes, context.expected) for step in plan.steps)
    return replace(plan, steps=steps, notes=(*plan.notes, *notes)) if notes else plan


def _marked(step: PlanStep, notes: list[str], expected: Expected) -> PlanStep:
    logical = step.step
    wish = logical.cascade if isinstance(logical, LLM) else None
    if wish is None or not isinstance(logical, LLM) or step.cascaded or step.scope == "once":
        return step
    routed = expected.routed.get(step.id, EXPECTED_ROUTED)
    notes.append(
        f"{step.id}: answers may change: model {wish.model} answers what it is sure of, about "
        f"{routed:.0%} of the rows; at least {wish.target:.1%} agree with model {logical.model}, "
        f"with confidence {wish.confidence:.0%}"
    )
    return replace(step, cascaded=True)
