"""The four shapes of `overhead.py` on LangGraph, one measurement per process.

Run by `overhead.py` in a virtual environment of its own; see `overhead_shapes.py`. LangGraph is
used as its documentation shows: a StateGraph, `Send` for the fan-out, asynchronous throughout,
and AsyncSqliteSaver where a journal is asked for.
"""

import asyncio
import json
import operator
import resource
import sys
import tempfile
import time
from typing import Annotated, Any, TypedDict

from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Send

STEPS = {"W1": 1, "W2": 1, "W3": 5, "W4": 20}
AT_ONCE = 64  # workflows side by side, as many as Tenter's no-op model answers at once


class Chain(TypedDict):
    x: str


class Fan(TypedDict):
    xs: list[str]
    results: Annotated[list[str], operator.add]


class Diamond(TypedDict):
    x: str
    middle: Annotated[list[str], operator.add]
    e: str


class Agent(TypedDict):
    x: str
    turns: int


async def model(value: str) -> str:
    await asyncio.sleep(0)
    return value


async def step(state: dict[str, Any]) -> dict[str, str]:
    return {"x": await model(state["x"])}


def chain(size: int) -> StateGraph:
    graph = StateGraph(Chain)
    for index in range(size):
        graph.add_node(f"s{index}", step)
        graph.add_edge(f"s{index - 1}" if index else START, f"s{index}")
    graph.add_edge(f"s{size - 1}", END)
    return graph


def fan() -> StateGraph:
    async def one(state: dict[str, Any]) -> dict[str, list[str]]:
        return {"results": [await model(state["x"])]}

    graph = StateGraph(Fan)
    graph.add_node("one", one)
    graph.add_conditional_edges(START, lambda state: [Send("one", {"x": x}) for x in state["xs"]])
    graph.add_edge("one", END)
    return graph


def diamond() -> StateGraph:
    async def middle(state: dict[str, Any]) -> dict[str, list[str]]:
        return {"middle": [await model(state["x"])]}

    async def last(state: dict[str, Any]) -> dict[str, str]:
        return {"e": await model(state["middle"][0])}

    graph = StateGraph(Diamond)
    graph.add_node("a", step)
    graph.add_node("e", last)
    graph.add_edge(START, "a")
    for name in "bcd":
        graph.add_node(name, middle)
        graph.add_edge("a", name)
        graph.add_edge(name, "e")
    graph.add_edge("e", END)
    return graph


def agent() -> StateGraph:
    async def act(state: dict[str, Any]) -> dict[str, Any]:
        return {"x": await model(state["x"]), "turns": state["turns"] + 1}

    graph = StateGraph(Agent)
    graph.add_node("think", step)
    graph.add_node("act", act)
    graph.add_edge(START, "think")
    graph.add_edge("think", "act")
    graph.add_conditional_edges("act", lambda state: END if state["turns"] >= 10 else "think")
    return graph


async def run(shape: str, size: int, journaled: bool, folder: str) -> None:
    build = {"W1": lambda: chain(size), "W2": fan, "W3": diamond, "W4": agent}[shape]
    if not journaled:
        await invoke(build().compile(), shape, size)
        return
    async with AsyncSqliteSaver.from_conn_string(f"{folder}/saver.db") as saver:
        await invoke(build().compile(checkpointer=saver), shape, size)


async def invoke(graph: Any, shape: str, size: int) -> None:
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(row: int) -> None:
        config = {"recursion_limit": size + 50, "configurable": {"thread_id": str(row)}}
        inputs: dict[str, Any] = {"x": str(row)}
        if shape == "W2":
            inputs = {"xs": [str(item) for item in range(size)], "results": []}
        if shape == "W4":
            inputs["turns"] = 0
        async with slots:
            await graph.ainvoke(inputs, config)

    await asyncio.gather(*(one(row) for row in range(size if shape in ("W3", "W4") else 1)))


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    shape, size, journaled = sys.argv[2], int(sys.argv[3]), sys.argv[4] == "true"
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run(shape, 3, False, folder))
        before_mb, cpu_s, wall_s = peak_mb(), time.process_time(), time.perf_counter()
        asyncio.run(run(shape, size, journaled, folder))
        cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
    steps = size * STEPS[shape]
    line = {
        "us_per_step": cpu_s / steps * 1e6,
        "wall_us_per_step": wall_s / steps * 1e6,
        "peak_mb": peak_mb() - before_mb,
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
