"""A run in Redis looked through, made smaller, and read from end to end, by a waiting client."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from .base import Entry, RowRecord
from .redis_format import DONE_ROWS, STEP_ROWS, Argument, Keys, Stored, read_row, read_step
from .upkeep import Checked, Compacted

NAMES_AT_ONCE = 500

_Read = Callable[[Keys, bytes, bytes], Stored]
_Hashes = Iterator[tuple[int, Mapping[bytes, bytes]]]


def check_redis(client: Any, keys: Keys) -> Checked:
    """Read every record and blob; also beside the run's owner."""
    found = Checked()
    named: set[str] = set()

    def read(reader: _Read, key: bytes, data: bytes) -> None:
        found.size += len(data)
        stored = reader(keys, key, data)
        if stored.blob is not None:
            value = client.get(keys.blob(stored.blob))
            stored.with_value(value, keys)
            if keys.blob(stored.blob) not in named:
                named.add(keys.blob(stored.blob))
                found.size += len(value)

    for _, pairs in _steps(client, keys):
        found.count("steps", (partial(read, read_step, *pair) for pair in pairs.items()))
    for _, pairs in _rows(client, keys):
        found.count("rows", (partial(read, read_row, *pair) for pair in pairs.items()))
    for name in _blobs(client, keys):
        found.blobs += 1
        found.unused_blobs += name not in named
    return found


def compact_redis(
    client: Any, keys: Keys, commit: Callable[[Sequence[Argument]], None], ended: bool
) -> Compacted:
    """Throw away what no resume asks for, by `commit`, which shows the lease's token.

    A run that has `ended` has no equal work left to answer.
    """
    before = check_redis(client, keys).size
    steps = 0
    for bucket, pairs in _steps(client, keys):
        done = _done(client, keys, bucket)
        stored = {key: read_step(keys, key, data) for key, data in pairs.items()}
        unwanted = [k for k, each in stored.items() if _unwanted(each.entry, done, ended)]
        for at in range(0, len(unwanted), NAMES_AT_ONCE):
            some = unwanted[at : at + NAMES_AT_ONCE]
            commit((len(some), "HDEL", f":s:{bucket}", *some))
        steps += len(unwanted)
    if ended:
        commit((0, "DEL", ":sig"))
    named = {keys.blob(digest) for digest in _digests(client, keys)}
    unnamed = [name for name in _blobs(client, keys) if name not in named]
    for at in range(0, len(unnamed), NAMES_AT_ONCE):
        endings = [name.removeprefix(keys.about) for name in unnamed[at : at + NAMES_AT_ONCE]]
        commit([part for ending in endings for part in (0, "DEL", ending)])
    return Compacted(steps, len(unnamed), before, check_redis(client, keys).size)


def entries_of_redis(client: Any, keys: Keys) -> Iterator[Entry]:
    """Every record, by row: its steps, then how it ended."""
    buckets = set(_numbers(client, keys.step_buckets))
    per_hash = DONE_ROWS // STEP_ROWS
    buckets |= {
        number * per_hash + part
        for number in _numbers(client, keys.row_buckets)
        for part in range(per_hash)
    }
    for bucket in sorted(buckets):
        first, last = bucket * STEP_ROWS, bucket * STEP_ROWS + STEP_ROWS - 1
        stored = [read_step(keys, k, d) for k, d in client.hgetall(keys.steps(bucket)).items()]
        names = [b"%d" % row for row in range(first, last + 1)]
        found = client.hmget(keys.rows(first // DONE_ROWS), names)
        stored += [read_row(keys, k, d) for k, d in zip(names, found, strict=True) if d is not None]
        entries = [each.with_value(_value(client, keys, each), keys) for each in stored]
        yield from sorted(entries, key=_place)


def _place(entry: Entry) -> tuple[int, bool, str]:
    ended = isinstance(entry, RowRecord)
    return entry.row, ended, "" if isinstance(entry, RowRecord) else entry.path


def _value(client: Any, keys: Keys, stored: Stored) -> bytes | None:
    return client.get(keys.blob(stored.blob)) if stored.blob is not None else None


def _unwanted(entry: Entry, done: set[int], ended: bool) -> bool:
    """A step of a row that is done is asked for again only as the answer of equal work."""
    if isinstance(entry, RowRecord) or entry.row not in done:
        return False
    return ended or entry.signature is None


def _done(client: Any, keys: Keys, bucket: int) -> set[int]:
    """The rows of a hash of steps that ended without an error."""
    numbers = range(bucket * STEP_ROWS, (bucket + 1) * STEP_ROWS)
    names = [b"%d" % row for row in numbers]
    found = client.hmget(keys.rows(numbers[0] // DONE_ROWS), names)
    stored = [read_row(keys, k, d) for k, d in zip(names, found, strict=True) if d is not None]
    return {s.entry.row for s in stored if isinstance(s.entry, RowRecord) and s.entry.error is None}


def _digests(client: Any, keys: Keys) -> Iterator[bytes]:
    for hashes, read in ((_steps, read_step), (_rows, read_row)):
        for _, pairs in hashes(client, keys):
            stored = (read(keys, key, data) for key, data in pairs.items())
            yield from (each.blob for each in stored if each.blob is not None)


def _steps(client: Any, keys: Keys) -> _Hashes:
    for number in _numbers(client, keys.step_buckets):
        yield number, client.hgetall(keys.steps(number))


def _rows(client: Any, keys: Keys) -> _Hashes:
    for number in _numbers(client, keys.row_buckets):
        yield number, client.hgetall(keys.rows(number))


def _numbers(client: Any, index: str) -> list[int]:
    return [int(number) for number in client.zrange(index, 0, -1)]


def _blobs(client: Any, keys: Keys) -> Iterator[str]:
    """The names of the run's blobs; the whole keyspace is looked through, in small steps."""
    seen: set[str] = set()
    for name in client.scan_iter(match=f"{keys.about}:b:*", count=1000):
        text = name.decode()
        if text not in seen:
            seen.add(text)
            yield text
