"""The pipeline that `pipeline.py` measures, and its rows. Also a workflow file for `tenter map`.

A ticket is routed with the data sheet of its product in view, the policy of its kind is looked up,
and it is answered. All prompts begin with the same handbook.
"""

import asyncio
import random
from typing import Any

from tenter.runtime import llm, tool, workflow

PRODUCTS, ROWS_OF_ONE = 40, 8  # at most so many products, and so many tickets of each
KINDS = ("billing", "bug", "shipping", "sales", "other")
OUTPUT_TOKENS = 32
LOOKUP_S = 0.005  # of the tool

_TEXT = (
    "lamp frame switch cable panel wheel spring screen filter pump motor valve sensor handle "
    "blade cover socket relay hinge magnet steel glass rubber copper silent small heavy light "
    "black white spare second standard sealed replaced checked shipped tested stored cleaned"
)
_WORDS = _TEXT.split()


def _text(seed: str, words: int) -> str:
    draw = random.Random(seed)
    return " ".join(draw.choice(_WORDS) for _ in range(words))


HANDBOOK = f"You answer tickets of a shop. Be short and polite. {_text('handbook', 120)}."
POLICIES = {kind: f"Policy for {kind}: {_text(kind, 60)}." for kind in KINDS}
ROUTE = "{{ sheet }}\n\nWhich team handles this ticket?\n\n{{ ticket }}"
REPLY = "{{ policy }}\n\nAnswer this {{ kind }} ticket:\n{{ ticket }}"


def table(rows: int) -> list[dict[str, str]]:
    """`rows` tickets in no order, each about twice, with the sheet of one of the products."""
    draw = random.Random(0)
    products = min(PRODUCTS, max(1, rows // ROWS_OF_ONE))
    sheets = [f"Product {n}: {_text(f'sheet {n}', 90)}." for n in range(products)]
    whole = [
        {"sheet": draw.choice(sheets), "ticket": f"Ticket {n}: my {_text(f'ticket {n}', 18)}?"}
        for n in range((rows + 1) // 2)
    ]
    found = (whole * 2)[:rows]
    draw.shuffle(found)
    return found


async def look_up(kind: str) -> str:
    """What the tool does, for every system."""
    await asyncio.sleep(LOOKUP_S)
    return POLICIES[kind]


route = llm(ROUTE, system=HANDBOOK, choices=KINDS)
reply = llm(REPLY, system=HANDBOOK, max_tokens=OUTPUT_TOKENS)


@tool(effect="pure")
async def policy_for(kind: str) -> str:
    """The policy for a kind of ticket."""
    return await look_up(kind)


@workflow
def answer(sheet: str, ticket: str) -> Any:
    kind = route(sheet=sheet, ticket=ticket)
    text = reply(ticket=ticket, kind=kind, policy=policy_for(kind=kind))
    return {"kind": kind, "reply": text}
