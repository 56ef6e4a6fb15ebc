"""kill -9 at random moments of a run on a real engine: nothing is lost, little is done twice.

    python tests/runtime/test_kill.py [--kills N] [--rows N] [--seed N] [--engine local|ray]
                                      [--redis redis://HOST:PORT/DB]

runs it for longer, on a folder or on a Redis, in one process or on a Ray cluster of two workers that
it starts. There the run or one of its workers is killed, whichever the dice say. Each run that was
killed is resumed. Tells how far it is, and at the end as a JSON line what it came to; exits with 1
where that is not what is promised.
"""

import argparse
import csv
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "cluster"))  # for the modules there

from counted import FLOW, drawn_by, open_tokens, table, tokens
from ray_cluster import SETTINGS, running

ROWS = 500
KILLS = 20
MOST_RATIO = 1.02  # of the tokens of an undisturbed run, beside what was in flight
ENDS_S = 3600.0  # of a run that nobody kills


class Job:
    """A run of the counted workflow, kept in `home`, as often as it is started."""

    def __init__(
        self, folder: Path, name: str, rows: int, home: str | None, ray: str | None
    ) -> None:
        self.out, self.counts = folder / f"{name}.csv", folder / f"{name}.counts"
        self.counts.mkdir()
        self._log = folder / f"{name}.log"
        self._home = home or str(folder / f"{name}.home")
        there = () if ray is None else ("--engine", "ray", "--shards", "2", "--ray-address", ray)
        source = table(folder / f"{name}.in.csv", rows)
        model = f"default=counted:counts={self.counts}"
        self._map = ("map", FLOW, source, "--out", self.out, "--model", model, *there)
        self._process = self._start(*self._map)
        self._gone = set[int]()
        self._on_ray = ray is not None

    @property
    def tokens(self) -> int:
        """What was drawn."""
        return tokens(self.counts)

    @property
    def over(self) -> bool:
        """Whether the process has ended by itself."""
        return self._process.poll() is not None

    def resume(self) -> None:
        self._process = self._start("resume", "last")

    def kill(self, rng: random.Random) -> str:
        """Kill one of its processes; says which. A run that has ended so is resumed."""
        workers = [pid for pid in drawn_by(self.counts) if self._on_ray and self._is_worker(pid)]
        victim = rng.choice([None, *sorted(workers)])
        if victim is not None:
            self._gone.add(victim)
            os.kill(victim, signal.SIGKILL)
            return "a worker"
        self._gone.update(workers)  # they follow
        self._process.kill()
        self._process.wait()
        self.resume()
        return "the run"

    def end(self) -> None:
        """Wait for the end, resuming it where too much was killed at once for it to go on."""
        while (code := self._process.wait(timeout=ENDS_S)) == 5 and self._on_ray:
            self.resume()
        assert code == 0, self._log.read_text()[-2000:]

    def _start(self, *arguments: object) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tenter.runtime", *map(str, arguments)]
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [*command, "--home", self._home],
                env=os.environ | SETTINGS,
                stdout=log,
                stderr=log,
            )

    def _is_worker(self, pid: int) -> bool:
        """Whether such a process of the cluster is there; its number may be another's by now."""
        try:
            named = Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::Worker")
        except OSError:
            return False
        return named and pid not in self._gone


@dataclass(frozen=True, slots=True)
class Found:
    """What a campaign came to."""

    rows: int
    kills: int
    killed: dict[str, int]
    same_bytes: bool  # as an undisturbed run, also when it is resumed once more
    lost: int
    doubled: int
    undisturbed_tokens: int
    tokens: int
    ratio: float  # of these two
    in_flight_tokens: int  # that had been drawn for the calls which were cut off
    wall_s: float

    @property
    def kept(self) -> bool:
        """Whether all is as promised."""
        most = MOST_RATIO * self.undisturbed_tokens + self.in_flight_tokens
        return self.same_bytes and self.lost == self.doubled == 0 and self.tokens <= most


def campaign(
    folder: Path, rows: int, kills: int, seed: int, home: str | None = None, ray: str | None = None
) -> Found:
    """Run the workflow in peace, then again with so many kills.

    `home`: where that run is kept; `ray`: the address of the cluster that runs both.
    """
    began_s = time.monotonic()
    whole = Job(folder, "whole", rows, None, ray)
    whole.end()
    total = whole.tokens
    tell(f"an undisturbed run draws {total:,} tokens in {time.monotonic() - began_s:.0f} s")

    job, rng, killed = Job(folder, "killed", rows, home, ray), random.Random(seed), Counter[str]()
    moments = sorted(rng.randrange(total) for _ in range(kills))
    for moment in moments:
        while job.tokens <= moment and not job.over:
            time.sleep(0.002)  # other processes run; there is nothing to simulate
        if job.over:
            break
        killed[job.kill(rng)] += 1
        tell(f"{killed.total()} kills, {job.tokens:,} of {total:,} tokens")
    job.end()
    out = job.out.read_bytes()
    job.resume()  # a finished run is left alone
    job.end()

    tickets = Counter(row["ticket"] for row in csv.DictReader(out.decode().splitlines()))
    return Found(
        rows=rows,
        kills=killed.total(),
        killed=dict(killed),
        same_bytes=out == job.out.read_bytes() == whole.out.read_bytes(),
        lost=rows - len(tickets),
        doubled=tickets.total() - len(tickets),
        undisturbed_tokens=total,
        tokens=job.tokens,
        ratio=round(job.tokens / total, 4),
        in_flight_tokens=open_tokens(job.counts),
        wall_s=round(time.monotonic() - began_s, 1),
    )


def tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")


@pytest.mark.slow
def test_twenty_kills_lose_no_row_and_repeat_little(tmp_path: Path) -> None:
    found = campaign(tmp_path, ROWS, KILLS, 11)
    assert found.kept and found.ratio <= 1.05, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--rows", type=int, default=2_000)
    parser.add_argument("--engine", choices=("local", "ray"), default="local")
    parser.add_argument("--redis", metavar="URL", help="an empty database; a folder without it")
    parser.add_argument("--seed", type=int, default=11)
    given = parser.parse_args()
    cluster = running() if given.engine == "ray" else nullcontext()
    with cluster as ray, tempfile.TemporaryDirectory() as folder:
        found = campaign(Path(folder), given.rows, given.kills, given.seed, given.redis, ray)
    store = "sqlite" if given.redis is None else "redis"
    setup = {"test": "kill", "engine": given.engine, "store": store, "seed": given.seed}
    sys.stdout.write(json.dumps(setup | asdict(found) | {"kept": found.kept}) + "\n")
    sys.exit(not found.kept)


if __name__ == "__main__":
    main()
