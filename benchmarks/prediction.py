"""How well what is left is foretold: coverage of quantiles, rank correlation, and what it costs.

    python benchmarks/prediction.py [--quick] [--data DIR]

Recorded programs (coding sessions, text-to-SQL, Mooncake's conversations, Azure's completions) and
drawn ones (SWE-Bench and BFCL web search of the Continuum paper) are turned into the events of a
run. `Learned` sees the first half of the programs, then is asked about each of the second half
before it sees it ("as it comes", which is how a run uses it) or without seeing it ("held back").

`coverage`: the share of amounts that were at most the quantile for `share` (`baseline`), given what
had come (`so_far`). Amounts are whole and often equal: `below` is the share that was less, and right
is a quantile between whose two shares the wanted one lies. `coverage_error` is the mean distance.
`pinball`: the mean pinball loss of those quantiles over that of the pool of all keys without
progress; below 1 is better. `tau_length`: Kendall's tau between expected and actual lengths of answers, with the ranker where it is used,
and (`baseline`) of history alone, on the last quarter of the programs, which the ranker has not seen.
Only GSM8K and TAT-QA have texts for its prompts (answers as long as the recorded ones, in tokens of
the tiny model); the traces have lengths alone.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from _common import Figures, one_thread, timed

one_thread()

from tenter.runtime.predict import Asked, Learned, kendall_tau
from tenter.runtime.predict.books import books_of
from tenter.runtime.predict.known import Kind
from tenter.runtime.predict.learned import What
from tenter.runtime.predict.progress import Done
from tenter.runtime.predict.store import Shelf
from tenter.runtime.replay import (
    Program,
    Span,
    Turn,
    Workload,
    azure_code,
    bfcl_web,
    coding_sessions,
    mooncake,
    new_tokens,
    swe_bench,
    text2sql,
)
from tenter.runtime.scheduler.events import (
    CallEnded,
    CallReady,
    Dispatch,
    ProgramArrived,
    ProgramEnded,
    ToolEnded,
    ToolStarted,
)
from tenter.runtime.tokenizer import HFTokenizer
from tenter.runtime.trace import Record

MAX_TOKENS = 1 << 16
SHARES = (0.5, 0.8, 0.9, 0.95)
WHATS: tuple[What, ...] = ("calls", "output_tokens", "work_tokens")
ASKED_AT = (0, 4, 16)  # calls of a program that have ended
ENOUGH = 100  # answers
TINY = Path(__file__).parents[1] / "runtime" / "models" / "tiny"
Asks = dict[str, Sequence[int]]  # the prompts of calls, where there are texts


def events(program: Program) -> Iterator[Record]:
    """What a run of `program` alone would have the scheduler hear."""
    name, before = program.name, None
    yield ProgramArrived(program=name, row=0, workflow=program.kind)
    for place, stage in enumerate(program.stages):
        for index, turn in enumerate(stage):
            yield CallReady(
                call=f"{name}/{place}.{index}",
                program=name,
                step=step_of(program, turn),
                model="m",
                prompt_tokens=turn.prompt_tokens,
                max_tokens=MAX_TOKENS,
                shared_tokens=turn.prompt_tokens - new_tokens(turn, before),
                session=name if len(stage) == 1 else None,
            )
            yield Dispatch(call=f"{name}/{place}.{index}", worker="m/0", priority=0.0)
        for index, turn in enumerate(stage):
            yield CallEnded(
                call=f"{name}/{place}.{index}",
                program=name,
                step=step_of(program, turn),
                finish="stop",
                prompt_tokens=turn.prompt_tokens,
                cached_tokens=turn.prompt_tokens - new_tokens(turn, before),
                output_tokens=turn.output_tokens,
            )
            if turn.pause is not None and turn.pause.kind == "tool":
                tool, word = turn.pause.tool or "tool", turn.pause.word
                yield ToolStarted(program=name, step=tool, tool=tool, word=word)
                yield ToolEnded(
                    program=name,
                    step=tool,
                    tool=tool,
                    word=word,
                    seconds=turn.pause.seconds,
                    ok=True,
                )
        before = stage[-1]
    yield ProgramEnded(program=name, row=0, ok=True)


def step_of(program: Program, turn: Turn) -> str:
    """Text-to-SQL's steps are told by their templates, which are streams of their own."""
    return f"template{turn.prompt[0].stream}" if program.kind == "text2sql" else "turn"


class Pupil(Learned):
    """One that can be kept from learning more."""

    learns = True

    def _learn(self, kind: Kind, name: str, amount: float) -> None:
        if self.learns:
            super()._learn(kind, name, amount)


# ---- coverage -----------------------------------------------------------------------------------


class Covered:
    """Whether amounts came out at most as foretold, by what was foretold."""

    def __init__(self) -> None:
        self.found: defaultdict[tuple[str, str, float], list[tuple[bool, bool]]] = defaultdict(list)
        self.loss: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def add(self, what: str, so_far: str, share: float, left: float | None, actual: float) -> None:
        """`actual` is what then was left, `left` the quantile that was given for it."""
        below = left is not None and actual < left - 1e-9
        covered = left is not None and actual <= left + 1e-9
        self.found[what, so_far, share].append((below, covered))

    def compare(self, what: str, share: float, left: float, plain: float, actual: float) -> None:
        """Beside the quantile of all amounts, whatever their key and progress."""
        for place, foretold in enumerate((left, plain)):
            over = actual - foretold
            self.loss[what][place] += max(share * over, (share - 1) * over)

    def report(self, figures: Figures, **setup: object) -> None:
        """For all that was asked often enough to tell."""
        errors: list[float] = []
        for (what, so_far, share), pairs in sorted(self.found.items()):
            if len(pairs) < ENOUGH:
                continue
            below, covered = (statistics.mean(one) for one in zip(*pairs, strict=True))
            errors.append(max(0.0, below - share, share - covered))
            about = {"what": what, "so_far": so_far, "n": len(pairs), "below": round(below, 3)}
            figures.add("coverage", covered, share, **about, **setup)
        for what, (own, plain) in sorted(self.loss.items()):
            figures.add("pinball", own / plain if plain else 1.0, 1.0, what=what, **setup)
        figures.add("coverage_error", statistics.mean(errors), 0.0, figures=len(errors), **setup)
        figures.add("coverage_error_worst", max(errors), 0.0, figures=len(errors), **setup)


def judged(learned: Learned, program: Program, covered: Covered) -> list[tuple[float, float]]:
    """Ask about everything in `program` before it is seen, and judge it.

    Returns for each call the expected work of the program from there on, and what it was.
    """
    asked: list[tuple[Done, dict[tuple[What, float], float | None], float]] = []
    end = Done()
    for event in events(program):
        match event:
            case CallEnded():
                _judge_call(learned, event, covered)
            case ToolEnded():
                _judge_tool(learned, event, covered)
            case ProgramEnded():
                end = learned.live[event.program].done
            case _:
                pass
        learned.observe(event)
        if isinstance(event, CallReady):
            done = learned.live[event.program].done
            wanted = [(what, share) for what in WHATS for share in SHARES] * (
                done.calls in ASKED_AT
            )
            given = {one: learned.left(event.program, *one) for one in wanted}
            asked.append((done, given, learned.remaining(event.program).work_tokens or 0.0))
    for done, given, _ in asked:
        for (what, share), left in given.items():
            actual = getattr(end, what) - getattr(done, what)
            covered.add(f"program's {what}", f"{done.calls} calls", share, left, actual)
    return [(expected, end.work_tokens - done.work_tokens) for done, _, expected in asked]


def _judge_call(learned: Learned, event: CallEnded, covered: Covered) -> None:
    for so_far in (0, 100, 500):
        actual = event.output_tokens - so_far
        for share in SHARES if actual > 0 else ():
            left = learned.output_tokens_left(event.program, event.call, share, so_far)
            plain = learned.known.predictors["output_tokens"].left("", share)
            covered.add("output", f"{so_far} tokens", share, left, actual)
            if left is not None and plain is not None:
                covered.compare("output", share, left, max(0.0, plain - so_far), actual)


def _judge_tool(learned: Learned, event: ToolEnded, covered: Covered) -> None:
    for so_far in (0.0, 2.0, 10.0):
        actual = event.seconds - so_far
        for share in SHARES if actual > 0 else ():
            left = learned.tool_s_left(event.tool, share, so_far, event.word)
            plain = learned.known.predictors["tool_s"].left("", share)
            covered.add("tool", f"{so_far:g} s", share, left, actual)
            if left is not None and plain is not None:
                covered.compare("tool", share, left, max(0.0, plain - so_far), actual)


def coverage(figures: Figures, workload: Workload, quick: bool) -> None:
    """Learn from the first half of the programs, foretell the second."""
    programs = list(islice(workload, 1_200)) if quick else list(workload)
    half = len(programs) // 2
    modes = ("as it comes",) if quick else ("as it comes", "held back")
    for mode in modes:
        learned, covered, work = Pupil(), Covered(), list[tuple[float, float]]()
        for program in programs[:half]:
            for event in events(program):
                learned.observe(event)
        learned.learns = mode == "as it comes"
        for program in programs[half:]:
            work += judged(learned, program, covered)
        setup = {"workload": workload.name, "mode": mode, "programs": len(programs)}
        covered.report(figures, **setup)
        random.Random(0).shuffle(work)
        tau = kendall_tau(*(list(one) for one in zip(*work[:5_000], strict=True)))
        figures.add("tau_remaining_work", tau, 0.0, **setup)


# ---- the ranker ---------------------------------------------------------------------------------


def ranked(figures: Figures, name: str, runs: Iterable[Iterable[Record]], asks: Asks) -> None:
    """Fit on the first three quarters of the programs; tau on the last, which it has not seen."""
    learned, programs = Learned(), [list(run) for run in runs]
    seen = len(programs) * 3 // 4
    for program in programs[:seen]:
        _told(learned, program, asks)
    began_s = time.process_time()
    report = learned.fit(seed=0)
    fit_s = time.process_time() - began_s
    if report is None:
        return
    ranker, learned.known.ranker = learned.known.ranker, None
    expected: dict[str, list[float]] = {"history": [], "used": []}
    found: list[float] = []
    for program in programs[seen:]:
        for asked, tokens in _told(learned, program, asks):
            judged = ranker.judge(asked) if ranker is not None else None
            expected["history"].append(asked.usual_tokens)
            expected["used"].append(judged.expected_tokens if judged else asked.usual_tokens)
            found.append(tokens)
    taus = {which: kendall_tau(one, found) for which, one in expected.items()}
    setup = {"workload": name, "n": len(found), "fit_rows": report.rows}
    setup |= {"steps": len(report.steps), "steps_ranked": len(report.used)}
    figures.add("tau_length", taus["used"], taus["history"], **setup)
    figures.add("tau_length_when_fitted", report.tau, report.tau_history, **setup)
    figures.add("fit_cpu_s", fit_s, unit="s", **setup)


def _told(learned: Learned, program: Iterable[Record], asks: Asks) -> list[tuple[Asked, int]]:
    """Feed a program; its calls as they were asked, and their lengths."""
    asked: dict[str, Asked] = {}
    told: list[tuple[Asked, int]] = []
    for event in program:
        if isinstance(event, CallReady) and (token_ids := asks.get(event.call)):
            about = (event.call, event.program, event.step, event.prompt_tokens, event.max_tokens)
            learned.ask(*about, token_ids=token_ids)
        learned.observe(event)
        match event:
            case CallReady():
                asked[event.call] = learned.live[event.program].asked[event.call][0]
            case CallEnded():
                told.append((asked[event.call], event.output_tokens))
            case _:
                pass
    return told


def questions(data: Path) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Texts with answers: GSM8K's, and TAT-QA's questions on tables."""
    lines = (data / "qa/gsm8k_test.jsonl").read_text().splitlines()
    items = [json.loads(line) for line in lines]
    yield "gsm8k", [(item["question"], item["answer"]) for item in items]
    contexts = json.loads((data / "qa/tatqa_dataset_dev.json").read_text())
    found = [
        (one["question"], f"{one['derivation']} {one['answer']}")
        for context in contexts
        for one in context["questions"]
    ]
    yield "tatqa", found


def texts(figures: Figures, data: Path) -> None:
    """Questions as programs of one call each."""
    encode = HFTokenizer(TINY).encode
    for name, pairs in questions(data):
        asks: Asks = {}
        programs: list[Program] = []
        for index, (question, answer) in enumerate(pairs):
            ids = encode(question)
            asks[f"{name}-{index}/0.0"] = ids
            turn = Turn((Span(index, 0, max(1, len(ids))),), max(1, len(encode(answer))))
            programs.append(Program(0.0, f"{name}-{index}", ((turn,),), name))
        ranked(figures, name, map(events, programs), asks)


# ---- cost ---------------------------------------------------------------------------------------


def cost(figures: Figures, workload: Workload) -> None:
    """CPU per record of a run, dispatches and starts of tools included."""
    heard = [event for program in islice(workload, 2_000) for event in events(program)]
    with tempfile.TemporaryDirectory() as home:
        learned = Learned(shelf=Shelf(books_of(home), workload.name, ""))
        observing = timed(lambda: [learned.observe(event) for event in heard])
        saving = timed(learned.save)
        loading = timed(lambda: Learned.load(home, workload.name, ""))
        size = sum(path.stat().st_size for path in Path(home).rglob("*.json"))
    setup = {"workload": workload.name, "events": len(heard)}
    figures.add("us_per_event", observing.cpu_s / len(heard) * 1e6, 5.0, "us", **setup)
    figures.add("save_cpu_ms", saving.cpu_s * 1e3, unit="ms", **setup)
    figures.add("load_cpu_ms", loading.cpu_s * 1e3, unit="ms", **setup)
    figures.add("kept_kb", size / 1e3, unit="kB", **setup)


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer programs, as they come only")
    parser.add_argument("--data", default="../shared/data", type=Path)
    options = parser.parse_args()
    data, quick = options.data, options.quick
    drawn = 300 if quick else 1_500
    workloads = [swe_bench(drawn, 1.0, 0), bfcl_web(drawn, 1.0, 0)]
    figures = Figures("prediction")
    recorded = [
        (coding_sessions, "agents/coding_sessions.csv.gz"),
        (text2sql, "text2sql/input_file_trace1.json"),
        (text2sql, "text2sql/input_file_trace2.json"),
        (mooncake, "agents/mooncake_conversation.jsonl.gz"),
        (azure_code, "lengths/azure_code.csv.gz"),
    ]
    for read, path in recorded:
        if (data / path).exists():
            found = read(data / path)
            name = f"{found.name} {path[-6]}" if read is text2sql else found.name
            workloads.append(Workload(name, found.make))
        else:
            print(f"{data / path} is not there; left out", file=sys.stderr)
    for workload in workloads:
        coverage(figures, workload, quick)
    for workload in workloads:
        ranked(figures, workload.name, map(events, islice(workload, 4_000)), {})
        cost(figures, workload)
    if (data / "qa").exists():
        texts(figures, data)
    figures.table("Prediction")


if __name__ == "__main__":
    main()
