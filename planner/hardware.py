"""How long a step of an engine takes: a roofline over the work of the step.

Prefill is bound by arithmetic, decoding by reading memory (weights once per step, and the KV of
every row). Utilisation constants are those of inference-sim's hardware_config; the shape of
Llama-3.1-8B gives its 131,072 bytes of KV per token.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Hardware:
    """A GPU: peak rates, and the share of them that real kernels reach."""

    name: str
    flops_per_s: float  # dense bfloat16
    bytes_per_s: float
    memory_bytes: float
    prefill_share: float = 0.45  # of the peak arithmetic rate
    decode_share: float = 0.30  # of the memory bandwidth
    overhead_s: float = 0.0005  # per step, whatever it does


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What of a model determines its cost."""

    name: str
    parameters: float
    kv_bytes_per_token: float
    weight_bytes: float


HARDWARE = {
    "h100": Hardware("h100", 989.5e12, 3.35e12, 80e9, 0.45, 0.30),
    "a100": Hardware("a100", 312e12, 2.039e12, 80e9, 0.38, 0.18),
}
MODELS = {
    "llama-3.1-8b": ModelShape("llama-3.1-8b", 8.03e9, 131_072, 16.06e9),
    "llama-3.1-70b": ModelShape("llama-3.1-70b", 70.6e9, 327_680, 141.2e9),
}


def step_seconds(hardware: Hardware, model: ModelShape, tokens: int, context_tokens: int) -> float:
    """Seconds of one step that computes `tokens` tokens (chunks of prompts, and one per decoding
    row) whose rows look back on `context_tokens` tokens in all."""
    arithmetic_s = 2 * model.parameters * tokens / (hardware.flops_per_s * hardware.prefill_share)
    read_bytes = model.weight_bytes + model.kv_bytes_per_token * context_tokens
    reading_s = read_bytes / (hardware.bytes_per_s * hardware.decode_share)
    return max(arithmetic_s, reading_s) + hardware.overhead_s


def kv_capacity_tokens(hardware: Hardware, model: ModelShape, share: float = 0.9) -> int:
    """KV tokens that fit beside the weights, using `share` of the memory; at least 0."""
    room = hardware.memory_bytes * share - model.weight_bytes
    return max(int(room / model.kv_bytes_per_token), 0)
