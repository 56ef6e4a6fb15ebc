"""A graph as a Mermaid flowchart. Names and texts of the author are labels, never syntax."""

from collections.abc import Iterator

from .explain import shorten
from .graph import LLM, Compute, Each, Graph, Repeat, Select, Step, ToolCall, names_in, reads
from .values import spell


def mermaid(graph: Graph) -> str:
    """The flowchart's text; a dotted arrow is a condition."""
    nodes = {name: f"i{index}" for index, name in enumerate(graph.inputs)}
    lines = ["flowchart TD"]
    lines += [f"  {nodes[name]}([{_label(name)}])" for name in graph.inputs]
    edges: list[str] = []
    lines += _steps(graph.steps, nodes, edges, "  ")
    lines.append(f"  result([{_label('result')}])")
    edges += [
        f"  {nodes[n]} --> result" for n in dict.fromkeys(names_in(graph.result)) if n in nodes
    ]
    return "\n".join([*lines, *edges]) + "\n"


def _steps(
    steps: tuple[Step, ...], nodes: dict[str, str], edges: list[str], indent: str
) -> Iterator[str]:
    """The lines of some steps; adds to `nodes` and `edges`."""
    for step in steps:
        node = f"n{len(nodes)}"
        inner = {**nodes, step.id: node}
        if isinstance(step, Each | Repeat):
            what = "each" if isinstance(step, Each) else "repeat"
            yield f"{indent}subgraph {node} [{_label(f'{step.id}: {what} {step.item}')}]"
            inner[step.item] = f"{node}_item"
            yield f"{indent}  {node}_item([{_label(step.item)}])"
            yield from _steps(step.body, inner, edges, indent + "  ")
            yield f"{indent}end"
            sources = [*names_in(step.begins), *names_in(step.when)]
        else:
            yield f"{indent}{node}{_shape(step)}"
            sources = list(reads(step))
        edges += _edges(step, node, dict.fromkeys(sources), nodes)
        nodes.update({name: at for name, at in inner.items() if name not in nodes})


def _edges(step: Step, node: str, sources: dict[str, None], nodes: dict[str, str]) -> Iterator[str]:
    guards = set(names_in(step.when))
    for name in sources:
        if name in nodes:
            arrow = f"-. {_label(spell(step.when))} .->" if step.when and name in guards else "-->"
            yield f"  {nodes[name]} {arrow} {node}"


def _shape(step: Step) -> str:
    match step:
        case LLM(loop=loop):
            kind = "choice" if step.choices else "json" if step.schema else "text"
            what = "llm" if step.reduce is None else f"reduce {step.reduce.over},"
            what = what if loop is None else f"agent with {', '.join(loop.tools) or 'no tools'},"
            return f"[{_label(f'{step.id}: {what} {step.model}, {kind}')}]"
        case ToolCall():
            return f"[[{_label(f'{step.id}: tool {step.tool}, {step.effect}')}]]"
        case Select():
            return f"{{{{{_label(f'{step.id}: {spell(step.condition)}?')}}}}}"
        case Compute() | Each() | Repeat():
            return f"({_label(step.id)})"


def _label(text: str) -> str:
    """A quoted label: only letters, digits and harmless marks as they are, others as entities."""
    safe = "".join(
        char if char.isalnum() or char in " _-.,:?=+/" else f"#{ord(char)};"
        for char in shorten(text)
    )
    return f'"{safe}"'
