"""Where a call goes when several workers serve its model: work to come against work saved.

A worker's score is what would stand before the call's end there, in tokens of prefill: the work of
the calls that it runs, and the call's own prompt less what the worker holds of it. So a prefix
attracts calls only until it is cheaper to compute it again elsewhere, and a shared system prompt
does not pull every program onto one replica (the failure of routers that follow the longest
prefix alone). An output token counts as OUTPUT_WEIGHT prompt tokens (JITServe, 2504.20068).
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from ..blocks import block_end

OUTPUT_WEIGHT = 8


class Residency:
    """The blocks that a worker is believed to hold: what it computed last, up to its capacity.

    An estimate: engines evict unseen. `cached_tokens` of finished calls and the KV events of a
    server correct it.
    """

    def __init__(self, capacity_tokens: int) -> None:
        self._capacity = capacity_tokens
        self._held: OrderedDict[int, int] = OrderedDict()  # block -> its own tokens
        self._tokens = 0

    def matched_tokens(self, blocks: Sequence[int]) -> int:
        """Tokens of a prompt's beginning that are believed to be held."""
        count = 0
        for block in blocks:
            if block not in self._held:
                break
            count += 1
        return block_end(count - 1) if count else 0

    def add(self, blocks: Sequence[int]) -> None:
        """These blocks of one prompt are held now; the least recently used make room."""
        start = 0
        sized: list[tuple[int, int]] = []
        for index, block in enumerate(blocks):
            end = block_end(index)
            sized.append((block, end - start))
            start = end
        self.learn(sized)

    def learn(self, sized: Iterable[tuple[int, int]]) -> None:
        """Blocks are held now, each of so many tokens."""
        for block, tokens in sized:
            if block in self._held:
                self._held.move_to_end(block)
            else:
                self._held[block] = tokens
                self._tokens += tokens
        while self._tokens > self._capacity:
            self._tokens -= self._held.popitem(last=False)[1]

    def drop(self, blocks: Sequence[int]) -> None:
        """These blocks are gone."""
        for block in blocks:
            self._tokens -= self._held.pop(block, 0)

    def missed(self, blocks: Sequence[int], tokens: int) -> None:
        """`tokens` that were believed held had to be computed: as much of the oldest is gone too."""
        self.add(blocks)
        gone = 0
        while self._held and gone < tokens:
            gone += self._held.popitem(last=False)[1]
        self._tokens -= gone

    def clear(self) -> None:
        """Everything is gone."""
        self._held.clear()
        self._tokens = 0
