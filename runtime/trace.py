"""The trace: the ordered record of every event and decision of a run, append-only and versioned.

Records are msgspec Structs with a tag; one is one line of JSONL: `{"at_s": ..., "type": ..., ...}`.
Metrics, summaries and reports are folds over it. The first line is RunStarted, whose `version`
says how to read the rest; a resumed run appends to the same file and begins with another
RunStarted, from which `at_s` counts anew. Records hold names, counts and times, never the text of
a prompt, an answer or an argument.
"""

import os
from collections.abc import Iterator
from functools import cache
from io import BufferedReader
from pathlib import Path
from typing import Any, Protocol

import msgspec

from .errors import InvalidInput

TRACE_VERSION = 1

FLUSH_BYTES = 64 * 1024
FLUSH_S = 1.0  # on the run's clock
_HEAD = b'{"at_s":'


class Record(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag=True, kw_only=True):
    """Base of everything that goes into a trace. Subclasses add fields; the tag is the class name."""


class Other(Record, frozen=True):
    """A record of a kind that this process does not know."""

    name: str
    fields: dict[str, Any]


class Trace(Protocol):
    """Where records go."""

    def write(self, at_s: float, record: Record) -> None:
        """Append `record`, stamped with `at_s` on the run's clock."""
        ...


class NoTrace:
    """Drops everything."""

    def write(self, at_s: float, record: Record) -> None:
        return


class MemoryTrace:
    """Keeps everything in `records`."""

    def __init__(self) -> None:
        self.records: list[tuple[float, Record]] = []

    def write(self, at_s: float, record: Record) -> None:
        self.records.append((at_s, record))


class Fanout:
    """Writes to several traces, in order."""

    def __init__(self, *traces: Trace) -> None:
        self._writes = tuple(trace.write for trace in traces)

    def write(self, at_s: float, record: Record) -> None:
        for write in self._writes:
            write(at_s, record)


class TraceWriter:
    """Appends to a JSONL file, in pieces of FLUSH_BYTES or FLUSH_S, whichever is less.

    A trace is worth less than its run: when the file cannot be written, the writer drops the rest
    and keeps the reason in `error`. A line torn by the death of an earlier writer is cut off.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.error: OSError | None = None
        self._buffer = bytearray()
        self._flush_at_s = float("-inf")
        self._descriptor: int | None = os.open(
            self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644
        )
        _cut_torn_line(self._descriptor)

    def write(self, at_s: float, record: Record) -> None:
        buffer = self._buffer
        buffer += encode(at_s, record)
        if at_s >= self._flush_at_s or len(buffer) >= FLUSH_BYTES:
            self._flush_at_s = at_s + FLUSH_S
            self.flush()

    def flush(self) -> None:
        """Hand what is buffered to the system."""
        if self._descriptor is not None and self.error is None:
            try:
                rest = memoryview(bytes(self._buffer))
                while rest:
                    rest = rest[os.write(self._descriptor, rest) :]
            except OSError as error:
                self.error = error
        self._buffer.clear()

    def close(self) -> None:
        """Flush and let go of the file; more writes are dropped."""
        self.flush()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


_encode = msgspec.json.Encoder().encode


def encode(at_s: float, record: Record) -> bytes:
    """A record as the line of a trace."""
    return b'{"at_s":%r,%b\n' % (float(at_s), _encode(record)[1:])


def decode(lines: bytes) -> Iterator[tuple[float, Record]]:
    """The records of whole lines that this version of Tenter has encoded."""
    known, head = _decoder(tuple(_kinds(Record))), msgspec.json.Decoder(_Head)
    for line in lines.splitlines():
        about = head.decode(line)
        yield about.at_s, _record(line, about.type, known)


def _cut_torn_line(descriptor: int) -> None:
    """Remove what follows the last newline of the file."""
    end = os.fstat(descriptor).st_size
    while end > 0:
        start = max(0, end - FLUSH_BYTES)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end < os.fstat(descriptor).st_size:
        os.ftruncate(descriptor, end)


class _Head(msgspec.Struct):
    at_s: float
    type: str
    version: int = 0


def read(path: Path | str) -> Iterator[tuple[float, Record]]:
    """The records of a trace file with their times. A torn last line is left out.

    Knows the Record classes that are loaded; a record of another class comes as `Other`.
    Raises InvalidInput for a file that is no trace, is damaged, or is of a newer Tenter.
    """
    path = Path(path)
    try:
        file = path.open("rb")
    except OSError as error:
        raise InvalidInput(f"trace {path}: {error.strerror or error}") from None
    with file:
        yield from _read(path, file)


def _read(path: Path, file: BufferedReader) -> Iterator[tuple[float, Record]]:
    kinds = {kind.__name__: kind for kind in _kinds(Record)}
    head, decode = msgspec.json.Decoder(_Head), _decoder(tuple(kinds.values()))
    for number, line in enumerate(file, start=1):
        try:
            about = head.decode(line)
            if number == 1 or about.type == "RunStarted":
                _check_version(path, number, about)
            yield about.at_s, _record(line, about.type, decode)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            if number == 1:
                raise InvalidInput(f"trace {path}:1: this is no trace of a Tenter run") from None
            if not line.endswith(b"\n"):
                return
            raise InvalidInput(f"trace {path}:{number}: this line is damaged ({error})") from None


def _record(line: bytes, kind: str, decode: "msgspec.json.Decoder[Any]") -> Record:
    try:
        return decode.decode(line)
    except msgspec.ValidationError:
        fields = msgspec.json.decode(line, type=dict[str, Any])
        del fields["at_s"], fields["type"]
        return Other(name=kind, fields=fields)


def _check_version(path: Path, number: int, head: _Head) -> None:
    if head.type != "RunStarted" or head.version < 1:
        raise InvalidInput(f"trace {path}:{number}: this is no trace of a Tenter run")
    if head.version > TRACE_VERSION:
        raise InvalidInput(
            f"trace {path}: it was written by a newer Tenter (trace version {head.version}; "
            f"this one reads up to {TRACE_VERSION}); upgrade Tenter"
        )


def _kinds(base: type[Record]) -> Iterator[type[Record]]:
    for kind in base.__subclasses__():
        yield kind
        yield from _kinds(kind)


@cache
def _decoder(kinds: tuple[type[Record], ...]) -> "msgspec.json.Decoder[Any]":
    """Decodes a line into the one of `kinds` that it names."""
    union: Any = kinds[0]
    for kind in kinds[1:]:
        union = union | kind
    return msgspec.json.Decoder(union)
