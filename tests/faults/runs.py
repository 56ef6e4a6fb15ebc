"""Many stories: run on several processes, counted, and a broken one cut down to what breaks it."""

import gc
import logging
import multiprocessing
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice
from pathlib import Path

from .disk import scratch
from .fleet_stories import FleetStory, fleet_story_of, simpler_fleet
from .fleets import tell_fleet
from .stories import Story, simpler, story_of
from .worlds import Verdict, tell, unbegun_ignored

AnyStory = Story | FleetStory

FLEETS = 16  # one seed of so many is that of a fleet
CHUNK = 50  # stories that a process is given at once
MOST_TRIES = 400  # of a story that is being cut down


@dataclass(slots=True)
class Report:
    """What came of many seeds. `digest` is of all that happened in them, in their order."""

    seeds: int = 0
    lives: int = 0
    faults: int = 0
    ends: Counter[str] = field(default_factory=Counter[str])
    broken: dict[int, Verdict] = field(default_factory=dict[int, Verdict])
    digest: str = ""

    def add(self, seed: int, verdict: Verdict) -> None:
        """Count one more verdict."""
        self.seeds += 1
        self.lives += len(verdict.ends)
        self.faults += verdict.fired
        self.ends.update(verdict.ends)
        self.digest = blake2b(f"{self.digest}{verdict.trace}".encode(), digest_size=8).hexdigest()
        if verdict.rule is not None:
            self.broken[seed] = verdict

    def __str__(self) -> str:
        ends = ", ".join(f"{count:,} {end}" for end, count in self.ends.most_common())
        return (
            f"{self.seeds:,} seeds, {self.lives:,} lives ({ends}), {self.faults:,} faults, "
            f"{len(self.broken)} broken; trace {self.digest}"
        )


def any_story_of(seed: int) -> AnyStory:
    """The story of a seed: of one process, or of a fleet."""
    return fleet_story_of(seed) if seed % FLEETS == FLEETS - 1 else story_of(seed)


def tell_any(story: AnyStory, folder: Path, log: bool = False) -> Verdict:
    """Live through a story in `folder`, which is emptied; `log` keeps what happened."""
    if isinstance(story, FleetStory):
        return tell_fleet(story, folder, log)
    return tell(story, folder, log)


def run(
    first: int, seeds: int, processes: int = 1, tick: Callable[[Report], None] = lambda report: None
) -> Report:
    """Tell the stories of `seeds` seeds from `first` on; `tick` is called every now and then."""
    report = Report()
    chunks = [
        range(start, min(start + CHUNK, first + seeds))
        for start in range(first, first + seeds, CHUNK)
    ]
    with tempfile.TemporaryDirectory(prefix="tenter-faults-", dir=scratch()) as folder:
        for chunk, verdicts in zip(chunks, _told(chunks, folder, processes), strict=True):
            for seed, verdict in zip(chunk, verdicts, strict=True):
                report.add(seed, verdict)
            tick(report)
    return report


def _told(chunks: Iterable[range], folder: str, processes: int) -> Iterator[list[Verdict]]:
    if processes == 1:
        for chunk in chunks:
            yield _tell_all(chunk, folder)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        waiting = iter(chunks)
        running = [pool.submit(_tell_all, each, folder) for each in islice(waiting, 2 * processes)]
        while running:
            yield running.pop(0).result()
            running += [pool.submit(_tell_all, each, folder) for each in islice(waiting, 1)]


def _tell_all(seeds: range, folder: str) -> list[Verdict]:
    """The verdicts on some seeds. Garbage is collected between stories: it takes a fifth of them."""
    place = Path(folder, str(os.getpid()))
    collects, quiet = gc.isenabled(), logging.root.manager.disable
    gc.disable()
    logging.disable(logging.CRITICAL)
    try:
        return [tell_any(any_story_of(seed), place) for seed in seeds]
    finally:
        logging.disable(quiet)
        with unbegun_ignored():
            gc.collect()
        if collects:
            gc.enable()


def shrunk(verdict: Verdict) -> Verdict:
    """The shortest story found that breaks the same rule, with a log of what happens in it."""
    with tempfile.TemporaryDirectory(prefix="tenter-faults-", dir=scratch()) as folder:
        place, tries = Path(folder), iter(range(MOST_TRIES))
        best = verdict.story
        while (found := _simpler(best, verdict.rule, place, tries)) is not None:
            best = found
        return tell_any(best, place, log=True)


def _simpler(
    story: AnyStory, rule: str | None, place: Path, tries: Iterator[int]
) -> AnyStory | None:
    fewer = simpler_fleet(story) if isinstance(story, FleetStory) else simpler(story)
    for candidate in fewer:
        if next(tries, None) is None:
            return None
        if tell_any(candidate, place).rule == rule:
            return candidate
    return None
