"""The account of a worker in Redis: `ledger.MemoryLedger` as a script, so that no two beats mix.

    <prefix>:{fleet/PLACE}:shares   hash: `born` (ms), `claims`, and a field for each token: until
                                    (ms), then tokens and slots of the whole, needed, and held

Time is Redis's own: the clocks of the processes do not matter.
"""

from hashlib import blake2b
from secrets import token_hex
from typing import Any

from ..errors import JournalError
from ..journal.redis_link import RedisAway
from ..journal.redis_scripts import Script
from .ledger import LEASE_S, SETTLE_S, Answer, Ask, LedgerAway
from .link import Link
from .shares import LEAST, Amount

_KEEP_MS = 86_400_000  # of an account that nobody uses

# token, a new token's random part, then of whole, need, used, want and had: tokens, slots; then ms
# that a lease lasts, and that an account is young
# -> token, then tokens and slots granted, of the whole, and needed by each other process | nothing
_BEAT = Script(f"""#!lua
local key, token = KEYS[1], ARGV[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local born, mine, others = nil, false, {{}}
local whole, taken = {{tonumber(ARGV[3]), tonumber(ARGV[4])}}, {{0, 0}}
local all = redis.call('HGETALL', key)
for i = 1, #all, 2 do
  local name, value = all[i], all[i + 1]
  if name == 'born' then
    born = tonumber(value)
  elseif name ~= 'claims' then
    local member = cjson.decode(value)
    if member[1] <= now then
      redis.call('HDEL', key, name)
    elseif name == token then
      mine = true
    else
      for j = 1, 2 do
        whole[j] = math.max(whole[j], member[1 + j])
        others[#others + 1] = member[3 + j]
        taken[j] = taken[j] + member[5 + j]
      end
    end
  end
end
if token ~= '' and not mine then return {{}} end
if token == '' then token = redis.call('HINCRBY', key, 'claims', 1) .. '-' .. ARGV[2] end
if not born then
  born = now
  redis.call('HSET', key, 'born', now)
end
local granted, held = {{}}, {{}}
for i = 1, 2 do
  local used, want, had = tonumber(ARGV[6 + i]), tonumber(ARGV[8 + i]), tonumber(ARGV[10 + i])
  local most = whole[i] - taken[i]
  if now - born < tonumber(ARGV[14]) then
    most = math.min(most, math.max(had, math.floor(whole[i] / {LEAST})))
  end
  granted[i] = math.max(0, math.min(want, most))
  held[i] = math.max(granted[i], used)
end
redis.call('HSET', key, token, cjson.encode({{now + tonumber(ARGV[13]), tonumber(ARGV[3]),
  tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), held[1], held[2]}}))
redis.call('PEXPIRE', key, {_KEEP_MS})
return {{token, granted[1], granted[2], whole[1], whole[2], unpack(others)}}
""")
_LEAVE = Script("#!lua\nreturn redis.call('HDEL', KEYS[1], ARGV[1])\n")


class RedisLedger:
    """Implements `Ledger`."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def beat(self, place: str, ask: Ask) -> Answer | None:
        amounts = (*ask.whole, *ask.need, *ask.used, *ask.want, *ask.had)
        times = round(1000 * LEASE_S), round(1000 * SETTLE_S)
        answer = await self._run(_BEAT, place, ask.token, token_hex(8), *amounts, *times)
        if not answer:
            return None
        token, *numbers = answer
        pairs = zip(numbers[::2], numbers[1::2], strict=True)
        granted, whole, *others = (Amount(*each) for each in pairs)
        return Answer(token.decode(), granted, whole, tuple(others))

    async def leave(self, place: str, token: str) -> None:
        await self._run(_LEAVE, place, token)

    async def _run(self, script: Script, place: str, *arguments: str | int) -> list[Any]:
        key = f"{place_key(self._link.prefix, place)}:shares"
        try:
            return await self._link.run(script, key, *arguments)
        except (RedisAway, JournalError) as error:
            raise LedgerAway(str(error)) from error


def place_key(prefix: str, place: str) -> str:
    """What the keys of a worker begin with; they lie on one node of a Cluster."""
    return f"{prefix}:{{fleet/{blake2b(place.encode(), digest_size=8).hexdigest()}}}"
