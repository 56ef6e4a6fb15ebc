"""A run in Redis while Redis is gone, frozen, loading, full, failing over, or has forgotten."""

import asyncio
import gc
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from journals import made_manifest
from redis_server import RedisServer, free_port, until

from tenter.runtime import doctor
from tenter.runtime.errors import InvalidInput, JournalError
from tenter.runtime.journal import Journal, RowRecord, StepRecord, Store, redis, redis_sender
from tenter.runtime.journal.redis import RedisJournal

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

AOF = ("--appendonly", "yes", "--appendfsync", "always")
AWAY_S = float(os.environ.get("TENTER_REDIS_AWAY_S", "1.5"))  # RELIABILITY R1: 30
Start = Callable[..., RedisServer]


def made(server: RedisServer, folder: Path, run: str = "run_1", **options: object) -> RedisJournal:
    url = server.url(**{"folder": folder, "timeout_s": 0.2, **options})
    journal = Store(url).create(made_manifest(run))
    assert isinstance(journal, RedisJournal)
    return journal


class Writer:
    """Programs that record a step and a row each, one after another, as a run does."""

    def __init__(self, journal: Journal, programs: int = 8) -> None:
        self.journal = journal
        self.acknowledged: list[int] = []
        self._next = 0
        self._stop = False
        self.failure: JournalError | None = None
        if journal.on_failure is None:
            journal.on_failure = self._failed
        self._tasks = [asyncio.ensure_future(self._program()) for _ in range(programs)]

    async def _program(self) -> None:
        while not self._stop:
            row, self._next = self._next, self._next + 1
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.journal.record(StepRecord(row, "a", b"%d" % row * 200))
            self.journal.record(RowRecord(row, b"%d" % row), lambda f=done: f.set_result(None))
            await done
            self.acknowledged.append(row)
            await asyncio.sleep(0.002)

    def _failed(self, error: JournalError) -> None:
        self.failure = error

    async def more(self, count: int) -> None:
        """Until `count` more rows were acknowledged."""
        wanted = len(self.acknowledged) + count
        while len(self.acknowledged) < wanted:
            assert self.failure is None, self.failure
            for task in self._tasks:
                if task.done():
                    task.result()
            await asyncio.sleep(0.005)

    async def stop(self) -> set[int]:
        self._stop = True
        await asyncio.gather(*self._tasks)
        assert len(set(self.acknowledged)) == len(self.acknowledged)
        return set(self.acknowledged)

    async def abandon(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _whole(journal: Journal, acknowledged: set[int]) -> None:
    """Every acknowledged row is there with its step, and nothing else."""
    rows, steps = await journal.rows(0, 10**6), await journal.steps(0, 10**6)
    assert rows.keys() == acknowledged
    assert {row for row, _ in steps} == acknowledged
    assert all(steps[row, "a"].value == b"%d" % row * 200 for row in rows)
    await journal.close()


# ---- away and back -----------------------------------------------------------------------------


def _readonly(server: RedisServer) -> Callable[[], Any]:
    server.ask("REPLICAOF", "127.0.0.1", "1")
    return lambda: server.ask("REPLICAOF", "NO", "ONE")


def _oom(server: RedisServer) -> Callable[[], Any]:
    server.ask("CONFIG", "SET", "maxmemory", "1mb")
    return lambda: server.ask("CONFIG", "SET", "maxmemory", "0")


def _killed(server: RedisServer) -> Callable[[], Any]:
    server.kill()
    return server.start


def _frozen(server: RedisServer) -> Callable[[], Any]:
    server.freeze()
    return server.thaw


def _loading(server: RedisServer) -> Callable[[], Any]:
    server.kill()
    server.start("--key-load-delay", "4000", wait=False)  # us for each key
    return lambda: None


def _scripts_gone(server: RedisServer) -> Callable[[], Any]:
    server.ask("SCRIPT", "FLUSH")
    return lambda: None


def _cut_off(server: RedisServer) -> Callable[[], Any]:
    server.ask("CLIENT", "KILL", "TYPE", "normal")
    return lambda: None


@pytest.mark.parametrize(
    "fault", [_killed, _frozen, _loading, _readonly, _oom, _scripts_gone, _cut_off]
)
async def test_a_run_waits_for_redis_and_goes_on(
    start_redis: Start, tmp_path: Path, fault: Callable[[RedisServer], Callable[[], Any]]
):
    server = start_redis(*AOF)
    journal = made(server, tmp_path)
    writer = Writer(journal)
    await writer.more(100)
    for _ in range(3):
        mend = await asyncio.to_thread(fault, server)
        await asyncio.sleep(AWAY_S / 3)
        await asyncio.to_thread(mend)
        await writer.more(50)
    await _whole(journal, await writer.stop())


async def test_what_waits_while_redis_is_away_is_bounded(
    start_redis: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    server = start_redis(*AOF)
    monkeypatch.setattr(redis, "PENDING_BYTES", 100_000)
    journal = made(server, tmp_path)
    await journal.rows(0, 0)
    server.kill()
    kept: list[int] = []
    for row in range(300):
        journal.record(StepRecord(row, "draft", b"x" * 1000, spare=True))
        if row % 10 == 0:
            await asyncio.sleep(0)
    for row in range(10):  # whose programs wait
        journal.record(RowRecord(row, b"x" * 1000), lambda row=row: kept.append(row))
    server.start()
    assert len(await journal.rows(0, 300)) == len(kept) == 10
    assert len(await journal.steps(0, 300)) == 100
    await journal.close()


async def test_patience_ends(
    start_redis: Start,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    monkeypatch.setattr(redis_sender, "_TOLD_S", 0.0)
    server = start_redis(*AOF)
    journal = made(server, tmp_path, patience_s=0.5)
    failures: list[JournalError] = []
    journal.on_failure = failures.append
    called: list[int] = []
    server.kill()
    journal.record(RowRecord(0, b"1"), lambda: called.append(0))
    with pytest.raises(JournalError, match=r"has been away for 0\.5 s: .*resume the run"):
        await journal.rows(0, 0)
    assert (len(failures), called) == (1, [])
    assert caplog.text.count("is away, the run waits for it, up to 0.5 s") == 1
    with pytest.raises(JournalError, match="has been away"):
        journal.record(RowRecord(1, b"1"))
    await journal.close()


# ---- a Redis that has forgotten ----------------------------------------------------------------


async def test_a_redis_without_its_last_second_is_given_it_again(
    start_redis: Start, tmp_path: Path
):
    """The append-only file of a moment ago is what a crash of the machine leaves."""
    server = start_redis(*AOF)
    journal = made(server, tmp_path)
    writer = Writer(journal)
    await writer.more(100)
    for _ in range(3):
        earlier = _copied(server)
        await writer.more(100)
        await asyncio.to_thread(_restored, server, earlier)
        await writer.more(30)
    await _whole(journal, await writer.stop())


async def test_what_redis_loses_before_its_disk_has_it_is_not_called_durable(
    start_redis: Start, tmp_path: Path
):
    server = start_redis("--appendonly", "yes", "--appendfsync", "everysec")
    journal = made(server, tmp_path)
    await journal.rows(0, 0)
    earlier = _copied(server)
    durable = asyncio.Event()
    journal.record(StepRecord(0, "pay", b'"intent"'), durable.set, sync=True)
    await asyncio.sleep(0.3)  # Redis has it, and waits for its disk
    await asyncio.to_thread(_restored, server, earlier)
    await durable.wait()
    await asyncio.to_thread(_restored, server, await asyncio.to_thread(_copied, server))
    assert (0, "pay") in await journal.steps(0, 0)
    await journal.close()


async def test_a_redis_that_lost_more_than_can_be_sent_again_ends_the_run(
    start_redis: Start,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    """And the run resumed has what Redis has, knows that something was lost, and does it again."""
    monkeypatch.setattr(redis_sender, "AGAIN_BYTES", 0)
    monkeypatch.setattr(redis, "MARK_S", 0.01)
    server = start_redis(*AOF)
    journal = made(server, tmp_path)
    failure: asyncio.Future[JournalError] = asyncio.get_running_loop().create_future()
    journal.on_failure = failure.set_result
    writer = Writer(journal)
    await writer.more(100)
    earlier = _copied(server)
    await writer.more(100)
    await asyncio.sleep(0.1)  # for the mark
    await asyncio.to_thread(_restored, server, earlier)
    error = await asyncio.wait_for(failure, 10)
    assert "groups of records that it had acknowledged" in str(error)
    await writer.abandon()
    await journal.close()

    _, again = Store(server.url(folder=tmp_path)).open("run_1")
    assert isinstance(again, RedisJournal)
    rows = await again.rows(0, 10**6)
    assert 0 < len(rows) < len(writer.acknowledged)
    assert again.lost_records > 0
    assert f"has lost at least {again.lost_records} records; they are done again" in caplog.text
    assert Store(server.url(folder=tmp_path)).info("run_1").rows_done == len(rows)
    await again.close()


async def test_a_redis_that_comes_back_empty_ends_the_run(start_redis: Start, tmp_path: Path):
    server = start_redis()
    journal = made(server, tmp_path)
    failure: asyncio.Future[JournalError] = asyncio.get_running_loop().create_future()
    journal.on_failure = failure.set_result
    writer = Writer(journal)
    await writer.more(50)
    server.kill()
    await asyncio.to_thread(server.start)
    error = await asyncio.wait_for(failure, 10)
    assert "does not have run run_1 any more: it was restarted empty" in str(error)
    await writer.abandon()
    await journal.close()
    store = Store(server.url(folder=tmp_path))
    for look in (store.find, store.info, store.open):
        with pytest.raises(InvalidInput, match="run run_1 was in .*, which has lost it"):
            look("run_1")


def _copied(server: RedisServer) -> Path:
    """The append-only files as they are now."""
    to = server.folder.with_name(f"{server.folder.name}.copy")
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(server.folder / "appendonlydir", to)
    return to


def _restored(server: RedisServer, files: Path) -> None:
    server.kill()
    shutil.rmtree(server.folder / "appendonlydir")
    shutil.copytree(files, server.folder / "appendonlydir")
    server.start()


# ---- what must survive a power cut -------------------------------------------------------------


async def test_a_redis_without_a_file_refuses_what_must_not_be_repeated(
    start_redis: Start, tmp_path: Path
):
    journal = made(start_redis(), tmp_path)
    with pytest.raises(JournalError, match="keeps nothing safe from a power cut.*appendonly yes"):
        journal.record(RowRecord(0, b"1"), sync=True)
    journal.record(RowRecord(1, b"1"))
    assert list(await journal.rows(0, 9)) == [1]
    await journal.close()


async def test_sync_waits_for_the_fsync_of_everysec(
    start_redis: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    waits: list[float] = []
    sleep = asyncio.sleep

    async def noted(delay: float) -> None:
        waits.append(delay)
        await sleep(0)

    server = start_redis("--appendonly", "yes", "--appendfsync", "everysec")
    if server.ask("INFO", "server")["redis_version"].startswith(("7.0", "7.1")) is False:
        pytest.skip("this Redis has WAITAOF")
    journal = made(server, tmp_path)
    monkeypatch.setattr(redis_sender.asyncio, "sleep", noted)
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    journal.record(RowRecord(0, b"1"), lambda: done.set_result(None), sync=True)
    await done
    assert redis_sender.EVERYSEC_S in waits
    monkeypatch.undo()
    await journal.close()


# ---- Sentinel, Cluster -------------------------------------------------------------------------


async def test_a_failover_by_sentinel(start_redis: Start, tmp_path: Path):
    primary = start_redis(*AOF)
    replica = start_redis(*AOF, "--replicaof", f"127.0.0.1 {primary.port}")
    watcher = sentinel(tmp_path / "sentinel", primary.port)
    try:
        until(lambda: replica.ask("INFO", "replication")["master_link_status"] == "up")
        url = f"redis+sentinel://127.0.0.1:{watcher.port}/main/0?folder={tmp_path}&timeout_s=0.5"
        journal = Store(url).create(made_manifest())
        writer = Writer(journal)
        await writer.more(100)
        primary.kill()
        await writer.more(100)
        assert replica.ask("ROLE")[0] == b"master"
        await _whole(journal, await writer.stop())
        assert Store(url).find("last") == "run_1"
    finally:
        watcher.kill()


def sentinel(folder: Path, primary_port: int) -> RedisServer:
    folder.mkdir()
    file = folder / "sentinel.conf"
    file.write_text(
        f"sentinel monitor main 127.0.0.1 {primary_port} 1\n"
        "sentinel down-after-milliseconds main 500\nsentinel failover-timeout main 3000\n"
    )
    server = RedisServer(folder)
    server.start_sentinel(file)
    return server


# redis-py forgets to close the connections of a node that has died.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_cluster(start_redis: Start, tmp_path: Path):
    server = start_redis("--cluster-enabled", "yes", "--cluster-port", str(free_port()), *AOF)
    server.ask("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
    until(lambda: b"cluster_state:ok" in server.ask("CLUSTER", "INFO"))
    url = f"redis+cluster://127.0.0.1:{server.port}?folder={tmp_path}&timeout_s=2"
    journal = Store(url).create(made_manifest())
    writer = Writer(journal)
    await writer.more(100)
    server.kill()
    await asyncio.to_thread(server.start)
    await writer.more(50)
    journal.record(StepRecord(10**7, "a", b"same", b"s" * 16))
    assert await journal.results([b"s" * 16]) == {b"s" * 16: b"same"}
    await writer.stop()
    await journal.close()
    info = Store(url).info("run_1")
    assert (info.rows_done, info.status) == (len(writer.acknowledged), "paused")
    del journal, writer
    gc.collect()


# ---- passwords and TLS -------------------------------------------------------------------------


async def test_a_password_by_reference(
    start_redis: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    server = start_redis()
    server.ask("CONFIG", "SET", "requirepass", "opensesame")
    monkeypatch.setenv("REDIS_SECRET", "opensesame")
    url = f"redis://env:REDIS_SECRET@127.0.0.1:{server.port}/3?folder={tmp_path}"
    journal = Store(url).create(made_manifest())
    journal.record(RowRecord(0, b"1"))
    assert len(await journal.rows(0, 0)) == 1
    await journal.close()
    monkeypatch.setenv("REDIS_SECRET", "wrongword")
    with pytest.raises(JournalError, match="Redis refuses us") as raised:
        Store(url).find("last")
    assert "wrongword" not in str(raised.value)
    assert "name the environment variable" in str(raised.value)


def test_the_doctor_looks_at_a_redis(start_redis: Start, tmp_path: Path):
    def runs(url: str) -> doctor.Finding:
        return next(found for found in doctor.findings(url) if found.name == "runs")

    server = start_redis()
    url = server.url(folder=tmp_path)
    found = runs(url)
    assert found.ok and "which keeps little on its disk" in found.detail
    assert "appendonly yes" in found.better
    server.ask("CONFIG", "SET", "maxmemory", "100mb", "maxmemory-policy", "allkeys-lru")
    assert "it throws keys away" in runs(url).detail
    server.kill()
    assert not runs(url).ok and "does not answer" in runs(url).detail


async def test_tls(start_redis: Start, tmp_path: Path):
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl here")
    key, cert = _certificate(tmp_path)
    port = free_port()
    files = ("--tls-cert-file", str(cert), "--tls-key-file", str(key))
    start_redis("--tls-port", str(port), *files, "--tls-auth-clients", "no")
    trusting = f"rediss://127.0.0.1:{port}/0?folder={tmp_path}&ca={cert}"
    journal = Store(trusting).create(made_manifest())
    journal.record(RowRecord(0, b"1"))
    assert len(await journal.rows(0, 0)) == 1
    await journal.close()
    with pytest.raises(JournalError, match=r"(?i)certificate"):
        Store(f"rediss://127.0.0.1:{port}/0?folder={tmp_path}").find("last")


def _certificate(folder: Path) -> tuple[Path, Path]:
    key, cert = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
        + ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
        + ["-keyout", str(key), "-out", str(cert)],
        check=True,
        capture_output=True,
    )
    return key, cert
