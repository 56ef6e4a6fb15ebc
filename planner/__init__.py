"""The planner: turns a workflow's graph into an optimized plan. Pure; imports nothing of ours.

    graph.py      the nouns of the logical graph; sort, walk, canonical
    prompt.py     templates: segments, fields, rendering (template.py: the sandbox)
    values.py     values: how they are worked out
    validate.py   what is wrong with a graph (step_checks.py, guards.py)
    plan.py       the nouns of the physical plan; its invariants
    lower.py      graph -> plan
    rules/        plan -> better plan
    optimize.py   runs the rules
    cost.py, several.py, stats.py     estimates, and what they rest on
    folds.py      long lists in batches that fit
    explain.py, lint.py, mermaid.py   what people see
    errors.py     what can go wrong

The nouns that everybody needs are here; import the rest from its module, since a function often
has its module's name (`from tenter.planner.optimize import optimize`) and this import stays cheap.
"""

from .errors import EvaluationError, InvariantBroken, PlannerError, PromptError
from .graph import Graph, canonical, sort
from .prompt import Prompt

__all__ = [
    "EvaluationError",
    "Graph",
    "InvariantBroken",
    "PlannerError",
    "Prompt",
    "PromptError",
    "canonical",
    "sort",
]
