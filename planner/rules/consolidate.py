"""Consolidate: equal work is done once (Halo 2509.02121; Helium 2603.16104).

Equal steps of a graph become one. A step that reads nothing of a row runs once for all rows. Where
equal inputs give equal results, equal calls of different rows may be answered together. Only
deterministic calls and pure tools count: two draws of a sampled answer are not equal work.
"""

from collections.abc import Mapping
from dataclasses import replace

from ..graph import (
    LLM,
    NOWHERE,
    Args,
    Compute,
    DictOf,
    Each,
    Expr,
    ListOf,
    Ref,
    Repeat,
    Select,
    Step,
    ToolCall,
    Value,
    names_in,
    reads,
)
from ..plan import Context, Plan, PlanStep, repeatable, with_depths

Renamed = dict[str, str]


def consolidate(plan: Plan, context: Context) -> Plan:
    """The plan with equal steps merged, and marked with what may be shared."""
    if not context.consolidate:
        return plan
    renamed: Renamed = {}
    steps = _merged(plan.steps, renamed)
    result = _rename(plan.result, renamed)
    steps = _without_unread(steps, renamed, set(names_in(result)))
    once = {name: name in plan.constants for name in plan.inputs}
    steps = with_depths(_marked(steps, once))
    if steps == plan.steps and result == plan.result:
        return plan
    notes = tuple(f"{same} also answers {name}, its equal" for name, same in renamed.items())
    return replace(plan, steps=steps, result=result, notes=plan.notes + notes)


# ---- equal steps become one ---------------------------------------------------------------------


def _merged(steps: tuple[PlanStep, ...], renamed: Renamed) -> tuple[PlanStep, ...]:
    """The steps with each repeat made an alias of the first; fills `renamed`.

    An alias is a `Compute` of the first's name. Expressions go on reading it, since their text is
    the author's; references are renamed.
    """
    first: dict[Step, str] = {}
    merged: list[PlanStep] = []
    for step in steps:
        logical = _renamed(step.step, renamed)
        if isinstance(logical, Each | Repeat):
            body = _merged(step.body, renamed)
            logical = _with_ends(logical, renamed)
            ends = {name for value in logical.ends for name in names_in(value)}
            body = _without_unread(body, renamed, ends)
            logical = replace(logical, body=tuple(inside.step for inside in body))
            step = replace(step, body=body)
        elif repeatable(logical):
            same = first.setdefault(replace(logical, id="", place=NOWHERE), logical.id)
            if same != logical.id:
                renamed[logical.id] = same
                alias = Compute(id=logical.id, value=Ref(same), place=logical.place)
                merged.append(PlanStep(alias))
                continue
        merged.append(replace(step, step=logical))
    return tuple(merged)


def _with_ends(step: Each | Repeat, renamed: Renamed) -> Each | Repeat:
    result = _rename(step.result, renamed)
    if isinstance(step, Repeat):
        return replace(step, result=result, until=_rename(step.until, renamed))
    return replace(step, result=result)


def _without_unread(
    steps: tuple[PlanStep, ...], renamed: Renamed, read: set[str]
) -> tuple[PlanStep, ...]:
    """The steps without the aliases that no expression reads."""
    used = read.union(*(reads(step.step) for step in steps))
    return tuple(step for step in steps if step.id in used or step.id not in renamed)


def _renamed(step: Step, renamed: Mapping[str, str]) -> Step:
    """A step with its references renamed; the body of a loop is left to the caller."""
    if not renamed:
        return step
    when = None if step.when is None else _rename(step.when, renamed)
    match step:
        case LLM(args=args) | ToolCall(args=args):
            return replace(step, args=_rename_args(args, renamed), when=when)
        case Select():
            return replace(
                step,
                condition=_rename(step.condition, renamed),
                then=_rename(step.then, renamed),
                otherwise=_rename(step.otherwise, renamed),
                when=when,
            )
        case Compute(value=value):
            return replace(step, value=_rename(value, renamed), when=when)
        case Each(items=items):
            return replace(step, items=_rename(items, renamed), when=when)
        case Repeat(start=start):
            return replace(step, start=_rename(start, renamed), when=when)


def _rename_args(args: Args, renamed: Mapping[str, str]) -> Args:
    return tuple((name, _rename(value, renamed)) for name, value in args)


def _rename(value: Value, renamed: Mapping[str, str]) -> Value:
    match value:
        case Ref(name):
            return replace(value, name=renamed[name]) if name in renamed else value
        case ListOf(items):
            return ListOf(tuple(_rename(item, renamed) for item in items))
        case DictOf(items):
            return DictOf(_rename_args(items, renamed))
        case Expr(source, _) if source in renamed:
            return Ref(renamed[source])
        case _:
            return value


# ---- what may be shared -------------------------------------------------------------------------


def _marked(steps: tuple[PlanStep, ...], once: dict[str, bool]) -> tuple[PlanStep, ...]:
    """The steps with `scope` and `consolidate`; adds to `once` which names are equal in all rows."""
    marked: list[PlanStep] = []
    for step in steps:
        body = step.body
        if isinstance(step.step, Each | Repeat):
            body = _marked(body, {**once, step.step.item: False})
        shared = repeatable(step.step)
        alone = shared and all(once[name] for name in reads(step.step))
        once[step.id] = alone
        marked.append(
            replace(
                step,
                body=body,
                scope="once" if alone else "row",
                consolidate=shared and isinstance(step.step, LLM | ToolCall),
            )
        )
    return tuple(marked)
