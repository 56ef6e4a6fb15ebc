"""What is read from a checkpoint, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tenter.runtime.engine.config import ModelConfig
from tenter.runtime.engine.fingerprint import fingerprint
from tenter.runtime.engine.model import Model
from tenter.runtime.engine.rope import rope_tables
from tenter.runtime.engine.weights import weight_files
from tenter.runtime.errors import InvalidInput

Checkpoint = Callable[[str], Path]
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.fixture
def raw(checkpoint: Checkpoint) -> dict[str, Any]:
    return json.loads((checkpoint("llama") / "config.json").read_text())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM.*LlamaForCausalLM"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "longrope.*default, linear, llama3, yarn"),
        ({"rope_parameters": None, "rope_scaling": {"type": "dynamic"}}, "dynamic.*linear"),
        ({"hidden_act": "gelu"}, "gelu.*silu"),
        ({"use_sliding_window": True}, "sliding-window"),
        ({"layer_types": ["sliding_attention"]}, "sliding_attention.*full_attention"),
        ({"mlp_bias": True}, "bias in the feed-forward"),
        ({"partial_rotary_factor": 0.5}, r"partial rotation \(factor 0\.5\)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_computed_is_refused(
    change: dict[str, Any], message: str, raw: dict[str, Any]
) -> None:
    with pytest.raises(InvalidInput, match=message):
        ModelConfig.parse(raw | change)


def test_a_missing_size_is_named(raw: dict[str, Any]) -> None:
    del raw["intermediate_size"]
    with pytest.raises(InvalidInput, match="intermediate_size is missing"):
        ModelConfig.parse(raw)


def test_sharded_files_are_found(checkpoint: Checkpoint) -> None:
    assert len(weight_files(checkpoint("qwen2-yarn"))) > 2
    assert len(weight_files(checkpoint("qwen2"))) == 1


def test_a_missing_shard_or_tensor_is_named(checkpoint: Checkpoint, tmp_path: Path) -> None:
    source = checkpoint("qwen2-yarn")
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    shard = weight_files(tmp_path)[1]
    shard.unlink()
    with pytest.raises(InvalidInput, match=f"{shard.name} is missing"):
        Model.load(tmp_path, torch.float32, torch.device("cpu"))
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    index["weight_map"] = {k: v for k, v in index["weight_map"].items() if v != shard.name}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InvalidInput, match=r"no tensor 'model\."):
        Model.load(tmp_path, torch.float32, torch.device("cpu"))


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "llama3", **LLAMA3, "original_max_position_embeddings": 8192},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096},
        {"rope_type": "yarn", "factor": 8.0, "mscale": 0.7, "mscale_all_dim": 1.2},
        {"rope_type": "yarn", "factor": 8.0, "beta_fast": 16, "beta_slow": 2, "truncate": False},
        {"rope_type": "yarn", "factor": 8.0, "attention_factor": 1.5},
        {"rope_type": "linear", "factor": 3.0},
    ],
    ids=lambda scaling: "-".join(map(str, list(scaling)[:1] + list(scaling.values())[:2])),
)
def test_rope_is_that_of_transformers(scaling: dict[str, Any], raw: dict[str, Any]) -> None:
    scaling = {"rope_theta": 500000.0, "original_max_position_embeddings": 4096} | scaling
    theirs = LlamaConfig(
        hidden_size=512,
        num_attention_heads=4,
        max_position_embeddings=32768,
        rope_parameters=scaling,
    )
    frequencies, magnitude = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](theirs, torch.device("cpu"))
    angles = torch.outer(torch.arange(64).float(), frequencies)

    rope = ModelConfig.parse(raw | {"rope_parameters": scaling}).rope
    cos, sin = rope_tables(rope, 128, 64, torch.float32, torch.device("cpu"))

    torch.testing.assert_close(cos[:, :64], angles.cos() * magnitude)
    torch.testing.assert_close(sin[:, 64:], angles.sin() * magnitude)
    torch.testing.assert_close(sin[:, :64], -sin[:, 64:])


def test_the_old_form_of_rope_settings_is_read(raw: dict[str, Any]) -> None:
    old = raw | {
        "rope_parameters": None,
        "rope_theta": 500000.0,
        "rope_scaling": {"type": "linear", "factor": 2.0},
    }
    rope = ModelConfig.parse(old).rope

    assert (rope.kind, rope.theta, rope.scaling["factor"]) == ("linear", 500000.0, 2.0)


def test_the_fingerprint_follows_the_content(checkpoint: Checkpoint, tmp_path: Path) -> None:
    for file in checkpoint("llama").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    first = fingerprint(tmp_path, "float32")
    assert fingerprint(checkpoint("llama"), "float32") == first
    assert fingerprint(tmp_path, "bfloat16") != first

    content = bytearray((tmp_path / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(bytes(content))

    assert fingerprint(tmp_path, "float32") != first
