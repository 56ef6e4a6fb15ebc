"""The last check of a traced graph, with each problem at the author's line."""

from collections.abc import Collection, Mapping, Sequence

from ...planner.graph import Graph, Place
from ...planner.validate import GraphProblem, validate
from ..errors import InvalidWorkflow, Problem
from ..workflow import Input, ModelSpec
from .checks import type_problems
from .places import problem
from .tracing import Tracer


def compiled(
    graph: Graph,
    tracer: Tracer,
    inputs: Sequence[Input],
    models: Mapping[str, ModelSpec],
    tenant: str | None = None,
) -> Graph:
    """`graph` if nothing is wrong with it; otherwise all problems in one InvalidWorkflow.

    The input `tenant` is read by the scheduler.
    """
    known: Collection[str] | None = {"default", *models, *tracer.models} if models else None
    try:
        checked = validate(graph, tracer.tools, known)
    except (SyntaxError, MemoryError, RecursionError):  # of Python, compiling an expression
        text = "an expression is nested too deeply: put the code in a @tool"
        raise InvalidWorkflow([*tracer.problems, problem(text, tracer.place)]) from None
    read = f"nothing reads the input {tenant!r}"
    told = (each for each in checked if grave(each) and each.message != read)
    found = [_located(each, tracer.place) for each in told]
    for step, text in type_problems(graph, inputs, tracer.tools):
        text = f"step {step.id!r}: {text}" if step else f"the result: {text}"
        found.append(problem(text, step.place if step else tracer.place))
    if problems := sorted({*tracer.problems, *found}, key=order):
        raise InvalidWorkflow(problems)
    return graph


def grave(found: GraphProblem) -> bool:
    """Whether a problem stops the workflow: errors do, and so does what nothing reads."""
    return found.severity == "error" or found.message.startswith("nothing reads")


def _located(found: GraphProblem, whole: Place) -> Problem:
    return problem(str(found), found.place if found.place.line else whole)


def order(found: Problem) -> tuple[str, int, int, str]:
    """Problems are told in the order of their places."""
    return (found.file, found.line, found.column, found.message)
