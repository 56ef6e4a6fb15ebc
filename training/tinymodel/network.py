"""A Qwen3 decoder written for training on a CPU; parameter names are those of Hugging Face."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .checkpoint import Shape

QUERY_BLOCK_TOKENS = 512  # causal attention is computed per block of queries: half the work
MASKED = -1e4


class RMSNorm(nn.Module):
    """Root-mean-square normalisation with a learned scale."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return F.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), self.eps)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding, halves convention."""
    half = x.shape[-1] // 2
    low, high = x[..., :half], x[..., half:]
    return torch.cat((low * cos - high * sin, high * cos + low * sin), -1)


class Attention(nn.Module):
    """Grouped-query attention by explicit matrix products, whose backward pass is fast on CPUs."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads, self.groups = shape.num_attention_heads, shape.num_key_value_heads
        self.head_dim = shape.head_dim
        width, kv_width = self.heads * self.head_dim, self.groups * self.head_dim
        self.q_proj = nn.Linear(shape.hidden_size, width, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, kv_width, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, kv_width, bias=False)
        self.o_proj = nn.Linear(width, shape.hidden_size, bias=False)
        self.q_norm = RMSNorm(self.head_dim, shape.rms_norm_eps)
        self.k_norm = RMSNorm(self.head_dim, shape.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Attend from every position to itself and the ones before it."""
        rows, tokens, _ = x.shape
        q = self.q_norm(self.q_proj(x).view(rows, tokens, self.heads, self.head_dim))
        k = self.k_norm(self.k_proj(x).view(rows, tokens, self.groups, self.head_dim))
        v = self.v_proj(x).view(rows, tokens, self.groups, self.head_dim).transpose(1, 2)
        q = rotate(q.transpose(1, 2), cos, sin) * self.head_dim**-0.5
        k = rotate(k.transpose(1, 2), cos, sin)
        blocks = [
            self._block(q[:, :, start : start + QUERY_BLOCK_TOKENS], k, v, start)
            for start in range(0, tokens, QUERY_BLOCK_TOKENS)
        ]
        mixed = torch.cat(blocks, 2) if len(blocks) > 1 else blocks[0]
        return self.o_proj(mixed.transpose(1, 2).reshape(rows, tokens, -1))

    def _block(self, q: Tensor, k: Tensor, v: Tensor, start: int) -> Tensor:
        rows, _, queries, dim = q.shape
        keys = start + queries
        batch, shared = rows * self.groups, self.heads // self.groups
        q = q.reshape(batch, shared * queries, dim)
        k = k[:, :, :keys].reshape(batch, keys, dim)
        v = v[:, :, :keys].reshape(batch, keys, dim)
        future = torch.full((queries, keys), MASKED, dtype=q.dtype).triu(start + 1)
        scores = torch.bmm(q, k.transpose(1, 2)).view(batch, shared, queries, keys) + future
        weights = torch.softmax(scores, -1, dtype=q.dtype).view(batch, shared * queries, keys)
        return torch.bmm(weights, v).view(rows, self.heads, queries, dim)


class MLP(nn.Module):
    """The gated feed-forward layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """SwiGLU."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Attention and feed-forward, each behind a norm and beside a residual."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.mlp = MLP(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """One residual step each."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """What Hugging Face calls `model`: the embedding, the layers and the last norm."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_hidden_layers))
        self.norm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)


class LanguageModel(nn.Module):
    """The decoder with its tied output; `forward` is the mean loss over what is learned."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Decoder(shape)
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                nn.init.normal_(weight, std=_initial_std(name, weight.shape[1]))

    def forward(self, ids: Tensor, positions: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Weighted mean cross-entropy of `targets`; `positions` is one row for all."""
        cos, sin = self._angles(positions)
        x = F.embedding(ids, self.model.embed_tokens.weight)
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        learned = weights > 0
        x = self.model.norm(x)[learned]  # only positions with a loss reach the vocabulary
        logits = F.linear(x, self.model.embed_tokens.weight).float()
        losses = F.cross_entropy(logits, targets[learned], reduction="none")
        return (losses * weights[learned]).sum() / weights.sum().clamp(min=1.0)

    def _angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        dim = self.shape.head_dim
        inverse = self.shape.rope_theta ** -(torch.arange(0, dim, 2).float() / dim)
        angles = torch.outer(positions.float(), inverse)
        return angles.cos().to(torch.bfloat16), angles.sin().to(torch.bfloat16)


def _initial_std(name: str, fan_in: int) -> float:
    if "embed" in name:
        return 0.02
    closes_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
    return (0.3 if closes_residual else 0.6) * fan_in**-0.5
