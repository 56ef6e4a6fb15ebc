"""From graph to plan: the one place where the first plan is made, before any rule."""

from collections.abc import Iterator

from .cost import NOTHING, estimate
from .graph import LLM, Each, Graph, Repeat, Step, sort
from .plan import Context, Plan, PlanStep, Prefix, depths
from .prompt import Field as PromptField
from .prompt import Segment, Static


def lower(graph: Graph, context: Context = NOTHING) -> Plan:
    """The plan that runs every step for every row, in an order in which reads come first."""
    graph = sort(graph)
    steps = _lower(graph.steps, {})
    constants = context.constants & frozenset(graph.inputs)
    plan = Plan(graph.name, graph.inputs, steps, graph.result, constants)
    return estimate(plan, context)


def _lower(steps: tuple[Step, ...], above: dict[str, int]) -> tuple[PlanStep, ...]:
    depth = depths(steps, above)
    return tuple(
        PlanStep(
            step,
            depth=depth[step.id],
            prefix=prefix(step) if isinstance(step, LLM) else Prefix(),
            body=_lower(step.body, depth) if isinstance(step, Each | Repeat) else (),
        )
        for step in steps
    )


def segments(step: LLM) -> tuple[Segment, ...]:
    """What the model reads, in order: the system prompt, then the prompt."""
    return (*(step.system.segments if step.system else ()), *step.prompt.segments)


def prefix(step: LLM) -> Prefix:
    """The static text that all calls of a step begin with, and the fields in their order."""
    text, fields, leading = "", dict[str, None](), True
    for part in segments(step):
        match part:
            case Static(static):
                text += static if leading else ""
            case _:
                leading = False
                fields.update(dict.fromkeys(_names(part)))
    return Prefix(text, tuple(fields))


def _names(part: Segment) -> Iterator[str]:
    match part:
        case Static():
            return
        case PromptField(name):
            yield name
        case _:
            yield from part.uses
