"""What goes wrong between a request and its answer, as one of the errors that a scheduler acts upon."""

import asyncio
from collections.abc import Callable

import aiohttp

from ..errors import BackendUnavailable, InvalidConfig, TryAgain
from .descriptors import is_short
from .http_exchange import Exchange, NotBegun


async def translated(
    error: Exception,
    exchange: Exchange,
    address: tuple[str, int],
    connect_timeout_s: float,
    quoted: Callable[[str], str],
) -> Exception:
    """Our error for one of aiohttp's; `quoted` makes a foreign text ready to be shown."""
    where = exchange.url
    if is_short(error):
        return NotBegun(
            f"{where}: this machine has no connection to spare: {quoted(str(error))}; "
            "raise its limit of open files (ulimit -n) or ask for less at a time"
        )
    match error:
        case aiohttp.ConnectionTimeoutError():
            reason = f"no connection within {connect_timeout_s:g} s"
        case aiohttp.SocketTimeoutError():
            silence_s = exchange.silence_s
            return TryAgain(f"{where}: the server stalled: nothing came for {silence_s:g} s")
        case TimeoutError():
            return TryAgain(f"{where}: the answer took longer than {exchange.timeout_s or 0:.3g} s")
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ServerFingerprintMismatch():
            return InvalidConfig(f"{where}: its certificate is not trusted: {quoted(str(error))}")
        case aiohttp.ClientConnectorError():
            reason = quoted(error.os_error.strerror or str(error.os_error))
        case aiohttp.ClientResponseError():
            return TryAgain(f"{where}: the answer is not HTTP: {quoted(error.message)}")
        case _ if await _reachable(address, connect_timeout_s):
            what = "answer was cut off" if exchange.answering else "connection was reset"
            return TryAgain(f"{where}: the {what}: {quoted(str(error))}")
        case _:
            told = quoted(str(error)) or type(error).__name__
            reason = f"the connection was lost: {told}"
    return BackendUnavailable(f"{where}: {reason}; is the server running?")


async def _reachable(address: tuple[str, int], timeout_s: float) -> bool:
    """Whether the server still takes connections: tells a cut answer from a dead server."""
    try:
        async with asyncio.timeout(timeout_s):
            _, writer = await asyncio.open_connection(*address)
    except OSError as error:
        return is_short(error)  # then nobody can tell
    writer.transport.abort()
    return True
