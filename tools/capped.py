"""Output of any length in bounded memory: its beginning and its end, and a mark where it was cut."""

from collections import deque


class Capped:
    """Keeps the first and the last half of `limit` bytes of what is written to it."""

    def __init__(self, limit: int) -> None:
        self._head_room = limit - limit // 2
        self._tail_room = limit // 2
        self._head = bytearray()
        self._tail: deque[bytes] = deque()
        self._tail_bytes = 0
        self.total = 0  # bytes written so far

    def write(self, data: bytes) -> None:
        """Take in more output."""
        self.total += len(data)
        room = self._head_room - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        if not data:
            return
        self._tail.append(data[-self._tail_room :] if self._tail_room else b"")
        self._tail_bytes += len(self._tail[-1])
        while self._tail_bytes - len(self._tail[0]) >= self._tail_room and len(self._tail) > 1:
            self._tail_bytes -= len(self._tail.popleft())

    def skip(self, size: int) -> None:
        """Leave out `size` bytes that were not even read."""
        self.total += size

    @property
    def cut(self) -> bool:
        """Whether anything was left out."""
        return self.total > self._head_room + self._tail_room

    def text(self, encoding: str = "utf-8") -> str:
        """What was kept; says how much was left out in between, if anything was."""
        tail = b"".join(self._tail)
        if not self.cut:
            return (bytes(self._head) + tail).decode(encoding, "replace")
        tail = tail[-self._tail_room :] if self._tail_room else b""
        left_out = self.total - len(self._head) - len(tail)
        mark = f"\n[... {left_out} bytes left out ...]\n"
        head_text, tail_text = (part.decode(encoding, "replace") for part in (self._head, tail))
        return head_text + mark + tail_text
