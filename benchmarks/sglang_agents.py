"""Agents with tools on one real SGLang server: what a scheduler that knows programs saves.

    python benchmarks/sglang_agents.py [--quick] [--rounds N] [--model mid|tiny] [--data DIR]

24 agents come within a second; each has a context of its own behind a shared system prompt, takes
several turns, and sleeps between them as its tools would. The KV pool holds about half of their
sessions. Four ways, interleaved, medians over the rounds:

    stock    every turn is sent when it is ready, to a server without flags (FCFS, LRU), as any
             HTTP client does
    tenter   the same server behind Tenter: admission and touches, nothing else can be asked of it
    session  Tenter, and a server with --enable-session-radix-cache
    plugin   Tenter, and a server with Tenter's plugin

`recomputed_ratio`: prompt tokens computed beyond the first time, over those of stock.
`completion_ratio`: mean time from an agent's arrival to its end, over that of stock. Needs the
environment that `make sglang` builds. The server runs on one core of this machine; a GPU serves
larger models, but the order of the ways does not depend on that.
"""

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "sglang"))
from _common import Figures, one_thread
from _models import mid_model

one_thread()

import servers

from tenter.planner.graph import Sampling
from tenter.runtime.backends.registry import open_replicas
from tenter.runtime.calls import Message
from tenter.runtime.models import tiny_path
from tenter.runtime.run.context import current_program
from tenter.runtime.run.local import open_host
from tenter.runtime.run.program import Programs
from tenter.runtime.scheduler.events import CallEnded, PinJudged
from tenter.runtime.tokenizer import HFTokenizer
from tenter.runtime.trace import MemoryTrace
from tenter.runtime.workflow import Input, ModelSpec, Scheduling, Workflow
from tenter.tools.python import python_tool

MADE = Path(__file__).parents[1] / ".cache" / "models"
AGENTS, RUNNING = 24, 8
WORDS = [
    "stone",
    "river",
    "cloud",
    "lamp",
    "table",
    "seven",
    "green",
    "under",
    "north",
    "paper",
    "glass",
    "wheel",
]


@dataclass(frozen=True, slots=True)
class Shape:
    """Of one agent, in words of the prompt (a little over a token each) and tokens of answers."""

    turns: int = 6
    system: int = 60
    own: int = 240
    result: int = 30
    answer: int = 16
    pause_s: tuple[float, float] = (0.3, 2.5)  # least and most; log-uniform


@dataclass(slots=True)
class Agent:
    """What one agent says, and how long its tools take; drawn ahead, so that all ways do the same."""

    arrival_s: float
    task: str
    results: list[str]
    pauses_s: list[float]


@dataclass(slots=True)
class Outcome:
    """One round of one way."""

    completion_s: list[float]
    recomputed_tokens: int
    computed_tokens: int
    judged: list[bool]


def draw_agents(shape: Shape, seed: int) -> list[Agent]:
    """The agents of one round."""
    draw = random.Random(seed)
    low, high = shape.pause_s

    def words(count: int) -> str:
        return " ".join(draw.choices(WORDS, k=count))

    return [
        Agent(
            draw.random(),
            words(shape.own),
            [words(shape.result) for _ in range(shape.turns - 1)],
            [low * (high / low) ** draw.random() for _ in range(shape.turns - 1)],
        )
        for _ in range(AGENTS)
    ]


class Count:
    """Prompt tokens computed, and those of them that had been computed before in their session."""

    def __init__(self) -> None:
        self.computed = self.recomputed = 0
        self._known: dict[str, int] = {}  # session -> tokens of its context so far

    def add(self, session: str, prompt: int, cached: int, output: int) -> None:
        known = self._known.get(session, 0)
        self.computed += prompt - cached
        self.recomputed += max(0, min(known, prompt) - cached - 1)
        self._known[session] = prompt + output - 1  # the last token drawn has no KV


# -- stock: a client that knows requests


async def run_stock(url: str, agents: Sequence[Agent], shape: Shape, model: Path) -> Outcome:
    import aiohttp

    tokenizer, count = HFTokenizer(model), Count()
    system = " ".join(WORDS * 9)[: shape.system * 6]
    ends: list[float] = []
    sampling = {"max_new_tokens": shape.answer, "temperature": 0, "ignore_eos": True}

    async def live(agent: Agent, name: str, http: aiohttp.ClientSession) -> None:
        await asyncio.sleep(agent.arrival_s)
        came_s = time.perf_counter()
        ids = tokenizer.chat([Message("system", system), Message("user", agent.task)])
        for turn in range(shape.turns):
            body = {"input_ids": ids, "sampling_params": sampling}
            async with http.post(f"{url}/generate", json=body) as answer:
                said = await answer.json()
            meta = said["meta_info"]
            count.add(name, len(ids), meta["cached_tokens"], meta["completion_tokens"])
            if turn + 1 < shape.turns:
                await asyncio.sleep(agent.pauses_s[turn])
                follow = tokenizer.follow([Message("tool", agent.results[turn])])
                ids = [*ids, *said["output_ids"], *(follow or [])]
        ends.append(time.perf_counter() - came_s)

    timeout = aiohttp.ClientTimeout(total=None)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as http:
        tasks = [live(agent, str(index), http) for index, agent in enumerate(agents)]
        await asyncio.gather(*tasks)
    return Outcome(ends, count.recomputed, count.computed, [])


# -- Tenter: an `async def` workflow


async def run_tenter(
    url: str,
    agents: Sequence[Agent],
    shape: Shape,
    model: Path,
    policy: str | None,
    working_set: float | None = None,
) -> Outcome:
    trace, count = MemoryTrace(), Count()
    system = " ".join(WORDS * 9)[: shape.system * 6]
    sampling = Sampling(max_tokens=shape.answer, ignore_eos=True)
    ends: list[float] = []

    async def search(agent: int, turn: int) -> str:
        """Look something up."""
        await asyncio.sleep(agents[agent].pauses_s[turn])
        return agents[agent].results[turn]

    tool = python_tool(search, effect="idempotent")

    async def work(agent: int) -> None:
        program: Any = current_program.get()
        chat = program.session(system)
        await chat.ask(agents[agent].task, sampling=sampling)
        for turn in range(shape.turns - 1):
            result = await program.use(tool, {"agent": agent, "turn": turn})
            await chat.give([result], sampling=sampling)

    workflow = Workflow("agent", (Input("agent"),), program=work)
    limits = {"working_set": working_set} if working_set else {}
    scheduling = Scheduling(retention=policy, limits=limits)
    spec = ModelSpec(backend="sglang", options={"url": url, "tokenizer": str(model)})
    async with (
        open_replicas(spec) as replicas,
        open_host({"default": replicas}, trace=trace, scheduling=scheduling) as host,
    ):
        programs = Programs(host, workflow)

        async def live(index: int) -> None:
            await asyncio.sleep(agents[index].arrival_s)
            came_s = time.perf_counter()
            over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

            def ended(value: Any, error: Exception | None) -> None:
                if error is not None:
                    over.set_exception(error)
                else:
                    over.set_result(None)

            programs.arrive(index, {"agent": index}, ended)
            await over
            ends.append(time.perf_counter() - came_s)

        await asyncio.gather(*(live(index) for index in range(len(agents))))
    judged: list[bool] = []
    for _, item in trace.records:
        if isinstance(item, CallEnded):
            count.add(item.program, item.prompt_tokens, item.cached_tokens, item.output_tokens)
        elif isinstance(item, PinJudged):
            judged.append(item.held)
    return Outcome(ends, count.recomputed, count.computed, judged)


# -- all of it


def flush(url: str) -> None:
    """Empty a server's cache; it must be idle, and is so a moment after its last answer."""
    import urllib.request

    request = urllib.request.Request(f"{url}/flush_cache?timeout=30", method="POST")
    with urllib.request.urlopen(request, timeout=40) as answer:
        assert answer.status == 200


def pool_tokens(shape: Shape, model: Path) -> int:
    """Room for half of the agents' sessions at their full length."""
    tokenizer = HFTokenizer(model)
    agent = draw_agents(shape, 0)[0]
    system = " ".join(WORDS * 9)[: shape.system * 6]
    first = tokenizer.chat([Message("system", system), Message("user", agent.task)])
    follow = [tokenizer.follow([Message("tool", text)]) or [] for text in agent.results]
    session = len(first) + sum(map(len, follow)) + shape.turns * shape.answer
    return session * AGENTS // 2


def measure(figures: Figures, options: argparse.Namespace) -> None:
    shape = Shape(turns=4, pause_s=(0.2, 1.0)) if options.quick else Shape()
    model = tiny_path() if options.model == "tiny" else mid_model(MADE)
    pool = pool_tokens(shape, model)
    flags = ("--model-path", str(model), "--max-running-requests", str(RUNNING))
    outcomes: dict[str, list[Outcome]] = {}
    with tempfile.TemporaryDirectory() as logs:
        extra = {"stock": (), "session": ("--enable-session-radix-cache",)}
        up = {
            name: servers.server(name, *extra.get(name, ()), *flags, **_at(logs, pool))
            for name in ("stock", "session", "plugin")
        }
        try:
            for each in up.values():
                each.launch()
            for each in up.values():
                each.wait()
            print("servers are up", file=sys.stderr)
            for round_ in range(options.rounds or (1 if options.quick else 5)):
                agents = draw_agents(shape, round_)
                for way in ("stock", "tenter", "session", "plugin"):
                    url = up["stock" if way == "tenter" else way].url
                    flush(url)
                    if way == "stock":
                        run = run_stock(url, agents, shape, model)
                    else:
                        run = run_tenter(
                            url, agents, shape, model, options.policy, options.working_set
                        )
                    outcome = asyncio.run(run)
                    outcomes.setdefault(way, []).append(outcome)
                    mean_s = statistics.mean(outcome.completion_s)
                    said = f"round {round_ + 1}, {way}: {mean_s:.1f} s, "
                    said += f"{outcome.recomputed_tokens} recomputed"
                    print(said, file=sys.stderr)
        finally:
            servers.close_all(up.values())
    setup = {
        "agents": AGENTS,
        "turns": shape.turns,
        "pool_tokens": pool,
        "model": options.model,
        "rounds": len(outcomes["stock"]),
    }
    report(figures, outcomes, setup)


def _at(logs: str, pool: int) -> dict[str, Any]:
    return {"folder": Path(logs), "pool_tokens": pool}


def report(figures: Figures, outcomes: dict[str, list[Outcome]], setup: dict[str, Any]) -> None:
    def middle(way: str, value: Any) -> float:
        return statistics.median(value(outcome) for outcome in outcomes[way])

    def recomputed(outcome: Outcome) -> float:
        return outcome.recomputed_tokens

    def completion(outcome: Outcome) -> float:
        return statistics.mean(outcome.completion_s)

    for way, found in outcomes.items():
        told = {"retention": way, **setup}
        figures.add("completion_s", middle(way, completion), unit="s", **told)
        figures.add("recomputed_tokens", middle(way, recomputed), unit="tokens", **told)
        if way == "stock":
            continue
        ratios = {"recomputed_ratio": recomputed, "completion_ratio": completion}
        for metric, value in ratios.items():
            ratio = middle(way, value) / max(1e-9, middle("stock", value))
            figures.add(metric, ratio, middle("stock", value), **told)
        held = [held for outcome in found for held in outcome.judged]
        if held:
            figures.add("pins_held", statistics.mean(held), pins=len(held), **told)


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--data", default="../shared/data", help="not read")
    parser.add_argument("--rounds", type=int, help="of which medians count; 5, or 1 if quick")
    parser.add_argument(
        "--model", choices=("tiny", "mid"), help="tiny, or a larger one: minutes a round"
    )
    parser.add_argument("--policy", help="retention policy; Tenter's default if not given")
    parser.add_argument("--working-set", type=float, help="share of the pool for live agents")
    options = parser.parse_args()
    options.model = options.model or "tiny"
    figures = Figures("sglang_agents")
    measure(figures, options)
    figures.table("Agents with tools on one SGLang server (CPU)")


if __name__ == "__main__":
    main()
