"""Research as a graph that is known only at run time: sources are read and judged side by side.

    tenter run examples/research.py question="Is the hotel Aurora any good?"

A planner says which sub-steps there are and what each one needs; the plan is checked, and every
step starts as soon as what it needs is there. Here the planner is a function, since the tiny model
cannot plan; with a larger one it is `llm("...", output=Plan)`, and nothing else changes. While the
plan runs it may grow: where the verdicts are tied, another source is asked.
"""

import asyncio
from collections import Counter

from tenter.runtime import Plan, llm, plan_and_run, tool, workflow

SOURCES = {
    "guide": "I loved the room. The breakfast was excellent.",
    "forum": "The room was dirty and the staff was rude.",
    "friend": "The lobby was wonderful and the staff was friendly.",
}
FIRST = ("guide", "forum")

judge = llm(
    "Is this review positive, negative or neutral?\n\n{{ review }}",
    choices=["positive", "negative", "neutral"],
)


@tool(effect="pure", timeout_s=10, eta_s=0.2)
async def read(source: str) -> str:
    """What a source says; slow, as pages are."""
    await asyncio.sleep(0.2)
    return SOURCES[source]


@tool(effect="pure")
def count(verdicts: list[str]) -> dict[str, int]:
    """How many verdicts there are of each kind, the most frequent first."""
    return dict(Counter(verdicts).most_common())


def reading(sources: tuple[str, ...] | list[str]) -> list[dict]:
    """Two steps for each source: read it, and judge what it says."""
    return [
        step
        for name in sources
        for step in (
            {"id": f"read_{name}", "kind": "tool", "tool": "read", "args": {"source": name}},
            {
                "id": f"judge_{name}",
                "kind": "step",
                "step": "judge",
                "args": {"review": {"from": f"read_{name}"}},
            },
        )
    ]


def counting(name: str, sources: tuple[str, ...] | list[str]) -> dict:
    verdicts = [{"from": f"judge_{source}"} for source in sources]
    return {"id": name, "kind": "tool", "tool": "count", "args": {"verdicts": verdicts}}


async def planner(question: str) -> Plan:
    """The plan for a question."""
    return Plan(steps=[*reading(FIRST), counting("tally", FIRST)])


def more_if_tied(name: str, result: object, graph) -> None:
    """Ask the sources that are left where the first ones do not agree."""
    if name == "tally" and isinstance(result, dict) and len(set(result.values())) < len(result):
        rest = [source for source in SOURCES if source not in FIRST]
        graph.edit(add=[*reading(rest), counting("second_tally", list(SOURCES))])


@workflow
async def research(question: str) -> dict:
    """The verdicts and how they were counted."""
    results = await plan_and_run(
        await planner(question),
        tools=[read, count],
        steps={"judge": judge},
        revise=more_if_tied,
    )
    tally = results.get("second_tally", results["tally"])
    return {"verdict": next(iter(tally)), "tally": tally, "steps": list(results)}
