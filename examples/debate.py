"""A debate: three agents answer, hear what the others said, and answer again until most agree.

    tenter run examples/debate.py question="Compute 91 - 17 + 64 - 38 + 25."

One answers at once, one takes its time, one has a calculator. They speak at the same time, and
what the question has in common for all of them is computed once. The judge counts.
"""

import ast
import asyncio
import operator
import re
from collections import Counter

from tenter.runtime import TenterError, agent, llm, tool, workflow

OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}
HEARD = "You discuss a question with others.{% if heard %} They say: {{ heard }}.{% endif %}"


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


def debaters(seed: int) -> dict:
    """Three ways to answer; another seed is another day."""
    drawn = {"system": HEARD, "temperature": 0.7, "seed": seed}
    return {
        "quick": llm("{{ question }}", max_tokens=200, name="quick", **drawn),
        "careful": llm("{{ question }} Think hard.", max_tokens=300, name="careful", **drawn),
        "clerk": agent("{{ question }}", tools=[calculator], max_turns=4, name="clerk", **drawn),
    }


def number(answer: str) -> str:
    """The last number of an answer; "" if it has none."""
    return (re.findall(r"-?\d+", answer) or [""])[-1]


async def speak(debater, question: str, heard: str) -> str:
    """What one of them answers; an agent that gets nowhere says nothing."""
    try:
        return number(await debater(question=question, heard=heard))
    except TenterError:
        return ""


@workflow
async def debate(question: str, rounds: int = 3) -> dict:
    """The answer that most agree on, and what was said in each round."""
    said: list[dict[str, str]] = []
    for turn in range(rounds):
        heard = ", ".join(sorted({text for text in said[-1].values() if text})) if said else ""
        known = debaters(seed=turn)
        answers = await asyncio.gather(
            *(speak(debater, question, heard) for debater in known.values())
        )
        said.append(dict(zip(known, answers, strict=True)))
        (best, votes), *_ = Counter(answers).most_common()
        if best and votes > len(answers) / 2:
            return {"answer": best, "rounds": said}
    return {"answer": None, "rounds": said}
