"""A graph compiled for running: its steps as nodes that know who waits for them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...planner.graph import (
    LLM,
    Compute,
    Each,
    Graph,
    Repeat,
    Select,
    Step,
    ToolCall,
    Value,
    reads,
)
from ...planner.values import compile_args, compile_value

Evaluate = Callable[[Mapping[str, Any]], Any]


@dataclass(slots=True)
class Node:
    """One step of a body. `readers` are the positions of the nodes that wait for it."""

    step: Step
    readers: list[int] = field(default_factory=list[int])
    guard: Evaluate | None = None
    value: Evaluate | None = None  # Compute: its value; a loop: its begin; Tool: its arguments
    until: Evaluate | None = None  # Repeat
    body: "Body | None" = None
    item: str = ""
    id: str = ""


@dataclass(slots=True)
class Body:
    """The steps of a graph, or of a loop. `waits` counts what each node reads within the body."""

    nodes: list[Node]
    waits: list[int]
    first: list[int]
    result: Evaluate


def compile_body(steps: tuple[Step, ...], result: Value) -> Body:
    """`steps` as nodes; names from outside the body are there before it starts."""
    place = {step.id: index for index, step in enumerate(steps)}
    nodes = [_node(step) for step in steps]
    waits = [0] * len(nodes)
    for index, step in enumerate(steps):
        for name in reads(step):
            if name in place:
                nodes[place[name]].readers.append(index)
                waits[index] += 1
    first = [index for index, count in enumerate(waits) if count == 0]
    return Body(nodes, waits, first, compile_value(result))


def compile_graph(graph: Graph) -> Body:
    """The body of a whole workflow."""
    return compile_body(graph.steps, graph.result)


def _node(step: Step) -> Node:
    node = Node(step, id=step.id)
    if step.when is not None:
        node.guard = compile_value(step.when)
    match step:
        case Compute(value=value):
            node.value = compile_value(value)
        case Select():
            node.value = _select(step)
        case ToolCall(args=args):
            node.value = compile_args(args)
        case Each(items=items, body=body, result=result, item=item):
            node.value = compile_value(items)
            node.body = compile_body(body, result)
            node.item = item
        case Repeat(start=start, body=body, result=result, item=item, until=until):
            node.value = compile_value(start)
            node.body = compile_body(body, result)
            node.item = item
            node.until = compile_value(until)
        case LLM():
            pass  # its arguments are compiled with its prompt, for a model (Asking)
    return node


def _select(step: Select) -> Evaluate:
    condition, then, otherwise = (
        compile_value(value) for value in (step.condition, step.then, step.otherwise)
    )
    return lambda values: then(values) if condition(values) else otherwise(values)
