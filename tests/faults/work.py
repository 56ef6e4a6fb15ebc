"""The jobs of the campaign: small workflows of every kind, written as a user would write them.

Their tools take virtual time and tell the world (`world.World`) when they have their effect.
"""

import asyncio

from pydantic import BaseModel

from tenter.runtime import agent, each, llm, tool, workflow
from tenter.tools.context import tool_context

from .loops import life


class Form(BaseModel):
    word: str
    size: int


first = llm("First of {{ x }}", max_tokens=6)
second = llm("Second of {{ x }} after {{ said }}", max_tokens=6)
kind = llm("Kind of {{ x }}", choices=["hard", "soft", "other"])
essay = llm("Essay on {{ x }}", max_tokens=24)
form = llm("Form of {{ x }} by {{ said }}", output=Form, max_tokens=60)


@tool(effect="once", timeout_s=20)
async def pay(who: str) -> str:
    """Pay; never twice."""
    await life().use("pay", who, tool_context().key)
    return f"paid {who}"


@tool(effect="idempotent", timeout_s=20)
async def note(who: str) -> str:
    """Note; again under the same key is the same note."""
    await life().use("note", who, tool_context().key)
    return f"noted {who}"


@tool(effect="pure", timeout_s=20)
async def look(x: str) -> str:
    """Look up."""
    await life().use("look", x)
    return f"{x} wood"


@tool(effect="pure", timeout_s=20)
async def parts(x: str) -> list[str]:
    """Take apart."""
    await life().use("parts", x)
    return [f"{x} {part}" for part in ("leaf", "root")]


buyer = agent("Pay for {{ id }}: {{ x }}", tools=[pay], allow=["pay"], turn_tokens=80)


@workflow
def chain(x: str) -> str:
    return second(x=x, said=first(x=x))


@workflow
def paid(x: str, id: str) -> dict:
    said = first(x=x)
    receipt = pay(who=id)
    return {"receipt": receipt, "said": second(x=receipt, said=said)}


@workflow
def noted(x: str, id: str) -> dict:
    found = look(x=x)
    return {"note": note(who=id), "said": first(x=found)}


@workflow
def fan(x: str) -> list[str]:
    return each(parts(x=x), lambda part: second(x=part, said=first(x=part)))


@workflow
def chosen(x: str) -> dict:
    of = kind(x=x)
    return {"kind": of, "said": second(x=x, said=of)}


@workflow
def long(x: str) -> str:
    return second(x=x, said=essay(x=x))


@workflow
def formed(x: str) -> Form:
    return form(x=x, said=first(x=x))


@workflow
async def racing(x: str, id: str) -> list[str]:
    said, found = await asyncio.gather(first(x=x), look(x=x))
    receipt = await pay(who=id)
    more = [await second(x=x, said=f"{said} {turn}") for turn in range(2)]
    return [found, receipt, await note(who=id), *more]


@workflow
async def chatting(x: str, id: str) -> str:
    return await buyer(x=x, id=id)
