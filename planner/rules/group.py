"""Group: calls of one model with the same static prefix get one group (BatchLLM, 2412.03594 §4).

The scheduler sends a group's leader first, which computes the prefix, and the others after it.
Steps are grouped by equal static text, all that is known before there are rows; what the rows of a
window share is found by `planner.prefixes`.
"""

from dataclasses import replace

from ..graph import LLM
from ..plan import Context, Plan, PlanStep

Groups = dict[tuple[str, str], str]


def group(plan: Plan, context: Context) -> Plan:
    """The plan with the groups of its calls; a group is named after its first step."""
    steps = _grouped(plan.steps, {})
    return plan if steps == plan.steps else replace(plan, steps=steps)


def _grouped(steps: tuple[PlanStep, ...], groups: Groups) -> tuple[PlanStep, ...]:
    grouped: list[PlanStep] = []
    for step in steps:
        name = step.group
        if isinstance(step.step, LLM) and step.prefix.text:
            name = groups.setdefault((step.step.model, step.prefix.text), step.id)
        grouped.append(replace(step, group=name, body=_grouped(step.body, groups)))
    return tuple(grouped)
