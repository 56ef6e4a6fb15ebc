"""Type checks of a graph: parts that a result does not have, comparisons that are never true, ..."""

from collections.abc import Iterator

from ..planner.graph import Graph, Step


def type_problems(graph: Graph) -> Iterator[tuple[Step, str]]:
    """Steps with what is wrong with the types in them."""
    yield from ()
