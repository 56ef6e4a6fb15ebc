"""`tenter simulate`: a workload on engines that are not there, one line per policy and order."""

import json as jsonlib
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..kvpolicy import DEFAULT_POLICY
from .cli_failure import say
from .errors import InvalidInput
from .replay import Workload, fitting, subsample, tools_slower
from .simulate import STOCK, Result, Setup, load, simulate, survey
from .simulate.report import page

SLOWER = "tools x 2"
EVERY_S = 1.0  # of real time: how often progress is told
HEAD = (
    *("policy", "order", "mean s", "p50 s", "p95 s", "p99 s", "programs/h", "tokens/s"),
    *("hit", "recomputed", "preempted", "GPU h", "$"),
)


def simulate_workload(
    workload: str,
    setup: Setup,
    policies: Sequence[str],
    orders: Sequence[str],
    *,
    rate: float | None,
    programs: int | None,
    slower_tools: float,
    page_tokens: int | None,
    seed: int,
    json: bool,
    what_if: bool = False,
    report: Path | None = None,
) -> int:
    """Simulate every policy with every order, and print what came out.

    `what_if` adds what if tools took twice as long, memory were half, there were one replica more, and `report` writes an HTML page.
    """
    asked = _shaped(load(workload, rate, seed), programs, slower_tools, seed)
    seen = survey(asked)
    setup = replace(
        setup, limit_tokens=seen.limit_tokens, page_tokens=page_tokens or seen.page_tokens
    )
    setups = list(_setups(setup, policies or (STOCK, DEFAULT_POLICY), orders))
    fitted = fitting(asked, setup.context_tokens)
    left = survey(fitted)
    if not left.calls:
        raise InvalidInput(
            f"{workload}: no call fits into {setup.context_tokens:,} tokens, which is what "
            f"{setup.model} on {setup.hardware} takes; give it more memory"
        )
    about = _about(fitted, setup, left.programs, left.calls, seen.calls - left.calls)
    if not json:
        say(about)
    results: list[tuple[str, Result]] = []
    for change, one in _asked(setups, what_if):
        shown = _Progress(one, left.programs, json)
        told = tools_slower(fitted, 2) if change == SLOWER else fitted
        results.append((change, simulate(told, one, on_progress=shown.told)))
        shown.over()
        if json:
            more = {"what_if": change} if change else {}
            print(jsonlib.dumps(results[-1][1].record() | more), flush=True)
    if not json:
        print("\n".join(_aligned(list(_table(results, what_if)), 3 if what_if else 2)))
    if report is not None:
        _write(report, page(f"Simulated: {fitted.name}", about, results))
    for _, result in results:
        if result.failed:
            name = result.setup.policy
            say(f"{name}: {result.failed:,} programs failed; the first: {result.why_failed}")
    return 0


def _asked(setups: Sequence[Setup], what_if: bool) -> Iterator[tuple[str, Setup]]:
    """The setups, and each of them changed in one respect."""
    for setup in setups:
        yield "", setup
        if what_if:
            yield SLOWER, setup
            yield "half the memory", replace(setup, kv_share=setup.kv_share / 2)
            yield "one replica more", replace(setup, replicas=setup.replicas + 1)


def _table(results: Sequence[tuple[str, Result]], what_if: bool) -> Iterator[tuple[str, ...]]:
    yield (*HEAD[:2], *(("what if",) if what_if else ()), *HEAD[2:])
    for change, result in results:
        cells = _cells(result)
        yield (*cells[:2], *((change or "as asked",) if what_if else ()), *cells[2:])


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InvalidInput(f"the report cannot be written: {path}: {error.strerror}") from None


def _shaped(workload: Workload, programs: int | None, slower: float, seed: int) -> Workload:
    if not slower > 0:
        raise InvalidInput(
            f"--slower-tools must be positive, not {slower:g}; 2 doubles their times"
        )
    if programs is not None and programs < 1:
        raise InvalidInput(f"--programs must be 1 or more, not {programs}")
    some = workload if programs is None else subsample(workload, programs, seed)
    return some if slower == 1 else tools_slower(some, slower)


def _setups(setup: Setup, policies: Sequence[str], orders: Sequence[str]) -> Iterator[Setup]:
    """Every policy with every order; a stock server has one order, its own."""
    for policy in policies:
        for order in ("call-fcfs",) if policy == STOCK else orders or ("fcfs",):
            yield replace(setup, policy=policy, order=order)


def _about(workload: Workload, setup: Setup, programs: int, calls: int, cut: int) -> str:
    host = f" and {setup.host_gb:g} GB in the host" if setup.host_gb else ""
    left = f"; {cut:,} calls that do not fit are left out" if cut else ""
    return (
        f"{workload.name}: {programs:,} programs, {calls:,} calls{left}; {setup.replicas} x "
        f"{setup.model} on {setup.hardware}, {setup.kv_tokens:,} tokens of KV each{host}"
    )


class _Progress:
    """How far a simulation is: a line that is written over, or JSON records."""

    def __init__(self, setup: Setup, programs: int, json: bool) -> None:
        self._setup, self._programs, self._json = setup, programs, json
        self._line = sys.stderr.isatty() and not json
        self._next_s = time.monotonic() + EVERY_S

    def told(self, done: int) -> None:
        now_s = time.monotonic()
        if now_s < self._next_s:
            return
        self._next_s = now_s + EVERY_S
        name = f"{self._setup.policy} {self._setup.order}"
        if self._line:
            print(f"\r{name}: {done:,}/{self._programs:,} programs", end="", file=sys.stderr)
        elif self._json:
            record = {"type": "progress", "programs_done": done, "programs": self._programs}
            record |= {"policy": self._setup.policy, "order": self._setup.order}
            print(jsonlib.dumps(record), flush=True)

    def over(self) -> None:
        if self._line:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def _cells(result: Result) -> tuple[Any, ...]:
    span_h = max(result.span_s, 1e-9) / 3600
    return (
        result.setup.policy,
        result.setup.order,
        *map(_seconds, (result.mean_s, *map(result.percentile_s, (50, 95, 99)))),
        f"{result.programs / span_h:,.1f}",
        f"{result.output_tokens / span_h / 3600:,.0f}",
        f"{result.hit_rate:.1%}",
        f"{result.recomputed_tokens:,}",
        f"{result.preemptions:,}",
        f"{result.gpu_s / 3600:,.2f}",
        f"{result.dollars:,.2f}",
    )


def _seconds(seconds: float) -> str:
    return f"{seconds:,.1f}" if seconds >= 10 else f"{seconds:.3g}"


def _aligned(rows: Sequence[Sequence[str]], names: int) -> Iterator[str]:
    """The first `names` columns to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = (
            cell.ljust(width) if index < names else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()
