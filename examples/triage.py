"""Support tickets: find the team, look up its policy, write the reply.

    tenter run examples/triage.py ticket="My invoice is wrong. Thanks, Ada"
    tenter map examples/triage.py examples/tickets.csv --out answers.csv

The same workflow as triage.yaml. A plain `def` is traced once into a graph, so that the planner
sees all of it before anything runs; equal calls are then made once.
"""

from policies import POLICIES
from pydantic import BaseModel

from tenter.runtime import llm, tool, workflow


class Reply(BaseModel):
    subject: str
    body: str


class Answer(Reply):
    team: str


kind = llm(
    "Which team handles this ticket?\n\n{{ ticket }}",
    choices=["billing", "bug", "shipping", "sales", "other"],
)
reply = llm(
    "{{ policy }}\n\nAnswer this {{ kind }} ticket:\n{{ ticket }}", output=Reply, max_tokens=160
)


@tool(effect="pure")
def policy_for(kind: str) -> str:
    """The policy for a kind of ticket."""
    return POLICIES[kind]


@workflow
def triage(ticket: str) -> Answer:
    team = kind(ticket=ticket)
    answer = reply(ticket=ticket, kind=team, policy=policy_for(kind=team))
    return {"team": team, "subject": answer.subject, "body": answer.body}
