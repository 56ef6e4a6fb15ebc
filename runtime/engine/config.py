"""The shape of a model, read from the config.json of a Hugging Face checkpoint."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InvalidInput

ARCHITECTURES = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
ROPE_TYPES = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """How positions are encoded; `scaling` holds the parameters of its `kind`."""

    kind: str
    theta: float
    scaling: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Sizes of a decoder-only model. Widths count elements, `context` counts tokens."""

    architecture: str
    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    ffn_width: int
    context: int
    eps: float
    tied: bool
    rope: RopeConfig
    eos_ids: tuple[int, ...] = ()

    @property
    def kv_elements(self) -> int:
        """Elements of KV cache per token, over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_width

    @classmethod
    def read(cls, folder: Path) -> "ModelConfig":
        """Read `folder`/config.json. Raises InvalidInput for what this engine cannot compute."""
        file = folder / "config.json"
        try:
            raw = json.loads(file.read_text())
        except FileNotFoundError:
            raise InvalidInput(f"{folder} is not a model folder: it has no config.json") from None
        except json.JSONDecodeError as error:
            raise InvalidInput(f"{file} is not JSON: {error}") from None
        return cls.parse(raw, where=str(file), eos_ids=read_eos_ids(folder))

    @classmethod
    def parse(
        cls, raw: dict[str, Any], where: str = "config", eos_ids: tuple[int, ...] = ()
    ) -> "ModelConfig":
        """Check `raw` (the content of a config.json) and take what is needed from it."""
        architecture = (raw.get("architectures") or ["none"])[0]
        _expect(where, "architecture", architecture, ARCHITECTURES)
        _expect(where, "hidden_act", raw.get("hidden_act", "silu"), ("silu",))
        for kind in raw.get("layer_types") or ():
            _expect(where, "layer type", kind, ("full_attention",))
        if raw.get("use_sliding_window"):
            raise InvalidInput(f"{where}: sliding-window attention is not supported")
        if raw.get("mlp_bias"):
            raise InvalidInput(f"{where}: a bias in the feed-forward layers is not supported")
        try:
            heads = raw["num_attention_heads"]
            return cls(
                architecture=architecture,
                vocab=raw["vocab_size"],
                width=raw["hidden_size"],
                layers=raw["num_hidden_layers"],
                heads=heads,
                kv_heads=raw.get("num_key_value_heads") or heads,
                head_width=raw.get("head_dim") or raw["hidden_size"] // heads,
                ffn_width=raw["intermediate_size"],
                context=raw["max_position_embeddings"],
                eps=raw.get("rms_norm_eps", 1e-6),
                tied=raw.get("tie_word_embeddings", False),
                rope=_rope(raw, where),
                eos_ids=eos_ids,
            )
        except KeyError as error:
            raise InvalidInput(f"{where}: {error.args[0]} is missing") from None


def read_eos_ids(folder: Path) -> tuple[int, ...]:
    """Token ids that end an answer: generation_config.json, else config.json."""
    for name in ("generation_config.json", "config.json"):
        file = folder / name
        raw: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
        ids: list[int] | int | None = raw.get("eos_token_id")
        if ids is not None:
            return tuple(ids) if isinstance(ids, list) else (ids,)
    return ()


def _rope(raw: dict[str, Any], where: str) -> RopeConfig:
    """`rope_parameters` (transformers 5) or `rope_scaling` beside `rope_theta` (before)."""
    scaling = dict(raw.get("rope_parameters") or raw.get("rope_scaling") or {})
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    _expect(where, "rope type", kind, ROPE_TYPES)
    partial = scaling.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0))
    if partial != 1.0:
        raise InvalidInput(f"{where}: partial rotation (factor {partial}) is not supported")
    scaling.setdefault("original_max_position_embeddings", raw.get("max_position_embeddings"))
    theta = scaling.get("rope_theta") or raw.get("rope_theta") or 10000.0
    return RopeConfig(kind, float(theta), scaling)


def _expect(where: str, what: str, value: Any, supported: tuple[str, ...]) -> None:
    if value not in supported:
        raise InvalidInput(
            f"{where}: {what} {value!r} is not supported; {', '.join(supported)} are"
        )
