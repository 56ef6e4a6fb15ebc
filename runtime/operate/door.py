"""The door of a live run: two files in its folder, one for each direction.

`requests.jsonl` is appended to by whoever asks something of the run, and read by the run;
`live.json` is replaced by the run each second, and whenever it has answered. A request names the
attempt that it is meant for, a word that each start of a run makes up; so what was asked of a
process that has died is not heeded by the one that resumes its run. Both files are plain data that
anybody who may write to the folder may have written: what is no request is passed over.
"""

import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from ..journal.owner import Owner
from ..report.tally import TallySnapshot

REQUESTS, LIVE = "requests.jsonl", "live.json"
MAX_REQUEST_BYTES = 16 * 1024
READ_BYTES = 256 * 1024  # of requests, at once
MAX_LIVE_BYTES = 4 * 1024 * 1024

Ask = Literal["pause", "continue", "cancel", "set"]
State = Literal["running", "paused", "stopping", "ended"]
Value = int | float | str | bool
_Name = Annotated[str, Meta(min_length=1, max_length=200)]


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What somebody (`by`) asks of the attempt `to`; `id` is made up for the answer."""

    id: _Name
    to: _Name
    by: _Name
    ask: Ask
    values: dict[_Name, Value] = {}


class Answer(msgspec.Struct, frozen=True):
    """What the run says to the request `id`; `ok`: it was done."""

    id: str
    ok: bool
    said: str


class Live(msgspec.Struct, frozen=True):
    """A run's process as others see it. `settings` are those that `set` may change."""

    run: str
    attempt: str
    owner: Owner
    state: State
    settings: dict[str, Value | None]
    snapshot: TallySnapshot
    answers: tuple[Answer, ...] = ()  # the last ones
    reason: str | None = None  # why it stops, if told


_decode_request = msgspec.json.Decoder(Request).decode
_decode_live = msgspec.json.Decoder(Live).decode


def write_live(folder: Path, live: Live) -> None:
    """Put `live` in the place of what was there; a reader sees the one or the other, whole.

    Raises OSError.
    """
    path = folder / LIVE
    fresh = path.with_name(f".{LIVE}.{os.getpid()}")
    with suppress(FileNotFoundError):
        fresh.unlink()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(fresh, flags, 0o644), "wb") as file:
        file.write(msgspec.json.encode(live))
    os.replace(fresh, path)


def read_live(folder: Path) -> Live | None:
    """What the run's process has told last; None if there is nothing that can be read."""
    try:
        data = _read(folder / LIVE, 0, MAX_LIVE_BYTES)
        return _decode_live(data)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def ask(folder: Path, request: Request) -> None:
    """Append a request, in one write. Raises OSError."""
    line = b"\n%b\n" % msgspec.json.encode(request)  # what others have torn ends before it
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    descriptor = os.open(folder / REQUESTS, flags, 0o644)
    try:
        os.write(descriptor, line)
    finally:
        os.close(descriptor)


class Requests:
    """The requests in `folder` that are asked from now on."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / REQUESTS
        self._at = self._size()
        self.garbage = 0  # lines that were no requests

    def new(self) -> list[Request]:
        """What was asked since the last look. A file that cannot be read asks nothing."""
        size = self._size()
        if size <= self._at:
            self._at = size
            return []
        try:
            data = _read(self._path, self._at, READ_BYTES)
        except OSError:
            return []
        whole = data.rfind(b"\n") + 1
        if not whole and len(data) > MAX_REQUEST_BYTES:
            whole = len(data)  # no request is as long
        self._at += whole
        return [request for line in data[:whole].split(b"\n") if (request := self._read(line))]

    def _read(self, line: bytes) -> Request | None:
        if not line.strip():
            return None
        try:
            if len(line) <= MAX_REQUEST_BYTES:
                return _decode_request(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            pass
        self.garbage += 1
        return None

    def _size(self) -> int:
        try:
            return os.stat(self._path, follow_symlinks=False).st_size
        except OSError:
            return 0


def _read(path: Path, at: int, most: int) -> bytes:
    """So many bytes of a plain file. Raises OSError, also for what is no plain file."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    descriptor = os.open(path, flags)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(f"{path} is no plain file")
        return os.pread(descriptor, most, at)
    finally:
        os.close(descriptor)
