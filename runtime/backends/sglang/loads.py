"""What `/v1/loads` says of one data-parallel rank."""

import msgspec

from ...calls import Load
from ...errors import TryAgain
from .touches import COMPUTED_TOKENS


class _Rank(msgspec.Struct):
    dp_rank: int | None = None
    num_running_reqs: int = 0
    num_waiting_reqs: int = 0
    num_used_tokens: int = 0
    num_waiting_uncached_tokens: int = 0
    token_usage: float = 0.0
    cache_hit_rate: float = 0.0
    total_prefill_uncached_tokens: int | None = None


class _Loads(msgspec.Struct):
    loads: list[_Rank]


def read_load(raw: object, rank: int | None, where: str) -> Load:
    """The load of `rank` (None: of the only one).

    The server counts as used what its requests hold, not what it keeps for later ones: that can
    be evicted at any time. Raises TryAgain for an answer that is none.
    """
    try:
        ranks = msgspec.convert(raw, _Loads).loads
    except msgspec.ValidationError as error:
        raise TryAgain(f"{where}: /v1/loads answered something else: {error}") from None
    found = next((each for each in ranks if rank is None or each.dp_rank == rank), None)
    if found is None:
        raise TryAgain(f"{where}: /v1/loads does not tell of rank {rank or 0}")
    counters = {
        "token_usage": found.token_usage,
        "cache_hit_rate": found.cache_hit_rate,
        "waiting_uncached_tokens": float(found.num_waiting_uncached_tokens),
    }
    if found.total_prefill_uncached_tokens is not None:
        counters[COMPUTED_TOKENS] = float(found.total_prefill_uncached_tokens)
    return Load(
        running=found.num_running_reqs,
        waiting=found.num_waiting_reqs,
        kv_used_tokens=found.num_used_tokens,
        counters=counters,
    )
