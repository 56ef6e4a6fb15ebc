"""The planner: turns a workflow's graph into an optimized plan. Pure; imports nothing of ours.

    graph.py      the nouns of the logical graph; sort, walk, canonical
    prompt.py     templates: segments, fields, rendering (template.py: the sandbox)
    values.py     values: how they are worked out
    validate.py   what is wrong with a graph
    plan.py       the nouns of the physical plan; its invariants
    lower.py      graph -> plan
    rules/        plan -> better plan
    optimize.py   runs the rules
    cost.py, stats.py                 estimates, and what they rest on
    explain.py, lint.py, mermaid.py   what people see
    errors.py     what can go wrong

Import from the modules: a function often has its module's name, and this package stays cheap.
"""

__all__ = [
    "cost",
    "errors",
    "explain",
    "graph",
    "lint",
    "lower",
    "mermaid",
    "optimize",
    "plan",
    "prompt",
    "stats",
    "validate",
    "values",
]
