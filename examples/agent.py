"""An agent with two tools: it looks up prices and calculates until it can answer.

    tenter run examples/agent.py question="What is the total price of 2 tables and 3 lamps?"

An `async def` runs as it is; its steps are discovered as they are reached. The session's KV cache
is kept while a tool runs, if the scheduler finds that worth it, so that the next turn costs only
what is new.
"""

import ast
import operator

from tenter.runtime import session, tool, workflow

PRICES = {"lamp": 24, "chair": 61, "table": 130, "book": 12, "pen": 3, "desk": 188, "clock": 35}
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}


@tool(effect="pure", timeout_s=5)
def lookup(item: str) -> int:
    """Look up a price."""
    if item not in PRICES:
        raise ValueError(f"there is no {item}; there are {', '.join(PRICES)}")
    return PRICES[item]


@tool(effect="pure", timeout_s=5)
def calculator(expression: str) -> int:
    """Compute an arithmetic expression."""

    def value(node: ast.expr) -> int:
        match node:
            case ast.Constant(value=int(number)):
                return number
            case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
                return OPERATORS[type(op)](value(left), value(right))
        raise ValueError(f"{expression!r} is more than + - * of whole numbers")

    return value(ast.parse(expression, mode="eval").body)


@workflow
async def shopping(question: str) -> str:
    chat = session()
    return await chat.run(question, tools=[lookup, calculator], max_turns=8)
