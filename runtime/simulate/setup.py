"""What is simulated: engines, how many, and who decides."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from ...kvpolicy import DEFAULT_POLICY, FREE, Policy, named, tiered
from ...planner.hardware import Hardware, ModelShape, kv_capacity_tokens
from ..backends.replica import Draw, Replica
from ..backends.sim import named_presets
from ..errors import InvalidConfig
from ..scheduler.core import Core
from ..scheduler.limits import Limits
from ..scheduler.policies import ordered
from .stock import Stock

STOCK = "stock"
CLAIRVOYANT = "clairvoyant"
CONTEXT_TOKENS = 131_072  # of the models that there are presets of


def _unpriced(policy: Policy) -> Policy:
    return Policy(lambda pause: policy.decide(replace(pause, price=FREE)))


def _ageless(policy: Policy) -> Policy:
    return Policy(lambda pause: policy.decide(replace(pause, elapsed_s=0.0)))


ABLATIONS: Mapping[str, Callable[[Policy], Policy]] = {
    "price": _unpriced,  # memory is free: all is kept, and under pressure goes in order of worth
    "elapsed": _ageless,  # a tool that has run for a minute is judged as one that begins
}


@dataclass(frozen=True, slots=True)
class Setup:
    """`replicas` engines of `hardware` (`4xh100`: of four GPUs each) that serve `model`.

    `policy` is a retention policy of `kvpolicy`, `order` one of the scheduler's; the policy "stock"
    is a server without a scheduler in front, which has its own order. `kv_share` of the KV memory
    is there; `host_gb` per replica hold what was evicted. `limit_tokens` is the `max_tokens` of
    every call: what an author would set, for lengths of answers are not known beforehand.
    `page_tokens` is the granularity of prefix reuse; it bounds the time that a simulation takes.
    Without `sessions` no program is a conversation, so nothing is kept while its tools run.
    `working_set` and `past_future` are the scheduler's limits of those names. `without` names
    ingredients of the retention policy to leave out, of ABLATIONS.
    Raises InvalidConfig for a name that is unknown or a number out of range.
    """

    hardware: str = "h100"
    model: str = "llama-3.1-8b"
    replicas: int = 1
    policy: str = DEFAULT_POLICY
    order: str = "fcfs"
    kv_share: float = 1.0
    host_gb: float = 0.0
    limit_tokens: int = 1_024
    max_running: int = 256
    chunk_tokens: int = 8_192
    page_tokens: int = 64
    working_set: float | Literal["auto"] | None = "auto"
    past_future: bool = True
    sessions: bool = True
    without: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("replicas", "kv_share", "limit_tokens", "max_running", "page_tokens"):
            if not getattr(self, name) > 0:
                raise InvalidConfig(f"{name} must be positive, not {getattr(self, name)}")
        if self.host_gb < 0:
            raise InvalidConfig(f"host_gb must be 0 or more, not {self.host_gb:g}")
        unknown = [name for name in self.without if name not in ABLATIONS]
        if unknown:
            raise InvalidConfig(f"without: {unknown[0]!r} is none of {', '.join(ABLATIONS)}")
        try:
            ordered(self.order)
        except ValueError as error:
            raise InvalidConfig(str(error)) from None
        if self.policy != STOCK:
            try:
                named(self.policy)
            except ValueError as error:
                raise InvalidConfig(f"{error}, {STOCK}") from None
        if self.kv_tokens <= self.limit_tokens:
            raise InvalidConfig(
                f"{self.model} leaves {self.kv_tokens:,} tokens of KV on {self.hardware}, less "
                f"than one answer; take more GPUs (4x{self.hardware}) or a larger kv_share"
            )

    @property
    def presets(self) -> tuple[Hardware, ModelShape]:
        """The hardware of one replica, and the model's shape."""
        return named_presets(self.hardware, self.model)

    @property
    def kv_tokens(self) -> int:
        """KV capacity of one replica."""
        return int(kv_capacity_tokens(*self.presets) * self.kv_share)

    @property
    def context_tokens(self) -> int:
        """The longest prompt and answer that a replica takes, whatever the answer's length."""
        return min(CONTEXT_TOKENS, self.kv_tokens - self.limit_tokens)

    @property
    def clairvoyant(self) -> bool:
        """Whether the policy is told how long tools will take."""
        return self.policy.startswith(CLAIRVOYANT)

    def core(self) -> "Core | Stock":
        """Who decides."""
        if self.policy == STOCK:
            return Stock()
        limits = Limits(working_set=self.working_set, past_future=self.past_future)
        return Core(self.order, self.retention, limits=limits)

    @property
    def retention(self) -> Policy:
        """The retention policy, told of the host tier, and without what is to be left out."""
        policy = named(self.policy)
        if self.host_gb:
            hardware, model = self.presets
            rate = hardware.host_bytes_per_s * hardware.gpus / model.kv_bytes_per_token
            policy = tiered(policy, rate)
        for name in self.without:
            policy = ABLATIONS[name](policy)
        return policy

    def replica(self, draw: Draw) -> Replica:
        """One engine."""
        hardware, model = self.presets
        return Replica(
            *(hardware, model, self.kv_tokens, draw),
            max_running=self.max_running,
            chunk_tokens=self.chunk_tokens,
            page_tokens=self.page_tokens,
            host_tokens=int(self.host_gb * 1e9 / model.kv_bytes_per_token),
        )
