"""JSON over HTTP to one server: one pool of connections, total deadlines, bounded answers.

Whatever goes wrong on the way becomes one of the errors that the scheduler acts upon, with the
server, the path and the cure in its message, and without credentials.
"""

import asyncio
import socket
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from contextvars import ContextVar
from types import TracebackType
from typing import Any, NoReturn, Self

from ..errors import BackendUnavailable, CallFailed, InvalidConfig, InvalidInput, TryAgain
from .http_exchange import Exchange, check_events, decoded, encoded, payload, read_body
from .http_text import (
    PORTS,
    authorization,
    message_of,
    retry_after_s,
    secrets_of,
    shortened,
    split_url,
)
from .sse import EventReader

try:
    import aiohttp
except ModuleNotFoundError:
    raise InvalidInput(
        "talking to a server needs the `aiohttp` package: pip install 'tenter[sglang]'"
    ) from None

ANSWER_BYTES = 256 << 20  # longest body that is read
REFUSAL_BYTES = 64 << 10  # longest body of an error status that is read
_CONNECTIONS = 4096
_IDLE_S = 4.0  # uvicorn closes a connection that was idle for 5 s: do not race with it
_STALE_S = 1.0  # a connection that the server had closed already fails at once
_DRAIN_S = 1.0  # for the last bytes behind [DONE]
_CLOSED = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, ConnectionResetError)
_FAILURES = (aiohttp.ClientError, OSError)  # TimeoutError is an OSError
_current: ContextVar[Exchange] = ContextVar("exchange")  # the last one of this task


class Client:
    """A pool of connections to the server at `url`. Use as an asynchronous context manager.

    `url` is shown in errors: normalised, without a trailing slash and without credentials, which
    are sent as HTTP Basic authorisation. `api_key` is sent as a bearer token. `stall_timeout_s` is
    the longest silence within an answer, `answer_timeout_s` the longest one before it begins: a
    plain answer comes whole at its end. Calls have a deadline of their own besides (`timeout_s`;
    None: no deadline). Proxies named by the environment are used only with `trust_env`. `wall` is
    the time of day, which only dates in Retry-After are compared with.

    Every method raises BackendUnavailable where nobody answers, TryAgain where another attempt
    may do (statuses 408, 425, 429 and 5xx; deadlines, stalls, cut or garbled answers), InvalidConfig
    for a bad URL or credentials that the server refuses, CallFailed for other refusals.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        connect_timeout_s: float = 5.0,
        stall_timeout_s: float = 60.0,
        answer_timeout_s: float = 600.0,
        trust_env: bool = False,
        wall: Callable[[], float] = time.time,
    ) -> None:
        parts = split_url(url)
        self.url = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
        self._address = (parts.hostname or "", parts.port or PORTS[parts.scheme])
        self._authorization = authorization(parts, api_key)
        self._secrets = secrets_of(parts, self._authorization)
        self._connect_timeout_s = connect_timeout_s
        self._stall_timeout_s = stall_timeout_s
        self._answer_timeout_s = answer_timeout_s
        self._trust_env = trust_env
        self._wall = wall
        self._session: aiohttp.ClientSession | None = None

    def __repr__(self) -> str:
        return f"Client({self.url!r})"

    async def __aenter__(self) -> Self:
        headers = {
            "Accept": "application/json, text/event-stream",
            "Accept-Encoding": "identity",
            "Content-Type": "application/json",
        }
        if self._authorization:
            headers["Authorization"] = self._authorization
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=_CONNECTIONS, keepalive_timeout=_IDLE_S, socket_factory=_open_socket
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=headers,
            skip_auto_headers=("User-Agent",),
            auto_decompress=False,
            trust_env=self._trust_env,
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    # -- what callers ask

    def get(self, path: str, timeout_s: float | None) -> Awaitable[Any]:
        """The JSON value that the server has at `path`; None for an empty body."""
        return self._whole("GET", path, None, timeout_s)

    def post(self, path: str, body: object, timeout_s: float | None) -> Awaitable[Any]:
        """The JSON value that the server answers `body` with; None for an empty body."""
        return self._whole("POST", path, encoded(body, self.url + path), timeout_s)

    async def stream(
        self, path: str, body: object, timeout_s: float | None
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The events of a server-sent answer, until its `[DONE]`.

        Closing the iterator early closes the connection at once; read to the end, it is used
        again. A stream that ends without `[DONE]` raises.
        """
        exchange = self._exchange("POST", path, timeout_s)
        response: aiohttp.ClientResponse | None = None
        try:
            response = await self._send(exchange, encoded(body, exchange.url))
            check_events(response, exchange.url)
            events = EventReader(exchange.url)
            while not events.done:
                data = await response.content.readany()
                if not data:
                    raise aiohttp.ClientPayloadError("the stream ended without [DONE]")
                if exchange.silence_s != self._stall_timeout_s:  # the first piece
                    exchange.limit_silence(response, self._stall_timeout_s)
                for event in events.feed(data):
                    yield event
            await _drain(exchange, response)
        except _FAILURES as error:
            raise await self._translated(error, exchange) from None
        finally:
            if response is not None:
                response.close()

    # -- one exchange

    async def _whole(
        self, method: str, path: str, body: bytes | None, timeout_s: float | None
    ) -> Any:
        exchange = self._exchange(method, path, timeout_s)
        response: aiohttp.ClientResponse | None = None
        try:
            response = await self._send(exchange, body)
            exchange.limit_silence(response, self._stall_timeout_s)
            data = await read_body(response, ANSWER_BYTES, exchange.url)
            return decoded(data, response.content_type, exchange.url)
        except _FAILURES as error:
            raise await self._translated(error, exchange) from None
        finally:
            if response is not None:
                response.close()

    def _exchange(self, method: str, path: str, timeout_s: float | None) -> Exchange:
        return Exchange(method, self.url + path, timeout_s, self._answer_timeout_s)

    async def _send(self, exchange: Exchange, body: bytes | None) -> aiohttp.ClientResponse:
        """A response whose status is 2xx, its body not read; other statuses raise.

        aiohttp sends a GET again if a kept connection turns out to be closed, a POST it does not.
        Nothing that is asked here has an effect that counts twice, so a POST is sent again too,
        while the server has answered nothing and at once.
        """
        if self._session is None:
            raise RuntimeError("the client is not open: use it in `async with`")
        timeout_s = exchange.timeout_s
        if timeout_s is not None and timeout_s <= 0:
            raise TryAgain(f"{exchange.url}: the call's deadline had passed before it was sent")
        timeout = aiohttp.ClientTimeout(
            total=timeout_s,
            sock_connect=self._connect_timeout_s,
            sock_read=exchange.silence_s,
        )
        clock = asyncio.get_running_loop().time
        _current.set(exchange)
        while True:
            sent_s, exchange.reused = clock(), True
            try:
                response = await self._session.request(
                    exchange.method,
                    exchange.url,
                    data=payload(body),
                    timeout=timeout,
                    allow_redirects=False,
                )
                break
            except _CLOSED as error:
                fresh = not exchange.reused or isinstance(error, aiohttp.ClientConnectorError)
                if fresh or clock() - sent_s > _STALE_S:
                    raise
        exchange.answering = True
        if not 200 <= response.status < 300:
            await self._refuse(response, exchange)
        return response

    # -- what goes wrong

    async def _refuse(self, response: aiohttp.ClientResponse, exchange: Exchange) -> NoReturn:
        """Raise what an error status means."""
        status = response.status
        exchange.limit_silence(response, self._stall_timeout_s)
        try:
            body = await read_body(response, REFUSAL_BYTES, exchange.url)
        except (TryAgain, *_FAILURES):
            body = b""
        finally:
            response.close()
        said = f"{exchange.url}: status {status}{self._without_secrets(message_of(body))}"
        if status in (401, 403):
            raise InvalidConfig(f"{said}; set api_key to a key that this server accepts")
        if status in (408, 425, 429) or status >= 500:
            after_s = retry_after_s(response.headers.get("Retry-After"), self._wall)
            raise TryAgain(said, after_s)
        if 300 <= status < 400:
            raise CallFailed(f"{said}; the server redirects: give the URL that it redirects to")
        raise CallFailed(said)

    def _without_secrets(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    async def _translated(self, error: Exception, exchange: Exchange) -> Exception:
        """Our error for one of aiohttp's."""
        where = exchange.url
        match error:
            case aiohttp.ConnectionTimeoutError():
                reason = f"no connection within {self._connect_timeout_s:g} s"
            case aiohttp.SocketTimeoutError():
                silence_s = exchange.silence_s
                return TryAgain(f"{where}: the server stalled: nothing came for {silence_s:g} s")
            case TimeoutError():
                return TryAgain(
                    f"{where}: the answer took longer than {exchange.timeout_s or 0:.3g} s"
                )
            case aiohttp.ClientConnectorCertificateError() | aiohttp.ServerFingerprintMismatch():
                return InvalidConfig(f"{where}: its certificate is not trusted: {error}")
            case aiohttp.ClientConnectorError():
                reason = error.os_error.strerror or str(error.os_error)
            case aiohttp.ClientResponseError():
                return TryAgain(f"{where}: the answer is not HTTP: {shortened(error.message)}")
            case _ if await self._reachable():
                what = "answer was cut off" if exchange.answering else "connection was reset"
                return TryAgain(f"{where}: the {what}: {shortened(str(error))}")
            case _:
                reason = f"the connection was lost: {shortened(str(error)) or type(error).__name__}"
        return BackendUnavailable(f"{where}: {reason}; is the server running?")

    async def _reachable(self) -> bool:
        """Whether the server still takes connections: tells a cut answer from a dead server."""
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, writer = await asyncio.open_connection(*self._address)
        except OSError:
            return False
        writer.transport.abort()
        return True


def _open_socket(address: tuple[Any, ...]) -> socket.socket:
    """A socket for a new connection, noted in the exchange that opens it."""
    _current.get().reused = False
    return socket.socket(*address[:3])


async def _drain(exchange: Exchange, response: aiohttp.ClientResponse) -> None:
    """Read the end of the body, so that the connection can be used again; never wait long."""
    exchange.limit_silence(response, _DRAIN_S)
    with suppress(*_FAILURES):
        await response.content.readany()
