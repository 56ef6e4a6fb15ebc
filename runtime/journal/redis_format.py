"""How a run lies in Redis, and its records as bytes.

All keys of a run share a hash tag, so that a Cluster keeps them on one node:

    <prefix>:runs                   sorted set: the names of all runs
    <prefix>:{run}                  hash: manifest, status, summary, and the lease with its token
    <prefix>:{run}:s:<row // 64>    hash: "row:path" -> a step
    <prefix>:{run}:r:<row // 1024>  hash: row -> a finished row
    <prefix>:{run}:S, :R            sorted sets: the numbers of the two above
    <prefix>:{run}:failed           set: the rows that ended with an error
    <prefix>:{run}:sig              hash: signature -> "row:path"
    <prefix>:{run}:b:<digest>       string: a value above INLINE_BYTES, stored once

A record is `crc32 | flags | length of the signature | signature | value, digest or error`; the
checksum covers its key too, so that no record passes for another.
"""

import hashlib
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from ..errors import JournalError
from .base import Entry, RowRecord, StepRecord

INLINE_BYTES = 512
STEP_ROWS = 64  # in one hash of steps
DONE_ROWS = 1024  # in one hash of finished rows

_HEAD = struct.Struct(">IBB")
_BLOB, _ERROR = 1, 2

Argument = bytes | str | int


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one run."""

    prefix: str
    run: str

    @property
    def about(self) -> str:
        return f"{self.prefix}:{{{self.run}}}"

    def steps(self, bucket: int) -> str:
        return f"{self.about}:s:{bucket}"

    def rows(self, bucket: int) -> str:
        return f"{self.about}:r:{bucket}"

    @property
    def step_buckets(self) -> str:
        return f"{self.about}:S"

    @property
    def row_buckets(self) -> str:
        return f"{self.about}:R"

    @property
    def failed(self) -> str:
        return f"{self.about}:failed"

    @property
    def signatures(self) -> str:
        return f"{self.about}:sig"

    def blob(self, digest: bytes) -> str:
        return f"{self.about}:b:{digest.hex()}"


def digest_of(value: bytes) -> bytes:
    return hashlib.blake2b(value, digest_size=16).digest()


def _packed(key: bytes, flags: int, signature: bytes, stored: bytes) -> bytes:
    if len(signature) > 255:
        raise JournalError(f"{key!r}: a signature has at most 255 bytes")
    body = _HEAD.pack(0, flags, len(signature))[4:] + signature + stored
    return zlib.crc32(body, zlib.crc32(key)).to_bytes(4, "big") + body


def _unpacked(key: bytes, data: bytes) -> tuple[int, bytes, bytes] | None:
    """Flags, signature and what is stored; None if that is not what was recorded."""
    if len(data) < _HEAD.size or zlib.crc32(data[4:], zlib.crc32(key)) != int.from_bytes(data[:4]):
        return None
    _, flags, length = _HEAD.unpack_from(data)
    return flags, data[6 : 6 + length], data[6 + length :]


class Group:
    """Records on their way to Redis as writes on a run's keys: `arguments` for the commit script.

    A write is `count, command, key's ending, argument ...`, where `count` counts the arguments.
    `indexed` holds the hashes that an earlier group has put into their index; it is added to.
    """

    def __init__(self, indexed: set[tuple[str, int]]) -> None:
        self._indexed = indexed
        self._steps: dict[int, dict[bytes, bytes]] = {}
        self._rows: dict[int, dict[bytes, bytes]] = {}
        self._failed: dict[int, bool] = {}
        self._signatures: dict[bytes, bytes] = {}
        self._blobs: dict[bytes, bytes] = {}
        self.records = 0
        self.size = 0  # bytes of values

    def add(self, entry: Entry) -> None:
        """The last record of a key wins."""
        self.records += 1
        self.size += len(entry.value or b"")
        if isinstance(entry, StepRecord):
            key = b"%d:%b" % (entry.row, entry.path.encode())
            flags, stored = self._stored(entry.value)
            signature = entry.signature or b""
            packed = _packed(key, flags, signature, stored)
            self._steps.setdefault(entry.row // STEP_ROWS, {})[key] = packed
            if entry.signature is not None:
                self._signatures[entry.signature] = key
            return
        key = b"%d" % entry.row
        if entry.value is None:
            text = (entry.error or "").encode("utf-8", "backslashreplace")
            flags, stored = _ERROR, text
        else:
            flags, stored = self._stored(entry.value)
        self._failed[entry.row] = entry.error is not None
        self._rows.setdefault(entry.row // DONE_ROWS, {})[key] = _packed(key, flags, b"", stored)

    def _stored(self, value: bytes) -> tuple[int, bytes]:
        if len(value) <= INLINE_BYTES:
            return 0, value
        digest = digest_of(value)
        self._blobs[digest] = value
        return _BLOB, digest

    def arguments(self) -> list[Argument]:
        """The group's writes, one after another."""
        found: list[Argument] = []
        for digest, value in self._blobs.items():
            found += (1, "SET", f":b:{digest.hex()}", value)
        found += self._hashes("s", "S", self._steps)
        found += self._hashes("r", "R", self._rows)
        for command, wanted in (("SADD", True), ("SREM", False)):
            rows = [row for row, failed in self._failed.items() if failed is wanted]
            if rows:
                found += (len(rows), command, ":failed", *rows)
        if self._signatures:
            found += (2 * len(self._signatures), "HSET", ":sig", *_flat(self._signatures))
        return found

    def _hashes(
        self, kind: str, index: str, buckets: Mapping[int, Mapping[bytes, bytes]]
    ) -> Iterator[Argument]:
        for bucket, pairs in buckets.items():
            yield from (2 * len(pairs), "HSET", f":{kind}:{bucket}", *_flat(pairs))
        fresh = [bucket for bucket in buckets if (kind, bucket) not in self._indexed]
        if fresh:
            self._indexed.update((kind, bucket) for bucket in fresh)
            numbers = [number for bucket in fresh for number in (bucket, bucket)]
            yield from (len(numbers), "ZADD", f":{index}", *numbers)


def _flat(pairs: Mapping[bytes, bytes]) -> Iterable[bytes]:
    return (part for pair in pairs.items() for part in pair)


@dataclass(frozen=True, slots=True)
class Stored:
    """A record as it was read; `blob` says where its value is, if it is not in it."""

    entry: Entry
    blob: bytes | None

    def with_value(self, value: bytes | None, keys: Keys) -> Entry:
        """The record, its value read from its blob."""
        if self.blob is None:
            return self.entry
        if value is None or digest_of(value) != self.blob:
            raise damaged(keys, self.entry.row)
        if isinstance(self.entry, StepRecord):
            return StepRecord(self.entry.row, self.entry.path, value, self.entry.signature)
        return RowRecord(self.entry.row, value)


def read_step(keys: Keys, key: bytes, data: bytes) -> Stored:
    """The step that lies under `key`. Raises JournalError for one that is damaged."""
    row, _, path = key.partition(b":")
    found = _unpacked(key, data)
    if found is None:
        raise damaged(keys, row.decode("ascii", "replace"))
    flags, signature, stored = found
    blob = stored if flags & _BLOB else None
    value = b"" if blob else stored
    return Stored(StepRecord(int(row), path.decode(), value, signature or None), blob)


def read_row(keys: Keys, key: bytes, data: bytes) -> Stored:
    """The finished row that lies under `key`. Raises JournalError for one that is damaged."""
    found = _unpacked(key, data)
    if found is None:
        raise damaged(keys, key.decode("ascii", "replace"))
    flags, _, stored = found
    if flags & _ERROR:
        return Stored(RowRecord(int(key), None, stored.decode()), None)
    blob = stored if flags & _BLOB else None
    return Stored(RowRecord(int(key), b"" if blob else stored), blob)


def damaged(keys: Keys, row: int | str) -> JournalError:
    return JournalError(
        f"journal {keys.about}: the record of row {row} is damaged; start a new run"
    )
