"""SGLang's radix cache with a book of pins. Only used inside a server of release 0.5.23.

A pin is a lock on the tree, as a running request has one: what it holds is not evicted. Since
SGLang counts what it can evict before it evicts, a lock that no request holds could keep a
request out for ever. Hence pins give way in two places, cheapest first: where an eviction comes
out short (`evict`, `evict_for_alloc`), and where a request is not admitted although waiting would
not help it (`make_room`). Each decision rests on messages and on the state of the allocator, which
are the same on all ranks.

What is SGLang's is imported when it is used, and is untyped here.
"""

import os
from collections.abc import Callable, Iterable
from functools import partial
from importlib import import_module
from typing import Any

from .hints import Retain, read
from .metrics import PinMetrics
from .pins import Admission, PinBook, share


def sglang(module: str) -> Any:
    """A module of SGLang's, by its name below `sglang.srt`."""
    return import_module(f"sglang.srt.{module}")


class Pinned:
    """To be mixed over UnifiedRadixCache."""

    # Of UnifiedRadixCache.
    token_to_kv_pool_allocator: Any
    tree_core: Any
    lock: Any
    unlock: Any
    is_root: Any
    metrics_collector: Any
    match_prefix: Any
    _component_available_size: Any
    _evict_request_by_type: Any

    def __init__(self, params: Any) -> None:
        pool_tokens = int(params.token_to_kv_pool_allocator.size)
        self.book = PinBook[Any](
            int(pool_tokens * share(os.environ)),
            measure=self._tokens_held,
            unlock=lambda lock: self.unlock(lock),
        )
        self.admission = Admission(self.book, pool_tokens)
        self._metrics: PinMetrics | None = None
        _base(self).__init__(params)
        if params.enable_metrics:
            self._metrics = PinMetrics(self.metrics_collector.labels)

    # ---- what clients say -----------------------------------------------------------------------

    def hear(self, request: Any) -> None:
        """A request has come: do what its hints ask at once, and keep the rest for its end."""
        actions, refused = read(request.kv_hints)
        self.book.counts.refused_malformed += refused
        self.book.hear(actions)
        request.tenter_retains = [action for action in actions if isinstance(action, Retain)]
        self._show()

    def checkpoint_into_tree(self, req: Any, *, up_to: int, **kwargs: Any) -> None:
        """As ever; a request that has finished then gets the pins that it asked for."""
        _base(self).checkpoint_into_tree(req, up_to=up_to, **kwargs)
        if not req.finished():
            return
        self.admission.finished(req.rid)
        retains: list[Retain] = getattr(req, "tenter_retains", [])
        if not isinstance(req.finished_reason, sglang("managers.schedule_batch").FINISH_ABORT):
            for wanted in retains:
                self._pin(req, wanted)
        self._show()

    def _pin(self, req: Any, wanted: Retain) -> None:
        if wanted.priority == 0:
            return self.book.release(wanted.scope)
        node = self._last_node(req, wanted)
        lock = None if self.is_root(node) else self.lock(node)
        if lock is not None:
            self.book.take(wanted, lock)

    def _last_node(self, req: Any, wanted: Retain) -> Any:
        """Where the path ends that is to be pinned: at a page's end, at most where asked."""
        if wanted.covers_output and wanted.end is None:
            return req.last_node
        tokens = req.full_untruncated_fill_ids if wanted.covers_output else req.origin_input_ids
        key = sglang("mem_cache.radix_cache").RadixKey(
            tokens, req.extra_key, limit=wanted.end, cache_salt=req.cache_salt
        )
        match = sglang("mem_cache.base_prefix_cache").MatchPrefixParams
        return self.match_prefix(match(key=key)).last_device_node

    # ---- where pins give way --------------------------------------------------------------------

    def evict(self, params: Any) -> Any:
        """As ever; what falls short is made up for by pins."""
        base = _base(self)
        result = base.evict(params)
        while (rest := _rest(params, result)) and self.book.release_cheapest():
            result = _sum(result, base.evict(rest))
        self._show()
        return result

    def evict_for_alloc(
        self, params: Any, *, allocation_reclaim_satisfied: Callable[[], bool] | None = None
    ) -> Any:
        """As ever; if it does not make the room that was asked for, pins give way until it does."""
        base = _base(self)
        done = allocation_reclaim_satisfied
        if done is not None:
            again = partial(base.evict_for_alloc, allocation_reclaim_satisfied=done)
            result = again(params)
            while not done() and self.book.release_cheapest():
                result = _sum(result, again(params))
        else:
            targets = self._targets(params)
            result = base.evict_for_alloc(params)
            while (rest := self._short(params, targets)) and self.book.release_cheapest():
                result = _sum(result, base.evict_for_alloc(rest))
        self._show()
        return result

    def make_room(self, request: Any, *, running: bool) -> bool:
        """Release a pin for a request that was not admitted, if that is due.

        `running`: whether anything runs that will make room by finishing.
        """
        released = self.admission.make_room(request.rid, _tokens_needed(request), running=running)
        self._show()
        return released

    def _targets(self, params: Any) -> dict[Any, int]:
        """What each kind of memory that is asked for should have available in the end."""
        wanted: dict[Any, int] = self._evict_request_by_type(params)
        return {kind: self._component_available_size(kind) + n for kind, n in wanted.items() if n}

    def _short(self, params: Any, targets: dict[Any, int]) -> Any:
        """What is still to be evicted, as parameters; None if nothing is."""
        kinds = sglang("mem_cache.unified_cache.component_type").ComponentType
        short = {
            kind: max(0, target - self._component_available_size(kind))
            for kind, target in targets.items()
        }
        if not any(short.values()):
            return None
        return type(params)(
            num_tokens=short.get(kinds.FULL, 0),
            swa_num_tokens=short.get(kinds.SWA, 0),
            mamba_num=short.get(kinds.MAMBA, 0),
        )

    # ---- the rest -------------------------------------------------------------------------------

    def reset(self) -> None:
        """As ever: flushes the cache, and with it all pins."""
        _base(self).reset()
        self.book.flush()
        self._show()

    def sanity_check(self) -> None:
        """As ever, except while there are pins: it takes any lock on an idle server for a leak."""
        if not self.book:
            _base(self).sanity_check()

    def _tokens_held(self, locks: Iterable[Any]) -> int:
        paths = self.tree_core.collect_path_info([lock.node for lock in locks])
        nodes = {n.node_id: n.path_end - n.path_start for path in paths for n in path}
        return sum(nodes.values())

    def _show(self) -> None:
        if self._metrics is not None:
            self._metrics.show(self.book)


def _base(cache: Pinned) -> Any:
    """UnifiedRadixCache's own methods."""
    return super(Pinned, cache)


def _rest(params: Any, result: Any) -> Any:
    """What `evict` was asked for and did not do; None if it did it all."""
    full = params.num_tokens - result.num_tokens_evicted
    swa = params.swa_num_tokens - result.swa_num_tokens_evicted
    mamba = params.mamba_num - result.mamba_num_evicted
    if full <= 0 and swa <= 0 and mamba <= 0:
        return None
    return type(params)(
        num_tokens=max(0, full), swa_num_tokens=max(0, swa), mamba_num=max(0, mamba)
    )


def _sum(one: Any, other: Any) -> Any:
    return type(one)(
        num_tokens_evicted=one.num_tokens_evicted + other.num_tokens_evicted,
        swa_num_tokens_evicted=one.swa_num_tokens_evicted + other.swa_num_tokens_evicted,
        mamba_num_evicted=one.mamba_num_evicted + other.mamba_num_evicted,
    )


def _tokens_needed(request: Any) -> int:
    """What SGLang wants free to admit a request: its tokens that are not cached, and its answer."""
    answer = request.sampling_params.max_new_tokens - len(request.output_ids)
    longest: int = sglang("managers.schedule_policy").CLIP_MAX_NEW_TOKENS
    prompt = len(request.full_untruncated_fill_ids) - request.prefix_len
    return prompt + min(max(0, answer), longest)
