"""Runs on a real Ray cluster: the bytes of a local run, also when processes are killed with -9."""

import csv
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for the module beside this file

from counted import FLOW, drawn_by, table, tokens

pytestmark = pytest.mark.slow

ROWS = 80
KILLS = 3
IN_FLIGHT = 4  # rows of a shard: `--concurrency 8` over two of them
ROW_TOKENS = 80  # at most, of a row of `counted`
ROOT = Path(__file__).parents[2]
DEADLY = FLOW.replace(":counted", ":deadly")


def tenter(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tenter.runtime", *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)


def ended(process: subprocess.Popen[str], code: int = 0) -> str:
    out, errors = process.communicate(timeout=300)
    assert process.returncode == code, errors[-3000:]
    return out + errors


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, int]:
    """What a local run writes, and the tokens that it draws."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "counts").mkdir()
    process = tenter(
        *("map", FLOW, table(folder / "in.csv", ROWS), "--out", folder / "out.csv"),
        *("--model", f"default=counted:counts={folder / 'counts'}", "--home", folder / "home"),
    )
    ended(process)
    return (folder / "out.csv").read_bytes(), tokens(folder / "counts")


class Job:
    """A run on the cluster, in a folder of its own."""

    def __init__(self, folder: Path, address: str) -> None:
        self.out, self.home, self.counts = folder / "out.csv", folder / "home", folder / "counts"
        self.counts.mkdir()
        self._map = (
            *("map", FLOW, table(folder / "in.csv", ROWS), "--out", self.out),
            *("--model", f"default=counted:counts={self.counts}", "--home", self.home),
            *("--engine", "ray", "--shards", 2, "--ray-address", address, "--concurrency", 8),
        )

    def start(self) -> subprocess.Popen[str]:
        return tenter(*self._map)

    def resume(self, *more: object) -> subprocess.Popen[str]:
        return tenter("resume", "last", "--home", self.home, *more)

    def until(self, moment: int, process: subprocess.Popen[str]) -> None:
        """Wait until so many tokens are drawn, or the run is over."""
        while tokens(self.counts) <= moment and process.poll() is None:
            time.sleep(0.005)  # other processes run; there is nothing to simulate

    def workers(self) -> list[int]:
        """The processes that have drawn tokens, the newest first."""
        found = drawn_by(self.counts)
        return sorted(found, key=lambda pid: -found[pid].stat().st_mtime_ns)


def test_killed_workers_lose_no_row_and_repeat_only_what_was_in_flight(
    tmp_path: Path, ray_address: str, whole: tuple[bytes, int]
) -> None:
    answers, drawn = whole
    job, rng = Job(tmp_path, ray_address), random.Random(11)
    moments = sorted(rng.randrange(drawn // 10, drawn * 2 // 3) for _ in range(KILLS))
    process, killed = job.start(), set[int]()
    for moment in moments:
        job.until(moment, process)
        alive = [worker for worker in job.workers() if worker not in killed]
        if process.poll() is None and alive:
            os.kill(alive[0], signal.SIGKILL)
            killed.add(alive[0])
    said = ended(process)

    assert job.out.read_bytes() == answers
    assert tokens(job.counts) <= drawn + KILLS * IN_FLIGHT * ROW_TOKENS
    assert "another takes its" in said
    shown = json.loads(ended(tenter("show", "last", "--home", job.home, "--json")))
    assert (shown["status"], shown["rows_done"]) == ("done", ROWS)


def test_a_killed_driver_is_resumed_on_ray_and_without(
    tmp_path: Path, ray_address: str, whole: tuple[bytes, int]
) -> None:
    answers, drawn = whole
    job = Job(tmp_path, ray_address)
    process = job.start()
    job.until(drawn // 3, process)
    process.kill()
    process.communicate()
    again = job.resume()
    job.until(drawn // 2, again)
    again.send_signal(signal.SIGTERM)
    said = ended(again, 143)
    assert "tenter resume" in said
    assert "SIGTERM received" not in said, "Ray would abort the run after three seconds"
    ended(job.resume("--engine", "local"))

    assert job.out.read_bytes() == answers
    assert tokens(job.counts) <= drawn + 2 * IN_FLIGHT * ROW_TOKENS
    ended(job.resume())
    assert job.out.read_bytes() == answers, "a finished run is left alone"


def test_a_row_that_kills_its_process_is_failed_and_the_others_are_done(
    tmp_path: Path, ray_address: str
) -> None:
    process = tenter(
        *("map", DEADLY, table(tmp_path / "in.csv", 12, 5), "--home", tmp_path / "h"),
        *("--out", tmp_path / "out.csv", "--engine", "ray", "--shards", 1),
        *("--ray-address", ray_address, "--concurrency", 4),
    )
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 3, errors[-3000:]

    with (tmp_path / "out.csv").open(newline="") as file:
        said = [row["error"] for row in csv.DictReader(file)]
    assert [row for row, error in enumerate(said) if error] == [5]
    assert "the process that ran this row died" in said[5]
    assert "worker process has died" in errors


def test_the_page_about_ray_is_true(
    tmp_path: Path, ray_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", ray_address)
    spec = importlib.util.spec_from_file_location("docs", ROOT / "tests" / "test_docs.py")
    assert spec is not None and spec.loader is not None
    docs = importlib.util.module_from_spec(spec)
    sys.modules["docs"] = docs
    spec.loader.exec_module(docs)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    page = ROOT / "docs" / "ray.md"
    for snippet in docs.snippets(page):
        docs.run(snippet, page, tmp_path)
