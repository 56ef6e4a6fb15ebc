"""Agents whose pure tools start while the turn that asks for them is still being written.

    python benchmarks/speculation.py [--quick] [--rounds N] [--mode simulated|live] [--agents N]

Agents of six turns, each of which ends with so many tool calls of about thirty tokens; tools take
the times of BFCL's web search, as the Continuum paper tells them (`replay.synthetic`). What the
engine computes is its own, what it says is written here. `speculate` off and on, interleaved, the
same agents in both; medians over the rounds, of which each draws other agents.

simulated: Llama-3.1-8B on an H100, all agents at once, in virtual time. `drafts`: the share of
turns that write each call in a thought first, and then another one, as a model that changes its
mind does: what was started for the first is wasted. live: the tiny model on the embedded engine,
which computes every step; tools are twenty times as fast, and the clock is virtual: a step takes
`STEP_S` and `TOKEN_S` for each token of a prompt, about what it takes on two cores, so that others
who use the machine do not count.

`completion_s`: mean time from arrival to end; the baseline is that without speculation.
`early_calls`, `wasted_calls`: started before the turn had ended, and of them, for nothing; a share
of all calls. `lead_s`: how long one that was used had run when its turn ended, in the mean. `cpu_s`
is what all of it took this process; the baseline as above.
"""

import json
import random
import statistics
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from _common import Figures, one_thread

one_thread()

import anyio
import msgspec
from agents_live import all_at_once, arguments, words

from tenter.planner.graph import Sampling
from tenter.runtime.backends.embedded import EmbeddedBackend
from tenter.runtime.backends.sim import SimulatedBackend
from tenter.runtime.calls import Chunk, Request
from tenter.runtime.clock import VirtualLoop, now
from tenter.runtime.engine.counters import StepReport
from tenter.runtime.models import tiny_path
from tenter.runtime.replay.synthetic import bfcl_tool
from tenter.runtime.run.context import current_program
from tenter.runtime.run.local import open_host
from tenter.runtime.scheduler.events import Speculated, ToolEnded
from tenter.runtime.trace import MemoryTrace
from tenter.tools import Tool, python_tool

AGENTS, QUICK_AGENTS = 64, 8
LIVE_AGENTS, QUICK_LIVE_AGENTS = 16, 3
ROUNDS, QUICK_ROUNDS = 5, 1
TURNS = 6
PIECE = 4  # characters of a token
RESULT_TOKENS, LIVE_RESULT_TOKENS = 1_000, 30
LIVE_TOOL_SCALE = 1 / 20
STEP_S, TOKEN_S = 0.005, 0.0001


@dataclass(frozen=True, slots=True)
class Agents:
    """What a round's agents are like."""

    count: int
    seed: int
    calls: int  # of a turn
    drafts: float = 0.0
    tool_scale: float = 1.0
    result_tokens: int = RESULT_TOKENS

    def says(self, agent: str, turn: int) -> str:
        """What an agent says in a turn; after the last one, that it is done."""
        if turn >= TURNS:
            return "That is all that there is to know."
        draw = random.Random(f"{self.seed} {agent} {turn}")
        drafted = draw.random() < self.drafts
        asked = [_call(draw, f"{agent} {turn} {place}") for place in range(self.calls)]
        thought = [_call(draw, f"{agent} {turn} thought {place}") for place in range(self.calls)]
        draft = "".join(thought) + "</think>" if drafted else ""
        return f"{draft}I look that up.\n{''.join(asked)}"

    def tools(self) -> list[Tool]:
        """Tools that take their time, which depends on nothing but their argument."""

        async def answer(query: str) -> str:
            draw = random.Random(query)
            await anyio.sleep(bfcl_tool(draw).seconds * self.tool_scale)
            return words(draw, self.result_tokens)

        return [python_tool(answer, name="search", effect="pure", timeout_s=None)]


def _call(draw: random.Random, about: str) -> str:
    query = f"{about} {' '.join(f'{draw.randrange(10_000)}' for _ in range(8))}"
    call = json.dumps({"name": "search", "arguments": {"query": query}})
    return f"<tool_call>{call}</tool_call>\n"


async def scripted(chunks: AsyncIterator[Chunk], pieces: list[str]) -> AsyncIterator[Chunk]:
    """An engine's answer, with a piece of the text in the place of each token's."""
    said = 0
    async for chunk in chunks:
        until = said + len(chunk.token_ids) if chunk.finish is None else len(pieces)
        yield msgspec.structs.replace(chunk, text="".join(pieces[said:until]))
        said = until


def script(agents: Agents, request: Request) -> tuple[Request, list[str]]:
    """The request for an answer as long as what is to be said, and that, token by token."""
    name = next(said.content for said in request.messages if said.role == "user")
    text = agents.says(name, sum(said.role == "assistant" for said in request.messages))
    pieces = [text[start : start + PIECE] for start in range(0, len(text), PIECE)]
    sampling = replace(request.sampling, max_tokens=len(pieces), ignore_eos=True)
    return msgspec.structs.replace(request, sampling=sampling), pieces


class Simulated(SimulatedBackend):
    """Says what the agents say."""

    def __init__(self, agents: Agents) -> None:
        super().__init__(output_tokens=lambda request: request.sampling.max_tokens)
        self._agents = agents

    def generate(self, request: Request) -> AsyncIterator[Chunk]:
        asked, pieces = script(self._agents, request)
        return scripted(super().generate(asked), pieces)


def step_s(step: StepReport) -> float:
    """How long a step of the live engine takes."""
    return STEP_S + TOKEN_S * step.prefill_tokens


class Live(EmbeddedBackend):
    """Computes on the engine, and says what the agents say."""

    def __init__(self, agents: Agents) -> None:
        priced: dict[str, Any] = {"inline": True, "step_cost_s": step_s}
        super().__init__(tiny_path(), device="cpu", kv_tokens=1 << 16, threads=1, **priced)
        self._agents = agents

    def generate(self, request: Request) -> AsyncIterator[Chunk]:
        asked, pieces = script(self._agents, request)
        return scripted(super().generate(asked), pieces)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One round."""

    completion_s: float
    early: float  # share of all calls
    wasted: float
    lead_s: float
    cpu_s: float


def measured(mode: str, agents: Agents, speculate: bool) -> Outcome:
    """The agents, all at once."""
    run = partial(_run, Simulated if mode == "simulated" else Live, agents, speculate)
    return anyio.run(run, backend_options={"loop_factory": VirtualLoop})


async def _run(backend_of: Any, agents: Agents, speculate: bool) -> Outcome:
    took_s, trace, tools = list[float](), MemoryTrace(), agents.tools()
    cpu_s = time.process_time()

    async def work(agent: int) -> None:
        program, began_s = current_program.get(), now()
        assert program is not None
        chat = program.session("You answer with the help of tools.")
        sampling, turns = Sampling(max_tokens=4096), TURNS + 1
        await chat.run(f"agent-{agent}", tools, sampling, turns, speculate=speculate)
        took_s.append(now() - began_s)

    async with backend_of(agents) as backend, open_host({"default": backend}, trace=trace) as host:
        await all_at_once(host, work, agents.count)
    records = [record for _, record in trace.records]
    calls = sum(isinstance(record, ToolEnded) for record in records)
    early = [record for record in records if isinstance(record, Speculated)]
    leads = [record.seconds for record in early if record.used]
    return Outcome(
        statistics.fmean(took_s),
        len(early) / calls,
        (len(early) - len(leads)) / calls,
        statistics.fmean(leads) if leads else 0.0,
        time.process_time() - cpu_s,
    )


def compare(figures: Figures, mode: str, agents: Agents, rounds: int) -> None:
    """Without and with, interleaved; their medians."""
    off, on = list[Outcome](), list[Outcome]()
    for seed in range(1, rounds + 1):
        drawn = replace(agents, seed=seed)
        off.append(measured(mode, drawn, speculate=False))
        on.append(measured(mode, drawn, speculate=True))
    setup = {"mode": mode, "agents": agents.count, "calls": agents.calls, "drafts": agents.drafts}

    def median(name: str, outcomes: list[Outcome]) -> float:
        return statistics.median(getattr(one, name) for one in outcomes)

    for name in ("completion_s", "cpu_s"):
        both = median(name, on), median(name, off)
        figures.add(name, *both, unit="s", **setup, rounds=rounds)
    for name in ("early", "wasted"):
        share = median(name, on)
        figures.add(f"{name}_calls", share, unit="share", **setup, rounds=rounds)
    figures.add("lead_s", median("lead_s", on), unit="s", **setup, rounds=rounds)
    saved = statistics.median(
        1 - with_it.completion_s / without.completion_s
        for without, with_it in zip(off, on, strict=True)
    )
    figures.add("completion_saved", saved, unit="share", **setup, rounds=rounds)


def main() -> None:
    options = arguments(__doc__)
    quick = options.quick
    rounds = options.rounds or (QUICK_ROUNDS if quick else ROUNDS)
    figures = Figures("speculation")
    if options.mode != "live":
        count = options.agents or (QUICK_AGENTS if quick else AGENTS)
        for calls, drafts in ((1, 0.0), (2, 0.0), (4, 0.0), (2, 0.2)):
            compare(figures, "simulated", Agents(count, 0, calls, drafts), rounds)
    if options.mode != "simulated":
        count = options.agents or (QUICK_LIVE_AGENTS if quick else LIVE_AGENTS)
        scale = {"tool_scale": LIVE_TOOL_SCALE, "result_tokens": LIVE_RESULT_TOKENS}
        measured("live", Agents(1, 0, 1, **scale), speculate=True)  # the first one takes longer
        for calls in (1, 2, 4):
            compare(figures, "live", Agents(count, 0, calls, **scale), rounds)
    figures.table(f"Tools that start early{' (quick: a sample)' if quick else ''}")


if __name__ == "__main__":
    main()
