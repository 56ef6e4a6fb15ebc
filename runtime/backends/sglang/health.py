"""Whether a server that says nothing still lives, and waiting for one that does not."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random

from ...calls import Capabilities
from ...errors import BackendUnavailable, InvalidConfig, TenterError
from ..http import Client
from .info import ServerInfo, read_info

ASK_S = 10.0  # longest wait for what a server says of itself
CANARY_S = 30.0  # longest wait for one token
LOADS = "/v1/loads?include=core"
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long what is waited for. Seconds.

    A server that is silent for `quiet_s` while calls run is asked for its load; after `misses`
    questions without an answer within `answer_s` each it is given up. A lost one is tried again
    after `first_retry_s`, then twice that, up to `last_retry_s`. An abort is repeated after each
    of `abort_s`, if its call has not ended.
    """

    quiet_s: float = 10.0
    answer_s: float = 2.0
    misses: int = 3
    first_retry_s: float = 0.25
    last_retry_s: float = 10.0
    abort_s: tuple[float, ...] = (0.25, 0.5, 1.0)
    leave_s: float = 2.0  # for what runs to end when the backend is left


async def ask(client: Client) -> ServerInfo:
    """What the server of `client` says of itself; raises InvalidConfig if that is not enough."""
    server, model = await asyncio.gather(
        client.get("/server_info", ASK_S), client.get("/model_info", ASK_S)
    )
    info = read_info(server, model, client.url)
    if "model_path" not in server:
        raise InvalidConfig(f"{client.url}: /server_info names no model; is this an SGLang server?")
    return info


async def lives(client: Client, patience: Patience) -> bool:
    """Whether the server answers anything, in a few tries.

    It is asked for its load, which its front end knows: a forward pass may take long.
    """
    for _ in range(patience.misses):
        try:
            async with asyncio.timeout(patience.answer_s):
                await client.get(LOADS, None)
            return True
        except (BackendUnavailable, TimeoutError):
            continue
        except TenterError:
            return True
    return False


async def recovered(
    client: Client,
    before: Capabilities,
    canary: Callable[[ServerInfo], Awaitable[object]],
    patience: Patience,
    random: Random,
) -> ServerInfo:
    """Wait until the server answers again, `canary` too; with growing pauses of random length.

    While a server starts, or a proxy in front of it speaks in its place, answers may be odd and
    keys refused: that is logged and waited out. Raises BackendUnavailable only if it tells that it
    serves something else than what was there `before`.
    """
    pause_s, told = patience.first_retry_s, ""
    while True:
        try:
            info = await ask(client)
            if info.fingerprint == before.model_fingerprint:
                await canary(info)
                return info
        except TenterError as error:
            if str(error) != told:
                told = str(error)
                log.warning("not back yet: %s", told)
        else:
            raise BackendUnavailable(
                f"{client.url} serves {info.model_path} (weights {info.weight_version or '?'}) "
                f"now, and served {before.model} when the run began; start it with that again"
            )
        await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
        pause_s = min(2 * pause_s, patience.last_retry_s)
