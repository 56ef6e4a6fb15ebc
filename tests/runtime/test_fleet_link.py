"""The connection to a Redis that processes share, when much is asked at once."""

import asyncio
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from redis.exceptions import TimeoutError as Frozen

from tenter.runtime.clock import VirtualLoop, now
from tenter.runtime.fleet.link import AT_ONCE, Link
from tenter.runtime.journal.address import parse_redis
from tenter.runtime.journal.redis_link import RedisAway
from tenter.runtime.journal.redis_scripts import Script

pytestmark = pytest.mark.anyio

NOTHING = Script("#!lua\nreturn 1\n")


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualLoop}


class Client:
    """Answers after a second, or not at all. A fake."""

    def __init__(self, frozen: bool = False) -> None:
        self._frozen = frozen
        self._busy = self.most = 0
        self.connection_pool = SimpleNamespace(disconnect=self._disconnect)

    async def execute_command(self, *command: Any) -> bytes:
        self._busy += 1
        self.most = max(self.most, self._busy)
        await anyio.sleep(1)
        self._busy -= 1
        if self._frozen:
            raise Frozen("Timeout reading from cache:6379")
        return b"1"

    async def _disconnect(self, inuse_connections: bool) -> None:
        return


def link_to(client: Client) -> Link:
    link = Link(parse_redis("redis://cache"))
    setattr(link, "_client", client)  # noqa: B010  in the place of a connection
    return link


async def test_no_more_is_asked_at_once_than_redis_may_be() -> None:
    client = Client()
    link = link_to(client)
    await asyncio.gather(*(link.run(NOTHING, f"{n}") for n in range(5 * AT_ONCE)))
    assert client.most == AT_ONCE
    assert now() == 5


async def test_all_that_waits_hears_at_once_that_nobody_answers() -> None:
    client = Client(frozen=True)
    link = link_to(client)
    asked = (link.run(NOTHING, f"{n}") for n in range(5 * AT_ONCE))
    outcomes = await asyncio.gather(*asked, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {RedisAway}
    assert now() == 1
