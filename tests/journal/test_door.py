"""What every journal keeps to: in SQLite, in Redis and in memory."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from journals import made_manifest
from redis_server import RedisServer

from tenter.runtime.errors import JournalError
from tenter.runtime.journal import (
    Journal,
    MemoryJournal,
    NoJournal,
    RowRecord,
    SqliteJournal,
    StepRecord,
    Store,
    base,
)
from tenter.runtime.journal.redis import RedisJournal

pytestmark = pytest.mark.anyio


KINDS = ["sqlite", pytest.param("redis", marks=pytest.mark.slow), "memory"]


@pytest.fixture(params=KINDS)
async def journal(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Journal]:
    match request.param:
        case "sqlite":
            made: Journal = Store(tmp_path).create(made_manifest())
        case "redis":
            server: RedisServer = request.getfixturevalue("redis")
            server.ask("CONFIG", "SET", "appendfsync", "always")  # a sync waits for nothing more
            made = Store(server.url(folder=tmp_path)).create(made_manifest())
        case _:
            made = MemoryJournal()
    yield made
    await made.close()


def recorded(journal: Journal, entry: StepRecord | RowRecord) -> "asyncio.Future[None]":
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    journal.record(entry, lambda: done.set_result(None))
    return done


async def test_then_is_called_later_and_in_order(journal: Journal):
    order: list[int] = []
    for row in range(300):
        journal.record(RowRecord(row, b"1"), lambda row=row: order.append(row))
    assert order == []
    await recorded(journal, RowRecord(300, b"1"))
    assert order == list(range(300))


async def test_what_is_recorded_in_a_callback_is_acknowledged_too(journal: Journal):
    done = asyncio.get_running_loop().create_future()

    def record(left: int) -> None:
        if left == 0:
            done.set_result(None)
        else:
            journal.record(StepRecord(left, "a", b"1"), lambda: record(left - 1))

    record(5)
    await done
    assert [row for row, _ in await journal.steps(0, 9)] == [1, 2, 3, 4, 5]


async def test_a_long_chain_neither_recurses_nor_starves_the_loop(journal: Journal):
    done = asyncio.get_running_loop().create_future()
    turns = 0

    def record(left: int) -> None:
        if left == 0:
            done.set_result(None)
        else:
            journal.record(StepRecord(left, "a", b"1"), lambda: record(left - 1))

    async def turn() -> None:
        nonlocal turns
        while not done.done():
            turns += 1
            await asyncio.sleep(0)

    length = 5_000 if isinstance(journal, RedisJournal) else 50_000
    record(length)
    await turn()
    assert turns >= length
    assert len(await journal.steps(0, length)) == length


async def test_records_with_and_without_sync_keep_their_order(journal: Journal):
    order: list[int] = []
    for row in range(100):
        journal.record(RowRecord(row, b"1"), lambda row=row: order.append(row), row % 7 == 3)
        if row % 5 == 0:
            await asyncio.sleep(0)
    await recorded(journal, RowRecord(100, b"1"))
    assert order == list(range(100))


async def test_steps_of_a_range_of_rows_in_order(journal: Journal):
    for row in (3, 1, 2, 7):
        for path in ("b", "a[10].x", "ü"):
            journal.record(StepRecord(row, path, f"{row}{path}".encode()))
    found = await journal.steps(2, 3)
    assert list(found) == [(2, "a[10].x"), (2, "b"), (2, "ü"), (3, "a[10].x"), (3, "b"), (3, "ü")]
    assert found[3, "b"] == StepRecord(3, "b", b"3b")
    assert await journal.steps(4, 6) == {}


async def test_reads_see_what_was_recorded_before_them(journal: Journal):
    journal.record(StepRecord(0, "a", b"1"))
    assert await journal.steps(0, 0) == {(0, "a"): StepRecord(0, "a", b"1")}


async def test_rows_with_values_and_errors(journal: Journal):
    journal.record(RowRecord(0, b'{"a":1}'))
    journal.record(RowRecord(1, None, "ToolFailed: nothing\0there"))
    journal.record(RowRecord(2, b"null"))
    assert await journal.rows(0, 1) == {
        0: RowRecord(0, b'{"a":1}'),
        1: RowRecord(1, None, "ToolFailed: nothing\0there"),
    }


async def test_the_last_record_of_a_key_wins(journal: Journal):
    journal.record(RowRecord(4, None, "failed"))
    journal.record(RowRecord(4, b"2"))
    journal.record(StepRecord(4, "a", b"1"))
    journal.record(StepRecord(4, "a", b"2"))
    assert await journal.rows(0, 9) == {4: RowRecord(4, b"2")}
    assert (await journal.steps(0, 9))[4, "a"].value == b"2"


async def test_results_by_signature(journal: Journal):
    one, two, three = (bytes([n]) * 16 for n in (1, 2, 3))
    journal.record(StepRecord(0, "a", b"one", one))
    journal.record(StepRecord(1, "a", b"one", one))
    journal.record(StepRecord(1, "b", b"x" * 5000, two))
    journal.record(StepRecord(1, "c", b"none"))
    assert await journal.results(iter([two, one, three, one])) == {one: b"one", two: b"x" * 5000}
    assert await journal.results([]) == {}


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 100_000])
async def test_values_of_all_sizes(journal: Journal, size: int):
    value = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    journal.record(StepRecord(0, "a", value))
    journal.record(StepRecord(1, "a", value))
    journal.record(RowRecord(0, value))
    assert {s.value for s in (await journal.steps(0, 1)).values()} == {value}
    assert (await journal.rows(0, 0))[0].value == value


async def test_too_large_a_value_is_refused_and_the_journal_goes_on(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(base, "MAX_VALUE_BYTES", 1000)
    with pytest.raises(JournalError, match="row 3: a result of 1,001 bytes is larger than"):
        journal.record(RowRecord(3, b"x" * 1001))
    await recorded(journal, RowRecord(4, b"x" * 1000))
    assert list(await journal.rows(0, 9)) == [4]


async def test_a_path_that_is_not_unicode_is_refused(journal: Journal):
    with pytest.raises(JournalError, match="is not Unicode text"):
        journal.record(StepRecord(0, "a\ud800", b""))


async def test_an_error_in_a_callback_does_not_stop_the_others(journal: Journal):
    seen: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: seen.append(str(context["exception"])))

    def fail() -> None:
        raise ValueError("mine")

    journal.record(RowRecord(0, b"1"), fail)
    await recorded(journal, RowRecord(1, b"1"))
    loop.set_exception_handler(None)
    assert seen == ["mine"]


async def test_close_commits_and_is_idempotent(journal: Journal):
    done = recorded(journal, RowRecord(0, b"1"))
    await journal.close()
    await journal.close()
    await done
    with pytest.raises(JournalError, match="closed"):
        journal.record(RowRecord(1, b"1"))
    with pytest.raises(JournalError, match="closed"):
        await journal.rows(0, 1)


async def test_a_cancelled_read_harms_nobody(journal: Journal):
    task = asyncio.ensure_future(asyncio.ensure_future(journal.steps(0, 9)))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await recorded(journal, RowRecord(0, b"1"))


async def test_many_writers_are_served(journal: Journal):
    async def program(row: int) -> None:
        for turn in range(10):
            await recorded(journal, StepRecord(row, f"turn[{turn}]", b"x" * (row * 4)))
        await recorded(journal, RowRecord(row, b"1"))

    await asyncio.gather(*(program(row) for row in range(256)))
    assert len(await journal.steps(0, 255)) == 2560
    assert len(await journal.rows(0, 255)) == 256


async def test_no_journal_acknowledges_at_once():
    journal, seen = NoJournal(), [0]
    journal.record(RowRecord(0, b"1"), lambda: seen.append(1))
    journal.record(RowRecord(0, b"1"), lambda: seen.append(2), sync=True)
    assert seen == [0, 1, 2]
    assert (await journal.steps(0, 9), await journal.rows(0, 9), await journal.results([])) == (
        {},
        {},
        {},
    )
    await journal.set_status("done", {})
    await journal.close()


@pytest.mark.parametrize("kind", [SqliteJournal, RedisJournal, MemoryJournal, NoJournal])
def test_all_have_the_contract(kind: type):
    for name, method in inspect.getmembers(Journal, inspect.isfunction):
        if not name.startswith("_"):
            mine: Callable[..., object] = getattr(kind, name)
            assert list(inspect.signature(mine).parameters) == list(
                inspect.signature(method).parameters
            )
