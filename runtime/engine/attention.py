"""Attention over the paged pool: rows in blocks, shared pages read once, one plan per step.

The pool is head-major, [layer, 2 * kv_heads, page, page_tokens * head_width] (keys' heads first),
so that fetching a row's pages is a copy of whole memory rows, and products over it are batched
matrix products. Rows that share pages form a group (see `cascade`); the softmax runs over the
scores of the shared and of the own part together, so nothing has to be merged afterwards.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .batch import Work
from .cache import PAGE_TOKENS
from .cascade import Group, Row, groups_of
from .config import ModelConfig
from .kernels import fused_causal, joint_attention, tiled_causal
from .state import Sequence

Array = NDArray[Any]

_FETCHED_BYTES = 3 * 2**20, 256 * 2**20  # of one block, on a CPU and on a GPU
_SHORT = 32  # chunks up to this many tokens are computed in blocks; longer ones row by row


@dataclass(frozen=True, slots=True)
class Block:
    """Rows computed together, each with `queries` tokens (shorter rows padded)."""

    start: int  # first token of the block within the step
    rows: int
    queries: int
    tokens: Tensor | None  # [rows * queries] token of each query; None: they lie in order
    shared: Tensor | None  # [pages] that all rows see whole
    own: Tensor  # [2 * kv_heads * rows * pages] rows of the pool: the other pages of each row
    bias: Tensor  # [kv_heads * rows, 1 or queries * heads per group, own tokens]: 0 seen, -inf not


@dataclass(frozen=True, slots=True)
class Chunk:
    """A long chunk of one row."""

    start: int
    count: int
    pages: Tensor
    context: int  # tokens, the chunk's own included
    mask: Tensor | None  # [count, context], 0 or -inf; None: causal


class Plan(NamedTuple):
    """The order of a step's work, and its attention."""

    work: list[Work]
    blocks: list[Block]
    chunks: list[Chunk]


class PagedAttention:
    """The pool of one model's KV, and attention over it."""

    def __init__(
        self, config: ModelConfig, pages: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.heads, self.kv_heads, self.width = config.heads, config.kv_heads, config.head_width
        self.pages, self.dtype, self.device = pages, dtype, device
        self.scale = config.head_width**-0.5
        shape = (config.layers, 2 * config.kv_heads, pages, PAGE_TOKENS * config.head_width)
        self.pool = torch.zeros(shape, dtype=dtype, device=device)
        self._flat = list(self.pool.view(config.layers, -1, shape[-1]).unbind())
        self._paged = list(self.pool.unbind())
        self._slots = list(
            self.pool.view(config.layers, 2 * config.kv_heads, -1, config.head_width).unbind()
        )
        self._heads: Array = np.arange(2 * config.kv_heads)[:, None, None] * pages
        self._page_bytes = 2 * config.kv_heads * shape[-1] * dtype.itemsize
        self._fetched_bytes = _FETCHED_BYTES[device.type == "cuda"]
        self._tables: list[list[int]] = []  # of the rows that `_groups` was found for
        self._groups: list[Group] = []

    # -- planning: once per step

    def plan(self, work: list[Work]) -> Plan:
        """Order `work` so that the rows of a block lie together, and prepare each block."""
        classes: dict[int, list[Work]] = {}
        long: list[Work] = []
        for item in work:
            if item.length > _SHORT:
                long.append(item)
            else:
                classes.setdefault((item.length - 1).bit_length(), []).append(item)
        ordered, blocks, start = list[Work](), list[Block](), 0
        for size in sorted(classes):
            for shared, items in self._split(classes[size]):
                blocks.append(self._block(items, shared, start))
                ordered += items
                start += sum(item.length for item in items)
        chunks: list[Chunk] = []
        for item in long:
            chunks.append(self._chunk(item, start))
            ordered.append(item)
            start += item.length
        return Plan(ordered, blocks, chunks)

    def _split(self, items: list[Work]) -> list[tuple[int, list[Work]]]:
        """Groups of rows with the number of pages they share, each cut into blocks of rows of
        similar length whose own pages, fetched together, stay in the processor's cache."""
        found: list[tuple[int, list[Work]]] = []
        for group in self._grouped(items):
            shared, block = group.shared, list[Work]()
            longest = most = 0
            for item in sorted((items[i] for i in group.rows), key=_pages, reverse=True):
                own = _pages(item) - shared
                if not block or len(block) == most or 2 * own < longest - 4:
                    block, longest = list[Work](), own
                    most = max(self._fetched_bytes // (own * self._page_bytes), 1)
                    found.append((shared, block))
                block.append(item)
        return found

    def _grouped(self, items: list[Work]) -> list[Group]:
        """The groups of `items`; those of decoding rows are kept while the rows are the same."""
        if len(items) == 1:
            return [Group(0, (0,))]
        tables = [sequence.table for sequence, _ in items]
        known = self._tables
        if len(tables) != len(known) or any(a is not b for a, b in zip(tables, known, strict=True)):
            self._groups = groups_of([Row(s.table, _whole(s)) for s, _ in items])
            self._tables = tables
        return self._groups

    def _block(self, items: list[Work], shared: int, start: int) -> Block:
        counts = [_pages(item) for item in items]
        pages = max(counts)
        spare = [0] * pages  # page 0 stands where a row has no more pages
        tables = [
            item.sequence.table[shared:count] + spare[count:]
            for item, count in zip(items, counts, strict=True)
        ]
        own = (self._heads + np.array(tables, dtype=np.int64)).reshape(-1)
        lengths = {item.length for item in items}
        queries = max(lengths)
        tokens = self._tensor(_padded(items, queries, start)) if len(lengths) > 1 else None
        common = items[0].sequence.table[:shared]
        pages -= shared
        return Block(
            start=start,
            rows=len(items),
            queries=queries,
            tokens=tokens,
            shared=self._tensor(np.array(common)) if shared else None,
            own=self._tensor(own),
            bias=self._bias(items, queries, shared * PAGE_TOKENS, pages * PAGE_TOKENS),
        )

    def _bias(self, items: list[Work], queries: int, first: int, keys: int) -> Tensor:
        """What each query sees among `keys` slots from `first` on; padding repeats the last query."""
        done = np.array([[sequence.done] for sequence, _ in items])
        ends = np.array([[length - 1] for _, length in items])
        last = done + np.minimum(np.arange(queries), ends)
        key = np.arange(first, first + keys)
        hidden = key > last[:, :, None]
        for row, item in enumerate(items):
            if item.sequence.forks:
                hidden[row] |= _across(item.sequence, last[row], key)
        bias = self._minus_infinity(hidden)
        each = self.heads // self.kv_heads if queries > 1 else 1
        bias = bias.unsqueeze(2).expand(self.kv_heads, -1, queries, each, keys)
        return bias.reshape(self.kv_heads * len(items), queries * each, keys)

    def _chunk(self, item: Work, start: int) -> Chunk:
        sequence, count = item
        context = sequence.done + count
        pages = self._tensor(np.array(sequence.table[: _pages(item)]))
        mask = None
        if sequence.forks and context > sequence.prompt:
            last, key = np.arange(sequence.done, context), np.arange(context)
            mask = self._minus_infinity((key > last[:, None]) | _across(sequence, last, key))
        return Chunk(start, count, pages, context, mask)

    def _minus_infinity(self, hidden: Array) -> Tensor:
        bias = torch.zeros(hidden.shape, dtype=self.dtype, device=self.device)
        return bias.masked_fill_(self._tensor(hidden), float("-inf"))

    def _tensor(self, array: Array) -> Tensor:
        return torch.as_tensor(array, device=self.device)

    # -- computing: once per layer

    def attend(
        self, plan: Plan, slots: Tensor, layer: int, queries: Tensor, keys_values: Tensor
    ) -> Tensor:
        """Write keys_values [tokens, 2 * kv_heads, width] to `slots`; attention of `queries`.

        Returns [tokens, heads * width].
        """
        self._slots[layer].index_copy_(1, slots, keys_values.transpose(0, 1))
        queries = queries * self.scale
        parts = [self._block_attention(block, layer, queries) for block in plan.blocks]
        if plan.chunks or len(parts) > 1 or plan.blocks[0].tokens is not None:
            return self._gathered(plan, layer, queries, parts)
        return parts[0]

    def _gathered(self, plan: Plan, layer: int, queries: Tensor, parts: list[Tensor]) -> Tensor:
        out = queries.new_empty(queries.shape[0], self.heads * self.width)
        for block, part in zip(plan.blocks, parts, strict=True):
            if block.tokens is None:
                out[block.start : block.start + block.rows * block.queries] = part
            else:
                out[block.tokens] = part  # padded queries repeat the row's last one
        for chunk in plan.chunks:
            out[chunk.start : chunk.start + chunk.count] = self._chunk_attention(
                chunk, layer, queries
            )
        return out

    def _block_attention(self, block: Block, layer: int, queries: Tensor) -> Tensor:
        """Attention of one block: [rows * queries, heads * width]."""
        rows, each, kv, width = block.rows, block.queries, self.kv_heads, self.width
        if block.tokens is None:
            q = queries[block.start : block.start + rows * each]
        else:
            q = queries[block.tokens]
        q = q.view(rows, each, kv, -1, width).permute(2, 0, 1, 3, 4).reshape(kv * rows, -1, width)
        own = self._flat[layer].index_select(0, block.own).view(2, kv * rows, -1, width)
        if block.shared is None:
            scores = torch.baddbmm(block.bias, q, own[0].transpose(1, 2))
            out = torch.bmm(torch.softmax(scores, -1), own[1])
        else:
            common = self._paged[layer].index_select(1, block.shared).view(2, kv, -1, width)
            out = joint_attention(q, common, own, block.bias)
        out = out.view(kv, rows, each, -1, width).permute(1, 2, 0, 3, 4)
        return out.reshape(rows * each, -1)

    def _chunk_attention(self, chunk: Chunk, layer: int, queries: Tensor) -> Tensor:
        pages = self._paged[layer].index_select(1, chunk.pages)
        keys, values = pages.view(2, self.kv_heads, -1, self.width)[:, :, : chunk.context]
        q = queries[chunk.start : chunk.start + chunk.count].transpose(0, 1)
        attention = fused_causal if queries.is_cuda else tiled_causal
        return attention(q, keys, values, chunk.mask).transpose(0, 1).reshape(chunk.count, -1)


def _pages(item: Work) -> int:
    """Pages that hold the row's context, this step's tokens included."""
    return -(-(item.sequence.done + item.length) // PAGE_TOKENS)


def _whole(sequence: Sequence) -> int:
    """Leading pages that every query of the row sees whole: full ones before this step."""
    known = min(sequence.done, sequence.prompt) if sequence.forks else sequence.done
    return known // PAGE_TOKENS


def _padded(items: list[Work], queries: int, start: int) -> Array:
    """The token of each query; rows shorter than `queries` repeat their last token."""
    counts = np.array([count for _, count in items])
    starts = start + np.concatenate(([0], np.cumsum(counts)[:-1]))
    return (starts[:, None] + np.minimum(np.arange(queries), counts[:, None] - 1)).reshape(-1)


def _across(sequence: Sequence, last: Array, key: Array) -> Array:
    """Slots of other choices, [queries, keys]: behind the prompt, before the query's own choice."""
    forks = sequence.forks
    if forks is None:
        return np.zeros((len(last), len(key)), dtype=bool)
    prompt = sequence.prompt
    starts = np.array([forks.starts[i - prompt] if i >= prompt else 0 for i in last])
    return (key >= prompt) & (key < starts[:, None])
