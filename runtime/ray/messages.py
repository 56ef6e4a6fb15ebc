"""What a run and its shards tell each other: plain data as bytes, so that nothing is unpickled.

The run sends `Opening`, then `Beginning`, then `Tell` whenever there is something to tell; a shard
answers with `Hello`, `Ready`, and `News` whenever it is asked.
"""

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from ..jobs.suspects import Suspicion
from ..journal.base import StepRecord

MAX_BYTES = 8 * 1024 * 1024  # of rows or records in one message, from which on the rest waits


class Opening(Struct, frozen=True):
    """What a shard is to open. `spec` is that of the job, as JSON; all paths are absolute."""

    spec: bytes
    workflow_fingerprint: str
    shards: int


class Failure(Struct, frozen=True):
    """What ended a shard; `kind` is the class of the error, as far as it matters."""

    message: str
    kind: str = ""


class Hello(Struct, frozen=True):
    """A shard whose models answer, in process `pid` on `host`. `now_s` is on its clock.

    `concurrency` is what its models can do with; `shared`: other processes use them too.
    """

    model_fingerprint: str = ""
    concurrency: int = 0
    shared: bool = False
    host: str = ""
    pid: int = 0
    now_s: float = 0.0
    failure: Failure | None = None


class Beginning(Struct, frozen=True):
    """What the programs of a shard begin with; see `jobs.engine.Begin`.

    `stats` are those of the whole table, so that all shards have the same plan.
    """

    run: str
    concurrency: int
    stats: str | None
    constants: tuple[str, ...]
    pins: bool
    resumed: bool
    seed: int


class Ready(Struct, frozen=True):
    """The programs of a shard may be started, or will never be."""

    failure: Failure | None = None


class Step(Struct, frozen=True, array_like=True):
    """A record of a step, from the journal to a shard or from a shard to the journal."""

    row: int
    path: str
    value: bytes
    signature: bytes | None = None
    spare: bool = False
    sync: bool = False
    seq: int = 0

    def record(self) -> StepRecord:
        return StepRecord(self.row, self.path, self.value, self.signature, self.spare)


class Handed(Struct, frozen=True, array_like=True):
    """A row for a shard, with the steps of it that are recorded, and what is held against it."""

    row: int
    inputs: bytes
    steps: tuple[Step, ...] = ()
    suspicion: Suspicion | None = None


class Over(Struct, frozen=True, array_like=True):
    """How a row has ended: with its JSON result, or an error of a `kind` (see `Failure`)."""

    row: int
    value: bytes | None = None
    error: str | None = None
    kind: str = ""


class Asked(Struct, frozen=True, array_like=True):
    """A shard wants to know what the journal has under these signatures."""

    number: int
    signatures: tuple[bytes, ...]


class Found(Struct, frozen=True, array_like=True):
    """What the journal has."""

    number: int
    results: dict[bytes, bytes]


class Tell(Struct, frozen=True):
    """What a shard is told. All records up to `kept` are; None: nothing about this is new.

    It is to give `back` those of these rows that it has not announced.
    """

    rows: tuple[Handed, ...] = ()
    back: tuple[int, ...] = ()
    kept: int = 0
    found: tuple[Found, ...] = ()
    paused: bool | None = None
    drain: bool = False
    concurrency: int | None = None
    order: str | None = None
    retention: str | None = None


class News(Struct, frozen=True):
    """What a shard has done since it was last asked. `trace` are lines of a trace.

    Rows that are `next` begin when this has been heard; those that are given `back`, since they
    were asked for, never will.
    """

    next: tuple[int, ...] = ()
    back: tuple[int, ...] | None = None
    steps: tuple[Step, ...] = ()
    over: tuple[Over, ...] = ()
    asked: tuple[Asked, ...] = ()
    trace: bytes = b""
    failure: Failure | None = None


encode = msgspec.msgpack.encode
decode_opening = msgspec.msgpack.Decoder(Opening).decode
decode_hello = msgspec.msgpack.Decoder(Hello).decode
decode_beginning = msgspec.msgpack.Decoder(Beginning).decode
decode_ready = msgspec.msgpack.Decoder(Ready).decode
decode_tell = msgspec.msgpack.Decoder(Tell).decode
decode_news = msgspec.msgpack.Decoder(News).decode


def pack_inputs(inputs: Mapping[str, Any]) -> bytes:
    """A row's inputs as bytes. Raises TypeError or ValueError for what is no plain data."""
    try:
        return msgspec.msgpack.encode(inputs)
    except OverflowError:  # a number of more than 64 bits
        return msgspec.json.encode(inputs)


def unpack_inputs(data: bytes) -> dict[str, Any]:
    """What `pack_inputs` has packed; a mapping as JSON begins with a brace, another never does."""
    decode = msgspec.json.decode if data[:1] == b"{" else msgspec.msgpack.decode
    return decode(data, type=dict[str, Any])
