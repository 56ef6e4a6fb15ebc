"""How long a call takes on an engine, by the roofline that the simulator counts with (`hardware`)."""

from dataclasses import dataclass

from .hardware import Hardware, ModelShape, kv_capacity_tokens, prefill_seconds, step_seconds
from .plan import Estimate


@dataclass(frozen=True, slots=True)
class CallSeconds:
    """What calls of a step take on one engine: `alone_s` from first to last for a single one, and
    `row_s` of the engine's time for each of many that decode together, `prefill_s` of it before
    the first token."""

    alone_s: float
    row_s: float
    prefill_s: float = 0.0


def call_seconds(
    hardware: Hardware, model: ModelShape, expected: Estimate, running: int = 64
) -> CallSeconds:
    """The seconds of a call as the simulator's engine counts them (`hardware.step_seconds`).

    `running` calls decode together, as many as the KV cache holds.
    """
    cached = min(expected.shared_prefix_tokens, max(expected.prompt_tokens - 1, 0))
    prefill_s = prefill_seconds(hardware, model, expected.prompt_tokens - cached, cached)
    context = expected.prompt_tokens + expected.output_tokens // 2
    fits = kv_capacity_tokens(hardware, model) // max(1, context)
    together = max(1, min(running, fits))
    alone_s = step_seconds(hardware, model, 1, context)
    step_s = step_seconds(hardware, model, together, together * context)
    output = expected.output_tokens
    row_s = prefill_s + output * step_s / together
    return CallSeconds(prefill_s + output * alone_s, row_s, prefill_s)


def load_seconds(hardware: Hardware, model: ModelShape) -> float:
    """Seconds to bring a model's weights from the host's memory to its GPUs."""
    return model.weight_bytes / (hardware.host_bytes_per_s * hardware.gpus)
