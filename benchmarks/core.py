"""What one decision of the scheduler's core costs, with many programs and a long queue.

    python benchmarks/core.py [--quick] [--data DIR]

The core alone, without I/O: agents with sessions that call, pause for tools and call again, on one
worker whose slots and memory are full, so that every event meets a long queue and pins that are
weighed against it. `queued` calls wait all the time. Every order; with retention and without; with
limits. CPU microseconds per event (median, mean, and the slowest of a hundred), how the median
grows over a hundredfold queue, and bytes per live program and per queued call.

The mean lies above the median where pins are weighed: every 50 ms of a full worker, each of its
pins is asked what it is worth, which takes a millisecond for a hundred. `us_per_event_mean` with
the policy "never" is that of the core without it.
"""

import argparse
import random
import statistics
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from _common import Figures

from tenter.kvpolicy import named
from tenter.runtime.scheduler.core import Core
from tenter.runtime.scheduler.events import (
    CallEnded,
    CallReady,
    Dispatch,
    Event,
    ProgramArrived,
    ToolEnded,
    ToolStarted,
    WorkerUp,
)
from tenter.runtime.scheduler.limits import Limit, Limits
from tenter.runtime.scheduler.policies import ORDERS

SLOTS, PROMPT, NEW = 256, 2000, 200
TENANTS = 50
ORDER_NAMES = (*ORDERS, "fair:fcfs", "fair:shortest-remaining")
LIMITS = Limits(
    models={"m": Limit(max_running=200, tokens_per_minute=10**9)},
    tenants={"*": Limit(max_running=10, max_live=10**6, tokens_per_minute=10**8)},
    working_set=0.9,
)


class Agents:
    """Drives a core through the events of agents, and times each."""

    def __init__(
        self,
        programs: int,
        queued: int,
        policy: str,
        order: str,
        limits: Limits | None = None,
        seed: int = 0,
    ) -> None:
        self.core = Core(order, named(policy), programs, limits=limits or Limits())
        self.draw = random.Random(seed)
        self.now_s = 0.0
        self.costs_s: list[float] = []
        self.running: list[CallReady] = []
        self.tools: list[str] = []
        self.waiting: dict[str, CallReady] = {}
        self.count = 0
        kv_tokens = (PROMPT + NEW) * SLOTS
        self.tell(WorkerUp(worker="m/0", model="m", max_running=SLOTS, kv_tokens=kv_tokens))
        for index in range(programs):
            self.tell(
                ProgramArrived(
                    program=f"p{index}",
                    row=index,
                    workflow="w",
                    tenant=f"t{index % TENANTS}",
                    deadline_s=self.draw.uniform(10, 10_000),
                )
            )
        for index in range(queued + SLOTS):
            name = f"p{index % programs}"
            self.ask(name, f"{name}/s{index // programs}")
        self.costs_s.clear()

    def tell(self, event: Event) -> None:
        began_ns = time.thread_time_ns()
        commands = self.core.handle(event, self.now_s)
        self.costs_s.append((time.thread_time_ns() - began_ns) / 1e9)
        for command in commands:
            if isinstance(command, Dispatch):
                self.running.append(self.waiting.pop(command.call))

    def ask(self, program: str, session: str) -> None:
        self.count += 1
        ready = CallReady(
            call=f"{program}/{self.count}",
            program=program,
            step="turn",
            model="m",
            prompt_tokens=PROMPT + self.draw.randrange(PROMPT),
            max_tokens=NEW,
            session=session,
            remaining_tokens=self.draw.uniform(1_000, 100_000),
        )
        self.waiting[ready.call] = ready
        self.tell(ready)

    def step(self) -> None:
        """A call ends, its tool starts; a tool ends, and its session calls again."""
        self.now_s += 0.01
        place = self.draw.randrange(len(self.running))
        self.running[place], self.running[-1] = self.running[-1], self.running[place]
        call = self.running.pop()
        session = call.session or ""
        self.tell(
            CallEnded(
                call=call.call,
                program=call.program,
                step="turn",
                finish="stop",
                prompt_tokens=call.prompt_tokens,
                cached_tokens=call.prompt_tokens // 2,
                output_tokens=50,
                prefill_s=0.1,
            )
        )
        tool = self.draw.choice(("search", "run", "read"))
        self.tell(ToolStarted(program=call.program, step="t", tool=tool, session=session))
        self.tools.append(session)
        if len(self.tools) > 100:
            session = self.tools.pop(self.draw.randrange(len(self.tools)))
            program = session.partition("/")[0]
            seconds = self.draw.expovariate(1.0)
            done = ToolEnded(program=program, step="t", tool=tool, seconds=seconds, ok=True)
            self.tell(done)
            self.ask(program, session)


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps")
    parser.add_argument("--data", default="../shared/data", help="not read")
    options = parser.parse_args()
    steps = 1_000 if options.quick else 20_000
    sizes = [(100, 1_000), (1_000, 10_000), (10_000, 100_000)]
    if options.quick:
        del sizes[1]
    figures = Figures("core")
    medians: dict[str, list[float]] = {}
    for programs, queued in sizes:
        for setup in setups():
            about, median_us = measure(figures, programs, queued, steps, **setup)
            medians.setdefault(about, []).append(median_us)
    for about, (least, *_, most) in medians.items():
        setup = dict(zip(("policy", "order", "limits"), about.split(), strict=True))
        figures.add("us_growth_100x", most / least, **setup)
    weigh_memory(figures)
    figures.table("The scheduler's core")


def setups() -> list[dict[str, Any]]:
    """What is measured: orders alone, then the default retention, then limits."""
    alone: list[dict[str, Any]] = [{"policy": "never", "order": name} for name in ORDER_NAMES]
    kept = {"policy": "shadow-price", "order": "fcfs"}
    return [*alone, kept, {**kept, "limits": LIMITS}, {**alone[0], "limits": LIMITS}]


def measure(
    figures: Figures,
    programs: int,
    queued: int,
    steps: int,
    policy: str,
    order: str,
    limits: Limits | None = None,
) -> tuple[str, float]:
    """Report one cell; its name, and its median in microseconds."""
    agents = Agents(programs, queued, policy, order, limits)
    for _ in range(steps):
        agents.step()
    costs = sorted(agents.costs_s)
    limited = "all" if limits else "none"
    setup: dict[str, Any] = {"programs": programs, "queued": queued, "policy": policy}
    setup |= {"order": order, "limits": limited, "events": len(costs)}
    median_us = statistics.median(costs) * 1e6
    figures.add("us_per_event", median_us, unit="us", **setup)
    figures.add("us_per_event_p99", costs[int(len(costs) * 0.99)] * 1e6, unit="us", **setup)
    figures.add("us_per_event_mean", statistics.mean(costs) * 1e6, unit="us", **setup)
    return f"{policy} {order} {limited}", median_us


def weigh_memory(figures: Figures) -> None:
    """Bytes that the core holds for a live program, and for a call that waits."""
    for metric, programs, queued in (("program", 10_000, 0), ("queued_call", 1_000, 20_000)):
        tracemalloc.start()
        agents = Agents(programs, queued, "shadow-price", "fcfs")
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        count = queued or programs
        figures.add(
            f"bytes_per_{metric}", held / count, unit="B", programs=len(agents.core.programs)
        )


if __name__ == "__main__":
    main()
