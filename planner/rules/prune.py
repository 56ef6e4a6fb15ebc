"""Prune: drops the steps whose results nothing reads.

A tool or an agent that acts on the world stays, and so does what it needs.
"""

from collections.abc import Collection
from dataclasses import replace

from ..graph import Each, Repeat, acts, names_in, reads
from ..plan import Context, Plan, PlanStep


def prune(plan: Plan, context: Context) -> Plan:
    """The plan without the steps that nobody needs."""
    steps = _needed(plan.steps, set(names_in(plan.result)))
    return plan if steps == plan.steps else replace(plan, steps=steps)


def _needed(steps: tuple[PlanStep, ...], read: Collection[str]) -> tuple[PlanStep, ...]:
    """The steps that are read or act, last to first, since a read comes after what it reads."""
    wanted = set(read)
    kept: list[PlanStep] = []
    for step in reversed(steps):
        if step.id in wanted or acts(step.step):
            if isinstance(step.step, Each | Repeat):
                ends = {name for value in step.step.ends for name in names_in(value)}
                step = step.with_body(_needed(step.body, ends))
            wanted.update(reads(step.step))
            kept.append(step)
    return tuple(reversed(kept))
