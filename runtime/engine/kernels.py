"""Attention over keys and values that lie in a row: a block's rows together, or one long chunk."""

import torch
import torch.nn.functional as F
from torch import Tensor

_TILE = 128  # queries of a tile


def joint_attention(q: Tensor, common: Tensor, own: Tensor, bias: Tensor) -> Tensor:
    """One softmax over the scores of shared and of own keys.

    q [kv * rows, queries, width], common [2, kv, shared tokens, width], own [2, kv * rows, own
    tokens, width]. The product with `common` is dense: all rows of a head at once.
    """
    heads, count, width = common.shape[1:]
    shape = q.shape[0], q.shape[1], count + own.shape[2]
    scores = torch.empty(shape, dtype=q.dtype, device=q.device)
    dense = scores.view(heads, -1, shape[2])
    torch.bmm(q.view(heads, -1, width), common[0].transpose(1, 2), out=dense[..., :count])
    torch.baddbmm(bias, q, own[0].transpose(1, 2), out=scores[..., count:])
    weights = torch.softmax(scores, -1)
    out = torch.bmm(weights.view(dense.shape)[..., :count], common[1])
    return torch.bmm(weights[..., count:], own[1]).add_(out.view(q.shape))


def tiled_causal(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Causal attention by tiles of queries, each over the keys that it can see.

    q [heads, count, width], keys and values [kv_heads, context, width], the last `count` of them
    the queries' own; `mask` [count, context] replaces causality. On a CPU this takes a third of
    the time of PyTorch's fused kernel (bfloat16).
    """
    heads, count, width = q.shape
    kv_heads, context, _ = keys.shape
    q = q.reshape(kv_heads, -1, count, width)
    out = torch.empty_like(q)
    upper = torch.full((_TILE, _TILE), float("-inf"), dtype=q.dtype, device=q.device).triu_(1)
    for first in range(0, count, _TILE):
        size = min(_TILE, count - first)
        seen = context - count + first + size
        tile = q[:, :, first : first + size].reshape(kv_heads, -1, width)
        scores = torch.bmm(tile, keys[:, :seen].transpose(1, 2)).view(kv_heads, -1, size, seen)
        if mask is None:
            scores[..., seen - size :].add_(upper[:size, :size])
        else:
            scores.add_(mask[first : first + size, :seen])
        weights = torch.softmax(scores, -1).view(kv_heads, -1, seen)
        out[:, :, first : first + size] = torch.bmm(weights, values[:, :seen]).view(
            kv_heads, -1, size, width
        )
    return out.view(heads, count, width)


def fused_causal(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """The same by PyTorch's fused kernels, for a GPU."""
    count, context = q.shape[1], keys.shape[1]
    if mask is None and count != context:
        mask = torch.full((count, context), float("-inf"), dtype=q.dtype, device=q.device)
        mask = mask.triu_(context - count + 1)
    return F.scaled_dot_product_attention(
        q[None],
        keys[None],
        values[None],
        attn_mask=mask,
        is_causal=mask is None,
        scale=1.0,
        enable_gqa=q.shape[0] != keys.shape[0],
    )[0]
