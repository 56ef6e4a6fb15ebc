"""The result cache: what every store keeps to, and what damage and other versions come to."""

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from redis_server import RedisServer

from tenter.runtime.errors import InvalidConfig, JournalError
from tenter.runtime.journal import Bounds, Kept, MemoryResults, ResultStore, Store, ThreadedResults
from tenter.runtime.journal.address import parse_redis
from tenter.runtime.journal.results import OVERHEAD_BYTES
from tenter.runtime.journal.results_file import ResultFile
from tenter.runtime.journal.results_redis import RedisResultStore

pytestmark = pytest.mark.anyio

DAY_S = 86_400.0
Opened = Callable[[Bounds], ResultStore]


class Clock:
    """A wall clock that a test sets."""

    now_s = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.slow)])
def opened(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Opened:
    """Opens a store over the same place each time."""
    if request.param == "sqlite":
        return lambda bounds: ResultFile(tmp_path / "results.db", bounds, clock)
    server: RedisServer = request.getfixturevalue("redis")
    address = parse_redis(server.url(folder=tmp_path))
    return lambda bounds: RedisResultStore(address, bounds, clock)


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def test_what_is_kept_is_found_by_who_opens_it_later(opened: Opened) -> None:
    store = opened(Bounds())
    store.keep([(key(1), Kept(b'"a"', 7, 3)), (key(2), Kept(b"{}"))])
    store.close()

    again = opened(Bounds())
    assert again.find([key(1), key(2), key(3)]) == {key(1): Kept(b'"a"', 7, 3), key(2): Kept(b"{}")}
    assert again.holding().results == 2
    assert again.holding().size == 5 + 2 * OVERHEAD_BYTES
    again.close()


def test_a_key_has_its_last_result(opened: Opened) -> None:
    store = opened(Bounds())
    store.keep([(key(1), Kept(b"1"))])
    store.keep([(key(1), Kept(b"22"))])

    assert store.find([key(1)])[key(1)].value == b"22"
    assert (store.holding().results, store.holding().size) == (1, 2 + OVERHEAD_BYTES)
    store.close()


def test_results_grow_old(opened: Opened, clock: Clock) -> None:
    store = opened(Bounds(max_age_s=10 * DAY_S))
    store.keep([(key(1), Kept(b"1"))])
    clock.now_s += 9 * DAY_S
    assert store.find([key(1)])
    clock.now_s += DAY_S
    assert not store.find([key(1)])
    store.keep([(key(2), Kept(b"2"))])
    assert store.holding().results == 1, "what is too old is thrown away"
    store.close()


def test_a_result_may_be_given_less_time(opened: Opened, clock: Clock) -> None:
    store = opened(Bounds())
    store.keep([(key(1), Kept(b"1", left_s=60.0))])
    clock.now_s += 45
    assert store.find([key(1)])[key(1)].left_s == 15
    clock.now_s += 15
    assert not store.find([key(1)])
    store.close()


def test_what_was_used_last_stays(opened: Opened, clock: Clock) -> None:
    store = opened(Bounds(max_bytes=4 * (1 + OVERHEAD_BYTES)))
    for number in range(4):
        clock.now_s += 1
        store.keep([(key(number), Kept(b"1"))])
    clock.now_s += 1
    assert store.find([key(0)])
    clock.now_s += 1
    store.keep([(key(4), Kept(b"1"))])

    assert set(store.find([key(number) for number in range(5)])) == {key(n) for n in (0, 2, 3, 4)}
    assert store.holding().size == 4 * (1 + OVERHEAD_BYTES)
    store.close()


def test_a_smaller_bound_is_kept_too(opened: Opened, clock: Clock) -> None:
    store = opened(Bounds())
    store.keep([(key(number), Kept(b"1" * 100)) for number in range(1_000)])
    store.close()
    small = opened(Bounds(max_bytes=10_000))
    small.keep([(key(2_000), Kept(b"1"))])
    assert 0 < small.holding().size <= 10_000
    small.close()


def test_clear_all_or_what_is_older(opened: Opened, clock: Clock) -> None:
    store = opened(Bounds())
    store.keep([(key(number), Kept(b"1")) for number in range(600)])
    clock.now_s += 2 * DAY_S
    store.keep([(key(1_000), Kept(b"1"))])

    assert store.clear(older_than_s=DAY_S).results == 600
    assert store.find([key(0), key(1_000)]).keys() == {key(1_000)}
    assert store.clear().results == 1
    assert (store.holding().results, store.holding().size) == (0, 0)
    store.close()


def test_a_damaged_result_is_not_handed_out(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "results.db"
    store = ResultFile(path, Bounds(), clock)
    store.keep([(key(number), Kept(b'"%d"' % number)) for number in range(4)])
    store.close()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE results SET value = ? WHERE key = ?", (b'"x"', key(0)))
        db.execute("UPDATE results SET value = 'text' WHERE key = ?", (key(1),))
        db.execute("UPDATE results SET made_s = 'soon' WHERE key = ?", (key(2),))
    db.close()

    again = ResultFile(path, Bounds(), clock)
    assert set(again.find([key(number) for number in range(4)])) <= {key(3)}
    again.close()


def test_a_damaged_result_in_redis_is_not_handed_out(redis: RedisServer, tmp_path: Path) -> None:
    store = RedisResultStore(parse_redis(redis.url(folder=tmp_path)))
    store.keep([(key(1), Kept(b"1")), (key(2), Kept(b"2"))])
    redis.ask("SETRANGE", f"tenter:{{results}}:r:{key(1).hex()}", 9, b"\x01")
    redis.ask("SET", f"tenter:{{results}}:r:{key(2).hex()}", b"")

    assert store.find([key(1), key(2)]) == {}
    store.close()


@pytest.mark.parametrize("content", [b"no database" * 100, b"\0" * 8192], ids=["text", "zeros"])
def test_a_file_that_is_no_cache_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "results.db").write_bytes(content)
    with pytest.raises(JournalError, match=r"result cache .*results\.db"):
        ResultFile(tmp_path / "results.db")


def test_a_journal_is_no_cache(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "results.db") as db:
        db.execute("CREATE TABLE steps (row)")
    db.close()
    with pytest.raises(JournalError, match="no result cache"):
        ResultFile(tmp_path / "results.db")


def test_bounds_come_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    monkeypatch.setenv("TENTER_CACHE_MB", "0.0005")
    store = Store(tmp_path).results()
    store.keep([(key(number), Kept(b"1" * 100)) for number in range(10)])
    assert store.holding().size <= 500
    store.close()
    monkeypatch.setenv("TENTER_CACHE_DAYS", "soon")
    with pytest.raises(InvalidConfig, match="TENTER_CACHE_DAYS=soon"):
        Store(tmp_path).results()


# ---- beside an event loop -----------------------------------------------------------------------


async def test_what_a_run_keeps_is_found_by_it_and_by_the_next(opened: Opened) -> None:
    results = ThreadedResults(opened(Bounds()))
    assert await results.find(key(1)) is None
    results.keep(key(1), Kept(b"1"))
    assert await results.find(key(1)) == Kept(b"1")
    await results.close()
    assert await results.find(key(1)) is None

    later = ThreadedResults(opened(Bounds()))
    assert await later.find(key(1)) == Kept(b"1")
    await later.close()


async def test_two_runs_use_one_file_at_once(opened: Opened) -> None:
    one, two = ThreadedResults(opened(Bounds())), ThreadedResults(opened(Bounds()))
    for number in range(500):
        (one if number % 2 else two).keep(key(number), Kept(b"%d" % number))
    await one.close()
    await two.close()

    store = opened(Bounds())
    assert len(store.find([key(number) for number in range(500)])) == 500
    store.close()


class Broken:
    """A store whose disk has gone."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        def fail(*given: object) -> None:
            if name != "close":
                raise JournalError("the disk is gone")

        return fail


async def test_a_store_that_fails_is_told_once_and_done_without(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken: ResultStore = Broken()  # pyright: ignore[reportAssignmentType]
    results = ThreadedResults(broken)
    assert await results.find(key(1)) is None
    assert await results.find(key(1)) is None
    results.keep(key(1), Kept(b"1"))
    await results.close()
    assert caplog.text.count("the disk is gone") == 1


async def test_memory_has_the_same_bounds(clock: Clock) -> None:
    results = MemoryResults(Bounds(2 * (1 + OVERHEAD_BYTES), DAY_S), clock)
    for number in range(3):
        results.keep(key(number), Kept(b"1"))
    assert [bool(await results.find(key(number))) for number in range(3)] == [False, True, True]
    assert results.holding().results == 2
    clock.now_s += DAY_S
    assert await results.find(key(2)) is None
