"""The SQLite journal: death, damage, full disks, foreign files, and the store of runs."""

import asyncio
import itertools
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tenter.runtime.errors import InvalidInput, JournalError
from tenter.runtime.journal import (
    Manifest,
    RowRecord,
    SqliteJournal,
    StepRecord,
    Store,
    file,
    new_run_id,
    sqlite,
)
from tenter.runtime.journal.base import Entry
from tenter.runtime.journal.file import JournalFile

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def manifest(run: str = "run_1") -> Manifest:
    return Manifest(run, "triage", "wf", "model", "input", {"in": "a.csv"}, "2026-01-01T00:00:00Z")


def written(path: Path, rows: int = 200) -> Path:
    """A closed journal of `rows` rows with two steps each, one of them a blob."""
    file = JournalFile.create(path, manifest())
    for row in range(rows):
        small = StepRecord(row, "a", b"%d" % row, b"%016d" % (row % 7))
        large = StepRecord(row, "b", b"%d" % (row % 10) * 600)
        file.append([small, large, RowRecord(row, b"%d" % row)])
    file.close()
    return path


# ---- a life and a resume -----------------------------------------------------------------------


async def test_create_write_reopen(tmp_path: Path):
    store = Store(tmp_path)
    journal = store.create(manifest())
    journal.record(StepRecord(0, "a", b"1"))
    journal.record(RowRecord(0, b"1"))
    journal.record(RowRecord(1, None, "failed"))
    await journal.set_status("paused", {"tokens": 12.5})
    await journal.close()

    info = store.info("run_1")
    assert (info.status, info.rows_done, info.rows_failed) == ("paused", 1, 1)
    assert (info.manifest, info.summary) == (manifest(), {"tokens": 12.5})

    again, journal = store.open("run_1")
    assert again == manifest()
    assert list(await journal.steps(0, 5)) == [(0, "a")]
    await journal.close()


async def test_large_values_are_stored_once(tmp_path: Path):
    written(tmp_path / "journal.db")
    with sqlite3.connect(tmp_path / "journal.db") as db:
        assert db.execute("SELECT count(*) FROM blobs").fetchone() == (10,)
    db.close()


async def test_one_commit_for_what_came_in_one_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    groups: list[int] = []
    append = JournalFile.append

    def counted(self: JournalFile, entries: Sequence[Entry]) -> None:
        groups.append(len(entries))
        append(self, entries)

    monkeypatch.setattr(JournalFile, "append", counted)
    journal = SqliteJournal.create(tmp_path / "journal.db", manifest())
    for row in range(256):
        journal.record(RowRecord(row, b"1"))
    await journal.close()
    assert groups == [256]


@pytest.mark.parametrize("limit", ["PENDING_LIMIT", "PENDING_BYTES"])
async def test_what_nobody_waits_for_is_left_out_while_the_disk_is_behind(
    limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sqlite, limit, 3)
    journal = SqliteJournal.create(tmp_path / "journal.db", manifest())
    for row in range(5):
        journal.record(StepRecord(row, "draft", b"1", spare=True))
    for row in range(5):
        journal.record(StepRecord(row, "step", b"1"))
    found = list(await journal.steps(0, 9))
    assert found == sorted(
        [*((row, "draft") for row in range(3)), *((r, "step") for r in range(5))]
    )
    await journal.close()


async def test_an_error_text_may_hold_anything(tmp_path: Path):
    journal = SqliteJournal.create(tmp_path / "journal.db", manifest())
    journal.record(RowRecord(0, None, "bad \ud800\0 text"))
    assert (await journal.rows(0, 0))[0].error == "bad \\ud800\0 text"
    await journal.close()


def test_counting_rows_reads_an_index(tmp_path: Path):
    db = sqlite3.connect(written(tmp_path / "journal.db"))
    plan = db.execute(
        "EXPLAIN QUERY PLAN SELECT (error IS NULL), count(*) FROM rows GROUP BY (error IS NULL)"
    ).fetchall()
    db.close()
    assert "rows_ok" in str(plan)


# ---- on the loop or on the thread, with an fsync or without --------------------------------------


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the journal's file is asked, and on whose thread: `loop: append 1`, `thread: sync`."""
    main, lines = threading.get_ident(), list[str]()

    def noted(name: str) -> Callable[..., None]:
        work = getattr(JournalFile, name)

        def call(self: JournalFile, *args: Sequence[Entry]) -> None:
            where = "loop" if threading.get_ident() == main else "thread"
            work(self, *args)
            lines.append(f"{where}: {name} {len(args[0])}" if args else f"{where}: {name}")

        return call

    for name in ("append", "sync", "checkpoint"):
        monkeypatch.setattr(JournalFile, name, noted(name))
    monkeypatch.setattr(sqlite, "SYNC_AFTER_S", 10.0**6)
    return lines


async def _warm(path: Path, log: list[str]) -> SqliteJournal:
    """A journal whose first commit, which waits for the disk, is done."""
    journal = SqliteJournal.create(path, manifest())
    await _kept(journal, 1)
    assert log == ["thread: sync", "thread: append 1"]
    log.clear()
    return journal


async def _kept(journal: SqliteJournal, count: int, size: int = 1, sync: bool = False) -> None:
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    for row in range(count - 1):
        journal.record(RowRecord(row, b"x" * size))
    journal.record(RowRecord(count, b"x" * size), lambda: done.set_result(None), sync)
    await done


async def test_small_groups_are_committed_on_the_loop_without_an_fsync(
    tmp_path: Path, log: list[str]
):
    journal = await _warm(tmp_path / "journal.db", log)
    await _kept(journal, 1)
    await _kept(journal, sqlite.QUICK_RECORDS)
    await _kept(journal, 2, size=sqlite.QUICK_BYTES // 2)
    assert log == ["loop: append 1", f"loop: append {sqlite.QUICK_RECORDS}", "loop: append 2"]
    await journal.close()


async def test_large_groups_are_committed_on_the_thread(tmp_path: Path, log: list[str]):
    journal = await _warm(tmp_path / "journal.db", log)
    await _kept(journal, sqlite.QUICK_RECORDS + 1)
    await _kept(journal, 1, size=sqlite.QUICK_BYTES + 1)
    assert log == [f"thread: append {sqlite.QUICK_RECORDS + 1}", "thread: append 1"]
    log.clear()
    await _kept(journal, 1)
    assert log == ["loop: append 1"]
    await journal.close()


async def test_sync_waits_for_an_fsync(tmp_path: Path, log: list[str]):
    journal = await _warm(tmp_path / "journal.db", log)
    journal.record(RowRecord(7, b"1"), lambda: log.append("then"), sync=True)
    await _kept(journal, 1)
    assert log == ["thread: append 2", "thread: sync", "then"]
    log.clear()
    await journal.set_status("done", {})
    assert log == ["thread: sync"]
    await journal.close()


async def test_while_the_thread_works_the_loop_leaves_the_file_alone(
    tmp_path: Path, log: list[str], monkeypatch: pytest.MonkeyPatch
):
    journal, gate = await _warm(tmp_path / "journal.db", log), threading.Event()
    monkeypatch.setattr(JournalFile, "rows", lambda *_: gate.wait(30))
    read = asyncio.ensure_future(journal.rows(0, 9))
    await asyncio.sleep(0)
    order: list[int] = []
    for row in range(50):
        journal.record(RowRecord(row, b"1"), lambda row=row: order.append(row))
        await asyncio.sleep(0)
    assert (order, log) == ([], [])
    gate.set()
    await read
    await _kept(journal, 1)
    assert order == list(range(50))
    assert log[0] == "thread: append 1"
    await journal.close()


async def test_a_commit_is_synced_soon(
    tmp_path: Path, log: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sqlite, "SYNC_AFTER_S", 0.0)
    synced, sync = threading.Event(), JournalFile.sync

    def noted(self: JournalFile) -> None:
        sync(self)
        synced.set()

    monkeypatch.setattr(JournalFile, "sync", noted)
    journal = SqliteJournal.create(tmp_path / "journal.db", manifest())
    for _ in range(5):
        synced.clear()
        await _kept(journal, 1)
        assert await asyncio.to_thread(synced.wait, 30)
    assert "loop: append 1" in log
    assert "loop: sync" not in log
    await journal.close()


async def test_the_log_is_copied_by_the_thread(
    tmp_path: Path, log: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sqlite, "CHECKPOINT_PAGES", 20)
    path = tmp_path / "journal.db"
    journal = await _warm(path, log)
    for _ in range(500):
        await _kept(journal, 1)
    assert "thread: checkpoint" in log
    assert "loop: checkpoint" not in log
    assert {"loop: append 1", "thread: append 1"} <= set(log)
    assert path.with_name("journal.db-wal").stat().st_size < 60 * 4200
    await _kept(journal, 40)
    await journal.close()
    again = SqliteJournal.open(path)
    assert len(await again.rows(0, 99)) == 40
    await again.close()


async def test_what_was_synced_survives_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """All that an fsync has not seen is cut away."""
    durable = [b""]

    def fsync(descriptor: int) -> None:
        durable[0] = os.pread(descriptor, os.fstat(descriptor).st_size, 0)

    monkeypatch.setattr(file, "_fsync", fsync)
    monkeypatch.setattr(sqlite, "SYNC_AFTER_S", 10.0**6)
    path = tmp_path / "journal.db"
    journal = SqliteJournal.create(path, manifest())
    for size in (1, 3, 700, 40_000):
        await _kept(journal, 3, size)
        await _kept(journal, 5, size, sync=True)
        before = durable[0]
        await _kept(journal, 9, size + 1)
        assert durable[0] is before
        cut = tmp_path / f"cut{size}.db"
        cut.write_bytes(path.read_bytes())
        cut.with_name(cut.name + "-wal").write_bytes(before)
        survivor = JournalFile.open(cut)
        assert survivor.rows(0, 5)[5].value == b"x" * size
        assert survivor.rows(0, 5)[3].value == b"x" * size
        survivor.close()
    await journal.close()


# ---- kill -9 -----------------------------------------------------------------------------------

_CHILD = """
import asyncio, os, sys
from tenter.runtime.journal import RowRecord, StepRecord, Store

async def program(journal, numbers):
    for row in numbers:
        done = asyncio.get_running_loop().create_future()
        journal.record(StepRecord(row, "a", b"%d" % row * 100))
        journal.record(RowRecord(row, b"%d" % row), lambda: done.set_result(None))
        await done
        os.write(1, b"%d\\n" % row)

async def main():
    _, journal = Store(sys.argv[1]).open("run_1")
    numbers = iter(range(int(sys.argv[2]), 10**9))
    await asyncio.gather(*(program(journal, numbers) for _ in range(int(sys.argv[3]))))

asyncio.run(main())
"""


@pytest.mark.parametrize("deaths", [3, pytest.param(10, marks=pytest.mark.slow)])
@pytest.mark.parametrize("programs", [1, 16])  # committed by the loop, by the thread
async def test_what_was_acknowledged_survives_kill_9(tmp_path: Path, programs: int, deaths: int):
    """One run dies again and again, each time after a random number of acknowledgements."""
    store, rng = Store(tmp_path), random.Random(1)
    await store.create(manifest()).close()
    first, acknowledged = 0, set[int]()
    for _ in range(deaths):
        after = rng.randrange(1, 300)
        acknowledged |= _acknowledged_before_death(tmp_path, first, programs, after)
        assert store.info("run_1").status == "paused"
        _, journal = store.open("run_1")
        rows, steps = await journal.rows(0, 10**9), await journal.steps(0, 10**9)
        await journal.close()
        assert acknowledged <= rows.keys()
        assert {row for row, _ in steps} == rows.keys()  # a group is there as a whole
        assert all(steps[row, "a"].value == b"%d" % row * 100 for row in rows)
        first = max(rows) + 1


def _acknowledged_before_death(home: Path, first: int, programs: int, after: int) -> set[int]:
    command = [sys.executable, "-c", _CHILD, str(home), str(first), str(programs)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        seen = [child.stdout.readline() for _ in range(after)]
        os.kill(child.pid, signal.SIGKILL)
        seen += child.stdout.readlines()
    return {int(line) for line in seen if line.endswith(b"\n")}


# ---- failing disks -----------------------------------------------------------------------------


async def _fill(journal: SqliteJournal) -> list[int]:
    """Record rows until the journal fails; the rows that were acknowledged."""
    acknowledged: list[int] = []
    failure: asyncio.Future[JournalError] = asyncio.get_running_loop().create_future()
    journal.on_failure = failure.set_result
    for row in itertools.count():
        if failure.done():
            break
        journal.record(RowRecord(row, os.urandom(4000)), lambda row=row: acknowledged.append(row))
        await asyncio.sleep(0)
    with pytest.raises(JournalError) as raised:
        journal.record(RowRecord(0, b"1"))
    assert raised.value is failure.result()
    with pytest.raises(JournalError):
        await journal.rows(0, 1)
    await journal.close()
    return acknowledged


def _opened_full(path: Path) -> JournalFile:
    file = JournalFile.create(path, manifest())
    file._db.execute("PRAGMA max_page_count = 100")  # pyright: ignore[reportPrivateUsage]
    return file


async def test_a_full_disk_fails_once_and_loses_nothing_acknowledged(tmp_path: Path):
    path = tmp_path / "journal.db"
    acknowledged = await _fill(SqliteJournal(lambda: _opened_full(path)))
    journal = SqliteJournal.open(path)  # there is room again
    rows = await journal.rows(0, 10**6)
    assert rows.keys() >= set(acknowledged)
    journal.record(RowRecord(10**6, b"1"))
    await journal.close()


async def test_a_full_disk_on_the_loops_thread_fails_once(tmp_path: Path, log: list[str]):
    journal = SqliteJournal(lambda: _opened_full(tmp_path / "journal.db"))
    told, full = list[JournalError](), asyncio.Event()

    def failed(error: JournalError) -> None:
        told.append(error)
        full.set()

    journal.on_failure = failed
    await _kept(journal, 1)
    kept = [0]

    def record(row: int) -> None:
        kept[0] = row
        journal.record(RowRecord(row, b"x" * 400), lambda: record(row + 1))

    record(1)
    await full.wait()
    for _ in range(10):
        await asyncio.sleep(0)
    assert [str(error).count("the disk is full") for error in told] == [1]
    assert log.count("loop: append 1") == kept[0] - 1  # the last one failed, on the loop
    assert log.count("thread: append 1") == 1
    with pytest.raises(JournalError, match="the disk is full"):
        journal.record(RowRecord(0, b"1"), sync=True)
    await journal.close()
    assert len(told) == 1


@pytest.mark.parametrize("sync", [True, False])
async def test_a_failed_fsync_fails_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync: bool
):
    """Of a record that waits for it, and of the fsync that follows later."""
    monkeypatch.setattr(sqlite, "SYNC_AFTER_S", 10.0**6 if sync else 0.0)
    journal = SqliteJournal.create(tmp_path / "journal.db", manifest())
    told: asyncio.Future[JournalError] = asyncio.get_running_loop().create_future()
    journal.on_failure = told.set_result

    def fsync(_: int) -> None:
        raise OSError("input/output error")

    monkeypatch.setattr(file, "_fsync", fsync)
    then = (lambda: pytest.fail("acknowledged")) if sync else None
    journal.record(RowRecord(0, b"1"), then, sync)
    with pytest.raises(JournalError, match="input/output error"):
        raise await told
    with pytest.raises(JournalError, match="input/output error"):
        journal.record(RowRecord(1, b"1"))
    await journal.close()


async def test_the_message_of_a_full_disk(tmp_path: Path):
    file = _opened_full(tmp_path / "journal.db")
    with pytest.raises(JournalError, match="the disk is full; make room and resume"):
        file.append([RowRecord(0, bytes(10**6))])
    file.close()


async def test_a_failure_in_the_last_commit_is_raised_by_close(tmp_path: Path):
    journal = SqliteJournal(lambda: _opened_full(tmp_path / "journal.db"))
    called: list[JournalError] = []
    journal.on_failure = called.append
    journal.record(RowRecord(0, bytes(10**6)), lambda: pytest.fail("acknowledged"))
    with pytest.raises(JournalError, match="the disk is full"):
        await journal.close()
    assert len(called) == 1


async def test_a_row_number_too_large_fails_the_journal_by_name(tmp_path: Path):
    journal = SqliteJournal.create(tmp_path / "journal.db", manifest())
    journal.record(RowRecord(2**70, b"1"))
    with pytest.raises(JournalError, match="too large"):
        await journal.close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
def test_a_read_only_folder(tmp_path: Path):
    path = written(tmp_path / "journal.db")
    path.chmod(0o400)
    tmp_path.chmod(0o500)
    with pytest.raises(JournalError, match="check the permissions"):
        SqliteJournal.open(path)
    tmp_path.chmod(0o700)


# ---- damage ------------------------------------------------------------------------------------


def _readable(path: Path) -> int:
    """How many rows a damaged journal gives; what it gives must be right. -1: refused."""
    try:
        file = JournalFile.open(path)
    except JournalError:
        return -1
    try:
        rows, steps = file.rows(0, 10**6), file.steps(0, 10**6)
        results = file.results([b"%016d" % n for n in range(7)])
        file.append([RowRecord(10**6, b"1")])
    except JournalError:
        return -1
    finally:
        file.close()
    assert all(record.value == b"%d" % row for row, record in rows.items())
    for (row, path_), step in steps.items():
        assert step.value == (b"%d" % row if path_ == "a" else b"%d" % (row % 10) * 600)
    assert all(int(value) % 7 == int(signature) for signature, value in results.items())
    return len(rows)


def test_a_cut_file_is_refused_or_recovered(tmp_path: Path):
    whole = written(tmp_path / "whole.db").read_bytes()
    for cut in (*range(1, 4096, 97), 5000, 20_000):
        path = tmp_path / "cut.db"
        path.write_bytes(whole[:-cut])
        assert _readable(path) in (-1, 200)


def test_flipped_bits_never_give_wrong_records(tmp_path: Path):
    whole, rng = written(tmp_path / "whole.db").read_bytes(), random.Random(2)
    path = tmp_path / "flipped.db"
    for _ in range(100):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        assert _readable(path) <= 200


def test_a_cut_write_ahead_log_gives_the_last_whole_group(tmp_path: Path):
    live = tmp_path / "live.db"
    file = JournalFile.create(live, manifest())
    for row in range(50):
        file.append([RowRecord(row, b"%d" % row)])
    main, log = live.read_bytes(), (tmp_path / "live.db-wal").read_bytes()
    file.close()
    for cut in range(1, 4096, 97):
        path = tmp_path / f"cut{cut}.db"
        path.write_bytes(main)
        path.with_name(path.name + "-wal").write_bytes(log[:-cut])
        assert 47 <= _readable(path) < 50


def test_a_zeroed_page_is_refused(tmp_path: Path):
    whole = written(tmp_path / "whole.db").read_bytes()
    path = tmp_path / "zeroed.db"
    for page in range(1, len(whole) // 4096):
        path.write_bytes(whole[: page * 4096] + bytes(4096) + whole[(page + 1) * 4096 :])
        assert _readable(path) <= 200


def test_foreign_and_newer_files_are_refused_untouched(tmp_path: Path):
    text = tmp_path / "text.db"
    text.write_text("no database" * 1000)
    with pytest.raises(JournalError, match="it is no journal of Tenter, or damaged"):
        SqliteJournal.open(text)
    foreign = tmp_path / "foreign.db"
    with sqlite3.connect(foreign) as db:
        db.execute("CREATE TABLE mine (x)")
    db.close()
    before = foreign.read_bytes()
    with pytest.raises(JournalError, match="it is no journal of Tenter"):
        SqliteJournal.open(foreign)
    assert foreign.read_bytes() == before
    newer = written(tmp_path / "newer.db", rows=1)
    with sqlite3.connect(newer) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(JournalError, match=r"newer Tenter \(journal version 99; this one reads"):
        SqliteJournal.open(newer)


# ---- the store ---------------------------------------------------------------------------------


def test_run_ids_sort_by_time():
    rng = random.Random(0)
    ids = [new_run_id(1_700_000_000 + n * 0.001, rng) for n in range(100)]
    assert ids == sorted(ids)
    assert all(len(run) == 20 for run in ids)
    assert new_run_id(5.0, random.Random(3)) == new_run_id(5.0, random.Random(3))


async def test_two_owners_of_one_run(tmp_path: Path):
    store = Store(tmp_path)
    journal = store.create(manifest())
    assert store.info("run_1").status == "running"
    with pytest.raises(JournalError, match=f"run_1 is running already, in process {os.getpid()}"):
        store.open("run_1")
    with pytest.raises(JournalError, match="exists already; resume it"):
        store.create(manifest())
    await journal.close()
    _, journal = store.open("run_1")
    await journal.close()


async def test_find_and_list(tmp_path: Path):
    store = Store(tmp_path)
    with pytest.raises(InvalidInput, match="there are no runs in"):
        store.find("last")
    for run in ("run_aa1", "run_aa2", "run_b"):
        await store.create(manifest(run)).close()
    (tmp_path / "runs" / "run_empty").mkdir()
    (tmp_path / "runs" / "run_bad").mkdir()
    (tmp_path / "runs" / "run_bad" / "journal.db").write_text("x" * 5000)
    damaged: list[str] = []
    infos = store.list(lambda run, _: damaged.append(run))
    assert [info.manifest.run for info in infos] == ["run_aa1", "run_aa2", "run_b"]
    assert damaged == ["run_bad"]
    assert store.find("run_b") == "run_b"
    assert store.find("aa2") == "run_aa2"
    with pytest.raises(InvalidInput, match="'aa' is the beginning of 2 runs: run_aa1, run_aa2"):
        store.find("aa")
    with pytest.raises(InvalidInput, match="there is no run 'zz'"):
        store.find("zz")


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".", "x\0", "x" * 65, "é"])
def test_names_stay_below_home(tmp_path: Path, name: str):
    with pytest.raises(InvalidInput, match="is not the name of a run"):
        Store(tmp_path).folder(name)


def test_opening_a_run_that_is_not_there(tmp_path: Path):
    with pytest.raises(InvalidInput, match="there is no run run_9 in"):
        Store(tmp_path).open("run_9")


def test_home_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TENTER_HOME", str(tmp_path / "h"))
    assert Store().trace_path("run_1") == tmp_path / "h" / "runs" / "run_1" / "trace.jsonl"
    monkeypatch.delenv("TENTER_HOME")
    assert Store().home == Path(".tenter")
