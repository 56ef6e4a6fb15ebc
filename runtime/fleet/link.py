"""The connection to the Redis that processes share, for scripts; it asks nothing twice by itself."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from anyio import CancelScope

from ..journal.address import RedisAddress
from ..journal.redis_link import (
    RedisAway,
    answering,
    close_async,
    connect_async,
    leave_idle,
    need_redis,
)
from ..journal.redis_scripts import Script

AT_ONCE = 16  # connections; a pool of redis-py refuses more than 100
LISTEN_S = 2.0  # for one message; then its connection is looked at


class Link:
    """Runs scripts. Raises RedisAway for what may pass, JournalError for what will not."""

    def __init__(self, address: RedisAddress) -> None:
        need_redis()
        self.address = address
        self.prefix = address.options.prefix
        self._client: Any = connect_async(address)
        self._room = asyncio.Semaphore(AT_ONCE)
        self._failures = 0

    async def run(self, script: Script, key: str, *arguments: bytes | str | int) -> Any:
        """What `script` answers; it may touch `key` alone."""
        failures = self._failures
        async with self._room:
            if self._failures != failures:  # or each would wait for it in turn
                raise RedisAway("it has not answered what was asked before")
            return await self._run(script, key, *arguments)

    async def _run(self, script: Script, key: str, *arguments: bytes | str | int) -> Any:
        from redis.exceptions import NoScriptError

        client = self._client
        try:
            with answering(self.address):
                rest = (1, key, *arguments)
                try:
                    return await client.execute_command("EVALSHA", script.sha, *rest)
                except NoScriptError:  # Redis was restarted, or is another one
                    return await client.execute_command("EVAL", script.text, *rest)
        except RedisAway:
            self._failures += 1
            await self._reconnect(client)
            raise

    async def listen(
        self, channel: str, begun: Callable[[], None], heard: Callable[[bytes], None]
    ) -> None:
        """Call `heard` with what is published, once `begun` was called. Not in a Cluster.

        Goes on until it is cancelled or the connection breaks.
        """
        if self.address.kind == "cluster":  # redis-py's client of one may know no subscriptions
            return
        with answering(self.address):
            messages = self._client.pubsub()
            try:
                await messages.subscribe(channel)
                while True:
                    message = await messages.get_message(timeout=LISTEN_S)
                    match message:
                        case {"type": "subscribe"}:
                            begun()
                        case {"type": "message", "data": bytes(data)}:
                            heard(data)
                        case _:
                            pass
            finally:
                with CancelScope(shield=True), suppress(Exception):  # it is of no use any more
                    await messages.aclose()

    async def _reconnect(self, client: Any) -> None:
        """Leave idle connections: the name may lead to another server by now."""
        if self.address.kind != "cluster":
            await leave_idle(self.address, client)
        elif self._client is client:  # it may not find back by itself
            self._client = connect_async(self.address)
            await close_async(self.address, client)

    async def close(self) -> None:
        await close_async(self.address, self._client)
