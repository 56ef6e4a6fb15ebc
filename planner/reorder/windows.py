"""A table in windows: each is arranged by itself, with what windows share kept.

The first window finds the orders of fields, and later windows choose among them, so that equal
rows begin equally in every window. Every second window runs the other way round: what was
computed last is asked for first, which an LRU cache still holds.
"""

from collections.abc import Sequence
from typing import Any

from .fields import Layout
from .search import Order
from .solve import Arrangement, arrange
from .table import BLOCK_TOKENS, CountTokens, encode

_KNOWN = 65_536  # segments whose tokens are remembered between windows


class Windows:
    """Arranges window after window of a table.

    `orders` is the state to carry over to another process: a tuple of tuples of field indices.
    """

    def __init__(
        self,
        layout: Layout,
        count_tokens: CountTokens,
        block_tokens: int = BLOCK_TOKENS,
        orders: Sequence[Order] = (),
    ) -> None:
        self.layout = layout
        self.block_tokens = block_tokens
        self.orders = tuple(orders)
        self.windows = 0
        self._count_tokens = count_tokens
        self._known: dict[str, int] = {}

    def arrange(self, rows: Sequence[Sequence[Any]]) -> Arrangement:
        """The arrangement of the next window; row numbers count from its start."""
        table = encode(rows, self.layout, self._counted, self.block_tokens)
        found = arrange(table, self.orders, descending=self.windows % 2 == 1)
        self.orders = self.orders or found.orders
        self.windows += 1
        return found

    def _counted(self, texts: Sequence[str]) -> list[int]:
        """The tokens of texts, of which those seen in recent windows are not counted again."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        fresh = dict(zip(new, self._count_tokens(new), strict=True)) if new else {}
        counts = [fresh[text] if text in fresh else self._known[text] for text in texts]
        if len(self._known) + len(fresh) > _KNOWN:
            self._known.clear()
        self._known.update(list(fresh.items())[-_KNOWN:])
        return counts
