"""The Redis of a fleet's story: what the product asks of one, done in virtual time.

The commands are Redis's, the scripts the product's own by what they promise, in Python (`SCRIPTS`);
against a real server they are tested in `tests/journal` and `tests/runtime/test_shared_redis.py`.
What is asked is written down, so that a restart can lose what came after the last fsync.
"""

from collections.abc import Callable
from itertools import count
from typing import Any

from redis.exceptions import NoScriptError, ResponseError

from tenter.runtime.fleet import claims, ledger_redis, prefixes_redis
from tenter.runtime.fleet.ledger import Ask, MemoryLedger
from tenter.runtime.fleet.shares import Amount
from tenter.runtime.journal import redis_scripts
from tenter.runtime.journal.redis_scripts import Script
from tenter.runtime.predict import books_redis

FSYNC_S = 1.0  # appendfsync everysec: what is older has been synced

Command = tuple[Any, ...]
_Hash = dict[bytes, bytes]
_Sorted = dict[bytes, float]


class Keeper:
    """A Redis server's data. `restart` brings back what its disk has."""

    def __init__(self) -> None:
        self._starts = 0
        self.published: list[tuple[str, bytes]] = []  # until it is delivered
        self._log: list[tuple[float, Command]] = []
        self._begin()

    def _begin(self) -> None:
        self.now_s = 0.0
        self.ledger = MemoryLedger(lambda: self.now_s)
        self.keys: dict[str, Any] = {}
        self._until_s: dict[str, float] = {}
        self._known: set[bytes] = set()  # scripts
        self._synced = 0  # of the log

    def restart(self, now_s: float, empty: bool) -> None:
        """Come back: empty, or without what was not synced."""
        log = [] if empty else self._log[: self._last_synced(now_s)]
        self._begin()
        self._log = []
        for at_s, command in log:
            self.do(at_s, command, replay=True)
        self._known.clear()
        self.published.clear()
        self._synced = len(self._log)
        self._starts += 1
        self.ledger._claims = count(1_000_000 * self._starts)  # no token is given twice

    def _last_synced(self, now_s: float) -> int:
        old = sum(at_s <= now_s - FSYNC_S for at_s, _ in self._log)
        return max(self._synced, old)

    def do(self, now_s: float, command: Command, replay: bool = False) -> Any:
        """What a command answers; raises redis-py's errors."""
        self.now_s = now_s
        for key in [key for key, until_s in self._until_s.items() if until_s <= now_s]:
            self._drop(key)
        name, *rest = command
        if name == "WAITAOF":
            self._synced = len(self._log)
            return [1, 0]
        if name in ("EVAL", "EVALSHA"):
            script, key, arguments = rest[0], str(rest[2]), [_bytes(each) for each in rest[3:]]
            sha = Script(script).sha if name == "EVAL" else script
            if sha not in self._known and name == "EVALSHA" and not replay:
                raise NoScriptError("NOSCRIPT No matching script")
            self._known.add(sha)
            self._log.append((now_s, command))
            return SCRIPTS[sha](self, key, *arguments)
        if name in READS:
            return READS[name](self, *rest)
        self._log.append((now_s, command))
        return self._write(name, str(rest[0]), [_bytes(each) for each in rest[1:]])

    # ---- keys --------------------------------------------------------------------------------------

    def hash(self, key: str) -> _Hash:
        return self.keys.setdefault(key, {})

    def sorted(self, key: str) -> _Sorted:
        return self.keys.setdefault(key, {})

    def expire(self, key: str, ms: bytes) -> None:
        self._until_s[key] = self.now_s + int(ms) / 1000
        if int(ms) <= 0:
            self._drop(key)

    def _drop(self, key: str) -> None:
        self.keys.pop(key, None)
        self._until_s.pop(key, None)

    def _write(self, name: str, key: str, given: list[bytes]) -> Any:
        match name:
            case "SET":
                self.keys[key] = given[0]
            case "HSET":
                self.hash(key).update(zip(given[::2], given[1::2], strict=True))
            case "SADD":
                self.keys.setdefault(key, set()).update(given)
            case "SREM":
                self.keys.setdefault(key, set()).difference_update(given)
            case "ZADD":
                pairs = zip(given[1::2], map(float, given[::2]), strict=True)
                self.sorted(key).update(pairs)
            case "HDEL":
                for field in given:
                    self.hash(key).pop(field, None)
            case "DEL":
                self._drop(key)
            case _:
                raise ResponseError(f"ERR unknown command {name}")
        return 1


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def _ranked(keeper: Keeper, key: str) -> list[bytes]:
    found: _Sorted = keeper.keys.get(key, {})
    return sorted(found, key=lambda name: (found[name], name))


def _between(keeper: Keeper, key: str, least: Any, most: Any) -> list[bytes]:
    found: _Sorted = keeper.keys.get(key, {})
    return [each for each in _ranked(keeper, key) if int(least) <= found[each] <= int(most)]


def _info(keeper: Keeper, *_: Any) -> dict[str, Any]:
    return {"redis_version": "7.4.0", "aof_enabled": 1}


READS: dict[str, Callable[..., Any]] = {
    "INFO": _info,
    "CONFIG GET": lambda keeper, name: {"appendfsync": "everysec"},
    "TIME": lambda keeper: (int(keeper.now_s), int(keeper.now_s % 1 * 1e6)),
    "EXISTS": lambda keeper, key: int(key in keeper.keys),
    "GET": lambda keeper, key: keeper.keys.get(key),
    "MGET": lambda keeper, *keys: [keeper.keys.get(key) for key in keys],
    "HGET": lambda keeper, key, field: keeper.keys.get(key, {}).get(_bytes(field)),
    "HMGET": lambda keeper, key, *fields: [
        keeper.keys.get(key, {}).get(_bytes(field)) for field in fields
    ],
    "HGETALL": lambda keeper, key: dict(keeper.keys.get(key, {})),
    "HLEN": lambda keeper, key: len(keeper.keys.get(key, {})),
    "SCARD": lambda keeper, key: len(keeper.keys.get(key, ())),
    "ZRANGE": lambda keeper, key, first, last: _ranked(keeper, key),
    "ZREVRANGE": lambda keeper, key, first, last: _ranked(keeper, key)[::-1],
    "ZRANGEBYSCORE": _between,
}


# ---- scripts: journal ----------------------------------------------------------------------------


def _create(keeper: Keeper, key: str, token: bytes, owner: bytes, ms: bytes, *rest: bytes) -> Any:
    if key in keeper.keys:
        return [b"exists"]
    about = {b"token": token, b"claims": b"1", b"owner": owner, b"status": b"running"}
    about |= {b"until": _until(keeper, ms), b"manifest": rest[0], b"version": rest[1]}
    keeper.keys[key] = about | {b"seq": b"0", b"records": b"0"}
    return [b"created"]


def _claim(keeper: Keeper, key: str, part: bytes, owner: bytes, ms: bytes, dead: bytes) -> Any:
    about = keeper.keys.get(key)
    if about is None:
        return [b"gone"]
    left_ms = float(about[b"until"]) - 1000 * keeper.now_s
    if about[b"owner"] not in (b"", dead) and left_ms > 0:
        return [b"held", about[b"owner"], int(left_ms)]
    claims = int(about[b"claims"]) + 1
    token = b"%d-%b" % (claims, part)
    about |= {b"claims": b"%d" % claims, b"token": token, b"owner": owner}
    about[b"until"] = _until(keeper, ms)
    return [b"claimed", token, int(about[b"seq"]), int(about[b"records"])]


def _held(work: Callable[..., Any]) -> Callable[..., Any]:
    """Only for whom the lease belongs to."""

    def checked(keeper: Keeper, key: str, token: bytes, *given: bytes) -> Any:
        about = keeper.keys.get(key)
        if about is None:
            return [b"gone"]
        if about[b"token"] != token:
            return [b"fenced", about[b"owner"]]
        return work(keeper, about, key, *given)

    return checked


@_held
def _beat(keeper: Keeper, about: _Hash, key: str, seq: bytes, ms: bytes) -> Any:
    if int(about[b"seq"]) < int(seq):
        return [b"gap", int(about[b"seq"])]
    about[b"until"] = _until(keeper, ms)
    return [b"ok"]


@_held
def _release(keeper: Keeper, about: _Hash, key: str, seq: bytes) -> Any:
    if int(about[b"seq"]) < int(seq):
        return [b"gap", int(about[b"seq"])]
    about |= {b"owner": b"", b"until": b"0"}
    return [b"ok"]


@_held
def _commit(
    keeper: Keeper, about: _Hash, key: str, seq: bytes, ms: bytes, records: bytes, *writes: bytes
) -> Any:
    if int(seq) > int(about[b"seq"]) + 1:
        return [b"gap", int(about[b"seq"])]
    about[b"until"] = _until(keeper, ms)
    if int(seq) <= int(about[b"seq"]):
        return [b"ok"]
    at = 0
    while at < len(writes):
        end = at + 3 + int(writes[at])
        keeper._write(
            writes[at + 1].decode(), key + writes[at + 2].decode(), [*writes[at + 3 : end]]
        )
        at = end
    about |= {b"seq": seq, b"records": b"%d" % (int(about[b"records"]) + int(records))}
    return [b"ok"]


def _until(keeper: Keeper, ms: bytes) -> bytes:
    return b"%d" % (1000 * keeper.now_s + int(ms))


# ---- scripts: what processes share ---------------------------------------------------------------


def _shares(keeper: Keeper, key: str, token: bytes, _: bytes, *given: bytes) -> Any:
    numbers = [int(each) for each in given[:10]]
    pairs = [Amount(*pair) for pair in zip(numbers[::2], numbers[1::2], strict=True)]
    answer = _now(keeper.ledger.beat(key, Ask(token.decode(), *pairs)))
    if answer is None:
        return []
    others = [number for other in answer.others for number in other]
    return [answer.token.encode(), *answer.granted, *answer.whole, *others]


def _leave(keeper: Keeper, key: str, token: bytes) -> Any:
    _now(keeper.ledger.leave(key, token.decode()))
    return 1


def _claim_work(keeper: Keeper, key: str, owner: bytes, ms: bytes, dead: bytes) -> Any:
    held = keeper.keys.get(key)
    if held is not None and held != dead:
        return held
    keeper.keys[key] = owner
    keeper.expire(key, ms)
    return owner


def _end_work(
    keeper: Keeper, key: str, owner: bytes, ms: bytes, channel: bytes, name: bytes
) -> Any:
    if keeper.keys.get(key) == owner:
        keeper.keys[key] = b"kept"
        keeper.expire(key, ms)
        keeper.published.append((channel.decode(), name))
    return 1


def _lives(keeper: Keeper, key: str, ms: bytes) -> Any:
    keeper.keys[key] = b"1"
    keeper.expire(key, ms)
    return 1


def _exchange(keeper: Keeper, key: str, *given: bytes) -> Any:
    since, most, age_ms, piece = map(int, given[:4])
    now_ms = int(1000 * keeper.now_s)
    held = keeper.sorted(key)
    held.update(dict.fromkeys(given[4:], now_ms))
    for name in [name for name, at in held.items() if at <= now_ms - age_ms]:
        del held[name]
    for name in _ranked(keeper, key)[:-most]:
        del held[name]
    news = [name for name in _ranked(keeper, key) if held[name] >= since][:piece]
    return [part for name in news for part in (name, b"%d" % held[name])]


def _change(keeper: Keeper, base: str, name: bytes, version: bytes, data: bytes) -> Any:
    document = keeper.hash(f"{base}:d:{name.decode()}")
    if document.get(b"version", b"") != version:
        return 0
    document |= {b"data": data, b"version": b"%d" % (int(version or b"0") + 1)}
    keeper.sorted(f"{base}:saved")[name] = 1000 * keeper.now_s
    return 1


def _now(work: Any) -> Any:
    """What a coroutine returns that waits for nothing."""
    try:
        work.send(None)
    except StopIteration as ended:
        return ended.value
    raise AssertionError("it waits")


SCRIPTS: dict[str, Callable[..., Any]] = {
    redis_scripts.CREATE.sha: _create,
    redis_scripts.CLAIM.sha: _claim,
    redis_scripts.BEAT.sha: _beat,
    redis_scripts.RELEASE.sha: _release,
    redis_scripts.COMMIT.sha: _commit,
    ledger_redis._BEAT.sha: _shares,
    ledger_redis._LEAVE.sha: _leave,
    claims._CLAIM.sha: _claim_work,
    claims._END.sha: _end_work,
    claims._BEAT.sha: _lives,
    claims._LIVES.sha: lambda keeper, key: int(key in keeper.keys),
    prefixes_redis._EXCHANGE.sha: _exchange,
    Script(books_redis._CHANGE).sha: _change,
}
