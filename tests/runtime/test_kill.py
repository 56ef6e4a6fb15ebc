"""kill -9 at random moments of a run on a real engine: nothing is lost, little is done twice.

    python tests/runtime/test_kill.py [--kills N] [--rows N] [--redis redis://HOST:PORT/DB] [--seed N]

runs it for longer, on a folder or on a Redis, and prints what it came to.
"""

import argparse
import csv
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

ROWS = 500
KILLS = 20
JOB = Path(__file__).with_name("counted_job.py")
WORKFLOW = """\
version: 1
name: kill
inputs: { ticket: string, sum: string }
steps:
  kind:
    llm: "Which team handles this ticket?\\n\\n{{ ticket }}"
    choices: [billing, bug, shipping, sales, other]
  answer:
    llm: "Compute {{ sum }}. Think hard."
    max_tokens: 128
  note:
    llm: "Classify the review: {{ kind }} said {{ answer }}"
    max_tokens: 12
output: { kind: "{{ kind }}", answer: "{{ answer }}", note: "{{ note }}" }
"""


def table(path: Path, rows: int) -> None:
    rng = random.Random(7)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["ticket", "sum"])
        for row in range(rows):
            terms = " + ".join(str(rng.randint(2, 99)) for _ in range(rng.randint(2, 5)))
            writer.writerow([f"My parcel {row} never arrived.", terms])


def start(*arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(JOB), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def finished(process: subprocess.Popen[bytes]) -> None:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()[-2000:]


@dataclass(frozen=True)
class Killed:
    """What a campaign came to: the files, and the tokens of an undisturbed run and of the killed one."""

    whole: bytes
    out: bytes
    resumed: bytes  # once more, when it was finished
    tokens: int
    spent_tokens: int


def campaign(folder: Path, rows: int, kills: int, seed: int, home: str | None = None) -> Killed:
    """Run the workflow in peace, then again with so many kills; `home`: where that run is kept."""
    (folder / "kill.yaml").write_text(WORKFLOW)
    table(folder / "in.csv", rows)
    files = [str(folder / "kill.yaml"), str(folder / "in.csv")]

    whole, counts = folder / "whole.csv", folder / "whole.count"
    finished(start("map", *files, str(whole), str(folder / "home1"), str(counts)))
    tokens = size(counts)

    out, counts, home = folder / "out.csv", folder / "out.count", home or str(folder / "home2")
    rng = random.Random(seed)
    moments = sorted(rng.randrange(tokens) for _ in range(kills))
    process = start("map", *files, str(out), home, str(counts))
    for number, moment in enumerate(moments):
        while size(counts) <= moment and process.poll() is None:
            time.sleep(0.002)  # the process runs; there is nothing to simulate
        process.send_signal(signal.SIGKILL)
        process.communicate()
        process = start("resume", home, str(counts))
        sys.stderr.write(f"{number + 1} kills, {size(counts)} of {tokens} tokens\n")
    finished(process)
    killed = out.read_bytes()
    finished(start("resume", home, str(counts)))  # a finished run is left alone
    return Killed(whole.read_bytes(), killed, out.read_bytes(), tokens, size(counts))


@pytest.mark.slow
def test_twenty_kills_lose_no_row_and_repeat_little(tmp_path: Path) -> None:
    found = campaign(tmp_path, ROWS, KILLS, 11)
    assert found.out == found.resumed == found.whole
    spent = f"{found.spent_tokens} tokens instead of {found.tokens}"
    assert found.spent_tokens <= 1.05 * found.tokens, spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--rows", type=int, default=2_000)
    parser.add_argument("--redis", metavar="URL", help="an empty database; a folder without it")
    parser.add_argument("--seed", type=int, default=11)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = campaign(Path(folder), given.rows, given.kills, given.seed, given.redis)
    equal = found.out == found.resumed == found.whole
    ratio = found.spent_tokens / found.tokens
    said = f"same bytes: {equal}; {found.spent_tokens} tokens, {ratio:.4f} of {found.tokens}"
    sys.stdout.write(said + "\n")
    sys.exit(not equal)


if __name__ == "__main__":
    main()
