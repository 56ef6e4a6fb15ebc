"""Fits the cache with pins into an SGLang 0.5.23 scheduler: builds it, and tells it of requests.

The scheduler calls a tree cache when a request has a result, not when it comes, and not when it
finds no room for it. So one of its methods and two of its PrefillAdder's are wrapped, in the
scheduler's process alone and only where the backend is used.
"""

import functools
import inspect
import logging
from collections.abc import Callable
from typing import Any

from .cache import Pinned, sglang

logger = logging.getLogger(__name__)


def build(context: Any) -> Any:
    """The tree cache of one scheduler process; raises ValueError where pins cannot be kept."""
    if obstacle := _obstacle(context):
        raise ValueError(f"--radix-cache-backend tenter: {obstacle}")
    _check_signatures()
    _wrap_scheduler()
    base = sglang("mem_cache.unified_radix_cache").UnifiedRadixCache
    cache_class = type("PinnedRadixCache", (Pinned, base), {})
    create = sglang("mem_cache.registry").create_unified_radix_cache
    cache = create(context, cache_class=cache_class)
    logger.info("Pins may hold %d tokens of KV.", cache.book.budget_tokens)
    return cache


def _obstacle(context: Any) -> str | None:
    """Why this configuration can have no pins, and what would change that."""
    runtime = sglang("runtime_context")
    if context.disable_radix_cache:
        return "drop --disable-radix-cache: without a tree there is nothing to pin"
    if context.is_hybrid_swa and context.full_tokens_per_layer == 0:
        return "drop it: a model whose layers all have a sliding window keeps no prefixes"
    if runtime.get_memory().enable_lmcache or runtime.get_memory().enable_flexkv:
        return "drop it, or --enable-lmcache and --enable-flexkv, which bring caches of their own"
    if runtime.get_disagg().disaggregation_mode != "null":
        return "drop it, or --disaggregation-mode, with which pins were not tested"
    return None


_RELIED_ON = {
    "mem_cache.registry": {"create_unified_radix_cache": ("ctx", "cache_class")},
    "mem_cache.unified_radix_cache": {
        "UnifiedRadixCache.__init__": ("params",),
        "UnifiedRadixCache.checkpoint_into_tree": ("req", "up_to"),
        "UnifiedRadixCache.evict": ("params",),
        "UnifiedRadixCache.evict_for_alloc": ("params", "allocation_reclaim_satisfied"),
        "UnifiedRadixCache.is_root": ("node_id",),
        "UnifiedRadixCache.lock": ("node_id",),
        "UnifiedRadixCache.match_prefix": ("params",),
        "UnifiedRadixCache.reset": (),
        "UnifiedRadixCache.sanity_check": (),
        "UnifiedRadixCache.unlock": ("lock",),
        "UnifiedRadixCache._component_available_size": ("component_type",),
        "UnifiedRadixCache._evict_request_by_type": ("params",),
    },
    "mem_cache.unified_cache.unified_tree_core_interface": {
        "UnifiedTreeCoreInterface.collect_path_info": ("end_node_ids",),
        "TreePathNodeInfo": ("node_id", "path_start", "path_end"),
    },
    "managers.schedule_policy": {
        "PrefillAdder.add_one_req": ("req",),
        "PrefillAdder.add_chunked_req": ("req",),
        "AddReqResult.NO_TOKEN": (),
    },
    "managers.scheduler": {"Scheduler._create_generation_req": ("recv_req",)},
}


def _check_signatures() -> None:
    """Raise ValueError, naming it, if something that we call or replace is not as we know it."""
    for module, names in _RELIED_ON.items():
        for name, parameters in names.items():
            try:
                found = functools.reduce(getattr, name.split("."), sglang(module))
                known = inspect.signature(found).parameters if parameters else ()
            except (AttributeError, ImportError, TypeError) as error:
                raise ValueError(_unknown(f"sglang.srt.{module}.{name}: {error}")) from error
            if missing := set(parameters) - set(known):
                raise ValueError(_unknown(f"sglang.srt.{module}.{name} takes no {sorted(missing)}"))


def _unknown(what: str) -> str:
    return f"this is not the SGLang that tenter's pins were tested with; install it anew: {what}"


@functools.cache
def _wrap_scheduler() -> None:
    """Let the scheduler of this process tell the cache of requests that come or do not fit in.

    Once, whatever number of caches is built.
    """
    scheduler = sglang("managers.scheduler").Scheduler
    scheduler._create_generation_req = _announcing(scheduler._create_generation_req)
    adder = sglang("managers.schedule_policy").PrefillAdder
    adder.add_one_req = _insisting(adder.add_one_req)
    adder.add_chunked_req = _insisting(adder.add_chunked_req)


def _announcing(create: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(create)
    def announced(scheduler: Any, *args: Any, **kwargs: Any) -> Any:
        request = create(scheduler, *args, **kwargs)
        if isinstance(scheduler.tree_cache, Pinned):
            scheduler.tree_cache.hear(request)
        return request

    return announced


def _insisting(add: Callable[..., Any]) -> Callable[..., Any]:
    """For `add_one_req`, which says NO_TOKEN, and `add_chunked_req`, which gives the request back:
    both have then changed nothing, and may be asked again."""

    @functools.wraps(add)
    def insisted(adder: Any, req: Any, *args: Any, **kwargs: Any) -> Any:
        no_token = sglang("managers.schedule_policy").AddReqResult.NO_TOKEN
        result = add(adder, req, *args, **kwargs)
        while (
            isinstance(adder.tree_cache, Pinned)
            and (result is no_token or result is req)
            and not any(admitted is req for admitted in adder.can_run_list)
            and adder.tree_cache.make_room(req, running=_runs(adder))
        ):
            result = add(adder, req, *args, **kwargs)
        return result

    return insisted


def _runs(adder: Any) -> bool:
    return bool(adder.can_run_list) or bool(adder.running_batch and adder.running_batch.reqs)
