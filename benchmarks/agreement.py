"""The simulator beside the engine that it stands for: the same agents on both, on this machine.

Agents with tools take turns on the embedded engine (the tiny model) behind the real scheduler, and
on the simulator. The engine computes every step; what a step takes is the CPU time of this process,
and the clock of all else is virtual, so that others who use the machine count little. The simulator
is calibrated on other agents than it is judged on (drawn from another seed), whose runs lie between
theirs, since a processor that others use too is not always as fast: its step times are one fit of
four constants, by least squares, to the steps of those runs, of which it knows nothing else. Rounds
over the policies are interleaved, and their mean counts. KV memory holds about half of what the
agents would keep.

    python benchmarks/agreement.py [--quick] [--data DIR]

`completion_error`: mean completion time, simulated over measured, less 1; `served_error`: the same
without the seconds that tools take, which both know. `agent_error_median`: of the agents' times in
order, in size. `ranking_kept`: the share of pairs of policies which both
put in the same order; pairs that differ by less than TIE in the measured run are not counted.
No data is read.
"""

import argparse
import asyncio
import random
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from _common import Figures, one_thread

one_thread()

import anyio
import numpy as np

from tenter.kvpolicy import named
from tenter.planner.graph import Sampling
from tenter.runtime.backends.embedded import EmbeddedBackend
from tenter.runtime.backends.replica import Draw, Replica
from tenter.runtime.calls import CallId, Chunk, Request, SessionId
from tenter.runtime.clock import VirtualLoop, now
from tenter.runtime.engine.counters import StepReport
from tenter.runtime.models import tiny_path
from tenter.runtime.replay import Pause, Program, Span, Turn, Workload
from tenter.runtime.scheduler.core import Core
from tenter.runtime.scheduler.events import ProgramEnded, ToolEnded, ToolStarted
from tenter.runtime.scheduler.limits import Limits
from tenter.runtime.scheduler.loop import Answer, Scheduler
from tenter.runtime.simulate import Result, Setup, simulate

# Retention, with the default admission by working set and without (UNBOUNDED).
UNBOUNDED = " unbounded"
POLICIES = ("never unbounded", "forever unbounded", "continuum unbounded", "never", "shadow-price")
QUICK = ("never unbounded", "forever unbounded", "shadow-price")
KV_TOKENS, CHUNK, PAGE, OUTPUT = 4_608, 512, 16, 24
TIE = 0.05
OTHERS = 1_000  # added to a seed: the agents that the simulator is calibrated on
VOCAB = range(3, 1_000)


# ---- the agents --------------------------------------------------------------------------------


def agents(count: int, turns: int, seed: int) -> Workload:
    """Conversations that grow, with tools of which some are slow."""
    return Workload("agreement", lambda: _agents(count, turns, seed))


def _agents(count: int, turns: int, seed: int) -> Iterator[Program]:
    draw, arrival_s = random.Random(seed), 0.0
    for index in range(count):
        tokens = draw.randrange(600, 1_200)
        stages: list[tuple[Turn]] = []
        for turn in range(turns):
            seconds = draw.uniform(0.03, 0.12) if draw.random() < 0.7 else draw.uniform(0.4, 1.0)
            tool = "edit" if seconds < 0.3 else "build"
            pause = Pause(seconds, "tool", tool) if turn < turns - 1 else None
            stages.append((Turn((Span(index, 0, tokens),), OUTPUT, pause),))
            tokens += OUTPUT + draw.randrange(30, 90)
        yield Program(arrival_s, f"agent-{index}", tuple(stages), "agent")
        arrival_s += draw.expovariate(12.0)


# ---- the engine --------------------------------------------------------------------------------


class Meter:
    """Prices a step by the CPU time since the one before it, and notes what it did."""

    def __init__(self) -> None:
        self.steps: list[tuple[StepReport, float]] = []
        self._mark_s = time.process_time()

    def __call__(self, report: StepReport) -> float:
        here_s = time.process_time()
        took_s, self._mark_s = here_s - self._mark_s, here_s
        self.steps.append((report, took_s))
        return took_s


class Call:
    """A turn, as the runtime would submit it. The prompt's ids are drawn, its answer is the engine's."""

    model, step, shared_tokens, gang = "m", "turn", 0, 0

    def __init__(self, program: str, index: int, prompt: list[int]) -> None:
        self.program = program
        self.request = Request(
            CallId(f"{program}/{index}"),
            tuple(prompt),
            Sampling(max_tokens=OUTPUT, ignore_eos=True),
            session=SessionId(program),
            stream=False,
        )
        self.answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def heard(self, chunk: Chunk) -> None: ...

    def lost(self) -> None: ...

    def done(self, answer: Answer) -> None:
        self.answer.set_result(answer)


@dataclass(frozen=True, slots=True)
class Measured:
    """What the engine's run came to."""

    completion_s: dict[str, float]
    steps: list[tuple[StepReport, float]]


def limits(policy: str) -> Limits:
    """The admission that goes with a policy."""
    return Limits(working_set=None) if policy.endswith(UNBOUNDED) else Limits()


async def measured(workload: Workload, policy: str) -> Measured:
    """The agents on the embedded engine, whose steps take the CPU time that they take."""
    meter, took_s = Meter(), dict[str, float]()
    backend = EmbeddedBackend(
        tiny_path(),
        device="cpu",
        kv_tokens=KV_TOKENS,
        chunk_tokens=CHUNK,
        threads=1,
        inline=True,
        step_cost_s=meter,
    )
    core = Core("fcfs", named(policy.removesuffix(UNBOUNDED)), limits=limits(policy))
    async with backend, Scheduler(core, {"w": backend}, {"w": "m"}) as scheduler:

        async def run(row: int, program: Program) -> None:
            await anyio.sleep(program.arrival_s)
            name, started, ids = program.name, asyncio.Event(), random.Random(row)
            begun_s = now()
            scheduler.arrive(name, row, "agent", started.set)
            await started.wait()
            prompt: list[int] = []
            for index, (turn,) in enumerate(program.stages):
                prompt += ids.choices(VOCAB, k=turn.prompt_tokens - len(prompt))
                call = Call(name, index, prompt)
                scheduler.submit(call)
                answer = await call.answer
                assert answer.error is None, answer.error
                prompt += answer.token_ids
                if turn.pause is not None:
                    about = {"program": name, "step": "tool", "tool": turn.pause.tool}
                    scheduler.send(ToolStarted(**about, session=name))
                    await anyio.sleep(turn.pause.seconds)
                    ended = ToolEnded(**about, session=name, seconds=turn.pause.seconds, ok=True)
                    scheduler.send(ended)
            scheduler.send(ProgramEnded(program=name, row=row, ok=True))
            took_s[name] = now() - begun_s

        meter.steps.clear()
        async with anyio.create_task_group() as tasks:
            for row, program in enumerate(workload):
                tasks.start_soon(run, row, program)
    return Measured(took_s, meter.steps)


def on_engine(workload: Workload, policy: str) -> Measured:
    return anyio.run(measured, workload, policy, backend_options={"loop_factory": VirtualLoop})


# ---- the simulator -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fit:
    """Seconds of a step: so much for itself, and per row, token, and token of context."""

    step_s: float
    row_s: float
    token_s: float
    context_s: float

    def __call__(self, rows: int, tokens: int, context: int, pairs: float) -> float:
        return self.step_s + self.row_s * rows + self.token_s * tokens + self.context_s * context

    @classmethod
    def of(cls, steps: list[tuple[StepReport, float]]) -> "Fit":
        """Least squares, each step weighted by 1 / its time, so that the sum of all times is kept."""
        limit = 8 * statistics.median(seconds for _, seconds in steps)
        rows: list[list[float]] = []
        times: list[float] = []
        for report, seconds in steps:
            tokens = report.prefill_tokens + report.decode_rows
            if tokens and seconds > 0 and (report.prefill_tokens or seconds < limit):
                active = report.decode_rows + (report.prefill_tokens > 0)
                about = (1.0, active, tokens, report.context_tokens)
                rows.append([one / seconds**0.5 for one in about])
                times.append(seconds**0.5)
        found, *_ = np.linalg.lstsq(np.array(rows), np.array(times), rcond=None)
        return cls(*(max(0.0, float(one)) for one in found))


FITTED: list[Fit] = []  # the one of this run


class Here(Setup):
    """This machine's engine: its memory, its pages, and its step times."""

    @property
    def kv_tokens(self) -> int:
        return KV_TOKENS

    def replica(self, draw: Draw) -> Replica:
        return Replica(
            *self.presets,
            KV_TOKENS,
            draw,
            max_running=64,
            chunk_tokens=CHUNK,
            page_tokens=PAGE,
            step_cost=FITTED[-1],
        )


def simulated(workload: Workload, policy: str) -> Result:
    setup = Here(
        policy=policy.removesuffix(UNBOUNDED),
        working_set=limits(policy).working_set,
        limit_tokens=OUTPUT,
        page_tokens=PAGE,
        max_running=64,
    )
    return simulate(workload, setup)


# ---- both --------------------------------------------------------------------------------------


def compare(figures: Figures, count: int, turns: int, seed: int, quick: bool) -> None:
    """All policies on both, and whether they agree."""
    workload = agents(count, turns, seed)
    policies, rounds = (QUICK if quick else POLICIES), 2 if quick else 3
    others = agents(count, turns, OTHERS + seed)
    runs: dict[str, list[Measured]] = {policy: [] for policy in policies}
    steps: list[tuple[StepReport, float]] = []
    for _ in range(rounds):
        for policy in policies:
            if not quick or policy == policies[0]:
                steps += on_engine(others, policy).steps
            runs[policy].append(on_engine(workload, policy))
    FITTED[:] = [Fit.of(steps)]
    tools = [sum(t.pause.seconds for t in one.turns if t.pause) for one in workload]
    tools_s = statistics.fmean(tools)
    engine: dict[str, float] = {}
    model: dict[str, float] = {}
    for policy, found in runs.items():
        guess = simulated(workload, policy)
        times = [sorted(one.completion_s.values()) for one in found]
        agent_s = [statistics.fmean(drawn) for drawn in zip(*times, strict=True)]
        engine[policy], model[policy] = statistics.fmean(agent_s), guess.mean_s
        setup = {"policy": policy, "agents": count, "turns": turns, "seed": seed}
        figures.add("mean_completion_s", model[policy], engine[policy], "s", **setup)
        figures.add("completion_error", model[policy] / engine[policy] - 1, unit="share", **setup)
        served = (model[policy] - tools_s) / (engine[policy] - tools_s) - 1
        figures.add("served_error", served, unit="share", **setup, tools_s=round(tools_s, 2))
        pairs = zip(sorted(guess.completion_s), agent_s, strict=True)
        errors = [abs(one / other - 1) for one, other in pairs]
        figures.add("agent_error_median", statistics.median(errors), unit="share", **setup)
    kept = [
        (engine[one] < engine[other]) == (model[one] < model[other])
        for one, other in combinations(policies, 2)
        if abs(engine[one] / engine[other] - 1) >= TIE
    ]
    setup = {"pairs": len(kept), "tie": TIE, "agents": count, "turns": turns, "seed": seed}
    if kept:
        figures.add("ranking_kept", sum(kept) / len(kept), unit="share", **setup)


def main() -> None:
    about = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--data", type=Path, help="not used: the agents are drawn")
    options = parser.parse_args()
    figures = Figures("agreement")
    on_engine(agents(2, 2, 0), "never")  # what is done once is done
    for seed in (1,) if options.quick else (1, 2, 3):
        count, turns = (10, 4) if options.quick else (16, 6)
        compare(figures, count, turns, seed, options.quick)
    worst = max(abs(row["value"]) for row in figures.rows if row["metric"] == "completion_error")
    figures.add("worst_completion_error", worst, unit="share")
    figures.table("The simulator beside the embedded engine")


if __name__ == "__main__":
    main()
