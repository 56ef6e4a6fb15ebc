"""Reasoning that stops early, live: the tiny model thinks about sums on the embedded engine.

    python benchmarks/reasoning_live.py [--quick] [--data DIR] [--problems N]
                                        [--only thoughts|votes] [--seconds S] [--skip N]
                                        [--cells FILE]

1,000 held-out sums that the model was trained to think over several times (`Think hard.`), behind
--skip N others, asked through `reason(...)`. The samples of a step, its probes and its aborts are
what the engine really does: float32 on a CPU, one thread, an engine of its own for each method, and
the methods take turns on pieces of CHUNK problems. The baseline of single thoughts is `full`, that of votes `vote-8`.

- full: to its end. forced-N: cut at N tokens and asked, the fair control.
- dynasor-*: the published efforts that could ever stop thoughts as short as these, and, in the same
  windows, probes every 8 tokens (`@8`). deer@16: a trial answer of probability .95, every 16 tokens.
- ours-default: the rule as shipped, made for thoughts of some thousand tokens. ours: what
  `tenter calibrate` finds on CALIBRATION problems that are not judged.
- vote-8; certaindex (.7 from 5 answers); first-finish; ours-consistency (`self-consistency`).

`tokens`: what the engine computed for a problem, decoded and prefilled, aborted samples included.
`thought_tokens`, `probe_tokens` (their prefill included), `again_tokens` (of thoughts, prefilled
again behind a piece): the runtime's own account. Intervals are 95 % bootstrap percentiles over
problems, paired. `cpu_s` and `wall_s`, and the engine's counters, are sums. `--cells` keeps
the rule that was found, and each piece, in FILE: a run that was stopped goes on behind its last piece.
"""

import argparse
import asyncio
import csv
import json
import math
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "training")]
from _common import Figures, one_thread
from _kept import Kept

one_thread()

import numpy as np
from _bootstrap import Bootstrap, interval
from tinymodel.mix import draw

from tenter.runtime import reason, workflow
from tenter.runtime.backends.embedded import EmbeddedBackend
from tenter.runtime.calibrating import calibrate_step
from tenter.runtime.jobs import MapSpec
from tenter.runtime.models import tiny_path
from tenter.runtime.reasoning.rules import EFFORTS, StopRule, dynasor
from tenter.runtime.run.local import open_host
from tenter.runtime.run.program import Programs
from tenter.runtime.scheduler.events import CallEnded, Dispatch, Reasoned
from tenter.runtime.trace import Record
from tenter.runtime.workflow import Workflow

SEED = 23
PROBLEMS, CALIBRATION, CHUNK = 1_000, 300, 50
QUICK_PROBLEMS, QUICK_CALIBRATION, QUICK_CHUNK = 100, 64, 10
QUICK_BUDGET = 0.05  # of accuracy: what so few problems can vouch for
QUICK_S = 25.0  # after so long no further piece is begun
LIMIT = 384  # tokens of one thought
KV_TOKENS, MAX_RUNNING = 65_536, 128
SUFFIX = "\n</think>\n"
COLUMNS = ("accuracy", "tokens", "thought_tokens", "probe_tokens", "again_tokens")
COUNTERS = ("prefill_tokens", "cached_tokens", "decode_tokens", "calls", "aborted", "steps")
ENGINE = {
    "device": "cpu",
    "dtype": "float32",
    "threads": 1,
    "kv_tokens": KV_TOKENS,
    "max_running": MAX_RUNNING,
}


@dataclass(frozen=True, slots=True)
class Problem:
    """A sum to think over."""

    question: str
    answer: str


def problems(count: int) -> list[Problem]:
    """Held-out sums, all different."""
    random, found = Random(SEED), dict[str, Problem]()
    while len(found) < count:
        sample = draw(random, "reason", held_out=True)
        question = "".join(span.text for span in sample.turns[0].spans)
        found.setdefault(sample.key, Problem(question, sample.answer))
    return list(found.values())


@dataclass(frozen=True, slots=True)
class Method:
    """How to think: a strategy and its settings; `base` is the method that it is compared with."""

    name: str
    base: str
    strategy: str
    max_tokens: int = LIMIT
    settings: dict[str, Any] = field(default_factory=dict[str, Any])

    def workflow(self) -> Workflow:
        """What an author would write."""
        ask = reason(
            "{{ question }}",
            strategy=self.strategy,
            max_tokens=self.max_tokens,
            temperature=1.0,
            top_p=1.0,
            suffix=SUFFIX,
            **self.settings,
        )

        @workflow
        def solve(question: str) -> str:
            return ask(question=question)

        return solve.workflow


def thought(name: str, rule: StopRule | str, max_tokens: int = LIMIT) -> Method:
    """A single thought under a stop rule."""
    given = rule if isinstance(rule, str) else json.loads(rule.to_json())
    return Method(name, "full", "thought", max_tokens, {"rule": given})


def votes(name: str, strategy: str, **settings: Any) -> Method:
    """Several samples, one answer."""
    return Method(name, "vote-8", strategy, LIMIT, {"n": 8, **settings})


def thoughts(rule: StopRule, quick: bool) -> list[Method]:
    """Single thoughts; `rule` is the calibrated one."""
    cuts = (64,) if quick else (48, 64, 96, 128)
    found = [
        thought("full", "full"),
        *(thought(f"forced-{tokens}", "full", tokens) for tokens in cuts),
        thought("dynasor-crazy", dynasor(*EFFORTS["crazy"])),
        thought("ours", rule),
    ]
    if quick:
        return found
    return [
        *found,
        thought("dynasor-high", dynasor(*EFFORTS["high"])),
        *(thought(f"dynasor-{name}@8", dynasor(EFFORTS[name][0], 8)) for name in ("mild", "mid")),
        thought("deer@16", StopRule("deer", 16, 16, 1.0, 1, confidence=0.95, cap=1.0)),
        thought("ours-default", "default"),
    ]


def several(quick: bool) -> list[Method]:
    """Several samples for each problem."""
    found = [
        votes("vote-8", "vote"),
        votes("certaindex", "vote", threshold=0.7, check_from=5),
        votes("ours-consistency", "self-consistency"),
    ]
    if quick:
        return found
    return [*found, votes("first-finish", "first-finish")]


# ---- calibration -------------------------------------------------------------------------------

YAML = """\
version: 1
name: solve
inputs: {question: string}
models:
  default: {backend: embedded, path: %s, device: cpu, threads: 1}
steps:
  answer:
    reason: "{{ question }}"
    settings: {suffix: "\\n</think>\\n"}
    max_tokens: %d
    temperature: 1.0
    top_p: 1.0
output: "{{ answer }}"
"""


def job(folder: Path, seen: Sequence[Problem]) -> MapSpec:
    """A workflow and a table, in files as a user has them."""
    solve, table = folder / "solve.yaml", folder / "problems.csv"
    solve.write_text(YAML % (tiny_path(), LIMIT))
    with table.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("question", "answer"))
        rows.writerows((one.question, one.answer) for one in seen)
    return MapSpec(str(solve), str(table), str(folder / "out.csv"))


async def calibrated(seen: Sequence[Problem], budget: float | None) -> tuple[StopRule, str]:
    """The stop rule that `tenter calibrate` finds on `seen`, and what it says of it."""
    with tempfile.TemporaryDirectory() as folder:
        done = await calibrate_step(job(Path(folder), seen), label="answer", budget=budget)
    for tried in done.found.tried:
        print(f"{tried.rule.name}: {tried}", file=sys.stderr)
    return done.found.rule, done.found.message


# ---- a method on its engine --------------------------------------------------------------------


class Account:
    """What the trace tells of each program (a `Trace`)."""

    def __init__(self) -> None:
        self.computed: dict[str, int] = defaultdict(int)
        self.told: dict[str, Reasoned] = {}
        self.running: set[str] = set()
        self.idle = asyncio.Event()

    def write(self, at_s: float, record: Record) -> None:
        if isinstance(record, Dispatch):
            self.running.add(record.call)
            self.idle.clear()
        elif isinstance(record, CallEnded):
            self.running.discard(record.call)
            if not self.running:
                self.idle.set()
            prefilled = record.prompt_tokens - record.cached_tokens
            self.computed[record.program] += prefilled + record.output_tokens
        elif isinstance(record, Reasoned):
            self.told[record.program] = record

    def row(self, program: str, right: bool) -> list[float]:
        """Of one program: right, the tokens of `COLUMNS`, and whether it settled."""
        told = self.told[program]
        probed = told.probe_tokens + told.probe_again_tokens
        tokens = (self.computed[program], told.thought_tokens, probed, told.again_tokens)
        return [float(right), *tokens, float(told.stopped == "settled")]


@dataclass(slots=True)
class Contender:
    """A method, the engine and the scheduler it runs on, and what came of it."""

    method: Method
    backend: EmbeddedBackend
    programs: Programs
    account: Account
    rows: list[list[float]] = field(default_factory=list[list[float]])
    counters: Counter[str] = field(default_factory=Counter[str])
    cpu_s: float = 0.0
    wall_s: float = 0.0

    @classmethod
    async def open(cls, method: Method, stack: AsyncExitStack) -> "Contender":
        backend = await stack.enter_async_context(EmbeddedBackend(tiny_path(), **ENGINE))
        account = Account()
        opened = open_host({"default": backend}, trace=account, share=False, seed=SEED)
        host = await stack.enter_async_context(opened)
        return cls(method, backend, Programs(host, method.workflow()), account)

    def add(self, piece: dict[str, Any]) -> None:
        """Count a piece that was run, now or before."""
        self.rows += piece["rows"]
        self.counters.update(piece["counters"])
        self.cpu_s += piece["cpu_s"]
        self.wall_s += piece["wall_s"]

    async def run(self, numbered: Sequence[tuple[int, Problem]]) -> dict[str, Any]:
        """Think about these problems, all at once."""
        over, right = asyncio.Event(), dict[int, bool]()

        def arrive(number: int, problem: Problem) -> None:
            def ended(value: Any, error: Exception | None) -> None:
                right[number] = error is None and str(value).strip() == problem.answer
                if len(right) == len(numbered):
                    over.set()

            self.programs.arrive(number, {"question": problem.question}, ended)

        before = (await self.backend.load()).counters
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        for number, problem in numbered:
            arrive(number, problem)
        await over.wait()
        await self.account.idle.wait()  # what was aborted at the end counts too
        spent = {"cpu_s": time.process_time() - cpu_s, "wall_s": time.perf_counter() - wall_s}
        after = (await self.backend.load()).counters
        counters = {name: after[name] - before[name] for name in COUNTERS}
        rows = [self.account.row(f"r{number}", right[number]) for number, _ in numbered]
        return {"rows": rows, "counters": counters, **spent}

    def values(self) -> np.ndarray:
        """A row per problem: right, and the tokens of `COLUMNS`."""
        return np.array(self.rows, float)[:, : len(COLUMNS)]


async def race(
    chosen: Sequence[Method], judged: Sequence[Problem], chunk: int, until_s: float, kept: Kept
) -> list[Contender]:
    """All methods on all problems, in turns; each turn begins with another method."""
    async with AsyncExitStack() as stack:
        field = [await Contender.open(method, stack) for method in chosen]
        for turn, first in enumerate(range(0, len(judged), chunk)):
            if turn and time.monotonic() > until_s:
                print(f"left out, for want of time: from problem {first} on", file=sys.stderr)
                break
            print(f"problems {first} to {first + chunk}", file=sys.stderr)
            numbered = list(enumerate(judged))[first : first + chunk]
            questions = "|".join(problem.question for _, problem in numbered)
            start = turn % len(field)
            for contender in field[start:] + field[:start]:
                key = f"{contender.method!r} from {first}: {questions}"
                if key not in kept.known:
                    kept.add(key, await contender.run(numbered))
                contender.add(kept.known[key])
        for contender in field:
            report_counters(contender)
    return field


# ---- figures -----------------------------------------------------------------------------------

FIGURES = Figures("reasoning_live")


def report_counters(contender: Contender) -> None:
    """The engine's own sums."""
    about = {"method": contender.method.name, "problems": len(contender.rows)}
    for name in COUNTERS:
        FIGURES.add(f"engine_{name}", contender.counters[name], **about)


def report(field: Sequence[Contender], note: str) -> None:
    """Accuracy, tokens and time of each method beside those of its baseline."""
    values = {one.method.name: one.values() for one in field}
    by_name = {one.method.name: one for one in field}
    count = len(next(iter(values.values())))
    draws = Bootstrap(count)
    for name, one in by_name.items():
        base = by_name[one.method.base]
        means, whole = draws.means(values[name]), draws.means(values[one.method.base])
        about: dict[str, Any] = {"method": name, "problems": count}
        if name == "ours":
            about["rule"] = note
        for column, metric in enumerate(COLUMNS):
            ci = interval(means[:, column])
            FIGURES.add(metric, means[0, column], whole[0, column], **about, interval=ci)
        loss = whole[:, 0] - means[:, 0]
        FIGURES.add("accuracy_loss", loss[0], **about, interval=interval(loss))
        over = means[:, 1] / whole[:, 1]
        FIGURES.add("tokens_over_base", over[0], 1.0, **about, interval=interval(over))
        FIGURES.add("cpu_s", one.cpu_s, base.cpu_s, "s", **about)
        FIGURES.add("wall_s", one.wall_s, base.wall_s, "s", **about)
        settled = sum(row[-1] for row in one.rows)
        FIGURES.add("settled", settled / count, unit="share", **about)


async def bench(count: int, only: str, quick: bool, seconds: float, skip: int, kept: Kept) -> None:
    """Calibrate on some problems, judge on others."""
    began_s = time.monotonic()
    seen = QUICK_CALIBRATION if quick else CALIBRATION
    drawn = problems(seen + skip + count)
    chosen, note = [] if only == "thoughts" else several(quick), ""
    if only != "votes":
        key = f"the rule for {seen} problems"
        if key not in kept.known:
            rule, note = await calibrated(drawn[:seen], QUICK_BUDGET if quick else None)
            kept.add(key, {"rule": rule.to_json(), "note": note})
        rule, note = StopRule.from_json(kept.known[key]["rule"]), kept.known[key]["note"]
        chosen = [*thoughts(rule, quick), *chosen]
    chunk = QUICK_CHUNK if quick else CHUNK
    until_s = began_s + seconds
    report(await race(chosen, drawn[seen + skip :], chunk, until_s, kept), note)


def main() -> None:
    about = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--data", default="../shared/data", help="not read")
    parser.add_argument("--problems", type=int, help=f"how many are judged ({PROBLEMS})")
    parser.add_argument("--only", choices=("thoughts", "votes"), default="", help="one part")
    parser.add_argument("--seconds", type=float, help="begin no further piece after so long")
    parser.add_argument("--skip", type=int, default=0, help="problems that are not judged")
    parser.add_argument("--cells", type=Path, help="a file that keeps what was run")
    options = parser.parse_args()
    count = options.problems or (QUICK_PROBLEMS if options.quick else PROBLEMS)
    seconds = options.seconds or (QUICK_S if options.quick else math.inf)
    kept = Kept.of(options.cells)
    asyncio.run(bench(count, options.only, options.quick, seconds, options.skip, kept))
    FIGURES.table(f"Thinking live{' (quick)' if options.quick else ''}")


if __name__ == "__main__":
    main()
