"""Blocks of a prompt: hashes of its beginnings, by which workers and servers name what they hold."""

from array import array
from collections.abc import Sequence
from hashlib import blake2b

FINE_TOKENS, FINE_BLOCKS = 64, 32  # the first blocks of a prompt,
COARSE_TOKENS = 512  # and those after them


def block_end(index: int) -> int:
    """How many tokens the blocks up to and including `index` cover."""
    fine = min(index + 1, FINE_BLOCKS)
    return fine * FINE_TOKENS + max(0, index + 1 - FINE_BLOCKS) * COARSE_TOKENS


def block_hash(digest: "blake2b") -> int:
    """The name of the block that ends where `digest` has come to: 53 bits, which JSON keeps."""
    return int.from_bytes(digest.digest(), "big") >> 11


def blocks_of(token_ids: Sequence[int]) -> tuple[int, ...]:
    """A hash of each beginning of a prompt that ends at a block: equal hash, equal beginning."""
    data = memoryview(array("I", token_ids)).cast("B")
    digest = blake2b(digest_size=8)
    found: list[int] = []
    start = 0
    while (end := block_end(len(found))) <= len(token_ids):
        digest.update(data[4 * start : 4 * end])
        found.append(block_hash(digest))
        start = end
    return tuple(found)
