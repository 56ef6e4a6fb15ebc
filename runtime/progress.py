"""How far a run is, on stderr: one live line for a terminal, plain lines for a file, or JSON.

Looks at the run's tally a few times a second; the run itself never waits for it.
"""

import sys
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Any, Protocol

import anyio
import msgspec

from .clock import now
from .report.summary import hit_rate
from .report.tally import TallySnapshot

REDRAW_S = 0.25
LINE_S = 5.0
SLOW_S = 1.0  # of work that blocks, before it is worth a bar
WINDOW_S = 20.0  # rates are of the last seconds, so that a slow start is forgotten


class Source(Protocol):
    """Whose progress is shown: a tally, or a run in another process."""

    def snapshot(self) -> TallySnapshot: ...


@dataclass(frozen=True, slots=True)
class Pace:
    """What the run does now, per second, and how long it would still take at that."""

    rows_per_s: float = 0.0
    tokens_per_s: float = 0.0
    left_s: float | None = None


@dataclass(slots=True)
class _Window:
    """The last snapshots' counts, from which rates are taken."""

    counts: deque[tuple[float, int, int]] = field(default_factory=deque[tuple[float, int, int]])

    def pace(self, at_s: float, snapshot: TallySnapshot) -> Pace:
        rows = snapshot.rows_done + snapshot.rows_failed
        tokens = snapshot.total.output_tokens
        while self.counts and self.counts[0][0] < at_s - WINDOW_S:
            self.counts.popleft()
        since_s, rows_then, tokens_then = self.counts[0] if self.counts else (at_s, rows, tokens)
        self.counts.append((at_s, rows, tokens))
        seconds = at_s - since_s
        if seconds <= 0:
            return Pace()
        rows_per_s = (rows - rows_then) / seconds
        left_s = None
        if snapshot.rows_total is not None and rows_per_s > 0:
            left_s = max(0, snapshot.rows_total - snapshot.rows_finished) / rows_per_s
        return Pace(rows_per_s, (tokens - tokens_then) / seconds, left_s)


def facts(snapshot: TallySnapshot, pace: Pace) -> str:
    """The line that people read."""
    total = snapshot.rows_total
    parts = [f"{snapshot.rows_finished:,}{'' if total is None else f'/{total:,}'} rows"]
    if snapshot.failed_in_all:
        parts.append(f"{snapshot.failed_in_all:,} failed")
    parts += (
        f"{pace.rows_per_s:,.1f} rows/s",
        f"{snapshot.total.calls:,} calls",
        f"{pace.tokens_per_s:,.0f} tokens/s",
        f"{hit_rate(snapshot.total):.0%} cached",
        f"{snapshot.total.shared:,} shared",
    )
    if snapshot.broken:
        parts.append(
            f"{snapshot.broken_attempts:,} attempts without an answer, "
            f"the last: {snapshot.last_broken}"
        )
    if pace.left_s is not None:
        parts.append(f"{_clock(pace.left_s)} left")
    return "  ".join(parts)


def record(snapshot: TallySnapshot, pace: Pace) -> dict[str, Any]:
    """The same for programs: a `progress` record of `--json`."""
    return {
        "type": "progress",
        "run": snapshot.run,
        "rows_done": snapshot.done_in_all,
        "rows_failed": snapshot.failed_in_all,
        "rows_total": snapshot.rows_total,
        "rows_per_s": round(pace.rows_per_s, 3),
        "tokens_per_s": round(pace.tokens_per_s, 1),
        "hit_rate": round(hit_rate(snapshot.total), 4),
        "shared_calls": snapshot.total.shared,
        "broken_attempts": snapshot.broken_attempts,
        "left_s": None if pace.left_s is None else round(pace.left_s, 1),
    }


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextmanager
def slow(what: str, unit: str, *, json: bool = False) -> Generator[Callable[[int], None]]:
    """For work that blocks: a function to be told how many `unit` are done.

    After a second it is shown on stderr, as a bar on a terminal, and with `json` as records.
    """
    bar = _Slow(what, unit, json)
    try:
        yield bar.told
    finally:
        bar.close()


class _Slow:
    """Shows what it is told, once a second at most on no terminal."""

    def __init__(self, what: str, unit: str, json: bool) -> None:
        self._what, self._unit, self._json = what, unit, json
        self._due_s = monotonic() + SLOW_S
        self._bar: Any = None
        self._task: Any = None

    def told(self, done: int) -> None:
        if self._bar is not None:
            self._bar.update(self._task, done=f"{done:,} {self._unit}")
            return
        if monotonic() < self._due_s:
            return
        self._due_s = monotonic() + SLOW_S
        if self._json:
            record = {"type": "progress", "what": self._what, f"{self._unit}_done": done}
            sys.stdout.write(msgspec.json.encode(record).decode() + "\n")
        elif sys.stderr.isatty():
            self._open()
            self.told(done)

    def _open(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[done]}")
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task(self._what, total=None, done="")
        self._bar.start()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


async def show(tally: Source, emit: Callable[[dict[str, Any]], None] | None = None) -> None:
    """Show the run behind `tally` until cancelled: with `emit` as records, else on stderr."""
    if emit is not None:
        await _emit(tally, emit)
    elif sys.stderr.isatty():
        await _draw(tally)
    else:
        await _print(tally)


async def _emit(tally: Source, emit: Callable[[dict[str, Any]], None]) -> None:
    window = _Window()
    launched, due_s = False, 0.0
    while True:
        snapshot = tally.snapshot()
        if snapshot.run and not launched:
            launched = True
            emit(
                {
                    "type": "launch",
                    "run": snapshot.run,
                    "workflow": snapshot.workflow,
                    "rows_total": snapshot.rows_total,
                    "rows_resumed": snapshot.rows_resumed,
                }
            )
        pace = window.pace(now(), snapshot)
        if launched and now() >= due_s:
            due_s = now() + 1.0
            emit(record(snapshot, pace))
        await anyio.sleep(REDRAW_S)


def first_error(snapshot: TallySnapshot) -> str:
    """What went wrong first, so that a run that fails everywhere is noticed at once."""
    first = next(iter(snapshot.errors.values()), None)
    return "" if first is None else " ".join(first.first.split())[:200]


async def _print(tally: Source) -> None:
    window = _Window()
    window.pace(now(), tally.snapshot())
    told = False
    while True:
        await anyio.sleep(LINE_S)
        snapshot = tally.snapshot()
        if snapshot.run:
            _write(facts(snapshot, window.pace(now(), snapshot)))
        if not told and (error := first_error(snapshot)):
            told = True
            _write(f"the first error: {error}")


def _write(line: str) -> None:
    sys.stderr.write(f"tenter: {line}\n")
    sys.stderr.flush()


async def _draw(tally: Source) -> None:
    """A bar, and below it the facts; both fit 80 columns."""
    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.text import Text

    window = _Window()
    bar = Progress(TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[left]}"))
    task = bar.add_task("starting", total=None, left="")
    text = Text(overflow="ellipsis", no_wrap=True)
    told = False
    with Live(Group(bar, text), console=Console(stderr=True), auto_refresh=False) as live:

        def redraw() -> None:
            nonlocal told
            snapshot = tally.snapshot()
            pace = window.pace(now(), snapshot)
            if not told and (error := first_error(snapshot)):
                told = True
                line = f"tenter: the first error: {error}"
                live.console.print(line, markup=False, highlight=False, soft_wrap=True)
            if snapshot.run:
                bar.update(
                    task,
                    description=Text(snapshot.workflow).markup,
                    total=snapshot.rows_total,
                    completed=snapshot.rows_finished,
                    left="" if pace.left_s is None else f"{_clock(pace.left_s)} left",
                )
                text.plain = facts(snapshot, replace(pace, left_s=None))
            live.refresh()

        try:
            while True:
                redraw()
                await anyio.sleep(REDRAW_S)
        finally:
            redraw()
