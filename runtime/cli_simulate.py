"""`tenter simulate`: a workload on engines that are not there, one line per policy and order."""

import json as jsonlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

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
    table: str | None = None,
    tokenizer: str | None = None,
    home: str | None = None,
    tool_s: float | None = None,
) -> int:
    """Simulate every policy with every order, and print what came out.

    `what_if` adds what if tools took twice as long, memory were half, there were one replica more,
    and `report` writes an HTML page. With a `table`, `workload` is a pipeline, `programs` bounds
    its rows, and the last three say how they become programs (`simulate.table.Asked`).
    """
    if report is not None:
        _check_report(report)
    _check_amounts(programs, slower_tools)
    told = _Told(json, what_if, page_tokens, report)
    wanted = (policies or (STOCK, DEFAULT_POLICY), orders)
    if table is None:
        _only_with_a_table({"--tokenizer": tokenizer, "--tool-seconds": tool_s})
        given = load(_recorded(workload, home), rate, seed)
        some = given if programs is None else subsample(given, programs, seed)
        return _simulated(workload, _slower(some, slower_tools), setup, wanted, told)
    from .simulate.table import TOOL_S, Asked, lowered

    tool_s = TOOL_S if tool_s is None else tool_s
    asked = Asked(workload, table, programs, rate, tokenizer, home, tool_s, seed)
    shown = _Progress("lowering", "rows", None, json)
    with lowered(asked, shown.told) as found:
        shown.over()
        for note in found.notes if not json else ():
            say(note)
        setup = replace(setup, sessions=found.sessions)
        if json:
            print(jsonlib.dumps(found.record()), flush=True)
        return _simulated(workload, _slower(found.workload, slower_tools), setup, wanted, told)


class _Told(NamedTuple):
    """How results are asked for, and told."""

    json: bool
    what_if: bool
    page_tokens: int | None
    report: Path | None


def _simulated(
    name: str,
    asked: Workload,
    setup: Setup,
    wanted: tuple[Sequence[str], Sequence[str]],
    told: _Told,
) -> int:
    """Simulate a workload, and print what came out."""
    seen = survey(asked)
    setup = replace(
        setup, limit_tokens=seen.limit_tokens, page_tokens=told.page_tokens or seen.page_tokens
    )
    setups = list(_setups(setup, *wanted))
    fitted = fitting(asked, setup.context_tokens)
    left = survey(fitted)
    if not left.calls:
        raise InvalidInput(
            f"{name}: no call fits into {setup.context_tokens:,} tokens, which is what "
            f"{setup.model} on {setup.hardware} takes; give it more memory"
        )
    about = _about(fitted, setup, left.programs, left.calls, seen.calls - left.calls)
    if not told.json:
        say(about)
    results: list[tuple[str, Result]] = []
    for change, one in _asked(setups, told.what_if):
        changed = f", {change}" if change else ""
        shown = _Progress(
            f"{one.policy} {one.order}{changed}", "programs", left.programs, told.json
        )
        slower = tools_slower(fitted, 2) if change == SLOWER else fitted
        results.append((change, simulate(slower, one, on_progress=shown.told)))
        shown.over()
        if told.json:
            more = {"what_if": change} if change else {}
            print(jsonlib.dumps(results[-1][1].record() | more), flush=True)
    if not told.json:
        names = 3 if told.what_if else 2
        print("\n".join(_aligned(list(_table(results, told.what_if)), names)))
    if told.report is not None:
        _write(told.report, page(f"Simulated: {fitted.name}", about, results))
    for _, result in results:
        if result.failed:
            policy = result.setup.policy
            say(f"{policy}: {result.failed:,} programs failed; the first: {result.why_failed}")
    return 0


def _asked(setups: Sequence[Setup], what_if: bool) -> Iterator[tuple[str, Setup]]:
    """The setups, and each of them changed in one respect."""
    for setup in setups:
        yield "", setup
        if what_if:
            yield SLOWER, setup
            yield "half the memory", replace(setup, kv_share=setup.kv_share / 2)
            yield "one replica more", replace(setup, replicas=setup.replicas + 1)


def _recorded(workload: str, home: str | None) -> str:
    """The folder of a run that is given by its name, or as `last`; else `workload` itself."""
    named = workload == "last" or workload.startswith("run_")
    if not named or Path(workload).exists():
        return workload
    from .journal.store import Store

    store = Store(home)
    return str(store.folder(store.find(workload)))


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


def _check_report(path: Path) -> None:
    """Refuse, before anything is simulated, a page that could not be written."""
    if path.is_dir() or not path.parent.is_dir():
        what = "it is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        raise InvalidInput(f"the report cannot be written: {path}: {what}")


def _check_amounts(programs: int | None, slower: float) -> None:
    if not slower > 0:
        raise InvalidInput(
            f"--slower-tools must be positive, not {slower:g}; 2 doubles their times"
        )
    if programs is not None and programs < 1:
        raise InvalidInput(f"--programs must be 1 or more, not {programs}")


def _only_with_a_table(given: Mapping[str, object]) -> None:
    for option, value in given.items():
        if value is not None:
            raise InvalidInput(
                f"{option} is for a pipeline over a table: tenter simulate triage.yaml tickets.csv"
            )


def _slower(workload: Workload, factor: float) -> Workload:
    return workload if factor == 1 else tools_slower(workload, factor)


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
    """How far something is, once a second: a line that is written over, or JSON records.

    `units` are counted, up to `whole` where that is known.
    """

    def __init__(self, name: str, units: str, whole: int | None, json: bool) -> None:
        self._name, self._units, self._whole, self._json = name, units, whole, json
        self._line = sys.stderr.isatty() and not json
        self._next_s = time.monotonic() + EVERY_S

    def told(self, done: int) -> None:
        now_s = time.monotonic()
        if now_s < self._next_s:
            return
        self._next_s = now_s + EVERY_S
        if self._line:
            whole = "" if self._whole is None else f"/{self._whole:,}"
            line = f"\r{self._name}: {done:,}{whole} {self._units}"
            print(line, end="", file=sys.stderr, flush=True)
        elif self._json:
            record = {"type": "progress", "what": self._name, f"{self._units}_done": done}
            record |= {self._units: self._whole} if self._whole is not None else {}
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
