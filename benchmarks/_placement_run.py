"""Halo's workflows executed by the runtime in virtual time, on simulated engines of one model each.

Prompts hold the row's text and what the steps before have answered; web requests take 2 s, and SQL
none (its latency is not published). The engines are the simulator's: they batch what runs, and a
step costs what the roofline says.
"""

import random
import re
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any

import anyio
from _halo import Workflow

from tenter.planner.graph import LLM, Graph, Ref, Sampling, ToolCall
from tenter.planner.hardware import MODELS, preset
from tenter.planner.optimize import optimize
from tenter.planner.placement import Turns
from tenter.planner.plan import Context, Expected, Plan, Tokens
from tenter.planner.prompt import Prompt
from tenter.planner.rules.place import stages_of
from tenter.planner.stats import collect
from tenter.runtime import tool
from tenter.runtime.backends.sim import SimulatedBackend
from tenter.runtime.clock import VirtualLoop, now
from tenter.runtime.journal.memory import NoJournal
from tenter.runtime.run.control import Control
from tenter.runtime.run.local import open_host
from tenter.runtime.run.placed import Placed, place_on
from tenter.runtime.run.planned import Planned
from tenter.runtime.run.program import Programs
from tenter.runtime.run.rows import Limits, Row, RowRun
from tenter.runtime.workflow import Input
from tenter.runtime.workflow import Workflow as Flow

HARDWARE, ANSWER_TOKENS, REQUEST_S = "h100", 128, 2.0
MODEL_NAMES = {
    "openai/gpt-oss-20b": "gpt-oss-20b",
    "Qwen/Qwen3-14B": "qwen3-14b",
    "Qwen/Qwen3-32B": "qwen3-32b",
}
METHODS = ("plan", "shares", "none")


@tool(effect="pure")
async def request(query: str) -> str:
    """Ask the web."""
    await anyio.sleep(REQUEST_S)
    return "found " * 20


@dataclass(frozen=True)
class Case:
    """A workflow over rows on a fleet: `replicas` of each model, and its placement on them."""

    flow: Flow
    rows: list[Row]
    plan: Plan
    replicas: dict[str, int]
    running: int
    placed: Placed


def unknown(workflow: Workflow) -> str:
    """Why a workflow cannot be executed here; "" if it can."""
    models = {node.model or "" for node in workflow.values() if node.kind == "llm"}
    if not models:
        return "no step asks a model"
    strange = sorted(models - MODEL_NAMES.keys())
    return f"no engine is simulated for {', '.join(strange)}" if strange else ""


def case_of(name: str, workflow: Workflow, count: int, gpus: int, running: int) -> Case:
    """Each model has one of `gpus` at least, and the others go to those with the most work each.

    An engine runs `running` calls at once.
    """
    flow = _flow(name, workflow)
    draw = random.Random(1)
    inputs = [
        {"q": "".join(draw.choice("abcdefgh ") for _ in range(draw.randint(200, 600)))}
        for _ in range(count)
    ]
    tokens = Tokens(lambda texts: [len(text) for text in texts], name="bytes")
    context = Context(
        stats=collect(inputs, ["q"], None, tokens.count),
        tokens=tokens,
        expected=Expected(tool_s={"request": REQUEST_S}),
    )
    assert flow.graph is not None
    plan = optimize(flow.graph, context)
    shapes = {model: (preset(HARDWARE), MODELS[model]) for model in MODEL_NAMES.values()}
    at_once = dict.fromkeys(shapes, running)
    work: Counter[str] = Counter()
    for stage in stages_of(plan, count, shapes, {}, at_once):
        if stage.model is not None:
            work[stage.model] += stage.row_s
    replicas = dict.fromkeys(work, 1)
    while sum(replicas.values()) < gpus:
        replicas[max(work, key=lambda model: work[model] / replicas[model])] += 1
    pools = {model: [f"{model}/{i}" for i in range(n)] for model, n in replicas.items()}
    pool_of = {model: model for model in replicas}
    placed = place_on(plan, count, pools, pool_of, shapes, at_once)
    assert placed is not None
    rows = [Row(number, values, values) for number, values in enumerate(inputs)]
    return Case(replace(flow, graph=plan.graph), rows, plan, replicas, running, placed)


def _flow(name: str, workflow: Workflow) -> Flow:
    steps: list[LLM | ToolCall] = []
    for node in workflow.values():
        known = [_name(dep) for dep in node.deps if workflow[dep].kind in ("llm", "http")]
        if node.kind == "llm":
            prompt = Prompt(f"{node.id}: {{{{ q }}}}" + "".join(f"\n{{{{ {d} }}}}" for d in known))
            args = tuple((field, Ref(field)) for field in prompt.fields)
            sampling = Sampling(max_tokens=ANSWER_TOKENS)
            model = MODEL_NAMES[node.model or ""]
            steps.append(
                LLM(id=_name(node.id), prompt=prompt, args=args, model=model, sampling=sampling)
            )
        elif node.kind == "http":
            query = (("query", Ref(known[0] if known else "q")),)
            steps.append(ToolCall(id=_name(node.id), tool="request", args=query, effect="pure"))
    last = [step.id for step in steps if isinstance(step, LLM)][-1]
    graph = Graph(name, ("q",), tuple(steps), Ref(last))
    return Flow(name, (Input("q"),), graph, tools={"request": request.tool})


def _name(node: str) -> str:
    return re.sub(r"\W", "_", node)


class _Ends:
    """Counts the rows that were answered."""

    held = done = 0

    def put(self, row: Row, value: Any, error: str | None) -> None:
        assert error is None, error
        self.done += 1


def executed_s(case: Case, method: str) -> float:
    """The makespan of a run.

    By "plan": workers and turns of the placement; "shares": each worker an equal share, rows in
    their order; "none": no hints at all.
    """
    return anyio.run(_execute, case, method, backend_options={"loop_factory": VirtualLoop})


async def _execute(case: Case, method: str) -> float:
    async with AsyncExitStack() as stack:
        backends: dict[str, list[SimulatedBackend]] = {}
        for model, count in case.replicas.items():
            backends[model] = [
                await stack.enter_async_context(
                    SimulatedBackend(HARDWARE, model, max_running=case.running, seed=number)
                )
                for number in range(count)
            ]
        host = await stack.enter_async_context(
            open_host(backends, max_programs=len(case.rows), share=False)
        )
        if method != "none":
            turns = Turns(case.placed.placement) if method == "plan" else None
            pools = sorted(case.replicas)
            host.planned = Planned(case.plan, host.scheduler, pools=pools, turns=turns)
        ends, began_s = _Ends(), now()
        about = (NoJournal(), ends, Control(), (), Limits(len(case.rows)))
        await RowRun(Programs(host, case.flow), *about, planned=host.planned).run(iter(case.rows))
        assert ends.done == len(case.rows)
        return now() - began_s
