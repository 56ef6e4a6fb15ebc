"""The forward pass of Llama, Qwen2 and Qwen3 over the tokens of one step, rows of any sequence."""

from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import ModelConfig
from .rope import rope_tables
from .weights import Layer, Weights, load_weights


class Attend(Protocol):
    """Attention of one step: writes keys and values to the cache, then reads what each may see."""

    def __call__(self, layer: int, queries: Tensor, keys_values: Tensor) -> Tensor:
        """queries [tokens, heads, width], keys_values [tokens, 2 * kv_heads, width] -> queries'."""
        ...


class Model:
    """Weights and the pass through them. Attention is handed in, so the model knows no cache."""

    def __init__(self, config: ModelConfig, weights: Weights) -> None:
        self.config, self.weights = config, weights
        self.device, self.dtype = weights.embedding.device, weights.embedding.dtype
        self.cos, self.sin = rope_tables(
            config.rope, config.head_width, config.context, self.dtype, self.device
        )

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype, device: torch.device) -> "Model":
        """Load a Hugging Face checkpoint. Raises InvalidInput if it cannot be computed."""
        config = ModelConfig.read(folder)
        return cls(config, load_weights(folder, config, dtype, device))

    def forward(
        self, ids: Tensor, positions: Tensor, attend: Attend, rows: Tensor | None
    ) -> Tensor:
        """Logits [rows, vocab] of the tokens `rows` (all if None) among `ids` [tokens]."""
        eps, width = self.config.eps, (self.config.width,)
        x = F.embedding(ids, self.weights.embedding)
        cos, sin = self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)
        for index, layer in enumerate(self.weights.layers):
            h = F.rms_norm(x, width, layer.input_norm, eps)
            x = layer.out.add_to(self._attention(index, layer, h, cos, sin, attend), x)
            h = F.rms_norm(x, width, layer.ffn_norm, eps)
            gate, up = layer.gate_up(h).chunk(2, -1)
            x = layer.down.add_to(F.silu(gate).mul_(up), x)
        if rows is not None:
            x = x.index_select(0, rows)
            if not len(x):
                return x.new_empty(0, self.config.vocab)
        return self.weights.head(F.rms_norm(x, width, self.weights.norm, eps))

    def _attention(
        self, index: int, layer: Layer, h: Tensor, cos: Tensor, sin: Tensor, attend: Attend
    ) -> Tensor:
        config = self.config
        heads, rotated = config.heads, config.heads + config.kv_heads
        qkv = layer.qkv(h).view(h.shape[0], -1, config.head_width)
        qk = into = qkv[:, :rotated]
        if layer.qk_norm is not None:
            qk = F.rms_norm(qk, (config.head_width,), None, config.eps).mul_(layer.qk_norm)
        _rotate(qk, cos, sin, into)
        return attend(index, qkv[:, :heads], qkv[:, heads:])


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, into: Tensor) -> None:
    """Rotate heads x [tokens, heads, width] by cos and sin [tokens, 1, width]; `into` may be x."""
    half = x.shape[-1] // 2
    turned = torch.cat((x[..., half:], x[..., :half]), -1).mul_(sin)
    torch.addcmul(turned, x, cos, out=into)
