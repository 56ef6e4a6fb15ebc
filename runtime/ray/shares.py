"""What each of several shards may take of what all of them share: limits, and workers."""

from collections.abc import Mapping
from dataclasses import asdict
from math import ceil
from typing import Any

from ..journal.address import is_redis, parse_redis
from ..run.host import Host
from ..scheduler.events import WorkerShare
from ..scheduler.limits import Limits


def split_limits(limits: Mapping[str, Any], shards: int) -> dict[str, Any]:
    """The limits of one of `shards` shards, so that all together keep those of the run.

    A bound below the number of shards is 1 in each of them.
    """
    found = asdict(Limits.read(limits))
    for group in (found["models"], found["tenants"]):
        for limit in group.values():
            for name, value in limit.items():
                limit[name] = None if value is None else ceil(value / shards)
    return found


def share_evenly(host: Host, shards: int) -> None:
    """Take an equal part of each worker that the other shards use too."""
    for model in host.models.values():
        able = model.capabilities
        if not able.place:
            continue  # an engine of this process alone
        for worker in host.scheduler.workers_of(model.pool):
            share = WorkerShare(
                worker=worker,
                kv_tokens=able.kv_tokens // shards,
                max_running=max(1, able.max_running // shards),
            )
            host.scheduler.send(share)


def leases(home: str | None) -> bool:
    """Whether shards lease their parts of workers from a Redis, as they need them."""
    return home is not None and is_redis(home) and parse_redis(home).options.fleet != "off"
