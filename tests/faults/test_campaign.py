"""The fault campaign in the size of a test suite, and that it finds what is broken."""

import dataclasses
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from faults.runs import Report, run, shrunk
from faults.stories import KINDS, Story, story_of
from faults.worlds import Verdict, tell
from tenter.runtime.journal.file import JournalFile
from tenter.runtime.run.rows import RowRun

CAMPAIGN = Path(__file__).with_name("campaign.py")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Workers die by the thousand; nobody wants to read of each."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def holds(report: Report) -> None:
    """Every rule holds in every story; otherwise the first broken one is told in short."""
    for seed, verdict in report.broken.items():
        short = shrunk(verdict)
        pytest.fail(
            f"seed {seed} of {len(report.broken)} broken ones: {short.detail}\n{short.story}\n"
            + "\n".join(line[:160] for line in short.log[-30:])
            + f"\nas a test: {short.story!r}"
        )


def test_three_hundred_stories_break_no_rule() -> None:
    report = run(0, 300)
    holds(report)
    assert report.faults > 300
    assert report.ends["killed"] > 100


@pytest.mark.slow
def test_ten_thousand_stories_break_no_rule() -> None:
    holds(run(0, 10_000, processes=2))


def test_a_seed_is_a_run(tmp_path: Path) -> None:
    """The same seeds give the same trace, in another process with another hash seed too."""
    assert run(1000, 60).digest == run(1000, 60, processes=2).digest
    assert tell(story_of(7), tmp_path).trace != tell(story_of(8), tmp_path).trace


def test_stories_hold_every_kind_of_fault() -> None:
    told = {fault.kind for seed in range(3000) for fault in story_of(seed).faults}
    assert told == set(KINDS)
    assert len({story_of(seed) for seed in range(500)}) > 490


# ---- it finds what is broken ---------------------------------------------------------------------


def first_broken() -> Verdict:
    for first in range(0, 300, 20):
        for verdict in run(first, 20).broken.values():
            return verdict
    pytest.fail("the campaign has not noticed")


def test_a_journal_that_forgets_is_found_and_the_story_is_short(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    append = JournalFile.append

    def forgetful(file: JournalFile, entries: Any) -> None:
        append(file, [entry for entry in entries if not getattr(entry, "path", "").endswith("?")])

    monkeypatch.setattr(JournalFile, "append", forgetful)
    short = shrunk(first_broken())
    assert short.rule == "an acknowledged record is lost"
    assert len(short.story.rows) == 1
    assert len(short.story.faults) <= 2
    assert "pay?" in short.detail


def test_a_log_that_is_not_synced_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JournalFile, "sync", lambda file: None)
    assert "power" in {fault.kind.split()[0] for fault in first_broken().story.faults}


def test_a_row_that_is_lost_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given, story = RowRun._give, Story(rows=("ash", "elm", "ash"))
    assert tell(story, tmp_path).rule is None

    def careless(rows: RowRun, row: Any, value: Any, error: Any) -> None:
        given(rows, dataclasses.replace(row, row=row.row + (row.row == 1)), value, error)

    monkeypatch.setattr(RowRun, "_give", careless)
    assert tell(story, tmp_path).rule is not None


# ---- by hand ---------------------------------------------------------------------------------------


def test_one_story_from_the_command_line() -> None:
    done = subprocess.run(
        [sys.executable, str(CAMPAIGN), "--story", "3"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert str(story_of(3)) in done.stdout
    assert "every rule holds" in done.stdout
