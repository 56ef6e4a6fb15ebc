"""Writes a trained network in Hugging Face format: safetensors, configurations, chat template."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from .chat import CHAT_TEMPLATE, END_OF_TEXT, TURN_END

CONTEXT_TOKENS = 8192  # positions the configuration admits; accuracy is published up to 4,096
END_OF_TEXT_ID, TURN_END_ID = 0, 2


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of the network; the field names are those of a Hugging Face configuration."""

    vocab_size: int
    hidden_size: int = 192
    intermediate_size: int = 512
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-6


def model_config(shape: Shape) -> dict[str, Any]:
    """The content of config.json."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_position_embeddings": CONTEXT_TOKENS,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": shape.num_hidden_layers,
        "bos_token_id": END_OF_TEXT_ID,
        "eos_token_id": TURN_END_ID,
        "pad_token_id": END_OF_TEXT_ID,
        **asdict(shape),
    }


def generation_config() -> dict[str, Any]:
    """The content of generation_config.json: the documented sampling, and what ends an answer."""
    return {
        "bos_token_id": END_OF_TEXT_ID,
        "eos_token_id": [TURN_END_ID, END_OF_TEXT_ID],
        "pad_token_id": END_OF_TEXT_ID,
        "do_sample": True,
        "temperature": 1.0,
    }


def tokenizer_config() -> dict[str, Any]:
    """The content of tokenizer_config.json."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": TURN_END,
        "pad_token": END_OF_TEXT,
        "model_max_length": CONTEXT_TOKENS,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` as indented JSON with a final newline."""
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def save_configs(out: Path, shape: Shape) -> None:
    """Write the three configurations beside the tokenizer."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "config.json", model_config(shape))
    write_json(out / "generation_config.json", generation_config())
    write_json(out / "tokenizer_config.json", tokenizer_config())


def save_weights(out: Path, weights: dict[str, torch.Tensor]) -> int:
    """Write the weights as bfloat16 in one atomic step and return the size in bytes."""
    target, partial = out / "model.safetensors", out / "model.safetensors.partial"
    halved = {name: w.detach().to(torch.bfloat16).contiguous() for name, w in weights.items()}
    save_file(halved, partial, metadata={"format": "pt"})
    partial.chmod(0o644)  # safetensors writes files that only their owner may read
    partial.replace(target)
    return target.stat().st_size
