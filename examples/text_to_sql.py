"""Questions to a shop's database: agents that ask a real PostgreSQL.

    psql shop -f examples/shop.sql
    SHOP=postgresql:///shop tenter run examples/text_to_sql.py:shop question="Where is order 1234?"

`shop` hands a question to the agent that has the tool for it; the tiny model can do that. `analyst`
writes SQL itself, which takes a larger model. Neither can change anything: each statement is one
SELECT, and PostgreSQL holds its transaction to reading. What the rows say is untrusted: a customer
may have written it. The password, if there is one, stays in the environment.
"""

import json
import os

from tenter.runtime import agent, contains, tool, when, workflow
from tenter.tools import call, sql_tool

SHOP = "env:SHOP" if "SHOP" in os.environ else "postgresql:///shop"
TABLES = "items (name text, price integer), orders (id integer, status text, city text)"

prices = sql_tool(
    "prices", SHOP, query="SELECT price FROM items WHERE name = :item", parameters={"item": str}
)
orders = sql_tool(
    "orders",
    SHOP,
    query='SELECT id AS "order", status, city FROM orders WHERE id = :id',
    parameters={"id": int},
)


def first(found: dict) -> str:
    """The first row as a JSON object, which small models read better than a table."""
    if not found["rows"]:
        raise ValueError("there is no such row")
    return json.dumps(dict(zip(found["columns"], found["rows"][0], strict=True)))


@tool(effect="idempotent", timeout_s=10)
async def lookup(item: str) -> str:
    """Look up a price."""
    return first(await call(prices, {"item": item}))


@tool(effect="idempotent", timeout_s=10)
async def find_order(order: int) -> str:
    """Find an order."""
    return first(await call(orders, {"id": order}))


clerk = agent("{{ question }}", tools=[find_order], max_turns=4)
seller = agent("{{ question }}", tools=[lookup], max_turns=4)
writer = agent(
    "{{ question }}",
    tools=[sql_tool("query", SHOP, max_rows=20, timeout_s=5)],
    system=f"You answer questions about a shop by PostgreSQL. The tables: {TABLES}.",
    max_turns=6,
    max_tokens=2_000,
)


@workflow
def shop(question: str) -> str:
    """The answer of the agent that has the right tool."""
    return when(
        contains(question, "order"),
        lambda: clerk(question=question),
        lambda: seller(question=question),
    )


@workflow
def analyst(question: str) -> str:
    """The answer of an agent that writes its own SQL."""
    return writer(question=question)
