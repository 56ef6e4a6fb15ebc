"""Pack: rows share a prompt, where the author allows it (BatchPrompt, 2309.00384).

An answer may depend on the rows beside it, so only steps that say `pack` are marked, and the plan
says so. What runs once for all rows has nobody to share with.
"""

from dataclasses import replace

from ..graph import LLM
from ..plan import Context, Plan, PlanStep


def pack(plan: Plan, context: Context) -> Plan:
    """The plan with the steps marked whose rows share prompts."""
    notes: list[str] = []
    steps = _packed(plan.steps, notes)
    return replace(plan, steps=steps, notes=(*plan.notes, *notes)) if notes else plan


def _packed(steps: tuple[PlanStep, ...], notes: list[str]) -> tuple[PlanStep, ...]:
    return tuple(_marked(step, notes).with_body(_packed(step.body, notes)) for step in steps)


def _marked(step: PlanStep, notes: list[str]) -> PlanStep:
    wish = step.step.pack if isinstance(step.step, LLM) else None
    if wish is None or step.packed or step.scope == "once":
        return step
    votes = f", asked in up to {wish.votes} orders" if wish.votes > 1 else ""
    notes.append(f"{step.id}: answers may change: up to {wish.rows} rows share a prompt{votes}")
    return replace(step, packed=wish.rows)
