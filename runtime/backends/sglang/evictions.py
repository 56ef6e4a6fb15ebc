"""What a server evicts, from the KV events that it publishes (--kv-events-config).

SGLang sends, over a ZMQ PUB socket, three frames: topic, sequence number (8 bytes, big-endian) and
a msgpack batch `[time, events, rank]` of BlockStored, BlockRemoved and AllBlocksCleared. A server's
block is a page of its cache; ours (`runtime.blocks`) are longer, so one is gone as soon as a page
of it is. Only the device's own memory counts; what a host tier still holds counts as gone.
"""

import logging
from array import array
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import suppress
from hashlib import blake2b
from typing import NamedTuple

import msgspec

from ...blocks import block_end, block_hash

LEAST_PAGE = 16  # tokens: with smaller pages there are too many events to follow
MAX_PAGES = 1 << 18  # remembered at once, the oldest are forgotten
DEVICE = ("GPU", None)
Gone = tuple[int, ...]  # our blocks; empty: everything
log = logging.getLogger(__name__)


class BlockStored(msgspec.Struct, tag=True):
    block_hashes: list[int]
    parent_block_hash: int | None
    token_ids: list[int]
    block_size: int
    medium: str | None = None


class BlockRemoved(msgspec.Struct, tag=True):
    block_hashes: list[int]
    medium: str | None = None


class AllBlocksCleared(msgspec.Struct, tag=True):
    pass


Event = BlockStored | BlockRemoved | AllBlocksCleared


class Batch(msgspec.Struct, array_like=True):
    ts: float
    events: list[Event]
    attn_dp_rank: int | None = None


class _Chain(NamedTuple):
    """A beginning that ends with some page: how far our own blocks have come in it."""

    digest: "blake2b"
    tokens: int = 0
    blocks: int = 0  # of ours that are complete
    open: tuple[int, ...] = ()  # pages of the one that is not


class Pages:
    """Which of our blocks lie on which of the server's pages; told by its events."""

    def __init__(self) -> None:
        self._chains: OrderedDict[int, _Chain] = OrderedDict()
        self._blocks: dict[int, list[int]] = {}
        self._sequence: int | None = None

    def take(self, sequence: int, batch: Batch) -> list[Gone]:
        """What is gone after `batch`. After a gap in the sequence nothing is certain any more."""
        gone: list[Gone] = []
        if self._sequence is not None and sequence != self._sequence + 1:
            gone.append(self._clear())
        self._sequence = sequence
        for event in batch.events:
            match event:
                case BlockStored(medium=medium) if medium in DEVICE:
                    with suppress(OverflowError):  # token ids that no model has
                        self._stored(event)
                case BlockRemoved(medium=medium) if medium in DEVICE:
                    removed = self._removed(event)
                    if removed:
                        gone.append(removed)
                case AllBlocksCleared():
                    gone.append(self._clear())
                case _:
                    pass
        return gone

    def _stored(self, event: BlockStored) -> None:
        chain = _Chain(blake2b(digest_size=8))
        if event.parent_block_hash is not None:
            known = self._chains.get(event.parent_block_hash)
            if known is None:  # stored before we listened
                return
            chain = known
        for index, page in enumerate(event.block_hashes):
            start = index * event.block_size
            chain = self._extend(chain, page, event.token_ids[start : start + event.block_size])
            self._chains[page] = chain
        while len(self._chains) > MAX_PAGES:
            page, _ = self._chains.popitem(last=False)
            self._blocks.pop(page, None)

    def _extend(self, chain: _Chain, page: int, token_ids: list[int]) -> _Chain:
        digest, tokens, blocks = chain.digest.copy(), chain.tokens, chain.blocks
        open_pages = (*chain.open, page)
        while token_ids:
            room = block_end(blocks) - tokens
            digest.update(array("I", token_ids[:room]))
            tokens += len(token_ids[:room])
            token_ids = token_ids[room:]
            if tokens == block_end(blocks):
                block = block_hash(digest)
                for each in open_pages:
                    self._blocks.setdefault(each, []).append(block)
                blocks += 1
                open_pages = (page,) if token_ids else ()
        return _Chain(digest, tokens, blocks, open_pages)

    def _removed(self, event: BlockRemoved) -> Gone:
        gone: dict[int, None] = {}
        for page in event.block_hashes:
            self._chains.pop(page, None)
            gone |= dict.fromkeys(self._blocks.pop(page, ()))
        return tuple(gone)

    def _clear(self) -> Gone:
        self._chains.clear()
        self._blocks.clear()
        return ()


class _Wire(msgspec.Struct, array_like=True):
    ts: float
    events: list[msgspec.Raw]


_wire = msgspec.msgpack.Decoder(_Wire)
_event = msgspec.msgpack.Decoder(Event)


def read_batch(payload: bytes) -> Batch:
    """A batch as it is published; events of kinds that are not known are passed over."""
    wire = _wire.decode(payload)
    events: list[Event] = []
    for raw in wire.events:
        with suppress(msgspec.ValidationError):
            events.append(_event.decode(raw))
    return Batch(wire.ts, events)


async def evictions(endpoint: str, topic: str = "") -> AsyncIterator[Gone]:
    """Blocks as the publisher at `endpoint` ("tcp://host:port") evicts them; never ends."""
    import zmq
    import zmq.asyncio

    pages = Pages()
    with zmq.asyncio.Context() as context, context.socket(zmq.SUB) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.IPV6, "[" in endpoint)
        socket.setsockopt(zmq.SUBSCRIBE, topic.encode())
        socket.connect(endpoint)
        while True:
            frames = await socket.recv_multipart()
            try:
                _, sequence, payload = frames
                number = int.from_bytes(sequence, "big", signed=True)
                found = pages.take(number, read_batch(payload))
            except (ValueError, msgspec.DecodeError) as error:
                log.warning("%s: KV events that cannot be read: %s", endpoint, error)
                found = [()]
            for gone in found:
                yield gone
