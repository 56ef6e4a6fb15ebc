"""How processes of a fleet reach their Redis: clients shaped as those of redis-py, and a result cache.

A message takes virtual time, and may be lost, late, answered in vain, or come twice.
"""

import asyncio
import builtins
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from redis.exceptions import AuthenticationError, ConnectionError, TimeoutError

from tenter.runtime.journal.results import Kept

from .keeper import Command
from .loops import life

if TYPE_CHECKING:
    from .fleets import Fleet
    from .lives import Life

TIMEOUT_S = 5.0  # of a client, `Options.timeout_s`
TRAVEL_S = 0.001
RETRY_S = 10.0  # for which a result cache that failed is left alone
KEEP_AFTER_S = 0.02


class Wire:
    """A client of redis-py's asyncio, for the process whose loop runs."""

    def __init__(self, fleet: "Fleet") -> None:
        self._fleet = fleet
        self._life = life()
        self.connection_pool = self

    async def execute_command(self, *command: Any) -> Any:
        (answer,) = await self.exchange([command])
        return _raised(answer)

    async def exchange(self, commands: list[Command]) -> list[Any]:
        """The answers; an error in the place of one."""
        fleet = self._fleet
        fault = fleet.message(self._life)
        await asyncio.sleep(TRAVEL_S * fleet.draw.uniform(0.5, 2.0))
        self._check()
        do: Callable[[], list[Any]] = lambda: fleet.answers(commands)
        stuck_s = fleet.stuck_until_s - fleet.now_s
        if stuck_s > TIMEOUT_S or fault == "message late":
            fleet.later(max(stuck_s, TIMEOUT_S + 1.0), do)
        if stuck_s > TIMEOUT_S or fault in ("message late", "message lost"):
            await self._in_vain()
        if stuck_s > 0:
            await asyncio.sleep(stuck_s)
            self._check()
        answers = do()
        if fault == "message twice":
            do()
        if fault == "message unanswered":
            await self._in_vain()
        if fault == "message cut":
            raise ConnectionError("Connection closed by server.")
        await asyncio.sleep(TRAVEL_S * fleet.draw.uniform(0.5, 2.0))
        return answers

    def _check(self) -> None:
        if self._life.over:  # nothing that the dead say reaches anybody
            raise AuthenticationError("this process is dead")
        if self._fleet.gone:
            raise ConnectionError("Connection refused")

    async def _in_vain(self) -> None:
        await asyncio.sleep(TIMEOUT_S)
        raise TimeoutError("Timeout reading from the server")

    def pipeline(self, transaction: bool = True) -> "Pipe":
        return Pipe(self.exchange)

    def pubsub(self) -> "Subscription":
        return Subscription(self._fleet, self._life, self)

    async def disconnect(self, inuse_connections: bool = True) -> None:
        return

    async def aclose(self) -> None:
        return

    async def hmget(self, key: str, fields: list[Any]) -> Any:
        return await self.execute_command("HMGET", key, *fields)

    async def mget(self, keys: list[str]) -> Any:
        return await self.execute_command("MGET", *keys)

    async def hgetall(self, key: str) -> Any:
        return await self.execute_command("HGETALL", key)

    async def zrangebyscore(self, key: str, least: int, most: int) -> Any:
        return await self.execute_command("ZRANGEBYSCORE", key, least, most)

    async def info(self, *sections: str) -> Any:
        return await self.execute_command("INFO", *sections)


class Subscription:
    """What is published to one channel. It is cut when Redis goes, and what comes then is missed."""

    def __init__(self, fleet: "Fleet", here: "Life", wire: Wire) -> None:
        self._fleet, self._life, self._wire = fleet, here, wire
        self._messages: deque[dict[str, Any]] = deque()
        self._came = asyncio.Event()
        self.channel = ""
        self.cut = False

    async def subscribe(self, channel: str) -> None:
        await self._wire.execute_command("INFO")
        self.channel = channel
        self._fleet.subscriptions.append(self)
        self._put({"type": "subscribe", "data": 1})

    def deliver(self, data: bytes) -> None:
        """A message is on its way, for the process may be frozen."""
        at_s = self._fleet.now_s - self._life.began_s + TRAVEL_S
        if not self._life.over:
            self._life.loop.call_at(at_s, self._put, {"type": "message", "data": data})

    def _put(self, message: dict[str, Any]) -> None:
        self._messages.append(message)
        self._came.set()

    async def get_message(  # as redis-py has it
        self,
        timeout: float,  # noqa: ASYNC109
    ) -> dict[str, Any] | None:
        with suppress(builtins.TimeoutError):
            async with asyncio.timeout(timeout):
                await self._came.wait()
        if self.cut:
            raise ConnectionError("Connection closed by server.")
        message = self._messages.popleft() if self._messages else None
        if not self._messages:
            self._came.clear()
        return message

    async def aclose(self) -> None:
        if self in self._fleet.subscriptions:
            self._fleet.subscriptions.remove(self)


class Pipe:
    """Several commands at once."""

    def __init__(self, exchange: Callable[[list[Command]], Any]) -> None:
        self._exchange = exchange
        self._commands: list[Command] = []

    def execute_command(self, *command: Any) -> None:
        self._commands.append(command)

    def hget(self, key: str, field: Any) -> None:
        self._commands.append(("HGET", key, field))

    def hgetall(self, key: str) -> None:
        self._commands.append(("HGETALL", key))

    def hlen(self, key: str) -> None:
        self._commands.append(("HLEN", key))

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        answers = await self._exchange(self._commands)
        return [_raised(each) for each in answers] if raise_on_error else answers


def _raised(answer: Any) -> Any:
    if isinstance(answer, Exception):
        raise answer
    return answer


class Telephone:
    """A client that waits for its answers, which come at once; `sure`: it always gets through."""

    def __init__(self, fleet: "Fleet", sure: bool = False) -> None:
        self._fleet = fleet
        self._sure = sure

    def execute_command(self, *command: Any) -> Any:
        fleet = self._fleet
        if not self._sure and life().over:
            raise AuthenticationError("this process is dead")
        if not self._sure and (fleet.gone or fleet.stuck_until_s > fleet.now_s):
            raise ConnectionError("Connection refused")
        (answer,) = fleet.answers([command])
        return _raised(answer)

    def __getattr__(self, name: str) -> Any:
        return lambda *given: self.execute_command(name.replace("_", " ").upper(), *given)

    def hmget(self, key: str, *fields: Any) -> Any:
        listed = fields[0] if isinstance(fields[0], list) else fields
        return self.execute_command("HMGET", key, *listed)

    def zadd(self, key: str, scores: dict[str, float]) -> Any:
        pairs = [part for name, score in scores.items() for part in (score, name)]
        return self.execute_command("ZADD", key, *pairs)

    def pipeline(self, transaction: bool = True) -> "_Talk":
        return _Talk(self)

    def close(self) -> None:
        return


class _Talk:
    def __init__(self, telephone: Telephone) -> None:
        self._telephone = telephone
        self._keys: list[str] = []

    def hlen(self, key: str) -> None:
        self._keys.append(key)

    def execute(self) -> list[Any]:
        return [self._telephone.hlen(key) for key in self._keys]


class SharedResults:
    """A result cache in the fleet's Redis: `ThreadedResults` without its thread."""

    def __init__(self, fleet: "Fleet") -> None:
        self._fleet = fleet
        self._client = Wire(fleet)
        self._away_until_s = 0.0
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def works(self) -> bool:
        return self._fleet.now_s >= self._away_until_s

    async def find(self, key: bytes) -> Kept | None:
        try:
            found = await self._client.execute_command("GET", f"results:{key.hex()}")
        except Exception:  # noqa: BLE001  as the cache's thread: nothing is found for a while
            self._away_until_s = self._fleet.now_s + RETRY_S
            return None
        return None if found is None else Kept(found)

    def keep(self, key: bytes, kept: Kept) -> None:
        task = asyncio.get_running_loop().create_task(self._keep(key, kept))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _keep(self, key: bytes, kept: Kept) -> None:
        await asyncio.sleep(KEEP_AFTER_S)
        try:
            await self._client.execute_command("SET", f"results:{key.hex()}", kept.value)
        except Exception:  # noqa: BLE001
            self._away_until_s = self._fleet.now_s + RETRY_S

    async def close(self) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks)
