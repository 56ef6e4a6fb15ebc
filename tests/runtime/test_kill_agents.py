"""kill -9 at random points of a run of agents: nothing is paid twice, no recorded turn is repeated.

`TENTER_TEST_KILLS=50 pytest -m slow tests/runtime/test_kill_agents.py` for more points than ten.
"""

import csv
import logging
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tenter.runtime.journal.base import StepRecord
from tenter.runtime.journal.store import Store

AGENTS, PAYMENTS = 30, 2
KILLS = int(os.environ.get("TENTER_TEST_KILLS", "10"))
log_of_test = logging.getLogger(__name__)
JOB = Path(__file__).with_name("agents_job.py")


def table(path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["order"])
        writer.writerows([f"order-{row}"] for row in range(AGENTS))


def run(*arguments: str) -> int:
    """The exit code of a job; -9 where it was killed."""
    command = [sys.executable, str(JOB), *arguments]
    process = subprocess.run(command, stderr=subprocess.PIPE, check=False)
    assert process.returncode in (0, -9), process.stderr.decode()[-2000:]
    return process.returncode


def recorded_turns(home: Path) -> set[str]:
    """The calls whose answers are in the journal of the home's one run."""
    store = Store(home)
    return {
        f"r{entry.row}/{entry.path}"
        for entry in store.entries(store.find("last"))
        if isinstance(entry, StepRecord) and ".turn@" in entry.path and entry.value[:1] == b"{"
    }


def turns(log: Path) -> list[str]:
    return [line[5:] for line in log.read_text().splitlines() if line.startswith("turn r")]


@pytest.mark.slow
def test_agents_that_are_killed_again_and_again_end_alike(tmp_path: Path) -> None:
    orders, whole, log = tmp_path / "in.csv", tmp_path / "whole.csv", tmp_path / "whole.log"
    table(orders)
    assert run("map", str(orders), str(whole), str(tmp_path / "home1"), str(log)) == 0
    lines = log.read_text().count("\n")
    first = turns(log)
    assert len(set(first)) == len(first) == AGENTS * (2 * PAYMENTS + 1)

    out, log, home = tmp_path / "out.csv", tmp_path / "out.log", tmp_path / "home2"
    draw = random.Random(5)
    moments = sorted(draw.sample(range(1, lines), KILLS))
    start = ["map", str(orders), str(out), str(home), str(log)]
    kills = 0
    for moment in moments:
        done, before = recorded_turns(home) if kills else set[str](), turns(log) if kills else []
        kills += run(*start, str(moment)) == -9
        assert not done.intersection(turns(log)[len(before) :]), "a recorded turn was repeated"
        start = ["resume", str(home), str(log)]
    assert kills == KILLS
    assert run(*start) == 0

    assert out.read_bytes() == whole.read_bytes()
    paid = Path(f"{log}.ledger").read_text().split()
    assert len(set(paid)) == len(paid) == AGENTS * PAYMENTS, "each was paid, and none twice"
    assert set(turns(log)) == set(first)
    repeated = len(turns(log)) - len(first)
    log_of_test.info("%d kills, %d turns in flight asked again", kills, repeated)
    assert repeated <= AGENTS * kills
