"""What an SGLang server says of itself, typed, and what follows from it for a scheduler.

A stock server silently ignores fields that it does not know and priorities that are switched off,
so what it can do is read from `/server_info` and `/model_info`, never from what it accepts.
"""

from hashlib import blake2b
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from ...calls import Capabilities
from ...errors import InvalidConfig

TESTED = "0.5.23"  # the release that this package was written and tested against
PLUGIN = "tenter"  # the radix cache backend that our server plugin registers
RetentionName = Literal["pins", "sessions", "priority", "touch", "none"]
_WILDCARDS = ("", "*", "0.0.0.0", "::")
_RESERVED_TOKENS = 5  # a request may be so much longer than `max_req_input_len`
_UNKNOWN_CONTEXT_TOKENS = 4096
_UNKNOWN_RUNNING = 32


class KVEvents(msgspec.Struct, frozen=True, kw_only=True):
    """Where a server publishes what happens to its cache; one port for each DP rank."""

    publisher: str
    endpoint_host: str  # a wildcard: the host of the server
    endpoint_port_base: int
    topic: str = ""
    block_size: int  # tokens

    def endpoint(self, url: str, rank: int | None) -> str:
        """The ZMQ endpoint of a rank of the server at `url`."""
        host = self.endpoint_host.strip("[]")
        if host in _WILDCARDS:
            host = urlsplit(url).hostname or ""
        if ":" in host:
            host = f"[{host}]"
        return f"tcp://{host}:{self.endpoint_port_base + (rank or 0)}"


class ServerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of one server that matter here, under the names that it gives them.

    Missing or ill-typed settings take the defaults below, which promise the least.
    """

    version: str = ""
    model_path: str = ""
    tokenizer_path: str = ""
    weight_version: str = ""
    dtype: str = ""
    quantization: str | None = None
    load_format: str = ""
    is_generation: bool = True
    skip_tokenizer_init: bool = False
    disaggregation_mode: str = "null"
    max_total_num_tokens: int = 0  # KV tokens of one DP rank
    max_req_input_len: int = 0
    context_length: int | None = None
    max_running_requests: int | None = None
    running_per_rank: int | None = None  # what a DP rank really allows, from its internal state
    max_queued_requests: int | None = None
    page_size: int = 1
    dp_size: int = 1
    tokenizer_worker_num: int = 1
    grammar_backend: str | None = None
    constrained_json_disable_any_whitespace: bool = False
    constrained_json_max_whitespace_cnt: int | None = None
    speculative_algorithm: str | None = None
    enable_deterministic_inference: bool = False
    incremental_streaming_output: bool = False
    enable_metrics: bool = False
    disable_radix_cache: bool = False
    radix_cache_backend: str | None = None
    radix_eviction_policy: str = "lru"
    enable_session_radix_cache: bool = False
    enable_hierarchical_cache: bool = False
    hicache_storage_backend: str | None = None
    strip_thinking_cache: bool = False
    kv_events_config: str | None = None
    kv_events: KVEvents | None = None
    schedule_policy: str = "fcfs"
    enable_priority_scheduling: bool = False
    schedule_low_priority_values_first: bool = False
    disable_priority_preemption: bool = False
    abort_on_priority_when_disabled: bool = False
    default_priority_value: int | None = None

    @property
    def fingerprint(self) -> str:
        """Changes with the model, its weights, its number format or its tokenizer."""
        parts = (
            self.model_path,
            self.weight_version,
            self.dtype,
            self.quantization,
            self.load_format,
            self.tokenizer_path,
        )
        return blake2b(msgspec.json.encode(parts), digest_size=16).hexdigest()

    @property
    def max_running(self) -> int:
        """Requests that decode together on one DP rank."""
        return self.running_per_rank or self.max_running_requests or _UNKNOWN_RUNNING

    @property
    def context_tokens(self) -> int:
        """The longest prompt plus output: no more than the model's context, nor the pool."""
        if self.max_req_input_len:
            return self.max_req_input_len + _RESERVED_TOKENS
        return self.context_length or _UNKNOWN_CONTEXT_TOKENS

    @property
    def schemas(self) -> bool:
        """Whether a grammar can hold an answer to a JSON Schema."""
        return self.grammar_backend not in (None, "", "none")

    @property
    def retentions(self) -> tuple[RetentionName, ...]:
        """The ways to keep a session's KV that this server allows, the best first."""
        if self.disable_radix_cache:
            return ("none",)
        names: list[RetentionName] = []
        if self.radix_cache_backend == PLUGIN:
            names.append("pins")
        if self.enable_session_radix_cache:
            names.append("sessions")
        if self.radix_eviction_policy == "priority" and not self.abort_on_priority_when_disabled:
            names.append("priority")
        return (*names, "touch", "none")

    def capabilities(
        self,
        name: str,
        retention: RetentionName,
        max_running: int | None = None,
        kv_tokens: int | None = None,
    ) -> Capabilities:
        """What a scheduler may count on; `max_running` and `kv_tokens` can only take away."""
        return Capabilities(
            name=name,
            model=self.model_path,
            model_fingerprint=self.fingerprint,
            context_tokens=self.context_tokens,
            kv_tokens=_smaller(kv_tokens, self.max_total_num_tokens or self.context_tokens),
            page_tokens=self.page_size,
            max_running=_smaller(max_running, self.max_running),
            retention=retention,
            schemas=self.schemas,
            choices=True,
            logprobs=True,
            resumes="text",
            priorities=self.enable_priority_scheduling,
            remote=True,
            tiered=self.enable_hierarchical_cache,
        )


def read_info(server: object, model: object, where: str) -> ServerInfo:
    """The answers of `/server_info` and `/model_info` of the server at `where`, put together.

    Raises InvalidConfig if they are not those of an SGLang server that generates text.
    """
    if not isinstance(server, dict) or not isinstance(model, dict):
        raise InvalidConfig(f"{where}: /server_info is not that of an SGLang server")
    raw: dict[str, Any] = {**server, **model}  # a weight update shows in /model_info alone
    if "model_path" not in raw:
        raise InvalidConfig(f"{where}: /server_info names no model; is this an SGLang server?")
    raw["running_per_rank"] = _running_per_rank(raw.get("internal_states"))
    known = msgspec.structs.fields(ServerInfo)
    values = {
        field.name: _as(field.type, raw[field.name], field.default)
        for field in known
        if field.name in raw
    }
    info = ServerInfo(**values)
    if not info.is_generation:
        raise InvalidConfig(f"{where}: {info.model_path} does not generate text")
    if info.disaggregation_mode != "null":
        raise InvalidConfig(
            f"{where}: a server of a prefill/decode pair cannot be used by itself; "
            "give the URL of a server that does both"
        )
    return info


def _as(kind: Any, value: object, default: Any) -> Any:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return default


class _RankState(msgspec.Struct):
    effective_max_running_requests_per_dp: int | None = None


def _running_per_rank(states: object) -> int | None:
    known: list[_RankState] = _as(list[_RankState], states, [])
    return known[0].effective_max_running_requests_per_dp if known else None


def _smaller(wanted: int | None, real: int) -> int:
    return real if wanted is None else max(1, min(wanted, real))
