"""What was learned in a Redis: shared by runners on several machines, changed optimistically.

<prefix>:{learned}:d:NAME   hash: `data`, and `version`, which grows with each change
<prefix>:{learned}:saved    sorted set: names by the time of their last change (ms, by Redis)
"""

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from ..errors import InvalidConfig, JournalError
from ..journal.address import RedisAddress
from ..journal.redis_link import RedisAway, answering, connect
from .books import MAX_BYTES, Unreadable

TRIES = 50  # of a change, beside others'

# a name, the version that was read ("" for none), the new data -> 1, or 0: it has changed since
_CHANGE = """#!lua
local base, name = KEYS[1], ARGV[1]
local key = base .. ':d:' .. name
if (redis.call('HGET', key, 'version') or '') ~= ARGV[2] then return 0 end
local time = redis.call('TIME')
redis.call('HSET', key, 'data', ARGV[3])
redis.call('HINCRBY', key, 'version', 1)
redis.call('ZADD', base .. ':saved', time[1] * 1000 + math.floor(time[2] / 1000), name)
return 1
"""
_REMOVE = """#!lua
for _, name in ipairs(ARGV) do
  redis.call('DEL', KEYS[1] .. ':d:' .. name)
  redis.call('ZREM', KEYS[1] .. ':saved', name)
end
return 1
"""


class RedisBooks:
    """Implements `Books`."""

    def __init__(self, address: RedisAddress) -> None:
        self._address = address
        self._base = f"{address.options.prefix}:{{learned}}"

    def shown(self, name: str) -> str:
        return f"{self._address.shown}: {name}"

    def read(self, name: str) -> bytes | None:
        return self._stored(name)[0]

    def names(self) -> list[str]:
        with self._there() as client:
            found: list[bytes] = client.zrevrange(f"{self._base}:saved", 0, -1)
        return [name.decode() for name in found]

    def change(self, name: str, made: Callable[[bytes | None], bytes]) -> None:
        for _ in range(TRIES):
            old, version = self._stored(name)
            new = made(old)
            if len(new) > MAX_BYTES:
                raise Unreadable(f"{self.shown(name)} would be larger than {MAX_BYTES:,} bytes")
            with self._there() as client:
                if client.execute_command("EVAL", _CHANGE, 1, self._base, name, version, new):
                    return
        raise Unreadable(f"{self.shown(name)} is being saved to by other runs")

    def remove(self, names: Iterable[str]) -> None:
        with self._there() as client:
            client.execute_command("EVAL", _REMOVE, 1, self._base, *names)

    def _stored(self, name: str) -> tuple[bytes | None, bytes]:
        with self._there() as client:
            data, version = client.hmget(f"{self._base}:d:{name}", "data", "version")
        return data, version or b""

    @cached_property
    def _client(self) -> Any:
        return connect(self._address)

    @contextmanager
    def _there(self) -> Generator[Any]:
        try:
            with answering(self._address):
                yield self._client
        except (RedisAway, JournalError, InvalidConfig) as error:
            raise Unreadable(f"{self._address.shown}: {error}") from error
