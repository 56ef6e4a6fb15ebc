"""What is wrong with a graph, all at once: each problem with its step, its place and a cure."""

import json
import keyword
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from .graph import (
    NOWHERE,
    Const,
    DictOf,
    Each,
    Graph,
    Place,
    Repeat,
    Select,
    Step,
    Value,
    acts,
    models_of,
    names_in,
    reads,
    tools_of,
    walk,
)
from .guards import implies
from .step_checks import did_you_mean, messages_of, step_messages, value_messages
from .values import spell

Severity = Literal["error", "warning"]

_RESERVED = frozenset(keyword.kwlist) | {"true", "false", "none", "loop", "self", "caller"}


@dataclass(frozen=True, slots=True)
class GraphProblem:
    """One thing that is wrong: the step ("" for the graph itself), its place, what would be right."""

    step: str
    place: Place
    message: str
    severity: Severity = "error"

    def __str__(self) -> str:
        return f"step {self.step!r}: {self.message}" if self.step else self.message


@dataclass(frozen=True, slots=True)
class _Scope:
    """What a step may read: names, the guards that hold, and the guarded steps."""

    names: frozenset[str]
    guards: tuple[Value, ...] = ()
    guarded: tuple[tuple[str, Value], ...] = ()

    def within(self, steps: tuple[Step, ...]) -> "_Scope":
        names = frozenset(step.id for step in steps)
        guarded = tuple((step.id, step.when) for step in steps if step.when is not None)
        return replace(self, names=self.names | names, guarded=self.guarded + guarded)


def validate(
    graph: Graph,
    tools: Collection[str] | None = None,
    models: Collection[str] | None = None,
) -> list[GraphProblem]:
    """All problems of `graph`, in the order of its steps; empty if it can run.

    With `tools` or `models`, steps that name others are problems.
    """
    scope = _Scope(frozenset(graph.inputs)).within(graph.steps)
    problems = list(_names(graph))
    problems += _steps(graph.steps, scope, _Known(tools, models))
    problems += _result(graph, scope)
    problems += _unused(graph)
    return problems


@dataclass(frozen=True, slots=True)
class _Known:
    tools: Collection[str] | None
    models: Collection[str] | None


def _problem(step: Step, message: str, severity: Severity = "error") -> GraphProblem:
    return GraphProblem(step.id, step.place, message, severity)


# ---- names --------------------------------------------------------------------------------------


def _names(graph: Graph) -> Iterator[GraphProblem]:
    """Inputs, step ids and `each` items: usable, and each meaning one thing."""
    for name, count in Counter(graph.inputs).items():
        if count > 1:
            yield GraphProblem("", NOWHERE, f"the input {name!r} is declared {count} times")
        if not _usable(name):
            yield GraphProblem("", NOWHERE, _unusable("input", name))
    taken: dict[str, str] = dict.fromkeys(graph.inputs, "an input")
    for step in walk(graph.steps):
        if step.id in taken:
            yield _problem(step, f"its id {step.id!r} is {taken[step.id]} already; rename one")
        elif not _usable(step.id):
            yield _problem(step, _unusable("id", step.id))
        taken.setdefault(step.id, "another step")
    for step in walk(graph.steps):
        if isinstance(step, Each | Repeat):
            if step.item in taken:
                yield _problem(step, f"its item {step.item!r} is {taken[step.item]}; rename it")
            elif not _usable(step.item):
                yield _problem(step, _unusable("item", step.item))


def _usable(name: str) -> bool:
    return name.isidentifier() and name.lower() not in _RESERVED and name not in _RESERVED


def _unusable(what: str, name: str) -> str:
    return f"the {what} {name!r} cannot be used in templates; use letters, digits and _"


# ---- steps --------------------------------------------------------------------------------------


def _steps(steps: tuple[Step, ...], scope: _Scope, known: _Known) -> Iterator[GraphProblem]:
    cyclic = list(_cycles(steps))
    for step in steps:
        yield from (problem for problem in cyclic if problem.step == step.id)
        yield from _unknown_names(step, scope)
        yield from _skipped_reads(step, scope)
        yield from _own(step, known)
        if isinstance(step, Each):
            yield from _items(step)
        if isinstance(step, Each | Repeat):
            yield from _body(step, scope, known)


def _cycles(steps: tuple[Step, ...]) -> Iterator[GraphProblem]:
    """One problem per knot of steps that wait for each other."""
    ids = {step.id: step for step in steps}
    edges = [(step.id, name) for step in steps for name in reads(step) if name in ids]
    if not edges:
        return
    import networkx as nx

    knots = nx.DiGraph(edges)
    order = {step.id: index for index, step in enumerate(steps)}
    for part in nx.strongly_connected_components(knots):
        first = min(part, key=order.__getitem__)
        if len(part) > 1 or knots.has_edge(first, first):
            circle = _cycle(knots.subgraph(part), first)
            path = " -> ".join([*circle, circle[0]])
            yield _problem(ids[first], f"steps read each other in a circle: {path}; cut one read")


def _cycle(knot: Any, start: str) -> list[str]:
    """The steps of one circle in a knot; `start` comes first if the circle has it."""
    import networkx as nx

    found: list[tuple[str, str]] = cast(Any, nx).find_cycle(knot, start)
    return [at for at, _ in found]


def _unknown_names(step: Step, scope: _Scope) -> Iterator[GraphProblem]:
    known = scope.names
    if isinstance(step, Each | Repeat):  # its body is looked at by itself
        used = dict.fromkeys([*names_in(step.when), *names_in(step.begins)])
    else:
        used = dict.fromkeys(reads(step))
    for name in used:
        if name not in known:
            yield _problem(step, f"reads {name!r}, which is not defined{did_you_mean(name, known)}")


def _skipped_reads(step: Step, scope: _Scope) -> Iterator[GraphProblem]:
    """A step that may have been skipped is None, which only a `Select` can handle."""
    mine = [*scope.guards, *([] if step.when is None else [step.when])]
    match step:
        case Select(condition=condition):
            used = {*names_in(condition), *names_in(step.when)}
        case Each() | Repeat():
            used = {*names_in(step.begins), *names_in(step.when)}
        case _:
            used = set(reads(step))
    for name, guard in scope.guarded:
        if name in used and name != step.id and not any(implies(have, guard) for have in mine):
            yield _problem(
                step,
                f"reads {name!r}, which is skipped unless {spell(guard)}; join the branches with "
                "a select, or give this step the same condition",
            )


# ---- kinds of steps -----------------------------------------------------------------------------


def _own(step: Step, known: _Known) -> Iterator[GraphProblem]:
    """What is wrong with a step by itself, and with the model or tool that it names."""
    for message in (*value_messages(step), *step_messages(step)):
        yield _problem(step, message)
    for name in models_of(step):
        if known.models is not None and name not in known.models:
            cure = did_you_mean(name, known.models)
            yield _problem(step, f"the model {name!r} is not defined{cure}")
    for name in tools_of(step):
        if known.tools is not None and name not in known.tools:
            cure = did_you_mean(name, known.tools)
            yield _problem(step, f"the tool {name!r} is not defined{cure}")


def _items(step: Each) -> Iterator[GraphProblem]:
    if isinstance(step.items, DictOf) or (isinstance(step.items, Const) and not _is_list(step)):
        yield _problem(step, f"it runs over {spell(step.items)}, which is not a list")


def _body(step: Each | Repeat, scope: _Scope, known: _Known) -> Iterator[GraphProblem]:
    guards = scope.guards if step.when is None else (*scope.guards, step.when)
    names = (scope.names | {step.item}) - {step.id}
    inside = replace(scope, names=names, guards=guards).within(step.body)
    yield from _steps(step.body, inside, known)
    for what, value in zip(("result", "until"), step.ends, strict=False):
        for name in dict.fromkeys(names_in(value)):
            if name not in inside.names:
                cure = did_you_mean(name, inside.names)
                yield _problem(step, f"its {what} reads {name!r}, which is not defined{cure}")


def _is_list(step: Each) -> bool:
    try:
        return isinstance(
            json.loads(step.items.json if isinstance(step.items, Const) else ""), list
        )
    except ValueError:
        return True  # reported as a broken constant


# ---- the whole graph ----------------------------------------------------------------------------


def _result(graph: Graph, scope: _Scope) -> Iterator[GraphProblem]:
    for name in dict.fromkeys(names_in(graph.result)):
        if name not in scope.names:
            cure = did_you_mean(name, scope.names)
            yield GraphProblem("", NOWHERE, f"the result reads {name!r}, not defined{cure}")
    for message in messages_of(graph.result):
        yield GraphProblem("", NOWHERE, f"result: {message}")
    guarded: Mapping[str, Value] = dict(scope.guarded)
    for name in dict.fromkeys(names_in(graph.result)):
        if name in guarded:
            message = f"the result reads {name!r}, which is null unless {spell(guarded[name])}"
            yield GraphProblem("", NOWHERE, message, "warning")


def _unused(graph: Graph) -> Iterator[GraphProblem]:
    used = set(names_in(graph.result)).union(*(reads(step) for step in graph.steps))
    for name in graph.inputs:
        if name not in used:
            yield GraphProblem("", NOWHERE, f"nothing reads the input {name!r}", "warning")
    for step in graph.steps:
        if step.id not in used and not (isinstance(step, Each | Repeat) or acts(step)):
            yield _problem(step, "nothing reads its result, so it will not run", "warning")
