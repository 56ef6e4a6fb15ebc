"""The connection to a Redis that processes share, when much is asked at once."""

import asyncio
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from redis.exceptions import TimeoutError as Frozen

from tenter.runtime.clock import VirtualLoop, now
from tenter.runtime.fleet.claims import ClaimsAway, RedisClaims
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


async def test_a_cancel_that_the_client_loses_is_heeded() -> None:
    """As redis-py does, where a cancel comes when its write is just done."""

    class Losing(Client):
        async def execute_command(self, *command: Any) -> bytes:
            with suppress(asyncio.CancelledError):
                await anyio.sleep(1)
            if self._frozen:
                raise Frozen("Timeout reading from cache:6379")
            return b"1"

    for frozen in (False, True):
        asking = asyncio.ensure_future(link_to(Losing(frozen)).run(NOTHING, "x"))
        await anyio.sleep(0.5)
        asking.cancel()
        await asyncio.wait([asking])
        assert asking.cancelled()


class Radio(Client):
    """A client with a subscription; it breaks after what it has to say. A fake."""

    def __init__(self, *messages: Any) -> None:
        super().__init__()
        self.messages = list(messages)
        self.closed = False

    def pubsub(self) -> "Radio":
        return self

    async def subscribe(self, channel: str) -> None:
        self.messages.insert(0, {"type": "subscribe", "data": 1})

    async def get_message(self, timeout: float) -> Any:  # noqa: ASYNC109  as redis-py has it
        if not self.messages:
            raise Frozen("Connection closed by server.")
        return self.messages.pop(0)

    async def aclose(self) -> None:
        self.closed = True


async def test_who_listens_hears_what_is_published_until_it_is_cut_off() -> None:
    radio = Radio(None, {"type": "message", "data": b"aa"}, {"type": "message", "data": b"zz"})
    heard: list[Any] = []
    claims = RedisClaims(link_to(radio))
    with pytest.raises(ClaimsAway):
        await claims.hear(lambda: heard.append("begun"), heard.append)
    assert heard == ["begun", b"\xaa"]  # the other is no key
    assert radio.closed
