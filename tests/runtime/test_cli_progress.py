"""What is said while a run goes on."""

import json
from typing import Any

import anyio
import pytest

from tenter.runtime import progress
from tenter.runtime.clock import VirtualLoop, now
from tenter.runtime.report.tally import Tally
from tenter.runtime.scheduler.events import CallEnded, CallShared, ProgramEnded, RunStarted
from tenter.runtime.trace import TRACE_VERSION


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualLoop}


async def two_rows_a_second(tally: Tally, rows: int, total: int | None) -> None:
    """A run that was resumed after four rows; every third call is shared."""
    started = RunStarted(
        version=TRACE_VERSION, run="run_x", workflow="flow", rows=total, resumed_rows=4
    )
    tally.add(now(), started)
    for row in range(rows):
        await anyio.sleep(0.5)
        if row % 3 == 2:
            tally.add(now(), CallShared(program=f"r{row}", step="s", how="joined"))
        else:
            call = CallEnded(
                call=f"c{row}",
                program=f"r{row}",
                step="s",
                finish="stop",
                prompt_tokens=40,
                cached_tokens=30,
                output_tokens=10,
            )
            tally.add(now(), call)
        tally.add(now(), ProgramEnded(program=f"r{row}", row=row, ok=row != 1))


async def shown(rows: int, total: int | None, emit: Any = None) -> None:
    tally = Tally()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(progress.show, tally, emit)
        await two_rows_a_second(tally, rows, total)
        tasks.cancel_scope.cancel()


async def test_records_tell_launch_and_progress() -> None:
    said: list[dict[str, Any]] = []
    await shown(60, 104, said.append)
    launch, *rest = said

    assert launch == {
        "type": "launch",
        "run": "run_x",
        "workflow": "flow",
        "rows_total": 104,
        "rows_resumed": 4,
    }
    assert {record["type"] for record in rest} == {"progress"}
    assert 25 <= len(rest) <= 31, "about one a second"
    last = rest[-1]
    assert last["rows_per_s"] == pytest.approx(2.0, rel=0.1)
    assert last["hit_rate"] == 0.75
    assert last["shared_calls"] > 10
    assert last["left_s"] == pytest.approx((104 - 4 - last["rows_done"]) / 2, abs=4)
    json.dumps(said)


async def test_lines_come_every_few_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    await shown(62, 104)
    lines = capsys.readouterr().err.splitlines()

    assert len(lines) == 6
    assert lines[-1].startswith("tenter: 63/104 rows  1 failed  2.0 rows/s")
    assert "75% cached" in lines[-1]
    assert lines[-1].endswith("left")


async def test_a_table_of_unknown_length_has_no_time_left(
    capsys: pytest.CaptureFixture[str],
) -> None:
    await shown(22, None)
    (*_, last) = capsys.readouterr().err.splitlines()

    assert "rows/s" in last
    assert "left" not in last


async def test_a_terminal_gets_one_line_that_changes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    await shown(8, 12)
    said = capsys.readouterr().err

    assert "flow" in said
    assert "12/12 rows" in said


async def test_the_first_error_is_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    tally = Tally()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(progress.show, tally)
        for row in range(30):
            ended = ProgramEnded(
                program=f"r{row}", row=row, ok=False, error=f"no [b]luck[/b] {row}"
            )
            tally.add(now(), ended)
            await anyio.sleep(1)
        tasks.cancel_scope.cancel()
    said = [line for line in capsys.readouterr().err.splitlines() if "error" in line]

    assert said == ["tenter: the first error: no [b]luck[/b] 0"]


def test_times_are_written_as_clocks() -> None:
    tally = Tally()
    snapshot = tally.snapshot()

    assert "1:02:03 left" in progress.facts(snapshot, progress.Pace(1, 1, 3723))
    assert "2:05 left" in progress.facts(snapshot, progress.Pace(1, 1, 125))
    assert "left" not in progress.facts(snapshot, progress.Pace())
