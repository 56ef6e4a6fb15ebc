"""Weights of a checkpoint: safetensors files, one or many, fused for fewer and larger products."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from ..errors import InvalidInput
from .config import ModelConfig
from .linear import Linear

Get = Callable[[str], Tensor | None]


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer. Projections that read the same input are one matrix."""

    input_norm: Tensor  # [width]
    qkv: Linear  # width -> (heads + 2 * kv_heads) * head_width
    qk_norm: Tensor | None  # [heads + kv_heads, head_width] (Qwen3)
    out: Linear  # heads * head_width -> width
    ffn_norm: Tensor  # [width]
    gate_up: Linear  # width -> 2 * ffn_width
    down: Linear  # ffn_width -> width


@dataclass(frozen=True, slots=True)
class Weights:
    """All of a model's weights, on one device and of one dtype."""

    embedding: Tensor  # [vocab, width]
    layers: tuple[Layer, ...]
    norm: Tensor  # [width]
    head: Linear  # width -> vocab


def load_weights(
    folder: Path, config: ModelConfig, dtype: torch.dtype, device: torch.device
) -> Weights:
    """Read the safetensors files of `folder`. Raises InvalidInput if files or tensors are missing."""
    tensors: dict[str, Tensor] = {}
    for file in weight_files(folder):
        tensors |= load_file(file, device=str(device))
    return build_weights(config, tensors, dtype)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, in the order of their names."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        names: dict[str, Any] = json.loads(index.read_text())["weight_map"]
        files = [folder / name for name in sorted(set(names.values()))]
    else:
        files = [folder / "model.safetensors"]
    for file in files:
        if not file.exists():
            raise InvalidInput(f"{folder}: {file.name} is missing (only safetensors are read)")
    return files


def build_weights(config: ModelConfig, tensors: dict[str, Tensor], dtype: torch.dtype) -> Weights:
    """Fuse the tensors of a checkpoint, by their Hugging Face names; empties `tensors`."""

    def find(name: str) -> Tensor | None:
        tensor = tensors.pop(name, None)
        return None if tensor is None else tensor.to(dtype)

    def get(name: str) -> Tensor:
        tensor = find(name)
        if tensor is None:
            raise InvalidInput(f"the checkpoint has no tensor {name!r}")
        return tensor

    embedding = get("model.embed_tokens.weight")
    head = None if config.tied else find("lm_head.weight")
    layers = tuple(_layer(config, f"model.layers.{i}.", get, find) for i in range(config.layers))
    norm = get("model.norm.weight")
    return Weights(embedding, layers, norm, Linear(embedding if head is None else head))


def _layer(config: ModelConfig, name: str, get: Callable[[str], Tensor], find: Get) -> Layer:
    attention = name + "self_attn."
    biases = [find(f"{attention}{part}_proj.bias") for part in "qkv"]
    bias = torch.cat([b for b in biases if b is not None]) if biases[0] is not None else None
    q_norm, k_norm = find(attention + "q_norm.weight"), find(attention + "k_norm.weight")
    qk_norm = None
    if q_norm is not None and k_norm is not None:
        rows = q_norm.expand(config.heads, -1), k_norm.expand(config.kv_heads, -1)
        qk_norm = torch.cat(rows).contiguous()
    return Layer(
        input_norm=get(name + "input_layernorm.weight"),
        qkv=Linear(torch.cat([get(f"{attention}{part}_proj.weight") for part in "qkv"]), bias),
        qk_norm=qk_norm,
        out=Linear(get(attention + "o_proj.weight"), find(attention + "o_proj.bias")),
        ffn_norm=get(name + "post_attention_layernorm.weight"),
        gate_up=Linear(
            torch.cat([get(f"{name}mlp.{part}_proj.weight") for part in ("gate", "up")])
        ),
        down=Linear(get(name + "mlp.down_proj.weight")),
    )
