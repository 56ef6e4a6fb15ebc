"""The result cache of a home in Redis, which all of its runners share.

    <prefix>:{results}:r:<key>   string: crc32, made, keep, tokens, then the value
    <prefix>:{results}:used      sorted set: keys by when they were used last
    <prefix>:{results}:made      sorted set: keys by when they were made
    <prefix>:{results}:size      bytes of all

Redis may not throw keys away by itself (journals lie there too), so the cache keeps its own bounds.
"""

import struct
import time
import zlib
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any

from ..errors import JournalError
from .address import RedisAddress
from .redis_link import RedisAway, answering, connect
from .results import OVERHEAD_BYTES, Bounds, Clock, Holding, Item, Kept, aged

AT_ONCE = 256
_HEAD = struct.Struct(">IddQQ")
_AROUND = OVERHEAD_BYTES - _HEAD.size  # of what is counted beside a string's length

_DROP = f"""#!lua
local base = KEYS[1]
local function drop(name)
  local size = redis.call('STRLEN', base .. ':r:' .. name)
  redis.call('DEL', base .. ':r:' .. name)
  redis.call('ZREM', base .. ':used', name)
  redis.call('ZREM', base .. ':made', name)
  redis.call('DECRBY', base .. ':size', size + {_AROUND})
end
local function drop_made_before(oldest)
  local many = 0
  for _, name in ipairs(redis.call('ZRANGEBYSCORE', base .. ':made', '-inf', oldest,
      'LIMIT', 0, {AT_ONCE})) do
    drop(name)
    many = many + 1
  end
  return many
end
"""
# now, oldest that may stay, most bytes, then name and data of each
_KEEP = (
    _DROP
    + f"""
for i = 4, #ARGV, 2 do
  local name, data = ARGV[i], ARGV[i + 1]
  if redis.call('ZSCORE', base .. ':used', name) then drop(name) end
  redis.call('SET', base .. ':r:' .. name, data)
  redis.call('ZADD', base .. ':used', ARGV[1], name)
  redis.call('ZADD', base .. ':made', ARGV[1], name)
  redis.call('INCRBY', base .. ':size', #data + {_AROUND})
end
drop_made_before(ARGV[2])
while tonumber(redis.call('GET', base .. ':size') or 0) > tonumber(ARGV[3]) do
  local first = redis.call('ZRANGE', base .. ':used', 0, 0)[1]
  if not first then break end
  drop(first)
end
return 0
"""
)
# made at this time or before -> how many of them were dropped; some may be left
_CLEAR = _DROP + "\nreturn drop_made_before(ARGV[1])\n"


class RedisResultStore:
    """Implements `ResultStore` in the Redis of `address`."""

    def __init__(
        self, address: RedisAddress, bounds: Bounds | None = None, clock: Clock = time.time
    ) -> None:
        self._address = address
        self._bounds = bounds or Bounds()
        self._clock = clock
        self._base = f"{address.options.prefix}:{{results}}"
        self._client = connect(address)
        self._used: set[bytes] = set()  # found since the last `keep`
        self.holding()  # whether it is there is to be known before a run

    def find(self, keys: Sequence[bytes]) -> dict[bytes, Kept]:
        found: dict[bytes, Kept] = {}
        now_s = self._clock()
        for at in range(0, len(keys), AT_ONCE):
            part = keys[at : at + AT_ONCE]
            with self._answering():
                names = [f"{self._base}:r:{key.hex()}" for key in part]
                datas: list[bytes | None] = self._client.mget(names)
            for key, data in zip(part, datas, strict=True):
                kept = None if data is None else _kept(key, data, now_s, self._bounds)
                if kept is not None:
                    found[key] = kept
        self._used.update(found)
        return found

    def keep(self, items: Iterable[Item]) -> None:
        now_s = self._clock()
        bounds = (now_s, now_s - self._bounds.max_age_s, self._bounds.max_bytes)
        pairs = [(key.hex(), _packed(key, kept, now_s)) for key, kept in items]
        used, self._used = self._used, set()
        with self._answering():
            if used:
                times = {key.hex(): now_s for key in used}
                self._client.zadd(f"{self._base}:used", times, xx=True)
            for at in range(0, len(pairs), AT_ONCE):
                parts = [part for pair in pairs[at : at + AT_ONCE] for part in pair]
                self._client.execute_command("EVAL", _KEEP, 1, self._base, *bounds, *parts)

    def clear(self, older_than_s: float | None = None) -> Holding:
        before = self.holding()
        oldest = "+inf" if older_than_s is None else self._clock() - older_than_s
        with self._answering():
            while self._client.execute_command("EVAL", _CLEAR, 1, self._base, oldest):
                pass
        after = self.holding()
        return Holding(before.results - after.results, before.size - after.size)

    def holding(self) -> Holding:
        with self._answering():
            results = int(self._client.zcard(f"{self._base}:made"))
            size = int(self._client.get(f"{self._base}:size") or 0)
            first: list[tuple[bytes, float]] = self._client.zrange(
                f"{self._base}:made", 0, 0, withscores=True
            )
        return Holding(results, size, first[0][1] if first else None)

    def close(self) -> None:
        self._client.close()

    @contextmanager
    def _answering(self) -> Generator[Any]:
        try:
            with answering(self._address):
                yield
        except RedisAway as error:
            raise JournalError(f"result cache {self._address.shown}: {error}") from error


def _packed(key: bytes, kept: Kept, now_s: float) -> bytes:
    keep_s = -1.0 if kept.left_s is None else kept.left_s
    head = _HEAD.pack(0, now_s, keep_s, kept.prompt_tokens, kept.output_tokens)[4:]
    body = head + kept.value
    return zlib.crc32(body, zlib.crc32(key)).to_bytes(4, "big") + body


def _kept(key: bytes, data: bytes, now_s: float, bounds: Bounds) -> Kept | None:
    """A result from its bytes; None for one that is damaged or too old."""
    if len(data) < _HEAD.size:
        return None
    checksum, made_s, keep_s, prompt_tokens, output_tokens = _HEAD.unpack_from(data)
    if checksum != zlib.crc32(data[4:], zlib.crc32(key)):
        return None
    left_s = None if keep_s < 0 else keep_s
    kept = Kept(data[_HEAD.size :], prompt_tokens, output_tokens, left_s)
    return aged(kept, now_s - made_s, bounds)
