"""One run, one runner: leases, signs of life, and the token that each write must show (K4)."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from journals import made_manifest
from redis_server import RedisServer

from tenter.runtime.errors import JournalError
from tenter.runtime.journal import Journal, RowRecord, StepRecord, Store, file, lock, redis_runs
from tenter.runtime.journal.base import Superseded
from tenter.runtime.journal.owner import Owner, is_dead, read_owner, this_process

pytestmark = pytest.mark.anyio
TRIALS = int(os.environ.get("TENTER_LEASE_TRIALS", "3"))  # RELIABILITY K4: 1,000

_OWNER = """
import asyncio, os, sys
from tenter.runtime.journal import RowRecord, StepRecord, Store

async def main():
    _, journal = Store(sys.argv[1]).open("run_1")
    failed = asyncio.get_running_loop().create_future()
    journal.on_failure = failed.set_result
    row = 0
    while not failed.done():
        done = asyncio.get_running_loop().create_future()
        try:
            journal.record(StepRecord(row, "a", b"first"))
            journal.record(RowRecord(row, b"first"), lambda: done.set_result(None))
        except Exception:
            break
        await asyncio.wait([done, failed], return_when=asyncio.FIRST_COMPLETED)
        if done.done():
            os.write(1, b"%d\\n" % row)
        row += 1
    os.write(1, b"failed: %s\\n" % str(await failed).encode())
    await journal.close()

asyncio.run(main())
"""


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.slow)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where runs are kept, for this process and for others."""
    if request.param == "sqlite":
        return str(tmp_path)
    server: RedisServer = request.getfixturevalue("redis")
    return server.url(folder=tmp_path)


async def _recorded(journal: Journal, row: int, value: bytes) -> None:
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    journal.record(StepRecord(row, "a", value))
    journal.record(RowRecord(row, value), lambda: done.set_result(None))
    await done


async def test_a_second_runner_is_refused_and_told_who_has_it(url: str):
    store = Store(url)
    journal = store.create(made_manifest())
    with pytest.raises(JournalError, match=f"running already, in process {os.getpid()}"):
        store.open("run_1")
    with pytest.raises(JournalError, match="exists already; resume it"):
        store.create(made_manifest())
    assert store.info("run_1").status == "running"
    await journal.close()
    assert store.info("run_1").status == "paused"
    _, journal = store.open("run_1")
    await journal.close()


async def test_a_run_whose_owner_was_killed_is_taken_over_at_once(url: str):
    store = Store(url)
    await store.create(made_manifest()).close()
    owner = _start(url)
    assert owner.stdout is not None and owner.stdout.readline() == b"0\n"
    os.kill(owner.pid, signal.SIGKILL)
    acknowledged = 1 + sum(1 for _ in owner.stdout)
    owner.wait()
    owner.stdout.close()
    assert store.info("run_1").status == "paused"
    _, journal = store.open("run_1")
    assert len(await journal.rows(0, 10**6)) >= acknowledged
    await journal.close()


async def test_a_frozen_owner_writes_nothing_once_it_was_taken_over(
    url: str, monkeypatch: pytest.MonkeyPatch
):
    """Each trial freezes the owner at another moment; what it acknowledged before is all there."""
    store, rng = Store(url), random.Random(1)
    monkeypatch.setattr(file, "BUSY_S", 0.01)
    await store.create(made_manifest()).close()
    for _ in range(TRIALS):
        owner = _start(url)
        assert owner.stdout is not None
        seen = [owner.stdout.readline() for _ in range(rng.randrange(1, 200))]
        os.kill(owner.pid, signal.SIGSTOP)
        _let_run_out(monkeypatch, url)
        _, journal = _claimed(store, owner.pid)
        before = await journal.rows(0, 10**6)
        for row in range(len(before) + 50):
            await _recorded(journal, row, b"second")
        os.kill(owner.pid, signal.SIGCONT)
        seen += owner.stdout.readlines()
        owner.wait()
        owner.stdout.close()
        assert b"was taken over" in seen[-1]
        acknowledged = {int(line) for line in seen[:-1]}
        assert acknowledged <= before.keys()
        rows, steps = await journal.rows(0, 10**6), await journal.steps(0, 10**6)
        assert {record.value for record in rows.values()} == {b"second"}
        assert {record.value for record in steps.values()} == {b"second"}
        await journal.close()
        monkeypatch.setattr(lock, "LEASE_S", 30.0)


def _claimed(store: Store, owner: int) -> tuple[object, Journal]:
    """Frozen in the middle of a commit, an owner holds SQLite's own lock; then it has to go on."""
    for _ in range(200):
        try:
            return store.open("run_1")
        except JournalError as error:
            assert "another process uses it" in str(error)
            os.kill(owner, signal.SIGCONT)
            time.sleep(0.001)
            os.kill(owner, signal.SIGSTOP)
    raise AssertionError("never")


def _let_run_out(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """As if the time of a lease had passed."""
    if not url.startswith("redis"):
        monkeypatch.setattr(lock, "LEASE_S", -1.0)
        return
    import redis

    with redis.Redis.from_url(url.partition("?")[0], protocol=2) as client:
        client.hset("tenter:{run_1}", "until", "0")


def _start(url: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", _OWNER, url], stdout=subprocess.PIPE)


async def test_the_one_who_was_taken_over_is_told_once(url: str, monkeypatch: pytest.MonkeyPatch):
    store = Store(url)
    first = store.create(made_manifest())
    told: list[JournalError] = []
    first.on_failure = told.append
    await _recorded(first, 0, b"1")
    _let_run_out(monkeypatch, url)
    _, second = store.open("run_1")
    await _recorded(second, 0, b"2")
    first.record(RowRecord(0, b"1"))
    with pytest.raises(Superseded, match="was taken over"):
        await first.set_status("done", {})
    assert [type(error) for error in told] == [Superseded]
    await first.close()
    assert (await second.rows(0, 9))[0].value == b"2"
    assert store.info("run_1").status == "running" or not url.startswith("redis")
    await second.close()


async def test_a_lease_that_ran_out_is_kept_if_nobody_claims_it(
    url: str, monkeypatch: pytest.MonkeyPatch
):
    store = Store(url)
    journal = store.create(made_manifest())
    _let_run_out(monkeypatch, url)
    await _recorded(journal, 0, b"1")
    monkeypatch.undo()
    assert Store(url).info("run_1").status == "running"
    await journal.close()


@pytest.mark.slow
async def test_a_lease_elsewhere_has_to_run_out(
    redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Of a process on another machine nobody knows whether it lives."""
    store = Store(redis.url(folder=tmp_path))
    elsewhere = Owner("gpu7", 4711, "another boot", 5)
    monkeypatch.setattr(redis_runs, "this_process", lambda: elsewhere)
    journal = store.create(made_manifest())
    monkeypatch.undo()
    with pytest.raises(
        JournalError, match=r"in process 4711 on gpu7; .* it can be taken over in (29|30) s"
    ):
        store.open("run_1")
    await journal.close()


def test_owners_are_told_apart():
    mine = this_process()
    assert read_owner(mine.text()) == mine
    assert not is_dead(mine)
    assert is_dead(Owner(mine.host, mine.pid, mine.space, mine.began - 1))  # the number is reused
    assert not is_dead(Owner("elsewhere", 1, "another boot", 1))
    assert read_owner(b"4711") is None


def test_signs_of_life_do_not_follow_the_clock_on_the_wall(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    held = lock.RunLock.take(tmp_path, "run_1")
    for jump_s in (3600.0, -3600.0, 86400.0):
        monkeypatch.setattr(lock.time, "time", lambda jump_s=jump_s: jump_s)
        assert lock.is_held(tmp_path)
    held.release()
    assert not lock.is_held(tmp_path)


def test_a_silent_owner_is_taken_over_and_its_lock_is_worth_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    since_boot: list[Callable[[], float]] = [lambda: 1000.0]
    monkeypatch.setattr(lock, "_since_boot_s", lambda: since_boot[0]())
    first = lock.RunLock.take(tmp_path, "run_1")
    since_boot[0] = lambda: 1025.0
    with pytest.raises(JournalError, match=r"stop it \(silent for 25 s of 30\)"):
        lock.RunLock.take(tmp_path, "run_1")
    first.beat()
    since_boot[0] = lambda: 1050.0
    assert lock.is_held(tmp_path)
    since_boot[0] = lambda: 1056.0
    assert not lock.is_held(tmp_path)
    second = lock.RunLock.take(tmp_path, "run_1")
    first.beat()
    first.release()
    assert lock.is_held(tmp_path)
    second.release()
