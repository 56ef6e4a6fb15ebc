"""Rotary position embedding (RoFormer, 2104.09864) and its scalings: linear, llama3, yarn."""

import math

import torch
from torch import Tensor

from .config import RopeConfig


def rope_tables(
    rope: RopeConfig, head_width: int, context: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines, each [context, head_width].

    A head x, its halves a and b, is rotated as x * cos + concat(b, a) * sin: the sign of the
    first half is already in `sin`.
    """
    frequencies, magnitude = _frequencies(rope, head_width)
    angles = torch.outer(torch.arange(context, dtype=torch.float32), frequencies)
    cos, sin = angles.cos() * magnitude, angles.sin() * magnitude
    tables = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
    return tables[0].to(device, dtype), tables[1].to(device, dtype)


def _frequencies(rope: RopeConfig, head_width: int) -> tuple[Tensor, float]:
    """Radians per position of each pair, [head_width / 2], and a factor on the result."""
    exponents = torch.arange(0, head_width, 2, dtype=torch.int64).float() / head_width
    plain = 1.0 / (rope.theta**exponents)
    match rope.kind:
        case "linear":
            return plain / rope.scaling["factor"], 1.0
        case "llama3":
            return _llama3(plain, rope), 1.0
        case "yarn":
            return _yarn(plain, rope, head_width)
        case _:
            return plain, 1.0


def _llama3(plain: Tensor, rope: RopeConfig) -> Tensor:
    """Long waves stretched by `factor`, short ones kept, a ramp between (Llama 3, 2407.21783)."""
    factor, trained = rope.scaling["factor"], rope.scaling["original_max_position_embeddings"]
    low, high = rope.scaling["low_freq_factor"], rope.scaling["high_freq_factor"]
    waves = 2 * math.pi / plain
    kept = ((trained / waves - low) / (high - low)).clamp(0, 1)
    return (1 - kept) * plain / factor + kept * plain


def _yarn(plain: Tensor, rope: RopeConfig, head_width: int) -> tuple[Tensor, float]:
    """Interpolation by parts and a temperature (YaRN, 2309.00071, sections 3.2 and 3.4)."""
    scaling = rope.scaling
    factor, trained = scaling["factor"], scaling["original_max_position_embeddings"]

    def pair_of(rotations: float) -> float:
        """The pair that turns `rotations` times over the trained context."""
        turns = math.log(trained / (rotations * 2 * math.pi))
        return head_width * turns / (2 * math.log(rope.theta))

    low = pair_of(scaling.get("beta_fast") or 32)
    high = pair_of(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_width - 1)
    span = high - low or 0.001
    stretched = ((torch.arange(head_width // 2).float() - low) / span).clamp(0, 1)
    frequencies = plain / factor * stretched + plain * (1 - stretched)
    return frequencies, _yarn_magnitude(scaling.get("attention_factor"), factor, scaling)


def _yarn_magnitude(given: float | None, factor: float, scaling: dict[str, float]) -> float:
    if given is not None:
        return given

    def magnitude(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    above, below = scaling.get("mscale"), scaling.get("mscale_all_dim")
    return magnitude(above) / magnitude(below) if above and below else magnitude(1.0)
