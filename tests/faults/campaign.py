"""The fault campaign: jobs in virtual time, with everything that can go wrong going wrong.

    python tests/faults/campaign.py                          1,000 stories
    python tests/faults/campaign.py --seeds 100000 --processes 8
    python tests/faults/campaign.py --story 4711             what happens in one of them

A story that breaks a rule is cut down to the shortest that still does, and shown. Exits with 1 then.
"""

import argparse
import logging
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # where `faults` is

from faults.disk import scratch
from faults.runs import Report, any_story_of, run, shrunk, tell_any
from faults.worlds import Verdict

SHOWN = 3  # broken stories that are cut down
LINES = 60  # of the log of one
TICK_S = 5.0


def main() -> int:
    """Run what the command line asks for; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=1000, help="how many stories (1000)")
    parser.add_argument("--first", type=int, default=0, help="the seed of the first one (0)")
    parser.add_argument(
        "--processes", type=int, default=min(2, os.cpu_count() or 1), help="at once (2)"
    )
    parser.add_argument(
        "--story", type=int, metavar="SEED", help="show one story, and run it alone"
    )
    chosen = parser.parse_args()
    logging.disable(logging.CRITICAL)
    if chosen.story is not None:
        return _one(chosen.story)
    began_s = time.monotonic()
    report = run(chosen.first, chosen.seeds, chosen.processes, _Progress(chosen.seeds))
    took_s = time.monotonic() - began_s
    sys.stderr.write("\n")
    _say(f"{report}\n{took_s:,.0f} s, {1e3 * took_s / max(report.seeds, 1):.1f} ms a story")
    for seed in list(report.broken)[:SHOWN]:
        _say(f"\nseed {seed}: {report.broken[seed].detail}\ncut down to")
        _show(shrunk(report.broken[seed]))
    return 1 if report.broken else 0


def _one(seed: int) -> int:
    with tempfile.TemporaryDirectory(dir=scratch()) as folder:
        verdict = tell_any(any_story_of(seed), Path(folder), log=True)
    _show(verdict)
    return 1 if verdict.rule is not None else 0


def _show(verdict: Verdict) -> None:
    _say(verdict.story)
    _say("\n".join(line[:200] for line in verdict.log[-LINES:]))
    _say(f"ends: {', '.join(verdict.ends)}; trace {verdict.trace}")
    _say(verdict.detail or "every rule holds")
    if verdict.rule is not None:
        _say(f"as a test: {verdict.story!r}")


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


class _Progress:
    """Tells on stderr, every TICK_S, how far it is."""

    def __init__(self, seeds: int) -> None:
        self._seeds = seeds
        self._began_s = self._told_s = time.monotonic()

    def __call__(self, report: Report) -> None:
        now_s = time.monotonic()
        if now_s - self._told_s < TICK_S:
            return
        self._told_s = now_s
        rate = report.seeds / (now_s - self._began_s)
        sys.stderr.write(
            f"\r{report.seeds:,} of {self._seeds:,} seeds, {rate:.0f}/s, broken: "
            f"{', '.join(map(str, report.broken)) or 'none'} "
        )
        sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
