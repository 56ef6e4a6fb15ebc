"""What a run's Redis holds, read in bounded pieces by a redis-py asyncio client."""

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, TypeVar

from .base import Entry, RowRecord, StepRecord
from .redis_format import DONE_ROWS, STEP_ROWS, Keys, Stored, read_row, read_step

BUCKETS_AT_ONCE = 16
VALUES_AT_ONCE = 64

_T = TypeVar("_T")
_Read = Callable[[Keys, bytes, bytes], Stored]


def _pieces(items: Sequence[_T], size: int) -> list[Sequence[_T]]:
    return [items[at : at + size] for at in range(0, len(items), size)]


async def read_steps(
    client: Any, keys: Keys, first_row: int, last_row: int
) -> dict[tuple[int, str], StepRecord]:
    """The steps of rows first_row..last_row, in order of (row, path)."""
    buckets = await _buckets(
        client, keys.step_buckets, first_row // STEP_ROWS, last_row // STEP_ROWS
    )
    found: dict[tuple[int, str], StepRecord] = {}
    async for entry in _entries(client, keys, [keys.steps(b) for b in buckets], read_step):
        if isinstance(entry, StepRecord) and first_row <= entry.row <= last_row:
            found[entry.row, entry.path] = entry
    return dict(sorted(found.items()))


async def read_rows(client: Any, keys: Keys, first_row: int, last_row: int) -> dict[int, RowRecord]:
    """The finished rows among first_row..last_row, in order."""
    buckets = await _buckets(
        client, keys.row_buckets, first_row // DONE_ROWS, last_row // DONE_ROWS
    )
    found: dict[int, RowRecord] = {}
    async for entry in _entries(client, keys, [keys.rows(b) for b in buckets], read_row):
        if isinstance(entry, RowRecord) and first_row <= entry.row <= last_row:
            found[entry.row] = entry
    return dict(sorted(found.items()))


async def read_results(client: Any, keys: Keys, signatures: Sequence[bytes]) -> dict[bytes, bytes]:
    """The recorded results of equal work, by signature."""
    results: dict[bytes, bytes] = {}
    for piece in _pieces(signatures, VALUES_AT_ONCE):
        places = await client.hmget(keys.signatures, list(piece))
        wanted = [place for place in places if place is not None]
        if not wanted:
            continue
        pipe = client.pipeline(transaction=False)
        for place in wanted:
            pipe.hget(keys.steps(int(place.partition(b":")[0]) // STEP_ROWS), place)
        data = await pipe.execute()
        stored = [read_step(keys, key, d) for key, d in zip(wanted, data, strict=True) if d]
        for entry in await _with_values(client, keys, stored):
            if isinstance(entry, StepRecord) and entry.signature is not None:
                results[entry.signature] = entry.value
    return {s: results[s] for s in signatures if s in results}


async def _buckets(client: Any, index: str, first: int, last: int) -> list[int]:
    return [int(number) for number in await client.zrangebyscore(index, first, last)]


async def _entries(
    client: Any, keys: Keys, hashes: Sequence[str], read: _Read
) -> AsyncIterator[Entry]:
    for piece in _pieces(hashes, BUCKETS_AT_ONCE):
        pipe = client.pipeline(transaction=False)
        for name in piece:
            pipe.hgetall(name)
        stored = [read(keys, k, d) for found in await pipe.execute() for k, d in found.items()]
        for part in _pieces(stored, VALUES_AT_ONCE):
            for entry in await _with_values(client, keys, part):
                yield entry


async def _with_values(client: Any, keys: Keys, stored: Sequence[Stored]) -> list[Entry]:
    """The records with the values that lie in blobs."""
    digests = list(dict.fromkeys(each.blob for each in stored if each.blob is not None))
    values: dict[bytes, bytes | None] = {}
    if digests:
        names = [keys.blob(digest) for digest in digests]
        values = dict(zip(digests, await client.mget(names), strict=True))
    return [each.with_value(values.get(each.blob or b""), keys) for each in stored]
