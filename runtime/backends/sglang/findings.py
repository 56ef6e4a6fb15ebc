"""What a server's settings mean for a run, one line each, with the flag that would change it."""

from collections.abc import Iterator
from dataclasses import dataclass

from .choice import FLAGS
from .evictions import LEAST_PAGE
from .info import TESTED, KVEvents, ServerInfo


@dataclass(frozen=True, slots=True)
class Finding:
    """One topic: what this server does, what that means for a run, and the flag to change it.

    `flag` is empty where nothing is to be gained.
    """

    topic: str
    does: str
    means: str
    flag: str = ""


def findings(info: ServerInfo) -> list[Finding]:
    """All that is worth telling about a server, in the order in which it matters."""
    return [
        _version(info),
        _capacity(info),
        _pins(info),
        _priority(info),
        _abort(info),
        _metrics(info),
        *_reuse(info),
        _schemas(info),
        _seeds(info),
        _streaming(info),
        *_replicas(info),
    ]


def _version(info: ServerInfo) -> Finding:
    if info.version == TESTED:
        return Finding("version", f"SGLang {TESTED}", "this is the release that was tested")
    return Finding(
        "version",
        f"SGLang {info.version or 'of unknown version'}",
        f"only {TESTED} was tested; what it does not report is taken to be absent",
        f"install sglang=={TESTED} on the server",
    )


def _capacity(info: ServerInfo) -> Finding:
    return Finding(
        "capacity",
        f"{info.max_total_num_tokens} KV tokens and {info.max_running} running requests per rank, "
        f"requests of up to {info.context_tokens} tokens",
        "calls are admitted within these limits, so that the server's own queue stays short",
    )


def _pins(info: ServerInfo) -> Finding:
    match info.retentions[0]:
        case "pins":
            return Finding(
                "pins",
                "runs Tenter's cache plugin",
                "a session's KV is kept for as long as its tool is expected to take, within a "
                "budget that cannot block requests",
            )
        case "sessions":
            return Finding(
                "pins",
                "keeps the KV of named sessions for longer than other KV",
                "a pin holds until all KV that no session names is evicted; it ends when it should",
                FLAGS["pins"],
            )
        case "priority":
            return Finding("pins", *_eviction(info), FLAGS["pins"])
        case "touch":
            return Finding(
                "pins",
                "evicts what was used least recently",
                "sessions that wait for a tool are touched under pressure; a long wait loses them",
                f"{FLAGS['pins']}, or at least {FLAGS['sessions']}",
            )
        case "none":
            return Finding(
                "pins",
                "keeps no KV at all between requests",
                "every turn of a session computes its whole prompt again",
                FLAGS["touch"],
            )


def _eviction(info: ServerInfo) -> tuple[str, str]:
    does = "evicts KV of a low priority first, and never lowers a priority"
    if info.enable_priority_scheduling:
        return does, "one number orders requests and KV: the KV of early programs stays longest"
    return does, "the KV of sessions stays longer than other KV, even when its session has ended"


def _priority(info: ServerInfo) -> Finding:
    if not info.enable_priority_scheduling:
        return Finding(
            "priority",
            "ignores priorities",
            "calls wait in Tenter's queue, in the order of their programs",
            "--enable-priority-scheduling --default-priority-value 0 "
            "--disable-priority-preemption (useful when others use the server too)",
        )
    if not info.disable_priority_preemption:
        return Finding(
            "priority",
            "orders its queue by priority, and throws running requests out",
            "calls of early programs go first; what is thrown out is computed again",
            "--disable-priority-preemption",
        )
    if info.default_priority_value is None:
        return Finding(
            "priority",
            "orders its queue by priority; requests without one go last",
            "calls of early programs go first, and before those of other clients",
            "--default-priority-value 0 (if other clients are to have their share)",
        )
    return Finding("priority", "orders its queue by priority", "calls of early programs go first")


def _abort(info: ServerInfo) -> Finding:
    if info.tokenizer_worker_num > 1:
        return Finding(
            "abort",
            f"forwards aborts from {info.tokenizer_worker_num} tokenizer workers unchecked",
            "calls are aborted by request ids of equal length, which none else can match",
        )
    return Finding("abort", "aborts by request id", "a cancelled call ends after one more step")


def _metrics(info: ServerInfo) -> Finding:
    if info.enable_metrics:
        return Finding(
            "metrics", "reports when each request was queued and computed", "timings are exact"
        )
    return Finding(
        "metrics",
        "reports only the total time of a request",
        "the shares of queueing, prefill and decoding are estimates",
        "--enable-metrics",
    )


def _reuse(info: ServerInfo) -> Iterator[Finding]:
    if info.disable_radix_cache:
        yield Finding(
            "reuse", "computes every prompt whole", "shared prefixes save nothing", FLAGS["touch"]
        )
        return
    yield Finding(
        "reuse",
        f"reuses common prefixes in pages of {info.page_size} tokens",
        "calls of one prefix are sent together, the first one ahead",
        "a smaller --page-size" if info.page_size > 64 else "",
    )
    if info.strip_thinking_cache:
        yield Finding(
            "reuse",
            "drops the KV of what the model wrote",
            "the next turn of a session computes the last answer again",
            "start it without --strip-thinking-cache",
        )
    if info.enable_hierarchical_cache:
        storage = info.hicache_storage_backend
        yield Finding(
            "host cache",
            "keeps evicted KV in host memory" + (f" and in {storage} storage" if storage else ""),
            "a session that was evicted comes back faster than it would be computed",
        )


def _schemas(info: ServerInfo) -> Finding:
    if info.schemas:
        bounded = info.constrained_json_disable_any_whitespace
        bounded |= info.constrained_json_max_whitespace_cnt is not None
        return Finding(
            "schemas",
            f"holds answers to a JSON Schema by {info.grammar_backend}",
            "answers are checked once more here"
            + ("" if bounded else "; a weak model may fill one with blanks up to max_tokens"),
            "" if bounded else "--constrained-json-disable-any-whitespace",
        )
    return Finding(
        "schemas",
        "has no grammar backend",
        "steps with an output model cannot run on this server",
        "--grammar-backend xgrammar",
    )


def _seeds(info: ServerInfo) -> Finding:
    if info.enable_deterministic_inference:
        return Finding("seeds", "draws by the seed of a call", "seeded answers are repeatable")
    return Finding(
        "seeds",
        "ignores the seed of a call",
        "answers at a temperature above 0 differ from run to run",
        "--enable-deterministic-inference (on a GPU; slower)",
    )


def _streaming(info: ServerInfo) -> Finding:
    if info.incremental_streaming_output:
        return Finding("streaming", "sends what is new", "streamed answers cost what they weigh")
    return Finding(
        "streaming",
        "sends the whole answer again with every piece",
        "long streamed answers are read in larger pieces, to bound the traffic",
        "--incremental-streaming-output",
    )


def _replicas(info: ServerInfo) -> Iterator[Finding]:
    if info.dp_size > 1:
        yield Finding(
            "replicas",
            f"runs {info.dp_size} data-parallel ranks",
            "each rank is addressed as a replica of its own",
        )
    if info.kv_events is not None or info.kv_events_config:
        yield _kv_events(info.kv_events)
    if info.max_queued_requests is not None:
        yield Finding(
            "queue",
            f"turns requests away beyond {info.max_queued_requests} waiting",
            "what is turned away is sent again later",
        )


def _kv_events(events: KVEvents | None) -> Finding:
    if events is None:
        return Finding(
            "kv events",
            "is to publish what its cache holds, and names no endpoint for it",
            "placement goes by what was sent where, not by what was evicted since",
            '--kv-events-config with a publisher and an endpoint such as "tcp://*:5557"',
        )
    if events.block_size < LEAST_PAGE:
        return Finding(
            "kv events",
            f"publishes what its cache holds in blocks of {events.block_size} tokens",
            "that is too many events to follow: they are not read",
            f"--page-size {LEAST_PAGE} or more",
        )
    return Finding("kv events", "publishes what its cache holds", "placement is corrected by it")
