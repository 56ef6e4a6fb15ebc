"""The fault campaign in the size of a test suite, and that it finds what is broken."""

import dataclasses
import logging
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from faults.disk import scratch
from faults.fleet_stories import HAPPENS, FleetStory, fleet_story_of
from faults.fleets import tell_fleet
from faults.keeper import SCRIPTS, Keeper
from faults.runs import FLEETS, Report, any_story_of, run, shrunk
from faults.stories import KINDS, Fault, Story, story_of
from faults.worlds import Verdict, tell
from tenter.runtime.fleet import claims, ledger
from tenter.runtime.journal.file import JournalFile
from tenter.runtime.journal.redis_scripts import COMMIT
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


def test_a_hundred_stories_break_no_rule() -> None:
    report = run(0, 100)
    holds(report)
    assert report.faults > 100
    assert report.ends["killed"] > 30


@pytest.mark.slow
def test_ten_thousand_stories_break_no_rule() -> None:
    holds(run(0, 10_000, processes=2))


@pytest.mark.slow
def test_a_seed_is_a_run(tmp_path: Path) -> None:
    """The same seeds give the same trace, in another process with another hash seed too."""
    assert run(1000, 24).digest == run(1000, 24, processes=2).digest
    assert tell(story_of(7), tmp_path).trace != tell(story_of(8), tmp_path).trace


def test_stories_hold_every_kind_of_fault() -> None:
    told = {fault.kind for seed in range(3000) for fault in story_of(seed).faults}
    assert told == set(KINDS)
    assert len({story_of(seed) for seed in range(500)}) > 490
    fleets = [fleet_story_of(seed) for seed in range(1000)]
    assert {each.kind for story in fleets for each in story.happenings} == set(HAPPENS)
    assert isinstance(any_story_of(FLEETS - 1), FleetStory)


# ---- it finds what is broken ---------------------------------------------------------------------


def first_broken() -> Verdict:
    for first in range(0, 300, 20):
        for verdict in run(first, 20).broken.values():
            return verdict
    pytest.fail("the campaign has not noticed")


@pytest.mark.slow
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


def first_broken_fleet(stories: Iterable[FleetStory]) -> str:
    """The rule that one of these breaks."""
    with TemporaryDirectory(dir=scratch()) as folder:
        for story in stories:
            rule = tell_fleet(story, Path(folder)).rule
            if rule is not None:
                return rule
    pytest.fail("the campaign has not noticed")


def test_a_process_back_from_the_dead_that_writes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    fenced = SCRIPTS[COMMIT.sha]

    def careless(keeper: Keeper, key: str, token: bytes, *given: bytes) -> Any:
        return fenced(keeper, key, keeper.keys[key][b"token"], *given)

    monkeypatch.setitem(SCRIPTS, COMMIT.sha, careless)
    frozen = [Story(faults=(Fault("freeze", turn, amount=44.0),)) for turn in (60, 80, 90)]
    rule = first_broken_fleet(FleetStory((each,), (0,)) for each in frozen)
    assert rule == "a process that was taken over is acknowledged"


@pytest.mark.slow
def test_waiting_for_the_work_of_a_dead_process_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCRIPTS, claims._LIVES.sha, lambda keeper, key: 1)
    killed = [Story(faults=(Fault("kill", turn),)) for turn in (60, 70, 80, 90)]
    stories = (FleetStory((each, Story()), (0, 1)) for each in killed)
    assert first_broken_fleet(stories) == "a life never ends"


def test_a_server_that_is_overcommitted_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "_granted", lambda whole, *rest: whole)
    words = ("ash", "birch", "cedar", "elm")
    busy = [Story(job="fan", rows=(*words[at:], *words[:at]), slots=2) for at in (0, 2, 3)]
    story = FleetStory(tuple(busy), (0, 0, 0))
    assert first_broken_fleet([story]) == "a server is overcommitted"


# ---- by hand ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_one_story_from_the_command_line() -> None:
    done = subprocess.run(
        [sys.executable, str(CAMPAIGN), "--story", "3"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert str(story_of(3)) in done.stdout
    assert "every rule holds" in done.stdout
