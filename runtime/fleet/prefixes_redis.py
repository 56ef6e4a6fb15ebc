"""The directory of prefixes in Redis.

<prefix>:{fleet/PLACE}:held   sorted set: "BLOCK.TOKENS" by when it was published last (ms)
"""

from collections.abc import Sequence

from ..errors import JournalError
from ..journal.redis_link import RedisAway
from ..journal.redis_scripts import Script
from .ledger import LedgerAway
from .ledger_redis import place_key
from .link import Link
from .prefixes import AGE_S, PIECE, Sized

# since, most, ms that an entry lives, how many to tell, then entries -> entries and when, in turns
_EXCHANGE = Script("""#!lua
local key = KEYS[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for i = 5, #ARGV do redis.call('ZADD', key, now, ARGV[i]) end
redis.call('ZREMRANGEBYSCORE', key, '-inf', now - ARGV[3])
redis.call('ZREMRANGEBYRANK', key, 0, -1 - ARGV[2])
redis.call('PEXPIRE', key, ARGV[3])
return redis.call('ZRANGEBYSCORE', key, ARGV[1], '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[4])
""")


class RedisDirectory:
    """Implements `Directory`."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def exchange(
        self, place: str, since: int, most: int, blocks: Sequence[Sized]
    ) -> tuple[int, list[Sized]]:
        key = f"{place_key(self._link.prefix, place)}:held"
        entries = [f"{block}.{tokens}" for block, tokens in blocks]
        try:
            found: list[bytes] = await self._link.run(
                _EXCHANGE, key, since, max(1, most), round(1000 * AGE_S), PIECE, *entries
            )
        except (RedisAway, JournalError) as error:
            raise LedgerAway(str(error)) from error
        news = [tuple(map(int, name.split(b"."))) for name in found[::2]]
        last = int(float(found[-1])) if found else since
        # What comes in the same millisecond later is read with what follows, unless all is of one.
        if len(news) == PIECE and last == since:
            last += 1
        return last, [(block, tokens) for block, tokens in news]
