"""`tenter journal`: what it finds, throws away and writes, for every store; and torn files (K3)."""

import json
import os
import random
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from journals import made_manifest
from redis_server import RedisServer

from tenter.runtime.cli import main
from tenter.runtime.errors import JournalError, TenterError
from tenter.runtime.journal import RowRecord, RunStatus, StepRecord, Store
from tenter.runtime.journal.file import JournalFile

pytestmark = pytest.mark.anyio
ALL = os.environ.get("TENTER_TORN_ALL") == "1"  # RELIABILITY K3: every byte, 1,000 flips
SAME = b"s" * 16


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.slow)])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where runs are kept."""
    if request.param == "sqlite":
        return str(tmp_path)
    server: RedisServer = request.getfixturevalue("redis")
    return server.url(folder=tmp_path)


async def _written(home: str, rows: int = 100, status: RunStatus = "paused") -> None:
    """Rows with a draft that was replaced, a large step, one for equal work; each tenth failed."""
    journal = Store(home).create(made_manifest())
    for row in range(rows):
        journal.record(StepRecord(row, "big", b'"%s"' % (b"d" * (600 + row))))
        await journal.rows(0, 0)
        journal.record(StepRecord(row, "big", b'"%s"' % (b"v" * (600 + row))))
        journal.record(StepRecord(row, "same", b"7", SAME))
        journal.record(StepRecord(row, "raw", b"\xff\x00"))
        failed = row % 10 == 3
        journal.record(RowRecord(row, None, "no") if failed else RowRecord(row, b'{"n":%d}' % row))
    await journal.set_status(status, {})
    await journal.close()


def _said(capsys: pytest.CaptureFixture[str], *command: str) -> tuple[int, list[dict[str, Any]]]:
    code = main(["journal", *command])
    return code, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


async def test_verify_counts_what_is_there(home: str, capsys: pytest.CaptureFixture[str]):
    await _written(home)
    code, (found,) = _said(capsys, "verify", "last", "--home", home, "--json")
    assert code == 0 and found["ok"]
    assert [found[name] for name in ("steps", "rows", "blobs", "unused_blobs", "damaged")] == [
        300,
        100,
        200,
        100,
        0,
    ]
    assert main(["journal", "verify", "run_1", "--home", home]) == 0
    assert "300 steps, 100 rows, 200 large values (100 unused)" in capsys.readouterr().out


async def test_compact_keeps_all_that_a_resume_asks_for(
    home: str, capsys: pytest.CaptureFixture[str]
):
    await _written(home)
    code, (done,) = _said(capsys, "compact", "last", "--home", home, "--json")
    assert (code, done["steps"], done["blobs"]) == (0, 180, 190)
    assert done["size_after"] < done["size_before"]
    _, journal = Store(home).open("run_1")
    rows, steps = await journal.rows(0, 999), await journal.steps(0, 999)
    assert len(rows) == 100 and rows[4].value == b'{"n":4}' and rows[3].error == "no"
    assert [path for row, path in steps if row == 3] == ["big", "raw", "same"]
    assert steps[3, "big"].value == b'"%s"' % (b"v" * 603)
    assert [path for row, path in steps if row == 4] == ["same"]
    assert await journal.results([SAME]) == {SAME: b"7"}
    with pytest.raises(JournalError, match="running already"):
        Store(home).compact("run_1")
    await journal.close()
    assert _said(capsys, "verify", "last", "--home", home, "--json")[0] == 0
    assert _said(capsys, "compact", "last", "--home", home, "--json")[1][0]["steps"] == 0
    assert Store(home).info("run_1").status == "paused"


async def test_compact_takes_rows_of_very_many_steps(home: str, capsys: pytest.CaptureFixture[str]):
    journal = Store(home).create(made_manifest())
    for number in range(9000):
        journal.record(StepRecord(0, f"turn{number}", b"1"))
    journal.record(RowRecord(0, b"1"))
    await journal.close()
    assert _said(capsys, "compact", "last", "--home", home, "--json")[1][0]["steps"] == 9000


async def test_compact_keeps_only_rows_and_steps_of_failed_ones_once_a_run_is_done(
    home: str, capsys: pytest.CaptureFixture[str]
):
    await _written(home, status="done")
    assert _said(capsys, "compact", "last", "--home", home, "--json")[1][0]["steps"] == 270
    _, journal = Store(home).open("run_1")
    assert {row % 10 for row, _ in await journal.steps(0, 999)} == {3}
    assert len(await journal.rows(0, 999)) == 100
    await journal.close()
    assert _said(capsys, "verify", "last", "--home", home, "--json")[0] == 0


async def test_export_writes_every_record(
    home: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    await _written(home, rows=70)
    code, lines = _said(capsys, "export", "last", "--home", home)
    assert code == 0
    assert lines[0]["type"] == "run" and lines[0]["workflow"] == "triage"
    assert lines[1:5] == [
        {"type": "step", "row": 0, "path": "big", "value": "v" * 600},
        {"type": "step", "row": 0, "path": "raw", "hex": "ff00"},
        {"type": "step", "row": 0, "path": "same", "value": 7, "signature": SAME.hex()},
        {"type": "row", "row": 0, "value": {"n": 0}},
    ]
    assert {"type": "row", "row": 63, "error": "no"} in lines
    assert [line["row"] for line in lines if line["type"] == "row"] == list(range(70))
    out = tmp_path / "journal.jsonl"
    assert main(["journal", "export", "last", "--home", home, "--out", str(out)]) == 0
    assert [json.loads(line) for line in out.read_text().splitlines()] == lines
    assert main(["journal", "export", "last", "--home", home, "--out", str(out)]) == 2
    assert "it exists; name another file" in capsys.readouterr().err


async def test_verify_names_the_damaged_records(
    home: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    await _written(home)
    _damage(home, tmp_path)
    assert main(["journal", "verify", "last", "--home", home]) == 1
    said = capsys.readouterr()
    assert "not every record is as it was written" in said.out
    for row in (1, 2, 5):
        assert f"the record of row {row} is damaged" in said.err
    assert said.err.count("is damaged;") == 3


def _damage(home: str, tmp_path: Path) -> None:
    """Another value under the key of a step, a row whose error is gone, another blob."""
    if not home.startswith("redis"):
        db = sqlite3.connect(tmp_path / "runs" / "run_1" / "journal.db")
        db.execute("UPDATE steps SET value = '8' WHERE row = 1 AND path = 'same'")
        db.execute("UPDATE rows SET value = x'00' WHERE row = 2")
        blob = "(SELECT blob FROM steps WHERE row = 5 AND path = 'big')"
        db.execute(f"UPDATE blobs SET value = 'x' WHERE digest = {blob}")
        db.commit()
        db.close()
        return
    import redis

    with redis.Redis.from_url(home.partition("?")[0], protocol=2) as client:
        about = "tenter:{run_1}"
        client.hset(f"{about}:s:0", b"1:same", client.hget(f"{about}:s:0", b"0:same"))
        client.hset(f"{about}:r:0", b"2", client.hget(f"{about}:r:0", b"1"))
        digest = client.hget(f"{about}:s:0", b"5:big")[6:]
        client.set(f"{about}:b:{digest.hex()}", b"x")


# ---- torn and flipped (K3) ---------------------------------------------------------------------


@pytest.fixture
def torn(tmp_path: Path) -> Path:
    """The files of a journal whose owner was killed with 60 groups in its log."""
    file = JournalFile.create(tmp_path / "journal.db", made_manifest())
    for row in range(30):
        file.append([StepRecord(row, "a", b"%d" % row * 20), StepRecord(row, "b", b"x" * 700)])
        file.append([RowRecord(row, b"%d" % row)])
    file.sync()
    copy = tmp_path / "torn"
    copy.mkdir()
    for name in ("journal.db", "journal.db-wal"):
        shutil.copy(tmp_path / name, copy / name)
    file.close()
    return copy


def _cuts(size: int) -> Iterator[int]:
    every = range(1, min(size, 4096) + 1)
    yield from every if ALL else random.Random(3).sample(every, 20)


def test_a_log_cut_at_any_byte_gives_the_groups_before_the_cut(torn: Path, tmp_path: Path):
    log = (torn / "journal.db-wal").read_bytes()
    for cut in _cuts(len(log)):
        rows = _survivors(torn, tmp_path / "cut", log[:-cut])
        assert rows is not None and 28 <= rows <= 30


def test_a_flipped_bit_loses_a_tail_or_is_refused(torn: Path, tmp_path: Path):
    """In the log: what follows is cut off. In the database: it is refused by name, or harmless."""
    rng = random.Random(5)
    for _ in range(500 if ALL else 12):
        log = bytearray((torn / "journal.db-wal").read_bytes())
        log[rng.randrange(len(log))] ^= 1 << rng.randrange(8)
        _survivors(torn, tmp_path / "flip", bytes(log))
    for _ in range(500 if ALL else 12):
        data = bytearray((torn / "journal.db").read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        _survivors(torn, tmp_path / "flip", database=bytes(data))


def test_a_zeroed_page_is_refused_or_a_tail_is_lost(torn: Path, tmp_path: Path):
    log = (torn / "journal.db-wal").read_bytes()
    for page in range(len(log) // 4120 if ALL else 5):
        at = 32 + page * 4120
        _survivors(torn, tmp_path / "zero", log[:at] + bytes(4120) + log[at + 4120 :])


def _survivors(
    torn: Path, folder: Path, log: bytes | None = None, database: bytes | None = None
) -> int | None:
    """How many whole rows a damaged journal gives: a beginning of them. None: it was refused."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(torn, folder)
    if log is not None:
        (folder / "journal.db-wal").write_bytes(log)
    if database is not None:
        (folder / "journal.db").write_bytes(database)
    try:
        file = JournalFile.open(folder / "journal.db")
    except TenterError as error:
        assert "journal.db" in str(error)
        return None
    try:
        rows, steps = file.rows(0, 99), file.steps(0, 99)
    except JournalError as error:
        assert "journal.db" in str(error)
        return None
    finally:
        file.close()
    assert list(rows) == list(range(len(rows)))
    assert len(steps) in (2 * len(rows), 2 * len(rows) + 2)
    for row in rows:
        assert rows[row].value == b"%d" % row
        assert steps[row, "a"].value == b"%d" % row * 20
        assert steps[row, "b"].value == b"x" * 700
    return len(rows)
