"""Runs on a Ray cluster, and workflows as stages of Ray Data pipelines: `map_batches`.

`driver` is the run's side, `worker` that of a shard; `cluster` alone knows Ray.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .data import map_batches as map_batches

__all__ = ["map_batches"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import data

    return getattr(data, name)
