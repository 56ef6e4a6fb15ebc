"""Dynasor's scheduling experiment, simulated: self-consistency programs at rising request rates.

    python benchmarks/reasoning_rates.py [--quick] [--data DIR] [--problems NAME] [--programs N]
                                         [--rates 0.1,0.4] [--cells FILE]

Programs of one `reason(...)` step with 8 samples arrive by a Poisson process. What a sample says and
how long it thinks is recorded (rollouts of DeepSeek-R1-Distill-Qwen-7B); the strategies, the
scheduler and the driver are the runtime's own, on the simulated backend in virtual time: Llama-3.1-8B
on one H100, by roofline. Each ingredient comes on top of those before it:

- longest-prefix: no scheduler; the server takes all calls at once and those with the longest cached
  prefix go first (SGLang's `lpm`, with which 2412.20993 compares). A sample is one call.
- + gang: the scheduler, first-come programs; the samples of a step enter together, and go on in the
  runtime's pieces.
- + certaindex: a step ends at certaindex .7 from 5 answers.
- + shortest first: programs with the least forecast work go first.
- + longer pieces: of 2,048 tokens.
- ours: `self-consistency` in place of certaindex, the runtime's pieces; and first-come.
- longest-prefix, certaindex: the stop without the scheduler.
- rounds: the first four with programs that draw 5 samples, weigh whether that will do, and draw the
  other 3 (`_recorded.Rounds`); a later round waits behind others' first ones, unless gangs go on.

`mean_s`: from a program's arrival to its answer. The published latencies at the highest rate are
410, 306, 165, 159 and 134 s: `published` has the ratio of each to the first beside ours, the first
four ingredients against 410, 306, 165 and 134 (which step the 159 is, our source does not say).
Rates are programs per second. Intervals are 95 % bootstrap percentiles over programs, paired; that
programs which wait for each other are not independent they do not know. `--quick`: few programs at
the highest rate, on a third of the KV memory. `--cells` keeps what was simulated in FILE, so that a
run that was stopped goes on.
"""

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parent))
from _common import Figures, one_thread
from _kept import Kept

one_thread()

import anyio
import numpy as np
from _bootstrap import Bootstrap, interval
from _recorded import SUFFIX, RecordedBackend, Rounds
from _records import path_of
from _rollouts import Problem, read
from certaindex_replay import Grades

from tenter.runtime import reason, workflow
from tenter.runtime.clock import VirtualLoop, now
from tenter.runtime.reasoning.named import STRATEGIES
from tenter.runtime.run import reason_drive
from tenter.runtime.run.local import open_host
from tenter.runtime.run.program import Programs
from tenter.runtime.scheduler.events import CallEnded
from tenter.runtime.trace import Record
from tenter.runtime.workflow import Scheduling, Workflow

RATES = (0.1, 0.2, 0.4)
PROGRAMS, QUICK_PROGRAMS, QUICK_KV_TOKENS = 120, 16, 131_072
PROMPT_TOKENS = 160
SEED = 5
HARDWARE, MODEL = "h100", "llama-3.1-8b"
VOTE, CERTAINDEX = {"strategy": "vote"}, {"strategy": "vote", "threshold": 0.7, "check_from": 5}
OURS = {"strategy": "self-consistency"}
ROUNDS, ROUNDS_CERTAIN = {"strategy": "rounds"}, {"strategy": "rounds", "threshold": 0.7}
SHORTEST, WHOLE = "shortest-remaining", 1 << 30


@dataclass(frozen=True, slots=True)
class Way:
    """Who decides, in which order, and how a step thinks."""

    name: str
    settings: dict[str, Any]
    order: str = "fcfs"
    by_prefix: bool = False
    published_s: float | None = None
    piece_tokens: int = reason_drive.PIECE_TOKENS


WAYS = (
    Way("longest-prefix", VOTE, "call-fcfs", True, 410.0, WHOLE),
    Way("+ gang", VOTE, published_s=306.0),
    Way("+ certaindex", CERTAINDEX, published_s=165.0),
    Way("+ shortest first", CERTAINDEX, SHORTEST, published_s=134.0),
    Way("+ longer pieces", CERTAINDEX, SHORTEST, piece_tokens=2_048),
    Way("ours", OURS, SHORTEST),
    Way("ours, first come", OURS),
    Way("longest-prefix, certaindex", CERTAINDEX, "call-fcfs", True, None, WHOLE),
)
IN_ROUNDS = (
    Way("rounds: longest-prefix", ROUNDS, "call-fcfs", True, 410.0, WHOLE),
    Way("rounds: + gang", ROUNDS, published_s=306.0),
    Way("rounds: + certaindex", ROUNDS_CERTAIN, published_s=165.0),
    Way("rounds: + shortest first", ROUNDS_CERTAIN, SHORTEST, published_s=134.0),
)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A program: when it comes, and what its samples think."""

    at_s: float
    problem: Problem


def arrivals(problems: Sequence[Problem], count: int, per_s: float) -> list[Arrival]:
    """`count` programs; the same problems in the same order at every rate."""
    random, at_s, found = Random(SEED), 0.0, list[Arrival]()
    for _ in range(count):
        problem = random.choice(problems)
        at_s += random.expovariate(1.0) / per_s
        found.append(Arrival(at_s, problem))
    return found


@dataclass(slots=True)
class Run:
    """What came of the programs: seconds, answers, and tokens by program."""

    seconds: dict[int, float] = field(default_factory=dict[int, float])
    answers: dict[int, str | None] = field(default_factory=dict[int, str | None])
    tokens: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    prefilled: int = 0  # by the server, after preemptions too

    def write(self, at_s: float, record: Record) -> None:
        """Note what a call took (this is a `Trace`)."""
        if isinstance(record, CallEnded):
            self.tokens[record.program] += record.output_tokens

    def record(self) -> dict[str, Any]:
        """What `of` reads, as JSON."""
        return {
            "seconds": self.seconds,
            "answers": self.answers,
            "tokens": self.tokens,
            "prefilled": self.prefilled,
        }

    @classmethod
    def of(cls, kept: dict[str, Any]) -> "Run":
        seconds = {int(row): spent for row, spent in kept["seconds"].items()}
        answers = {int(row): answer for row, answer in kept["answers"].items()}
        return cls(seconds, answers, kept["tokens"], kept["prefilled"])


def step(way: Way, limit_tokens: int) -> Workflow:
    """What an author would write."""
    ask = reason(
        "{{ question }}", n=8, max_tokens=limit_tokens, suffix=SUFFIX, top_p=1.0, **way.settings
    )

    @workflow
    def solve(question: str) -> str:
        return ask(question=question)

    return solve.workflow


def simulated(
    way: Way, programs: Sequence[Arrival], limit_tokens: int, kv_tokens: int | None = None
) -> dict[str, Any]:
    """All programs to their ends, in virtual time: the record of a `Run`."""
    virtual = {"loop_factory": VirtualLoop}
    pieces = patch.object(reason_drive, "PIECE_TOKENS", way.piece_tokens)
    with pieces, patch.dict(STRATEGIES, rounds=Rounds):
        found = anyio.run(_run, way, programs, limit_tokens, kv_tokens, backend_options=virtual)
    return found.record()


async def _run(
    way: Way, programs: Sequence[Arrival], limit_tokens: int, kv_tokens: int | None
) -> Run:
    rollouts = [one.problem.rollouts for one in programs]
    server = {"hardware": HARDWARE, "model": MODEL, "kv_tokens": kv_tokens}
    backend = RecordedBackend(rollouts, way.by_prefix, **server)
    found, over = Run(), anyio.Event()
    opened = {"scheduling": Scheduling(order=way.order), "trace": found, "share": False}
    async with backend, open_host({"default": backend}, **opened) as host:
        started = Programs(host, step(way, limit_tokens))

        def arrive(row: int, at_s: float) -> None:
            def ended(value: Any, error: Exception | None) -> None:
                found.seconds[row] = now() - at_s
                found.answers[row] = None if error is not None else str(value)
                if len(found.seconds) == len(programs):
                    over.set()

            text = f"{row:08d}".ljust(PROMPT_TOKENS, "?")
            started.arrive(row, {"question": text}, ended)

        for row, one in enumerate(programs):
            await anyio.sleep_until(one.at_s)
            arrive(row, one.at_s)
        await over.wait()
        found.prefilled = backend.replica.prefilled_tokens
    return found


def report(
    figures: Figures,
    way: Way,
    found: Run,
    base: Run,
    programs: Sequence[Arrival],
    grades: Grades,
    about: dict[str, Any],
) -> None:
    """The figures of one way; the baseline is the longest-prefix order at the same rate."""
    setup = {**about, "way": way.name}
    count = len(programs)
    rows = range(count)
    draws = Bootstrap(count)
    times = draws.means(np.array([found.seconds[row] for row in rows]))
    before = draws.means(np.array([base.seconds[row] for row in rows]))
    ratio = times / before
    figures.add("mean_s", times[0], before[0], "s", **setup, interval=interval(times))
    p95 = float(np.percentile(list(found.seconds.values()), 95))
    figures.add("p95_s", p95, float(np.percentile(list(base.seconds.values()), 95)), "s", **setup)
    published = {} if way.published_s is None else {"published": round(way.published_s / 410.0, 3)}
    figures.add("mean_over_first", ratio[0], 1.0, **setup, interval=interval(ratio), **published)
    tokens, whole = sum(found.tokens.values()) / count, sum(base.tokens.values()) / count
    figures.add("tokens", tokens, whole, **setup)
    figures.add("prefilled_tokens", found.prefilled / count, base.prefilled / count, **setup)
    figures.add(
        "accuracy", _right(found, programs, grades), _right(base, programs, grades), **setup
    )


def _right(found: Run, programs: Sequence[Arrival], grades: Grades) -> float:
    right = [one.problem.right(found.answers[row], grades) for row, one in enumerate(programs)]
    return sum(right) / len(right)


def main() -> None:
    about = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--problems", default="math500", help="the data set, or all")
    parser.add_argument("--programs", type=int, help=f"how many arrive ({PROGRAMS})")
    parser.add_argument("--rates", default="", help="programs per second: 0.1,0.4")
    parser.add_argument("--cells", type=Path, help="a file that keeps what was simulated")
    options = parser.parse_args()
    data = options.data / "reasoning" if (options.data / "reasoning").is_dir() else options.data
    if path_of(data, "rollouts8") is None:
        sys.exit(f"no recorded rollouts in {data}; give their folder with --data DIR")
    problems = [one for one in read(data) if options.problems in ("all", one.data)]
    if not problems:
        sys.exit(f"--problems {options.problems}: the rollouts have no such data set")
    if any(len(one.rollouts) < 8 for one in problems):
        sys.exit(f"8 rollouts of every problem are needed, and {data} has fewer")
    figures = Figures("reasoning_rates")
    count = options.programs or (QUICK_PROGRAMS if options.quick else PROGRAMS)
    rates = tuple(map(float, options.rates.split(","))) if options.rates else RATES
    limit = max(record.tokens for one in problems for record in one.rollouts)
    grades = Grades.read(data, closed=False)
    kept = Kept.of(options.cells)
    kv_tokens, began_s = QUICK_KV_TOKENS if options.quick else None, time.monotonic()
    for per_s in rates[-1:] if options.quick else rates:
        programs = arrivals(problems, count, per_s)
        setup = {"data": options.problems, "programs": count, "per_s": per_s}
        for ways in (WAYS, IN_ROUNDS):
            base: Run | None = None
            for way in ways:
                key = f"{way!r} {setup!r} limit {limit} kv {kv_tokens}"
                simulate = partial(simulated, way, programs, limit, kv_tokens)
                run = Run.of(kept.get(key, simulate))
                base = base or run
                report(figures, way, run, base, programs, grades, setup)
                spent_s = time.monotonic() - began_s
                print(f"{per_s} per s, {way.name}: {spent_s:.0f} s so far", file=sys.stderr)
    figures.table(f"Reasoning programs at rising rates{' (quick)' if options.quick else ''}")


if __name__ == "__main__":
    main()
