"""kill -9 at random moments of a run on a real engine: nothing is lost, little is done twice."""

import csv
import os
import random
import signal
import subprocess
import sys
import time
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


def table(path: Path) -> None:
    rng = random.Random(7)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["ticket", "sum"])
        for row in range(ROWS):
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


@pytest.mark.slow
def test_twenty_kills_lose_no_row_and_repeat_little(tmp_path: Path) -> None:
    (tmp_path / "kill.yaml").write_text(WORKFLOW)
    table(tmp_path / "in.csv")
    files = [str(tmp_path / "kill.yaml"), str(tmp_path / "in.csv")]

    whole, counts = tmp_path / "whole.csv", tmp_path / "whole.count"
    finished(start("map", *files, str(whole), str(tmp_path / "home1"), str(counts)))
    tokens = size(counts)

    out, counts, home = tmp_path / "out.csv", tmp_path / "out.count", str(tmp_path / "home2")
    rng = random.Random(11)
    moments = sorted(rng.randrange(tokens) for _ in range(KILLS))
    process = start("map", *files, str(out), home, str(counts))
    for moment in moments:
        while size(counts) <= moment and process.poll() is None:
            time.sleep(0.002)  # the process runs; there is nothing to simulate
        process.send_signal(signal.SIGKILL)
        process.communicate()
        process = start("resume", home, str(counts))
    finished(process)

    assert out.read_bytes() == whole.read_bytes()
    assert size(counts) <= 1.05 * tokens, f"{size(counts)} tokens instead of {tokens}"
    finished(start("resume", home, str(counts)))  # a finished run is left alone
    assert out.read_bytes() == whole.read_bytes()
