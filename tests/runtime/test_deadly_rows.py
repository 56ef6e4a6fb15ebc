"""Rows that kill the process that runs them are found when the run is resumed, and failed."""

import asyncio
import csv
import os
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from unittest.mock import Mock

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "cluster"))  # for the module there

from counted import FLOW
from counted import table as counted_table

from tenter.runtime.backends import registry
from tenter.runtime.backends.fake import FakeBackend
from tenter.runtime.calls import Chunk, Request
from tenter.runtime.jobs import Control, MapSpec, Outcome, map_table, resume, running
from tenter.runtime.jobs.running import RunningFile, WatchedRows, left_running
from tenter.runtime.jobs.suspects import (
    FATAL_DEATHS,
    OUTSIDE,
    UNPROVEN_DEATHS,
    Gate,
    Suspects,
    Suspicion,
)
from tenter.runtime.report.tally import Tally

ROWS = 40
DEATH = "death"
FLOW_TEXT = """\
version: 1
name: say
inputs: {text: string}
models: {default: {backend: deadly}}
steps:
  first: {llm: "Before {{ text }}"}
  said: {llm: "Say {{ first }} of {{ text }}"}
output: "{{ said }}"
"""


class DeadlyBackend(FakeBackend):
    """Never tells what kills."""

    async def generate(self, request: Request) -> AsyncIterator[Chunk]:
        async for chunk in super().generate(request):
            if chunk.text == DEATH:
                await asyncio.Event().wait()
            yield chunk


class Jobs:
    """Runs a table in processes that die of some rows, as far as their journal can tell."""

    def __init__(self, folder: Path, deadly: tuple[int, ...]) -> None:
        self.home, self.out = str(folder / "home"), folder / "out.csv"
        self.prompts: Counter[str] = Counter()
        self.deadly = [f"Say fine of text {row}." for row in deadly]
        self._workflow, self._table = folder / "say.yaml", folder / "in.csv"
        self._workflow.write_text(FLOW_TEXT)
        self._table.write_text("text\n" + "".join(f"text {row}.\n" for row in range(ROWS)))
        self.killed = asyncio.Event()
        self.retry = False

    def backend(self) -> FakeBackend:
        return DeadlyBackend(self._reply, latency_s=0.001, max_running=4)

    def _reply(self, prompt: str) -> str:
        self.prompts[prompt] += 1
        if any(text in prompt for text in self.deadly):
            self.killed.set()
            return DEATH
        return "fine"

    async def start(self) -> Outcome | None:
        """The run, until it ends or the process dies (None)."""
        self.killed.clear()
        control = Control()
        run = asyncio.create_task(self.job(control))
        killed = asyncio.create_task(self.killed.wait())
        await asyncio.wait({run, killed}, return_when=asyncio.FIRST_COMPLETED)
        killed.cancel()
        control.abort()
        outcome = await run
        return None if self.killed.is_set() else outcome

    async def job(self, control: Control) -> Outcome:
        """The run, or what is left of it."""
        if (Path(self.home) / "runs").exists():
            return await resume("last", self.home, control, Tally(), retry=self.retry)
        spec = MapSpec(*map(str, (self._workflow, self._table, self.out)), home=self.home)
        return await map_table(spec, control, Tally())

    async def deaths(self) -> tuple[int, Outcome]:
        """How many processes die until the run ends, and what it comes to."""
        for deaths in range(30 * max(1, len(self.deadly))):
            outcome = await self.start()
            if outcome is not None:
                return deaths, outcome
        raise AssertionError("processes die again and again")

    def errors(self) -> dict[int, str]:
        with self.out.open(newline="") as file:
            rows = enumerate(csv.DictReader(file))
            return {number: row["error"] for number, row in rows if row["error"]}


def die(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have what is noted of rows stay as it is when a process is killed."""
    write = RunningFile._write

    def alive(file: RunningFile, place: int, value: int) -> None:
        if not jobs.killed.is_set():
            write(file, place, value)

    monkeypatch.setattr(RunningFile, "_write", alive)
    monkeypatch.setattr(RunningFile, "close", lambda file: None)


@pytest.mark.parametrize("deadly", [(0,), (13, 30)])
async def test_a_resumed_run_fails_the_row_that_kills_it_and_does_the_others(
    deadly: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = Jobs(tmp_path, deadly)
    monkeypatch.setitem(registry.BACKENDS, "deadly", jobs.backend)
    die(jobs, monkeypatch)
    _, outcome = await jobs.deaths()

    assert (outcome.rows_done, outcome.rows_failed) == (ROWS - len(deadly), len(deadly))
    assert set(jobs.errors()) == set(deadly)
    assert "the process that ran this row died" in jobs.errors()[deadly[0]]
    assert outcome.dead_letter is not None
    first = [count for prompt, count in jobs.prompts.items() if prompt.startswith("Before")]
    assert max(first, default=0) <= 2, "what was recorded was not asked again"


@pytest.mark.slow
async def test_a_row_that_was_found_to_kill_is_run_again_where_that_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = Jobs(tmp_path, (13,))
    monkeypatch.setitem(registry.BACKENDS, "deadly", jobs.backend)
    die(jobs, monkeypatch)
    await jobs.deaths()
    jobs.retry = True
    deaths, outcome = await jobs.deaths()
    assert deaths and (outcome.rows_done, outcome.rows_failed) == (ROWS - 1, 1), "found again"

    jobs.deadly.clear()
    deaths, outcome = await jobs.deaths()
    assert (deaths, outcome.rows_done, outcome.rows_failed) == (0, ROWS, 0)


async def test_a_run_that_is_cancelled_from_outside_fails_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = Jobs(tmp_path, (13,))
    monkeypatch.setitem(registry.BACKENDS, "deadly", jobs.backend)
    run = asyncio.create_task(jobs.job(Control()))
    await jobs.killed.wait()
    run.cancel()
    await asyncio.gather(run, return_exceptions=True)
    jobs.deadly.clear()
    outcome = await jobs.start()

    assert outcome is not None and (outcome.rows_done, outcome.rows_failed) == (ROWS, 0)


async def test_nothing_is_held_against_rows_of_a_run_that_ends_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = Jobs(tmp_path, ())
    monkeypatch.setitem(registry.BACKENDS, "deadly", jobs.backend)
    outcome = await jobs.start()

    assert outcome is not None and outcome.rows_done == ROWS
    assert not left_over(Path(jobs.home))


def left_over(home: Path) -> list[Path]:
    return list(home.rglob("running"))


def test_rows_that_run_are_known_after_a_death(tmp_path: Path) -> None:
    path = tmp_path / "running"
    file = RunningFile(path)
    for row in (0, 5, 7):
        file.begin(row)
    file.ended(5)
    file.begin(9)
    assert sorted(left_running(path)) == [0, 7, 9]
    assert path.stat().st_size == 16 + 3 * 8, "places are used again"

    file.close()
    assert left_running(path) == []


def test_a_process_that_was_asked_to_end_may_be_killed(tmp_path: Path) -> None:
    path = tmp_path / "running"
    programs = Mock(takes_all=False)
    rows = WatchedRows(Mock(programs=programs, planned=None), Suspects(), RunningFile(path))
    rows.arrive(3, {}, Mock())
    assert left_running(path) == [3]

    rows.drain()
    assert left_running(path) == [], "it was not the row"
    over = programs.arrive.call_args.args[2]
    over("fine", None)


def test_a_machine_that_was_restarted_holds_nothing_against_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "running"
    RunningFile(path).begin(3)
    assert left_running(path) == [3]

    monkeypatch.setattr(running, "boot", lambda: bytes(range(16)))
    assert left_running(path) == []


def test_one_row_among_many_is_found_in_a_few_deaths() -> None:
    rows, suspects, ended, deaths = set(range(256)), Suspects(), 0, 0
    killer = 200
    while killer in rows:
        gate, running = Gate(), set[int]()
        for row in sorted(rows, key=lambda row: (suspects.rank(row), row)):
            if gate.fits(suspects.of(row)):
                gate.begin(row, suspects.of(row))
                running.add(row)
        if killer in running:
            deaths += 1
            if suspects.died(running, (), ended) == killer:
                break
        else:
            ended += len(running)
            rows -= running
            for row in running:
                suspects.ended(row)
    assert deaths <= 5
    assert suspects.known[killer].fatal


def test_a_row_that_moves_is_not_suspected() -> None:
    suspects = Suspects()
    for _ in range(9):
        assert suspects.died([3], [3], 7) is None
    assert suspects.of(3) is None


def test_where_no_row_ever_ends_it_takes_more_deaths_to_blame_one() -> None:
    suspects = Suspects()
    found = [suspects.died([3], (), 0) for _ in range(UNPROVEN_DEATHS)]
    assert found == [None] * (UNPROVEN_DEATHS - 1) + [3]

    suspects = Suspects()
    found = [suspects.died([3], (), ended) for ended in range(FATAL_DEATHS)]
    assert found == [None] * (FATAL_DEATHS - 1) + [3]


def test_where_processes_may_be_killed_from_outside_it_takes_more_deaths_still() -> None:
    suspects, most = Suspects(patience=OUTSIDE), OUTSIDE * FATAL_DEATHS
    found = [suspects.died([3], (), ended) for ended in range(most)]
    assert found == [None] * (most - 1) + [3]


def test_a_gate_lets_suspects_run_with_as_few_as_they_allow() -> None:
    gate, two, alone = Gate(), Suspicion(2, 2, 0), Suspicion(3, 1, 0)
    assert gate.fits(alone)
    gate.begin(1, two)
    assert gate.fits(two) and not gate.fits(alone) and not gate.fits(None)
    gate.begin(2, two)
    assert not gate.fits(two)
    gate.ended(1)
    gate.ended(2)
    gate.begin(3, None)
    assert gate.fits(None) and not gate.fits(two)


@pytest.mark.slow
def test_a_process_that_is_killed_by_a_row_again_and_again(tmp_path: Path) -> None:
    rows = counted_table(tmp_path / "in.csv", 12, 5)
    out, home = tmp_path / "out.csv", tmp_path / "home"
    start = ["map", FLOW.replace(":counted", ":deadly"), str(rows), "--out", str(out)]
    codes: list[int] = []
    while not codes or (codes[-1] == 1 and len(codes) < 30):
        command = [sys.executable, "-m", "tenter.runtime", *start, "--home", str(home)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, check=False)
        codes.append(done.returncode)
        start = ["resume", "last"]

    assert codes[-1] == 3, "done, with failed rows"
    with out.open(newline="") as file:
        errors = [bool(row["error"]) for row in csv.DictReader(file)]
    assert errors == [row == 5 for row in range(12)]
