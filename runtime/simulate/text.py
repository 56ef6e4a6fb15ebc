"""The tokens of a simulated call: known by their pages, and counted one by one."""

from typing import cast

from ...planner.graph import Sampling
from ..blocks import COARSE_TOKENS, FINE_BLOCKS, FINE_TOKENS
from ..calls import CallId, Request
from ..engine.cache import Paged
from ..engine.state import Sequence
from ..replay import Prompt, Turn, joined, page_ids

_HASH_BITS = (1 << 53) - 1  # as many as a JSON number keeps


class Text(Paged):
    """A prompt and as much of its answer as is written. To the batch and the cache, a list of
    tokens: they ask for its length, and for whole pages as keys."""

    __slots__ = ("_keys", "_size", "length")

    def __init__(self, keys: list[tuple[int]], length: int, page_tokens: int) -> None:
        self._keys, self.length, self._size = keys, length, page_tokens

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, page: "slice[int, int, None]") -> tuple[int]:
        return self._keys[page.start // self._size]

    def page_keys(self, pages: int) -> list[tuple[int]]:
        return self._keys[: min(pages, self.length // self._size)]


def sequence_of(
    call: str, turn: Turn, page_tokens: int, arrival: int, now_s: float, priority: float
) -> Sequence:
    """A turn on its way through an engine with pages of `page_tokens`."""
    request = Request(CallId(call), (), Sampling(max_tokens=turn.output_tokens), priority=priority)
    sequence = Sequence(request, arrival, now_s, turn.output_tokens)
    keys = list(zip(page_ids(joined((*turn.prompt, turn.answer)), page_tokens), strict=True))
    sequence.prompt = turn.prompt_tokens
    sequence.tokens = cast("list[int]", Text(keys, sequence.prompt, page_tokens))
    return sequence


def write(sequence: Sequence, tokens: int) -> None:
    """The next `tokens` tokens of its answer."""
    cast(Text, sequence.tokens).length += tokens


def blocks(prompt: Prompt) -> tuple[int, ...]:
    """A name for each beginning of a prompt that ends at a block (`runtime.blocks`)."""
    pages = page_ids(prompt, FINE_TOKENS)
    found: list[int] = []
    start, size, name = 0, 1, 0
    while (end := start + size) <= len(pages):
        name = hash((name, *pages[start:end])) & _HASH_BITS
        found.append(name)
        start = end
        if len(found) == FINE_BLOCKS:
            size = COARSE_TOKENS // FINE_TOKENS
    return tuple(found)
