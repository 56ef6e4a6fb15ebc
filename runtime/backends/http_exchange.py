"""One HTTP request and its answer: what is sent, and what is read, never more than a bound."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from ..errors import CallFailed, TryAgain

if TYPE_CHECKING:
    import aiohttp

PLAIN_BODY_BYTES = 1 << 20  # aiohttp warns of longer bytes objects


class NotBegun(TryAgain):
    """Another attempt may do, and the server is not at work on this one: it was never sent, or
    refused for the time being."""


@dataclass(slots=True)
class Exchange:
    """One request and its answer, as far as they have come."""

    method: str
    url: str
    timeout_s: float | None
    silence_s: float  # the longest that is put up with now
    answering: bool = False  # the head of the answer has come
    reused: bool = False  # the connection was used before
    again: bool = True  # it may be sent twice

    def limit_silence(self, response: "aiohttp.ClientResponse", silence_s: float) -> None:
        """From now on nothing may be heard for no longer than `silence_s`."""
        if silence_s == self.silence_s:
            return
        self.silence_s = silence_s
        connection = response.connection
        if connection is not None and connection.protocol is not None:  # the end has not come
            connection.protocol.read_timeout = silence_s
            connection.protocol.start_timeout()


def payload(body: bytes | None) -> bytes | io.BytesIO | None:
    return io.BytesIO(body) if body is not None and len(body) > PLAIN_BODY_BYTES else body


def encoded(body: object, where: str) -> bytes:
    """`body` as JSON; CallFailed if it has no such form, as text with a lone surrogate has none."""
    try:
        return msgspec.json.encode(body)
    except (ValueError, TypeError, RecursionError) as error:
        raise CallFailed(f"{where}: the request has no form in JSON: {error}") from None


def check_events(
    response: "aiohttp.ClientResponse", where: str, quoted: Callable[[str], str]
) -> None:
    if response.content_type != "text/event-stream":
        raise TryAgain(
            f"{where}: the answer is {quoted(response.content_type)}, not an event stream; "
            "is this the server that was meant?"
        )


async def read_body(response: "aiohttp.ClientResponse", limit_bytes: int, where: str) -> bytes:
    """The whole body; TryAgain if it is longer than `limit_bytes`."""
    content = response.content
    data = await content.readany()
    if content.at_eof():
        return data
    parts, size = [data], len(data)
    while data := await content.readany():
        size += len(data)
        if size > limit_bytes:
            raise TryAgain(f"{where}: the answer is longer than {limit_bytes} bytes")
        parts.append(data)
    return b"".join(parts)


def decoded(data: bytes, kind: str, where: str, quoted: Callable[[str], str]) -> Any:
    if not data:
        return None
    try:
        return msgspec.json.decode(data)
    except (ValueError, RecursionError) as error:
        reason = quoted(f"({kind}): {error}")
        raise TryAgain(f"{where}: the answer is not JSON {reason}") from None
