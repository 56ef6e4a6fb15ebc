"""Server-sent events, bytes in and JSON objects out (WHATWG HTML, section 9.2.6).

Only the `data` field matters here: language model servers put one JSON object into each event
and end with `[DONE]`. However the bytes are cut into pieces, the events are the same.
"""

from collections.abc import Iterator
from typing import Any, cast

import msgspec

from ..errors import TryAgain

EVENT_BYTES = 64 << 20
_BOM = b"\xef\xbb\xbf"


class EventReader:
    """Reads one stream. `done` is set once `[DONE]` has come; feed it no more then.

    An event or a line longer than `limit_bytes`, and one that holds no JSON object, raises
    TryAgain; `where` begins its message. Takes time linear in the bytes, memory up to the limit.
    """

    def __init__(self, where: str = "the event stream", limit_bytes: int = EVENT_BYTES) -> None:
        self.done = False
        self._where = where
        self._limit_bytes = limit_bytes
        self._line = bytearray()  # a line whose end has not come
        self._data: bytearray | None = None  # the data lines of the event that is being read
        self._cut_crlf = False  # the last byte was a CR, whose LF may come next
        self._started = False  # the first line, which may begin with a byte order mark, is over

    def feed(self, data: bytes) -> Iterator[dict[str, Any]]:
        """The events that `data` completes, in order; an error comes after those before it."""
        if not data:
            return
        if self._cut_crlf:
            data = data.removeprefix(b"\n")
        self._cut_crlf = data.endswith(b"\r")
        for line in data.splitlines(keepends=True):
            self._bound(len(self._line) + len(line))
            if line[-1] not in b"\r\n":
                self._line += line
                return
            line = line.rstrip(b"\r\n")
            if self._line:
                line = bytes(self._line + line)
                self._line.clear()
            if (event := self._take(line)) is not None:
                yield event
            if self.done:
                return

    def _take(self, line: bytes) -> dict[str, Any] | None:
        """The event that one whole line, without its end, completes."""
        if not self._started:
            self._started = True
            line = line.removeprefix(_BOM)
        if not line:
            return self._event()
        name, _, value = line.partition(b":")
        if name != b"data":
            return None  # a comment, or a field without meaning here
        value = value.removeprefix(b" ")
        if self._data is None:
            self._data = bytearray(value)
        else:
            self._data += b"\n"
            self._data += value
        self._bound(len(self._data))
        return None

    def _event(self) -> dict[str, Any] | None:
        data, self._data = bytes(self._data or b""), None
        if not data:
            return None
        if data == b"[DONE]":
            self.done = True
            return None
        try:
            event = msgspec.json.decode(data)
        except (ValueError, RecursionError) as error:
            raise TryAgain(f"{self._where}: an event is not JSON: {str(error)[:200]}") from None
        if not isinstance(event, dict):
            raise TryAgain(f"{self._where}: an event is not a JSON object")
        return cast("dict[str, Any]", event)

    def _bound(self, size_bytes: int) -> None:
        if size_bytes > self._limit_bytes:
            raise TryAgain(f"{self._where}: an event is longer than {self._limit_bytes} bytes")
