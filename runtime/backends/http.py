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

from ..errors import CallFailed, InvalidConfig, InvalidInput, TryAgain
from .descriptors import connections
from .http_exchange import (
    Exchange,
    NotBegun,
    check_events,
    decoded,
    encoded,
    payload,
    read_body,
)
from .http_text import (
    PORTS,
    authorization,
    clean,
    message_of,
    redacted,
    retry_after_s,
    secrets_of,
    shortened,
    split_url,
)
from .sse import EventReader

try:
    import aiohttp

    from .http_fault import translated
except ModuleNotFoundError:
    raise InvalidInput(
        "talking to a server needs the `aiohttp` package: pip install 'tenter[sglang]'"
    ) from None

ANSWER_BYTES = 256 << 20  # longest body that is read
REFUSAL_BYTES = 64 << 10  # longest body of an error status that is read
_IDLE_S = 4.0  # uvicorn closes a connection that was idle for 5 s: do not race with it
_STALE_S = 1.0  # a connection that the server had closed already fails at once
_DRAIN_S = 1.0  # for the last bytes behind [DONE]
_CLOSED = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, ConnectionResetError)
_NOT_BEGUN = (408, 425, 429, 503)
_TURNED_AWAY_S = 0.1  # how long a server is left alone that says 429, and not for how long
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
    may do (statuses 408, 425, 429 and 5xx; deadlines, stalls, cut or garbled answers; no connection
    to spare on this side), InvalidConfig for a bad URL or credentials that the server refuses,
    CallFailed for other refusals. A TryAgain is a NotBegun where the server is surely not at work.
    What is said in an answer's `error` comes without credentials.
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
        self.connections = 0  # it may have open at a time, once it is open

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
        self.connections = connections()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=self.connections, keepalive_timeout=_IDLE_S, socket_factory=_open_socket
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
        return self._whole(self._exchange("GET", path, timeout_s), None)

    def post(
        self, path: str, body: object, timeout_s: float | None, *, again: bool = True
    ) -> Awaitable[Any]:
        """The JSON value that the server answers `body` with; None for an empty body.

        `again`: it may be sent a second time if a kept connection turns out to be closed.
        """
        exchange = self._exchange("POST", path, timeout_s, again)
        return self._whole(exchange, encoded(body, exchange.url))

    async def stream(
        self, path: str, body: object, timeout_s: float | None, *, again: bool = True
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The events of a server-sent answer, until its `[DONE]`; `again` is that of `post`.

        Closing the iterator early closes the connection at once; read to the end, it is used
        again. A stream that ends without `[DONE]` raises.
        """
        exchange = self._exchange("POST", path, timeout_s, again)
        response: aiohttp.ClientResponse | None = None
        try:
            response = await self._send(exchange, encoded(body, exchange.url))
            check_events(response, exchange.url, self.quoted)
            events = EventReader(exchange.url)
            while not events.done:
                data = await response.content.readany()
                if not data:
                    raise aiohttp.ClientPayloadError("the stream ended without [DONE]")
                if exchange.silence_s != self._stall_timeout_s:  # the first piece
                    exchange.limit_silence(response, self._stall_timeout_s)
                for event in events.feed(data):
                    yield clean(event, self._secrets)
            await _drain(exchange, response)
        except _FAILURES as error:
            raise await self._translated(error, exchange) from None
        finally:
            if response is not None:
                response.close()

    # -- one exchange

    async def _whole(self, exchange: Exchange, body: bytes | None) -> Any:
        response: aiohttp.ClientResponse | None = None
        try:
            response = await self._send(exchange, body)
            exchange.limit_silence(response, self._stall_timeout_s)
            data = await read_body(response, ANSWER_BYTES, exchange.url)
            value = decoded(data, response.content_type, exchange.url, self.quoted)
            return clean(value, self._secrets)
        except _FAILURES as error:
            raise await self._translated(error, exchange) from None
        finally:
            if response is not None:
                response.close()

    def _exchange(
        self, method: str, path: str, timeout_s: float | None, again: bool = True
    ) -> Exchange:
        return Exchange(method, self.url + path, timeout_s, self._answer_timeout_s, again=again)

    async def _send(self, exchange: Exchange, body: bytes | None) -> aiohttp.ClientResponse:
        """A response whose status is 2xx, its body not read; other statuses raise.

        aiohttp sends a GET again if a kept connection turns out to be closed, a POST it does not.
        One that has no effect that counts twice is sent again here, while the server has answered
        nothing and at once.
        """
        if self._session is None:
            raise RuntimeError("the client is not open: use it in `async with`")
        clock = asyncio.get_running_loop().time
        begun_s = clock()
        _current.set(exchange)
        while True:
            sent_s, exchange.reused = clock(), True
            try:
                response = await self._session.request(
                    exchange.method,
                    exchange.url,
                    data=payload(body),
                    timeout=self._timeout(exchange, sent_s - begun_s),
                    allow_redirects=False,
                )
                break
            except _CLOSED as error:
                fresh = not exchange.reused or isinstance(error, aiohttp.ClientConnectorError)
                if fresh or not exchange.again or clock() - sent_s > _STALE_S:
                    raise
        exchange.answering = True
        if not 200 <= response.status < 300:
            await self._refuse(response, exchange)
        return response

    def _timeout(self, exchange: Exchange, gone_s: float) -> aiohttp.ClientTimeout:
        """For a request that is sent `gone_s` after its exchange has begun."""
        left_s = None if exchange.timeout_s is None else exchange.timeout_s - gone_s
        if left_s is not None and left_s <= 0:
            raise NotBegun(f"{exchange.url}: the call's deadline had passed before it was sent")
        return aiohttp.ClientTimeout(
            total=left_s, sock_connect=self._connect_timeout_s, sock_read=exchange.silence_s
        )

    # -- what goes wrong

    def quoted(self, text: str) -> str:
        """`text` of the server, ready to be shown: without credentials, and not too long."""
        return shortened(redacted(text, self._secrets))

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
        said = f"{exchange.url}: status {status}{message_of(body, self._secrets)}"
        if status in (401, 403):
            raise InvalidConfig(f"{said}; set api_key to a key that this server accepts")
        if status in (408, 425, 429) or status >= 500:
            after_s = retry_after_s(response.headers.get("Retry-After"), self._wall)
            if status == 429:  # a rate limit (RFC 6585, section 4): it is well, and asks for less
                after_s = max(after_s or 0.0, _TURNED_AWAY_S)
            raise (NotBegun if status in _NOT_BEGUN else TryAgain)(said, after_s)
        if 300 <= status < 400:
            raise CallFailed(f"{said}; the server redirects: give the URL that it redirects to")
        raise CallFailed(said)

    async def _translated(self, error: Exception, exchange: Exchange) -> Exception:
        return await translated(
            error, exchange, self._address, self._connect_timeout_s, self.quoted
        )


def _open_socket(address: tuple[Any, ...]) -> socket.socket:
    """A socket for a new connection, noted in the exchange that opens it."""
    _current.get().reused = False
    return socket.socket(*address[:3])


async def _drain(exchange: Exchange, response: aiohttp.ClientResponse) -> None:
    """Read the end of the body, so that the connection can be used again; never wait long."""
    exchange.limit_silence(response, _DRAIN_S)
    with suppress(*_FAILURES):
        await response.content.readany()
