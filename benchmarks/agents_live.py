"""Agents with tools on the embedded engine, and ten thousand of them in virtual time.

    python benchmarks/agents_live.py [--quick] [--rounds N] [--mode live|simulated] [--agents N]

Half of the agents have the tools of SWE-Bench agents, half those of BFCL's web search, as the
Continuum paper tells their turns and times (`tenter.runtime.replay.synthetic`). All come at once,
and the KV memory holds the contexts of a quarter of those that are live. Four ways to keep KV while
a tool runs, each behind the same scheduler (program FCFS), interleaved, medians over the rounds, of
which each draws other agents:

    never          nothing is kept: the least recently used goes first (LRU)
    fixed          a fixed time to live
    continuum      Continuum's time to live (2511.02230)
    shadow-price   ours, the default

live: 64 agents as an `async def` workflow, on the tiny model. The engine computes every step, and a
step takes the CPU time that it takes; tools sleep, and the clock is virtual, so that others who use
the machine count little. Contexts are a hundred-twentieth of the paper's, and tools twenty times as
fast, which leaves a context's computing about as long beside a tool as on the paper's hardware.

simulated: 10,000 agents of the paper's sizes, 1,024 live at once (the default), Llama-3.1-8B on so
many H100s that their KV holds a quarter of those. One round, if not told otherwise: nothing in it
varies but the draw, and that is of ten thousand.

`completion_s`: mean time from arrival to end. `recomputed_tokens`: of prompts, computed beyond the
first time. `completion_over_best_named`: ours over the best of the other three.
"""

import argparse
import asyncio
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from _common import Figures, one_thread

one_thread()

import anyio

from tenter.kvpolicy import DEFAULT_POLICY
from tenter.planner.graph import Sampling
from tenter.planner.hardware import kv_capacity_tokens
from tenter.runtime.backends.embedded import EmbeddedBackend
from tenter.runtime.backends.sim import named_presets
from tenter.runtime.calls import Chunk, Request
from tenter.runtime.clock import VirtualLoop, now
from tenter.runtime.engine.counters import StepReport
from tenter.runtime.models import tiny_path
from tenter.runtime.replay import Program, Workload
from tenter.runtime.replay.synthetic import BFCL_WEB, SWE_BENCH, synthetic
from tenter.runtime.replay.synthetic import Figures as Kind
from tenter.runtime.run.context import current_program
from tenter.runtime.run.host import Host
from tenter.runtime.run.local import open_host
from tenter.runtime.run.program import Programs
from tenter.runtime.simulate import Setup, simulate
from tenter.runtime.workflow import Input, Scheduling, Workflow
from tenter.tools import Tool, python_tool

AGENTS, SIMULATED, LIVE = 64, 10_000, 1_024
QUICK_AGENTS, QUICK_SIMULATED = 10, 160
ROUNDS, QUICK_ROUNDS, SIMULATED_ROUNDS = 5, 1, 1
SHARE = 0.25  # of the live agents' contexts that the KV memory holds
CONTEXT_SCALE, TOOL_SCALE = 1 / 120, 1 / 20  # of the live agents
FIXED_S = 10.0
PAGE = 16
OURS = DEFAULT_POLICY
POLICIES = ("never", "fixed", "continuum", OURS)
Way = Callable[[str, int], "Outcome"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One round of one policy."""

    completion_s: float
    recomputed_tokens: int
    hit_rate: float


def mixed(kinds: Sequence[Kind], count: int, seed: int) -> Workload:
    """`count` agents of two kinds in turn, all there at once."""

    def make() -> Iterator[Program]:
        half = (count + 1) // 2
        drawn = [iter(synthetic(kind, half, 1e9, seed + n)) for n, kind in enumerate(kinds)]
        for index in range(count):
            program = next(drawn[index % len(drawn)])
            yield Program(program.arrival_s, f"agent-{index}", program.stages, program.kind)

    return Workload("agents", make)


def context_tokens(program: Program) -> int:
    """Of its last turn, answer included."""
    *_, last = program.turns
    return last.prompt_tokens + last.output_tokens


def policy_name(policy: str, scale: float) -> str:
    return f"fixed:{FIXED_S * scale:g}" if policy == "fixed" else policy


# ---- live --------------------------------------------------------------------------------------


def scaled(kind: Kind) -> Kind:
    """A kind of agents whose contexts the tiny model can hold."""

    def tokens(figure: tuple[float, float]) -> tuple[float, float]:
        return figure[0] * CONTEXT_SCALE, figure[1] * CONTEXT_SCALE

    return replace(
        kind,
        tokens=tokens(kind.tokens),
        output_tokens=(12.0, 4.0),
        system_tokens=int(kind.system_tokens * CONTEXT_SCALE),
    )


class Meter:
    """Prices a step by the CPU time since the one before it."""

    def __init__(self) -> None:
        self._mark_s = time.process_time()

    def __call__(self, report: StepReport) -> float:
        here_s = time.process_time()
        took_s, self._mark_s = here_s - self._mark_s, here_s
        return took_s


class Counting(EmbeddedBackend):
    """Counts, by session, the prompt tokens that were computed though they had been before."""

    recomputed = prompt = cached = 0

    async def generate(self, request: Request) -> Any:
        known: dict[str, int] = self.__dict__.setdefault("known", {})
        async for chunk in super().generate(request):
            self._count(known, request, chunk)
            yield chunk

    def _count(self, known: dict[str, int], request: Request, chunk: Chunk) -> None:
        usage = chunk.usage
        if usage is None or request.session is None:
            return
        before = known.get(request.session, 0) // PAGE * PAGE  # the cache knows whole pages
        self.recomputed += max(0, before - usage.cached_tokens)
        self.prompt += usage.prompt_tokens
        self.cached += usage.cached_tokens
        # the last token drawn has no KV yet
        known[request.session] = usage.prompt_tokens + usage.output_tokens - 1


def tools_of(agents: Sequence[Program], texts: random.Random) -> dict[str, Tool]:
    """Tools that sleep for as long as the agent's turn says, and answer with so many words."""
    pauses = {a.name: [t.pause for t in a.turns] for a in agents}
    sizes = {a.name: sizes_of(a) for a in agents}

    async def answer(command: str, agent: str, turn: int) -> str:
        pause = pauses[agent][turn]
        assert pause is not None, command
        await anyio.sleep(pause.seconds * TOOL_SCALE)
        return words(texts, sizes[agent][turn + 1])

    names = sorted({pause.tool for found in pauses.values() for pause in found if pause})
    return {n: python_tool(answer, name=n, effect="idempotent", timeout_s=None) for n in names}


def sizes_of(program: Program) -> list[int]:
    """What each turn adds to the chat: the tokens of the task, and of each result."""
    turns, sizes, before = list(program.turns), list[int](), 0
    for turn in turns:
        sizes.append(max(1, turn.prompt_tokens - before))
        before = turn.prompt_tokens + turn.output_tokens
    return sizes


def words(draw: random.Random, tokens: int) -> str:
    """Text of about so many tokens of the tiny model, that nobody else has said."""
    return " ".join(f"{draw.randrange(100)}" for _ in range(max(1, tokens // 3)))


def live(count: int, policy: str, seed: int) -> Outcome:
    """The agents on the engine, whose steps take the CPU time that they take."""
    options = {"loop_factory": VirtualLoop}
    return anyio.run(partial(_live, count, policy, seed), backend_options=options)


async def _live(count: int, policy: str, seed: int) -> Outcome:
    agents = list(mixed([scaled(SWE_BENCH), scaled(BFCL_WEB)], count, seed))
    kv_tokens = int(SHARE * sum(map(context_tokens, agents)))
    tools, texts, took_s = (
        tools_of(agents, random.Random(seed)),
        random.Random(-seed),
        list[float](),
    )

    async def work(agent: int) -> None:
        program, began_s = agents[agent], now()
        here: Any = current_program.get()
        chat = here.session("Answer briefly, and use your tools.")
        sizes, said = sizes_of(program), words(texts, sizes_of(program)[0])
        for index, turn in enumerate(program.turns):
            sampling = Sampling(max_tokens=turn.output_tokens, ignore_eos=True)
            await (chat.give([said], (), sampling) if index else chat.ask(said, (), sampling))
            if turn.pause is not None and index + 1 < len(sizes):
                given = {"command": turn.pause.word, "agent": program.name, "turn": index}
                said = await chat.use(tools[turn.pause.tool], given)
        took_s.append(now() - began_s)

    backend = Counting(
        tiny_path(),
        device="cpu",
        kv_tokens=max(kv_tokens, 2 * max(map(context_tokens, agents))),
        chunk_tokens=512,
        threads=1,
        inline=True,
        step_cost_s=Meter(),
    )
    scheduling = Scheduling(retention=policy_name(policy, TOOL_SCALE))
    async with backend, open_host({"default": backend}, scheduling=scheduling) as host:
        await all_at_once(host, work, len(agents))
    return Outcome(statistics.fmean(took_s), backend.recomputed, backend.cached / backend.prompt)


async def all_at_once(host: Host, work: Callable[..., Any], count: int) -> None:
    """Run `work` for so many agents, which come together; none of them may fail."""
    programs = Programs(host, Workflow("agent", (Input("agent"),), program=work))
    ended = [asyncio.get_running_loop().create_future() for _ in range(count)]

    def over(future: "asyncio.Future[None]", value: Any, error: Exception | None) -> None:
        assert error is None, error
        future.set_result(None)

    for row, future in enumerate(ended):
        programs.arrive(row, {"agent": row}, partial(over, future))
    await asyncio.gather(*ended)


# ---- simulated ---------------------------------------------------------------------------------


def simulated(count: int, policy: str, seed: int) -> Outcome:
    """The agents in virtual time."""
    workload = mixed([SWE_BENCH, BFCL_WEB], count, seed)
    at_once = min(count, LIVE)
    wanted = SHARE * statistics.fmean(map(context_tokens, workload)) * at_once
    replicas = max(1, round(wanted / kv_capacity_tokens(*named_presets("h100", "llama-3.1-8b"))))
    setup = Setup(replicas=replicas, policy=policy_name(policy, 1.0), page_tokens=256)
    found = simulate(workload, setup)
    assert found.programs + found.failed == count
    return Outcome(found.mean_s, found.recomputed_tokens, found.hit_rate)


# ---- all ---------------------------------------------------------------------------------------


def compare(figures: Figures, mode: str, way: Way, rounds: int, **about: Any) -> None:
    """All policies, interleaved; their medians."""
    found: dict[str, list[Outcome]] = {policy: [] for policy in POLICIES}
    for seed in range(1, rounds + 1):
        for policy in POLICIES:
            began_s = time.monotonic()
            found[policy].append(way(policy, seed))
            took_s = time.monotonic() - began_s
            print(f"{mode} {seed} {policy}: {found[policy][-1]}, {took_s:.0f} s", file=sys.stderr)
    setup = {"mode": mode, "rounds": rounds, **about}
    means: dict[str, float] = {}
    for policy, outcomes in found.items():
        means[policy] = statistics.median(one.completion_s for one in outcomes)
        recomputed = statistics.median(one.recomputed_tokens for one in outcomes)
        rate = statistics.median(one.hit_rate for one in outcomes)
        figures.add("completion_s", means[policy], unit="s", policy=policy, **setup)
        figures.add("recomputed_tokens", recomputed, unit="tokens", policy=policy, **setup)
        figures.add("hit_rate", rate, unit="share", policy=policy, **setup)
    best = min((name for name in POLICIES if name != OURS), key=lambda name: means[name])
    ratio = means[OURS] / means[best]
    figures.add("completion_over_best_named", ratio, policy=OURS, best=best, **setup)


def arguments(doc: str | None) -> argparse.Namespace:
    """What a benchmark of agents is told on the command line."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=0, help=f"{ROUNDS} if not given")
    parser.add_argument("--mode", choices=("live", "simulated"), help="only this one")
    parser.add_argument("--agents", type=int, default=0, help="another number of agents")
    parser.add_argument("--data", help="none is read")
    return parser.parse_args()


def main() -> None:
    options = arguments(__doc__)
    quick = options.quick
    rounds = options.rounds or (QUICK_ROUNDS if quick else ROUNDS)
    figures = Figures("agents_live")
    if options.mode != "simulated":
        count = options.agents or (QUICK_AGENTS if quick else AGENTS)
        live(1, OURS, 0)  # the first one takes longer
        compare(figures, "live", partial(live, count), rounds, agents=count)
    if options.mode != "live":
        count = options.agents or (QUICK_SIMULATED if quick else SIMULATED)
        once = options.rounds or SIMULATED_ROUNDS
        compare(figures, "simulated", partial(simulated, count), once, agents=count)
    figures.table(f"Agents that wait for tools{' (quick: a sample)' if quick else ''}")


if __name__ == "__main__":
    main()
