"""What the runs' Redis does in one step: scripts that check the lease's token before they write.

A script runs as a whole or not at all, also in the append-only file. Time is Redis's own, so that
the clocks of the runners do not matter. Each answers with a word and what belongs to it.

A lease is `owner`, `until` (ms) and `token`: who holds it, until when unless renewed, and what
its writes must show. Each claim makes another token, so one who was thought dead writes nothing
(fencing: M. Kleppmann, How to do distributed locking, 2016). A token has a random part, since a
failover may take a claim back. Writes are numbered in `seq`: one that comes twice changes nothing,
and one that has not its predecessor tells that Redis has lost something.
"""

import hashlib
from dataclasses import dataclass, field

_NOW = """#!lua
local about = KEYS[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""
_HELD = """
local held = redis.call('HMGET', about, 'token', 'seq', 'owner', 'records')
if not held[1] then return {'gone'} end
if held[1] ~= ARGV[1] then return {'fenced', held[3] or ''} end
local seq = tonumber(held[2])
"""


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script with the digest by which Redis knows it."""

    text: str
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()
        object.__setattr__(self, "sha", digest)


# token, owner, lease in ms, manifest, version -> created | exists
CREATE = Script(
    _NOW
    + """
if redis.call('EXISTS', about) == 1 then return {'exists'} end
redis.call('HSET', about, 'token', ARGV[1], 'claims', 1, 'owner', ARGV[2],
  'until', now + ARGV[3], 'manifest', ARGV[4], 'version', ARGV[5], 'status', 'running',
  'seq', 0, 'records', 0)
return {'created'}
"""
)

# token's random part, owner, lease in ms, an owner known to be dead
# -> claimed, token, seq, records | gone | held, owner, ms left
CLAIM = Script(
    _NOW
    + """
local held = redis.call('HMGET', about, 'owner', 'until', 'seq', 'records', 'claims')
if not held[5] then return {'gone'} end
local left = tonumber(held[2]) - now
if held[1] ~= '' and held[1] ~= ARGV[4] and left > 0 then return {'held', held[1], left} end
local token = (held[5] + 1) .. '-' .. ARGV[1]
redis.call('HINCRBY', about, 'claims', 1)
redis.call('HSET', about, 'token', token, 'owner', ARGV[2], 'until', now + ARGV[3])
return {'claimed', token, tonumber(held[3]), tonumber(held[4])}
"""
)

# token, seq so far, lease in ms -> ok | gone | fenced, owner | gap, seq
BEAT = Script(
    _NOW
    + _HELD
    + """
if seq < tonumber(ARGV[2]) then return {'gap', seq} end
redis.call('HSET', about, 'until', now + ARGV[3])
return {'ok'}
"""
)

# token, seq so far -> ok | gone | fenced, owner | gap, seq
RELEASE = Script(
    _NOW
    + _HELD
    + """
if seq < tonumber(ARGV[2]) then return {'gap', seq} end
redis.call('HSET', about, 'owner', '', 'until', 0)
return {'ok'}
"""
)

# token, seq, lease in ms, records, then writes: count, command, key's ending, argument ...
# -> ok | gone | fenced, owner | gap, seq
COMMIT = Script(
    _NOW
    + _HELD
    + """
local wanted = tonumber(ARGV[2])
if wanted > seq + 1 then return {'gap', seq} end
if wanted <= seq then
  redis.call('HSET', about, 'until', now + ARGV[3])  -- a write, for WAITAOF to wait for
  return {'ok'}
end
local last, at = #ARGV, 5
while at <= last do
  local count = tonumber(ARGV[at])
  redis.call(ARGV[at + 1], about .. ARGV[at + 2], unpack(ARGV, at + 3, at + 2 + count))
  at = at + 3 + count
end
redis.call('HSET', about, 'seq', wanted, 'until', now + ARGV[3],
  'records', held[4] + ARGV[4])
return {'ok'}
"""
)
