"""Halo's workflows, constants and schedulers (2509.02121 and its published code), for comparison.

The dynamic program takes one epoch after the other: at most one step per GPU, in each the steps
that GPUs take together; an epoch costs 0.9 of its longest plus 0.1 of all GPU time, plus penalties
for its number, its depth and for tools that are needed early. Greedy takes the steps in topological
order to the GPU with the least seconds and load. Data-parallel runs one step at a time on all GPUs.
"""

import json
import re
from collections import deque
from dataclasses import dataclass
from functools import cache
from math import inf
from pathlib import Path

from tenter.planner.placement import AFFINITY, Stage

STEP_S_PER_B, ROW_S, LOAD_S_PER_B = 0.25, 0.15, 0.75
QUEUE_S = 2.0  # what a step that waits at a GPU counts in greedy's score
SLACK = 1  # an epoch leaves at most so many GPUs idle
Assigned = list[tuple[int, str]]  # (GPU, step), in the order of each GPU


@dataclass(frozen=True)
class Node:
    """A step of a workflow. `billions` is 0 for tools; `queries` counts SQL statements."""

    id: str
    kind: str
    model: str | None
    billions: float
    deps: tuple[str, ...]
    tool_s: float
    queries: int

    def seconds(self, rows: float) -> float:
        return STEP_S_PER_B * self.billions + ROW_S * rows if self.model else self.tool_s

    def load_s(self, resident: str | None) -> float:
        if resident == self.model:
            return 0.0
        return LOAD_S_PER_B * self.billions * (0.5 if resident is None else 1.0)


Workflow = dict[str, Node]


def read_workflows(file: Path) -> dict[str, Workflow]:
    """The workflows in `file`, without their inputs, in the file's order of steps."""
    found: dict[str, Workflow] = {}
    for name, raw in json.loads(file.read_text()).items():
        nodes = [node for node in raw["nodes"] if node["kind"] != "input"]
        known = {node["id"] for node in nodes}
        found[name] = {
            node["id"]: Node(
                node["id"],
                node["kind"],
                node["model"],
                billions(node["model"]),
                tuple(dep for dep in node["deps"] if dep in known),
                float(node["latency_mean_s"] or 0.0),
                len(node["sql"]),
            )
            for node in nodes
        }
    return found


def billions(model: str | None) -> float:
    match = re.search(r"(\d+(?:\.\d+)?)b", (model or "").lower())
    return float(match[1]) if match else 0.0


def stages(workflow: Workflow) -> list[Stage]:
    """The workflow as our planner sees it, with Halo's constants."""
    return [
        Stage(n.id, n.model, n.deps, n.seconds(0), ROW_S if n.model else 0.0)
        for n in workflow.values()
    ]


def loads(workflow: Workflow) -> dict[str, float]:
    return {n.model: LOAD_S_PER_B * n.billions for n in workflow.values() if n.model}


def _order(workflow: Workflow, names: list[str]) -> list[str]:
    """`names` with parents first; of those that are ready the first goes next."""
    left, order = list(names), list[str]()
    while left:
        order.append(next(n for n in left if all(d in order for d in workflow[n].deps)))
        left.remove(order[-1])
    return order


def data_parallel(workflow: Workflow, rows: int, gpus: int) -> float:
    """Seconds of one step after the other, each on all GPUs, tools in their turn."""
    total_s, resident = 0.0, None
    for name in _order(workflow, list(workflow)):
        node = workflow[name]
        total_s += node.seconds(rows / gpus)
        if node.model:
            total_s += node.load_s(resident)
            resident = node.model
    return total_s


def greedy(workflow: Workflow, rows: int, gpus: int) -> Assigned:
    """Halo's greedy plan."""
    resident: list[str | None] = [None] * gpus
    queued, plan = [0] * gpus, Assigned()
    for name in _order(workflow, sorted(workflow)):
        node = workflow[name]
        if not node.model:
            continue
        scores = [
            (node.seconds(rows) + node.load_s(resident[g]) + QUEUE_S * queued[g], queued[g], g)
            for g in range(gpus)
        ]
        gpu = min(scores)[2]
        queued[gpu] += 1
        resident[gpu] = node.model
        plan.append((gpu, name))
    return plan


def makespan(workflow: Workflow, rows: int, gpus: int, plan: Assigned) -> float:
    """Seconds until a plan of whole steps is carried out: GPUs in their order, tools in parallel."""
    queues = [deque(name for g, name in plan if g == gpu) for gpu in range(gpus)]
    ended, free_s = dict[str, float](), [0.0] * gpus
    resident: list[str | None] = [None] * gpus
    last: list[str | None] = [None] * gpus
    left = sum(map(len, queues))
    while left:
        for name in _order(workflow, list(workflow)):  # tools whose inputs are there
            node = workflow[name]
            if not node.model and name not in ended and all(d in ended for d in node.deps):
                ended[name] = max((ended[d] for d in node.deps), default=0.0) + node.tool_s
        for gpu, queue in enumerate(queues):
            if not queue or any(dep not in ended for dep in workflow[queue[0]].deps):
                continue
            node = workflow[queue.popleft()]
            start_s = max([free_s[gpu], *(ended[dep] for dep in node.deps)])
            warm = AFFINITY if last[gpu] in node.deps else 1.0
            free_s[gpu] = start_s + node.load_s(resident[gpu]) + warm * node.seconds(rows)
            ended[node.id], resident[gpu], last[gpu] = free_s[gpu], node.model, node.id
            left -= 1
    return max(ended.values())


# ---- the dynamic program ------------------------------------------------------------------------

State = tuple[str, str]  # of a GPU: the model that it has, and its last step; empty at first


def dynamic_program(workflow: Workflow, rows: int, gpus: int) -> Assigned:
    """Halo's plan. GPUs in the same state are taken to be the same, which changes no cost."""
    names = _order(workflow, sorted(workflow))
    steps = [name for name in names if workflow[name].model]
    above = {name: _tools_above(workflow, name) for name in steps}

    def cost(batch: tuple[str, ...], tools: list[str], epoch: int) -> float:
        depth = dict[str, int]()
        for name in batch:
            inside = [depth[dep] + 1 for dep in workflow[name].deps if dep in depth]
            depth[name] = max(inside, default=0)
        tools_s = sum(_tool_cost(workflow[name]) for name in tools)
        return 1 + 0.1 * epoch + sum(depth.values()) + (1 + 2 / (1 + epoch)) * tools_s

    @cache
    def best(done: frozenset[str], states: tuple[State, ...], epoch: int) -> tuple[float, object]:
        if all(name in done for name in steps):
            return 0.0, None
        found: tuple[float, object] = (inf, None)
        for batch in _batches(workflow, [n for n in steps if n not in done], gpus):
            needed = set[str]().union(*(above[name] for name in batch))
            tools = [name for name in names if name in needed and name not in done]
            after = done.union(batch, tools)
            if any(dep not in after for name in (*batch, *tools) for dep in workflow[name].deps):
                continue
            base = cost(batch, tools, epoch)
            for places in _places(states, len(batch)):
                took_s, then = _run(workflow, rows, batch, places, states)
                here = base + 0.9 * max(took_s) + 0.1 * sum(took_s)
                if here >= found[0]:
                    continue
                rest, _ = best(after, tuple(sorted(then)), epoch + 1)
                if here + rest < found[0] - 1e-12:
                    found = here + rest, (batch, places, after, then)
        return found

    plan, done, epoch = Assigned(), frozenset[str](), 0
    states: tuple[State, ...] = (("", ""),) * gpus
    gpu_of = list(range(gpus))  # the GPU behind each of the sorted states
    while (choice := best(done, states, epoch)[1]) is not None:
        batch, places, done, then = choice  # type: ignore[misc]
        plan += [(gpu_of[place], name) for name, place in zip(batch, places, strict=True)]
        order = sorted(range(gpus), key=lambda index: then[index])
        gpu_of, states = [gpu_of[index] for index in order], tuple(then[i] for i in order)
        epoch += 1
    return plan


def _tool_cost(node: Node) -> float:
    """Halo's fall-back is one second per query that has no profile."""
    return node.tool_s + node.queries


def _tools_above(workflow: Workflow, name: str) -> frozenset[str]:
    found, stack = set[str](), list(workflow[name].deps)
    while stack:
        dep = stack.pop()
        if dep not in found:
            found.add(dep)
            stack += workflow[dep].deps
    return frozenset(dep for dep in found if not workflow[dep].model)


def _batches(workflow: Workflow, pending: list[str], gpus: int) -> list[tuple[str, ...]]:
    """What the GPUs may take in one epoch: steps with their pending parents, almost all GPUs busy."""
    waits = {n: {d for d in _steps_above(workflow, n) if d in pending} for n in pending}
    most = min(gpus, len(pending))
    found: list[tuple[str, ...]] = []

    def grow(index: int, chosen: tuple[str, ...]) -> None:
        if index == len(pending):
            if most - SLACK <= len(chosen) and chosen:
                found.append(chosen)
            return
        grow(index + 1, chosen)
        if len(chosen) < most and waits[pending[index]] <= set(chosen):
            grow(index + 1, (*chosen, pending[index]))

    grow(0, ())
    return found


def _steps_above(workflow: Workflow, name: str) -> set[str]:
    """The nearest LLM steps above, through tools."""
    found, stack = set[str](), list(workflow[name].deps)
    while stack:
        dep = stack.pop()
        if workflow[dep].model:
            found.add(dep)
        else:
            stack += workflow[dep].deps
    return found


@cache
def _places(states: tuple[State, ...], count: int) -> tuple[tuple[int, ...], ...]:
    """The ways to give `count` steps a GPU each; of GPUs in one state the first free one."""
    found: list[tuple[int, ...]] = []

    def choose(chosen: tuple[int, ...]) -> None:
        if len(chosen) == count:
            found.append(chosen)
            return
        free = {s: i for i, s in reversed(list(enumerate(states))) if i not in chosen}
        for index in free.values():
            choose((*chosen, index))

    choose(())
    return tuple(found)


def _run(
    workflow: Workflow,
    rows: int,
    batch: tuple[str, ...],
    places: tuple[int, ...],
    states: tuple[State, ...],
) -> tuple[list[float], list[State]]:
    """Seconds of each GPU that takes a step, and the states afterwards."""
    took_s, then = list[float](), list(states)
    for name, place in zip(batch, places, strict=True):
        node, (resident, last) = workflow[name], states[place]
        warm = AFFINITY if last in node.deps else 1.0
        took_s.append(warm * node.seconds(rows) + node.load_s(resident or None))
        then[place] = node.model or "", name
    return took_s, then
