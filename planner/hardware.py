"""How long a step of an engine takes: a roofline over the work of the step.

A step computes tokens (chunks of prompts, and one per decoding row) on top of context that the KV
cache holds. Its linear layers are bound by arithmetic or by reading the weights, its attention by
arithmetic or by reading KV; tensor parallelism adds two all-reduces per layer. What a step costs
beside that is a constant. `benchmarks/roofline.py` says how far this is from measured times.

Peak rates are those of NVIDIA's data sheets (H100, H200: SXM5; A100: SXM4 80 GB): dense bfloat16,
bandwidth and size of the memory; links in bytes per second and direction (NVLink 4 and 3; the L40S
has PCIe only). The shares of the peaks that are reached are those of inference-sim's roofline note:
.65 of the arithmetic, .72 of the bandwidth, 500 us per step, 20 us of all-reduces per layer. (Its
hardware configuration has other ones, the MFU of prefill and of decoding; read as a share of the
bandwidth the latter makes decoding on an H100 2.4 times too slow.) For the L40S the share of the
arithmetic is lowered as that configuration lowers its MFU beside the H100's. Prices are
assumptions: a GPU hour on demand in 2026.
"""

import re
from dataclasses import dataclass, replace

MEMORY_SHARE = 0.9  # of the memory: what an engine takes for weights and KV


@dataclass(frozen=True, slots=True)
class Hardware:
    """`gpus` GPUs that serve one copy of a model; rates and sizes are of one GPU."""

    name: str
    flops_per_s: float  # dense bfloat16
    bytes_per_s: float
    memory_bytes: float
    prefill_share: float = 0.65  # of the peak arithmetic rate
    decode_share: float = 0.72  # of the memory bandwidth
    overhead_s: float = 0.0005  # per step, whatever it does
    gpus: int = 1
    link_bytes_per_s: float = 450e9  # between GPUs, per direction
    link_latency_s: float = 10e-6  # of one all-reduce
    host_bytes_per_s: float = 55e9  # to the host's memory, reached of PCIe 5.0 x16 (64 GB/s)
    dollars_per_hour: float = 0.0  # of one GPU


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What of a model determines its cost.

    `weight_bytes` is the checkpoint's; of a mixture of experts, `active_parameters` are those that
    one token uses, `per_token` experts out of `experts`.
    """

    name: str
    parameters: float
    weight_bytes: float
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_width: int = 128
    active_parameters: float = 0.0  # 0: all
    experts: int = 1
    per_token: int = 1
    kv_item_bytes: int = 2

    @property
    def active(self) -> float:
        """Parameters that one token is multiplied with."""
        return self.active_parameters or self.parameters

    @property
    def kv_bytes_per_token(self) -> int:
        """Key and value in every layer. Sliding windows are left out: it is an upper bound."""
        return 2 * self.layers * self.kv_heads * self.head_width * self.kv_item_bytes

    def read_bytes(self, tokens: int) -> float:
        """Weight bytes that a step of `tokens` tokens reads: of the experts, those that some token
        is expected to choose, if each chooses uniformly."""
        if self.experts == 1:
            return self.weight_bytes
        chosen = self.per_token / self.experts
        of_experts = (self.parameters - self.active) / (1 - chosen)
        touched = 1 - (1 - chosen) ** tokens
        return self.weight_bytes * (1 - of_experts / self.parameters * (1 - touched))


_H100 = Hardware("h100", 989.5e12, 3.35e12, 80e9, dollars_per_hour=2.80)
HARDWARE = {
    "h100": _H100,
    # The compute of an H100.
    "h200": replace(
        _H100, name="h200", bytes_per_s=4.8e12, memory_bytes=141e9, dollars_per_hour=3.60
    ),
    "a100": Hardware(
        *("a100", 312e12, 2.039e12, 80e9),
        link_bytes_per_s=300e9,
        host_bytes_per_s=26e9,
        dollars_per_hour=1.40,
    ),
    "l40s": Hardware(
        *("l40s", 362.05e12, 0.864e12, 48e9, 0.46),
        link_bytes_per_s=26e9,
        host_bytes_per_s=26e9,
        dollars_per_hour=0.90,
    ),
}

# The shapes are those of the models' published configurations; two bytes per parameter, but for
# gpt-oss, whose experts are in MXFP4.
MODELS = {
    shape.name: shape
    for shape in (
        ModelShape("llama-3.2-1b", 1.236e9, 2.47e9, 16, 2048, 32, 8, 64),
        ModelShape("llama-3.2-3b", 3.21e9, 6.43e9, 28, 3072, 24, 8),
        ModelShape("llama-2-7b", 6.74e9, 13.48e9, 32, 4096, 32, 32),
        ModelShape("llama-3.1-8b", 8.03e9, 16.06e9, 32, 4096, 32, 8),
        ModelShape("llama-3.1-70b", 70.6e9, 141.2e9, 80, 8192, 64, 8),
        ModelShape("codellama-34b", 33.7e9, 67.5e9, 48, 8192, 64, 8),
        ModelShape("mistral-7b", 7.25e9, 14.5e9, 32, 4096, 32, 8),
        ModelShape("granite-3.1-8b", 8.17e9, 16.34e9, 40, 4096, 32, 8),
        ModelShape("qwen2.5-7b", 7.62e9, 15.23e9, 28, 3584, 28, 4),
        ModelShape("qwen3-0.6b", 0.6e9, 1.2e9, 28, 1024, 16, 8),
        ModelShape("qwen3-8b", 8.19e9, 16.38e9, 36, 4096, 32, 8),
        ModelShape("qwen3-14b", 14.77e9, 29.54e9, 40, 5120, 40, 8),
        ModelShape("qwen3-32b", 32.76e9, 65.52e9, 64, 5120, 64, 8),
        ModelShape("qwen3-30b-a3b", 30.53e9, 61.06e9, 48, 2048, 32, 4, 128, 3.35e9, 128, 8),
        ModelShape("mixtral-8x7b", 46.7e9, 93.4e9, 32, 4096, 32, 8, 128, 12.9e9, 8, 2),
        ModelShape("gpt-oss-20b", 20.91e9, 13.8e9, 24, 2880, 64, 8, 64, 3.61e9, 32, 4),
        ModelShape("gpt-oss-120b", 116.83e9, 65.3e9, 36, 2880, 64, 8, 64, 5.13e9, 128, 4),
    )
}


def preset(name: str) -> Hardware:
    """The hardware `name`: a preset, or so many of it with tensor parallelism: `4xh100`.

    Raises ValueError for an unknown name; its message lists the known.
    """
    found = re.fullmatch(r"(?:([1-9]\d?)x)?(\w+)", name)
    if found is None or found[2] not in HARDWARE:
        known = ", ".join(sorted(HARDWARE))
        raise ValueError(f"there is no hardware {name!r}; there is {known}, and 2xh100 and so on")
    return tensor_parallel(HARDWARE[found[2]], int(found[1] or 1))


def tensor_parallel(hardware: Hardware, gpus: int) -> Hardware:
    """`gpus` of `hardware` serving one copy of a model together."""
    if gpus == 1:
        return hardware
    return replace(hardware, name=f"{gpus}x{hardware.name}", gpus=gpus)


def step_seconds(
    hardware: Hardware, model: ModelShape, tokens: int, context_tokens: int, pairs: float = 0.0
) -> float:
    """Seconds of one step that computes `tokens` tokens (chunks of prompts, and one per decoding
    row) whose rows look back on `context_tokens` tokens in all.

    `pairs` counts the (query, key) pairs of its attention, for a chunk of n tokens behind c of
    context n*c + n*n/2; 0 leaves the arithmetic of attention out, which matters for chunks behind
    tens of thousands of tokens.
    """
    flops_per_s = hardware.flops_per_s * hardware.prefill_share * hardware.gpus
    bytes_per_s = hardware.bytes_per_s * hardware.decode_share * hardware.gpus
    linear_s = max(2 * model.active * tokens / flops_per_s, model.read_bytes(tokens) / bytes_per_s)
    attention_flops = 4 * model.layers * model.heads * model.head_width * pairs
    kv_bytes = model.kv_bytes_per_token * context_tokens
    attention_s = max(attention_flops / flops_per_s, kv_bytes / bytes_per_s)
    return linear_s + attention_s + _reduce_seconds(hardware, model, tokens) + hardware.overhead_s


def _reduce_seconds(hardware: Hardware, model: ModelShape, tokens: int) -> float:
    """Seconds of two ring all-reduces of the hidden state per layer."""
    if hardware.gpus == 1:
        return 0.0
    sent_bytes = 2 * (hardware.gpus - 1) / hardware.gpus * tokens * model.hidden * 2
    once_s = hardware.link_latency_s + sent_bytes / hardware.link_bytes_per_s
    return 2 * model.layers * once_s


def prefill_seconds(
    hardware: Hardware, model: ModelShape, tokens: int, cached: int = 0, chunk: int = 2048
) -> float:
    """Seconds to compute `tokens` tokens of a prompt behind `cached` ones, alone, in chunks."""
    seconds = 0.0
    while tokens > 0:
        now = min(tokens, chunk)
        seconds += step_seconds(hardware, model, now, cached, now * (cached + now / 2))
        tokens, cached = tokens - now, cached + now
    return seconds


def swap_seconds(hardware: Hardware, model: ModelShape, tokens: int) -> float:
    """Seconds to bring the KV of `tokens` tokens to the host's memory, or back from there.

    Every GPU moves its own share over a link of its own.
    """
    return model.kv_bytes_per_token * tokens / (hardware.host_bytes_per_s * hardware.gpus)


def kv_capacity_tokens(hardware: Hardware, model: ModelShape, share: float = MEMORY_SHARE) -> int:
    """KV tokens that fit beside the weights, using `share` of the memory; at least 0."""
    room = hardware.memory_bytes * hardware.gpus * share - model.weight_bytes
    return max(int(room / model.kv_bytes_per_token), 0)


def dollars(hardware: Hardware, seconds: float) -> float:
    """What `seconds` of all its GPUs cost, at the assumed price."""
    return hardware.dollars_per_hour * hardware.gpus * seconds / 3600
