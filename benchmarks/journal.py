"""What a record costs, against bare SQLite and bare Redis that do the same without a journal.

    python benchmarks/journal.py [--quick]

`group` programs each record a step of 300 bytes, wait until it is kept, and record the next. The
journal commits what has gathered as one group. The bare stores are given the same groups ready
made: SQLite one transaction with executemany, Redis one pipeline of HSETs; nobody waits for a
single record, nothing is checked, and there is no checksum, no token, no index of rows. `keeps`
says what a record waits for: the kernel ("process"), or the disk ("disk").

Both of a pair run in turn in this process, so that a slow minute hits both. Redis is a server of
the benchmark's own on the loopback; without redis-server its figures are left out. The overhead is
the ratio of the medians of the wall-clock times; wanted is at most 1.5.
"""

import argparse
import asyncio
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from _common import Figures, Timing, interleaved, one_thread
from _redis import redis_server

one_thread()

from tenter.runtime.journal import Journal, Manifest, StepRecord, Store

VALUE = b'"' + b"v" * 298 + b'"'
GROUPS = (1, 16, 256)
BARE_SCHEMA = (
    "CREATE TABLE steps (row INTEGER, path TEXT, value BLOB, PRIMARY KEY (row, path)) WITHOUT ROWID"
)


def manifest(run: str) -> Manifest:
    return Manifest(run, "bench", "wf", "model", "input", {}, "2026-01-01T00:00:00Z")


def wall(run: Callable[[], object]) -> Timing:
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    run()
    return Timing(time.process_time() - cpu_s, time.perf_counter() - wall_s)


# ---- the journal -------------------------------------------------------------------------------


async def record(journal: Journal, records: int, group: int, sync: bool) -> Timing:
    """`group` programs record `records` steps; the time of that alone, not of opening."""
    done = asyncio.get_running_loop().create_future()
    left = group

    def start(program: int) -> None:
        paths = iter(range(records // group))

        def go_on() -> None:
            nonlocal left
            number = next(paths, None)
            if number is not None:
                entry = StepRecord(number * group + program, "answer", VALUE)
                journal.record(entry, go_on, sync)
                return
            left -= 1
            if left == 0:
                done.set_result(None)

        go_on()

    cpu_s, wall_s = time.process_time(), time.perf_counter()
    for program in range(group):
        start(program)
    await done
    return Timing(time.process_time() - cpu_s, time.perf_counter() - wall_s)


def journalled(home: str, records: int, group: int, sync: bool = False) -> Callable[[], Timing]:
    numbers = iter(range(10**6))

    async def run() -> Timing:
        journal = Store(home).create(manifest(f"run_{group}_{int(sync)}_{next(numbers)}"))
        try:
            return await record(journal, records, group, sync)
        finally:
            await journal.close()

    return lambda: asyncio.run(run())


# ---- bare --------------------------------------------------------------------------------------


def bare_sqlite(folder: Path, records: int, group: int, sync: bool) -> Callable[[], Timing]:
    numbers = iter(range(10**6))

    def run() -> Timing:
        path = folder / f"bare_{group}_{int(sync)}_{next(numbers)}.db"
        db = sqlite3.connect(path, isolation_level=None)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute(f"PRAGMA synchronous = {'FULL' if sync else 'NORMAL'}")
        db.execute(BARE_SCHEMA)

        def write() -> None:
            for first in range(0, records // group * group, group):
                rows = [(row, "answer", VALUE) for row in range(first, first + group)]
                db.execute("BEGIN IMMEDIATE")
                db.executemany("INSERT OR REPLACE INTO steps VALUES (?, ?, ?)", rows)
                db.execute("COMMIT")

        timing = wall(write)
        db.close()
        return timing

    return run


def bare_redis(port: int, records: int, group: int) -> Callable[[], Timing]:
    from redis.asyncio import Redis

    numbers = iter(range(10**6))

    async def write() -> Timing:
        key = f"bare:{group}:{next(numbers)}"
        async with Redis(port=port, protocol=2) as client:
            await client.ping()
            cpu_s, wall_s = time.process_time(), time.perf_counter()
            for first in range(0, records // group * group, group):
                pipe = client.pipeline(transaction=False)
                for row in range(first, first + group):
                    pipe.hset(f"{key}:{row // 64}", f"{row}:answer", VALUE)
                await pipe.execute()
            return Timing(time.process_time() - cpu_s, time.perf_counter() - wall_s)

    return lambda: asyncio.run(write())


# ---- figures -----------------------------------------------------------------------------------


def compare(
    figures: Figures,
    runs: dict[str, Callable[[], Timing]],
    rounds: int,
    records: int,
    **setup: object,
) -> None:
    """Time `journal` and `bare` in turn, and report their ratio."""
    for run in runs.values():
        run()
    timings = interleaved(runs, rounds)
    ours, bare = timings["journal"], timings["bare"]
    figures.add("records_per_s", records / ours.wall_s, records / bare.wall_s, **setup)
    us = 1e6 / records
    figures.add("time_per_record", ours.wall_s * us, bare.wall_s * us, "us", **setup)
    figures.add("cpu_per_record", ours.cpu_s * us, bare.cpu_s * us, "us", **setup)
    figures.add("time_over_bare", ours.wall_s / bare.wall_s, 1.5, **setup)


def measure(figures: Figures, folder: Path, quick: bool) -> None:
    rounds = 7 if quick else 9
    scale = 1 if quick else 5
    for keeps, counts in (("process", (2_000, 8_000, 20_000)), ("disk", (100, 1_600, 12_800))):
        sync = keeps == "disk"
        for group, count in zip(GROUPS, counts, strict=True):
            records = count * scale // group * group
            runs = {
                "journal": journalled(str(folder / "home"), records, group, sync),
                "bare": bare_sqlite(folder, records, group, sync),
            }
            compare(figures, runs, rounds, records, store="sqlite", group=group, keeps=keeps)
    with redis_server(folder / "redis") as port:
        if port is None:
            print("redis-server or redis-py is not here: its figures are left out", file=sys.stderr)
            return
        home = f"redis://127.0.0.1:{port}/0?folder={folder / 'beside'}"
        for group, count in zip(GROUPS, (1_000, 6_400, 25_600), strict=True):
            records = count * scale // group * group
            runs = {
                "journal": journalled(home, records, group),
                "bare": bare_redis(port, records, group),
            }
            compare(figures, runs, rounds, records, store="redis", group=group, keeps="process")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="within 50 s")
    parser.add_argument("--data", help="not used: the records are made")
    quick = parser.parse_args().quick
    figures = Figures("journal")
    with tempfile.TemporaryDirectory(prefix="tenter-journal-") as folder:
        measure(figures, Path(folder), quick)
    figures.table("A record, against a bare store that is given ready-made groups")


if __name__ == "__main__":
    main()
