"""What one decision of the scheduler's core costs, with many programs and a long queue.

    python benchmarks/core.py [--quick] [--data DIR]

The core alone, without I/O: agents with sessions that call, pause for tools and call again, on one
worker whose slots and memory are full, so that every event meets a long queue and pins that are
weighed against it. `queued` calls wait all the time. CPU microseconds per event (medians, and the
slowest of a hundred), and bytes per live program.
"""

import argparse
import random
import statistics
import sys
import time
import tracemalloc
from pathlib import Path

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
from tenter.runtime.scheduler.policies import ORDERS

SLOTS, PROMPT, NEW = 256, 2000, 200


class Agents:
    """Drives a core through the events of agents, and times each."""

    def __init__(self, programs: int, queued: int, policy: str, order: str, seed: int = 0) -> None:
        self.core = Core(ORDERS[order], named(policy), max_programs=programs)
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
            self.tell(ProgramArrived(program=f"p{index}", row=index, workflow="w"))
        for index in range(queued + SLOTS):
            name = f"p{index % programs}"
            self.ask(name, f"{name}/s{index // programs}")
        self.costs_s.clear()

    def tell(self, event: Event) -> None:
        began_s = time.perf_counter()
        commands = self.core.handle(event, self.now_s)
        self.costs_s.append(time.perf_counter() - began_s)
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
    steps = 3_000 if options.quick else 20_000
    figures = Figures("core")
    for programs, queued in ((100, 1_000), (1_000, 10_000), (10_000, 100_000)):
        for policy, order in (("shadow-price", "fcfs"), ("never", "call-fcfs")):
            agents = Agents(programs, queued, policy, order)
            for _ in range(steps):
                agents.step()
            costs = sorted(agents.costs_s)
            setup = {"programs": programs, "queued": queued, "policy": policy, "order": order}
            setup["events"] = len(costs)
            figures.add("us_per_event", statistics.median(costs) * 1e6, unit="us", **setup)
            figures.add("us_per_event_p99", costs[int(len(costs) * 0.99)] * 1e6, unit="us", **setup)
            mean_us = statistics.mean(costs) * 1e6
            figures.add("us_per_event_mean", mean_us, unit="us", **setup)
    tracemalloc.start()
    agents = Agents(10_000, 0, "shadow-price", "fcfs")
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    figures.add("bytes_per_program", held / 10_000, unit="B", programs=10_000)
    figures.table("The scheduler's core")


if __name__ == "__main__":
    main()
