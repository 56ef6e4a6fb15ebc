"""The pipeline of `pipeline.py` as its authors would write it without a planner.

`plain`: a coroutine per row, all gathered. `langgraph`: a StateGraph of three nodes, run by
`abatch` as its documentation shows. Both ask the same backend for the same tokens as Tenter does.
"""

import asyncio
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any, TypedDict

from _pipeline_flow import HANDBOOK, KINDS, OUTPUT_TOKENS, REPLY, ROUTE, look_up

from tenter.planner.prompt import Prompt
from tenter.runtime.backends.base import Backend
from tenter.runtime.calls import CallId, Message, Request, Sampling
from tenter.runtime.run.asking import without_thought

AT_ONCE = 256  # rows of LangGraph side by side, as many as Tenter's


class Asker:
    """Asks one backend, and counts."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._names = count()
        self._route, self._reply = Prompt(ROUTE), Prompt(REPLY)
        tokenizer = backend.tokenizer
        ends = tokenizer.end_of_turn_ids
        self._choices = tuple((*tokenizer.encode(kind), *ends) for kind in KINDS)
        self.prompt_tokens = self.cached_tokens = self.output_tokens = self.calls = 0

    async def route(self, row: Mapping[str, str]) -> str:
        request = self._request(self._route, row, choices=self._choices)
        scores = (await self._last(request))[1]
        return KINDS[scores.index(max(scores))]

    async def reply(self, row: Mapping[str, str]) -> str:
        sampling = Sampling(max_tokens=OUTPUT_TOKENS)
        text, _ = await self._last(self._request(self._reply, row, sampling=sampling))
        return without_thought(text)

    def _request(self, prompt: Prompt, row: Mapping[str, str], **more: Any) -> Request:
        chat = [Message("system", HANDBOOK), Message("user", prompt.render(row))]
        tokens = tuple(self._backend.tokenizer.chat(chat))
        return Request(CallId(f"c{next(self._names)}"), tokens, **more)

    async def _last(self, request: Request) -> tuple[str, tuple[float, ...]]:
        text, scores = "", ()
        async for chunk in self._backend.generate(request):
            text += chunk.text
            scores = chunk.choice_logprobs or scores
            if chunk.usage is not None:
                self.calls += 1
                self.prompt_tokens += chunk.usage.prompt_tokens
                self.cached_tokens += chunk.usage.cached_tokens
                self.output_tokens += chunk.usage.output_tokens
        return text, scores


async def plain(asker: Asker, rows: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Row by row, all at once."""

    async def one(row: Mapping[str, str]) -> dict[str, str]:
        kind = await asker.route(row)
        policy = await look_up(kind)
        return {"kind": kind, "reply": await asker.reply({**row, "kind": kind, "policy": policy})}

    return await asyncio.gather(*(one(row) for row in rows))


class State(TypedDict, total=False):
    sheet: str
    ticket: str
    kind: str
    policy: str
    reply: str


async def langgraph(asker: Asker, rows: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """A graph of three nodes, a state per row."""
    from langgraph.graph import END, START, StateGraph

    async def route(state: State) -> State:
        return {"kind": await asker.route(state)}

    async def policy(state: State) -> State:
        return {"policy": await look_up(state["kind"])}

    async def reply(state: State) -> State:
        return {"reply": await asker.reply(state)}

    graph = StateGraph(State)
    nodes = {"route": route, "look_up": policy, "answer": reply}
    for name, node in nodes.items():
        graph.add_node(name, node)
    for one, other in zip((START, *nodes), (*nodes, END), strict=True):
        graph.add_edge(one, other)
    states = await graph.compile().abatch(list(rows), config={"max_concurrency": AT_ONCE})
    return [{"kind": state["kind"], "reply": state["reply"]} for state in states]
