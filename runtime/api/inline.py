"""A graph put into another: its names prefixed, its inputs replaced by the caller's values."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ...planner.graph import (
    LLM,
    Args,
    Cascade,
    Compute,
    Each,
    Graph,
    Reasoning,
    Ref,
    Repeat,
    Select,
    Step,
    ToolCall,
    Value,
    walk,
)
from .source import Resolve, all_of, guard, replace_names


def names_of(steps: Sequence[Step]) -> tuple[str, ...]:
    """All step ids and the names that loops give their items."""
    found: list[str] = []
    for step in walk(steps):
        found.append(step.id)
        if isinstance(step, Each | Repeat):
            found.append(step.item)
    return tuple(found)


def inline(
    graph: Graph,
    prefix: str,
    values: Mapping[str, Value],
    guards: Sequence[Value] = (),
    models: Mapping[str, str] | None = None,
) -> tuple[tuple[Step, ...], Value]:
    """The steps of `graph` under prefixed names, and its result, both in the caller's names.

    `guards` are the conditions that the steps get on top of their own; `models` renames models.
    """
    own = frozenset(names_of(graph.steps))

    def resolve(name: str) -> Value | None:
        return values[name] if name in values else Ref(prefix + name) if name in own else None

    renamed = _Renamed(prefix, resolve, models or {})
    steps = tuple(renamed.step(step, guards) for step in graph.steps)
    return steps, replace_names(graph.result, resolve)


class _Renamed:
    """Renames steps."""

    def __init__(self, prefix: str, resolve: Resolve, models: Mapping[str, str]) -> None:
        self._prefix = prefix
        self._resolve = resolve
        self._models = models

    def step(self, step: Step, guards: Sequence[Value] = ()) -> Step:
        own = () if step.when is None else (guard(self._value(step.when)),)
        name, when = self._prefix + step.id, all_of((*guards, *own))
        match step:
            case LLM():
                model = self._models.get(step.model, step.model)
                thinking = self._thinking(step.reasoning)
                args = self._args(step.args)
                step = replace(step, cascade=self._cascade(step.cascade))
                return replace(step, id=name, when=when, args=args, model=model, reasoning=thinking)
            case ToolCall():
                return replace(step, id=name, when=when, args=self._args(step.args))
            case Select():
                return replace(
                    step,
                    id=name,
                    when=when,
                    condition=self._value(step.condition),
                    then=self._value(step.then),
                    otherwise=self._value(step.otherwise),
                )
            case Compute():
                return replace(step, id=name, when=when, value=self._value(step.value))
            case Each():
                return replace(
                    step,
                    id=name,
                    when=when,
                    items=self._value(step.items),
                    item=self._prefix + step.item,
                    body=tuple(self.step(inside) for inside in step.body),
                    result=self._value(step.result),
                )
            case Repeat():
                return replace(
                    step,
                    id=name,
                    when=when,
                    start=self._value(step.start),
                    item=self._prefix + step.item,
                    body=tuple(self.step(inside) for inside in step.body),
                    result=self._value(step.result),
                    until=self._value(step.until),
                )

    def _thinking(self, reasoning: Reasoning | None) -> Reasoning | None:
        judge = reasoning.judge if reasoning is not None else None
        if reasoning is None or judge is None:
            return reasoning
        renamed = replace(judge, model=self._models.get(judge.model, judge.model))
        return replace(reasoning, judge=renamed)

    def _cascade(self, cascade: Cascade | None) -> Cascade | None:
        if cascade is None:
            return None
        return replace(cascade, model=self._models.get(cascade.model, cascade.model))

    def _value(self, value: Value) -> Value:
        return replace_names(value, self._resolve)

    def _args(self, args: Args) -> Args:
        return tuple((name, self._value(value)) for name, value in args)
