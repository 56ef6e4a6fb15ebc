"""What a simulation came to."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ...planner.hardware import dollars
from .setup import Setup


@dataclass(slots=True)
class Result:
    """`completion_s` has a time per program, from its arrival to its last answer, in the order in
    which they ended. Tokens and seconds are sums over all calls and replicas."""

    setup: Setup
    workload: str
    completion_s: list[float] = field(default_factory=list[float])
    failed: int = 0  # programs of which a call was refused
    why_failed: str = ""  # the first one's reason
    span_s: float = 0.0  # from the first arrival to the last answer
    calls: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0  # of prompts, found in the KV cache
    output_tokens: int = 0
    computed_tokens: int = 0  # of prompts, and of what was preempted
    recomputed_tokens: int = 0  # of these, what the program had had computed before
    loaded_tokens: int = 0  # KV brought back from the host's memory
    preemptions: int = 0
    queue_s: float = 0.0  # from ready to its first step
    busy_s: float = 0.0  # replicas that computed
    steps: int = 0
    pins: int = 0  # that were judged,
    pins_held: int = 0  # and those that held what they promised

    @property
    def programs(self) -> int:
        """How many were completed."""
        return len(self.completion_s)

    @property
    def mean_s(self) -> float:
        """Mean completion time."""
        return sum(self.completion_s) / max(self.programs, 1)

    def percentile_s(self, percent: float) -> float:
        """The completion time that `percent` of the programs do not exceed (nearest rank)."""
        return percentile(self.completion_s, percent)

    @property
    def hit_rate(self) -> float:
        """Share of the prompt tokens that were in the cache."""
        return self.cached_tokens / max(self.prompt_tokens, 1)

    @property
    def gpu_s(self) -> float:
        """GPU seconds for which the replicas were rented: all of them, until the last answer."""
        return self.span_s * self.setup.replicas * self.setup.presets[0].gpus

    @property
    def dollars(self) -> float:
        """What these cost at the assumed price of the preset."""
        return dollars(self.setup.presets[0], self.span_s * self.setup.replicas)

    @property
    def busy_share(self) -> float:
        """Share of the time in which the replicas computed."""
        return self.busy_s / max(self.span_s * self.setup.replicas, 1e-9)

    def record(self) -> dict[str, Any]:
        """All of it as one JSON record."""
        setup = self.setup
        return {
            "type": "simulated",
            "workload": self.workload,
            "policy": setup.policy,
            "order": setup.order,
            "hardware": setup.hardware,
            "model": setup.model,
            "replicas": setup.replicas,
            "kv_tokens": setup.kv_tokens,
            "host_gb": setup.host_gb,
            "programs": self.programs,
            "failed": self.failed,
            "calls": self.calls,
            "mean_completion_s": self.mean_s,
            **{f"p{p}_completion_s": self.percentile_s(p) for p in (50, 95, 99)},
            "span_s": self.span_s,
            "programs_per_s": self.programs / max(self.span_s, 1e-9),
            "output_tokens_per_s": self.output_tokens / max(self.span_s, 1e-9),
            "hit_rate": self.hit_rate,
            "prompt_tokens": self.prompt_tokens,
            "computed_tokens": self.computed_tokens,
            "recomputed_tokens": self.recomputed_tokens,
            "loaded_tokens": self.loaded_tokens,
            "output_tokens": self.output_tokens,
            "preemptions": self.preemptions,
            "mean_queue_s": self.queue_s / max(self.calls, 1),
            "busy_share": self.busy_share,
            "gpu_seconds": self.gpu_s,
            "dollars": self.dollars,
            "pins": self.pins,
            "pins_held": self.pins_held,
        }


def percentile(amounts: Sequence[float], percent: float) -> float:
    """The amount at the nearest rank; 0 where there is none."""
    if not amounts:
        return 0.0
    return sorted(amounts)[max(math.ceil(percent / 100 * len(amounts)) - 1, 0)]
