"""The result cache's door: answers of deterministic work, kept across runs by content.

A key (16 bytes) covers all that determines an answer: the model, the messages, how tokens are
drawn, what they are held to. What is lost is computed again, so nothing here is worth an fsync, and
no failure ends a run.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

MAX_BYTES = 1_000_000_000  # of all results of a home; those used last stay
MAX_AGE_S = 30 * 86_400.0
OVERHEAD_BYTES = 128  # of a result beside its value, about
LARGEST_BYTES = 16 * 1024 * 1024  # a larger result is not kept

Clock = Callable[[], float]
"""Seconds since 1970, the same for all runs."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much is kept, and for how long."""

    max_bytes: int = MAX_BYTES
    max_age_s: float = MAX_AGE_S


@dataclass(frozen=True, slots=True)
class Kept:
    """A step's JSON result as bytes, and the tokens of the call that made it.

    `left_s`: it answers so long only, as the memory of some tools does; None: as long as any.
    """

    value: bytes
    prompt_tokens: int = 0
    output_tokens: int = 0
    left_s: float | None = None


@dataclass(frozen=True, slots=True)
class Holding:
    """What a cache holds; `oldest_s` is when its oldest result was made, since 1970."""

    results: int = 0
    size: int = 0  # bytes
    oldest_s: float | None = None


Item = tuple[bytes, Kept]  # under its key


class ResultStore(Protocol):
    """Where a cache lies. Its methods wait for a disk or a server, so they belong to a thread.

    All raise JournalError where it cannot be used.
    """

    def find(self, keys: Sequence[bytes]) -> Mapping[bytes, Kept]:
        """Those that are there, undamaged and young enough."""
        ...

    def keep(self, items: Iterable[Item]) -> None:
        """Store results, and drop what is too old or too much."""
        ...

    def clear(self, older_than_s: float | None = None) -> Holding:
        """Drop all results, or those made longer ago than `older_than_s`; what was dropped."""
        ...

    def holding(self) -> Holding: ...

    def close(self) -> None: ...


class Results(Protocol):
    """A cache, open for one run. All methods are called on the event loop's thread."""

    @property
    def works(self) -> bool:
        """Whether what is kept is found; not while its store cannot be used."""
        ...

    async def find(self, key: bytes) -> Kept | None:
        """The result under `key`; None where there is none that is young enough."""
        ...

    def keep(self, key: bytes, kept: Kept) -> None:
        """Keep a result. It is stored soon, or perhaps never."""
        ...

    async def close(self) -> None:
        """Store what is pending, and let go."""
        ...


def size_of(kept: Kept) -> int:
    """What a result counts of `Bounds.max_bytes`."""
    return len(kept.value) + OVERHEAD_BYTES


def aged(kept: Kept, age_s: float, bounds: Bounds) -> Kept | None:
    """A result as it is `age_s` seconds after it was kept; None: too old."""
    if age_s >= bounds.max_age_s:
        return None
    if kept.left_s is None:
        return kept
    left_s = kept.left_s - max(0.0, age_s)
    return replace(kept, left_s=left_s) if left_s > 0 else None


class MemoryResults:
    """Keeps results in the process, for tests and virtual time; several runs may be given it."""

    works = True

    def __init__(self, bounds: Bounds | None = None, clock: Clock = time.time) -> None:
        self._bounds = bounds or Bounds()
        self._clock = clock
        self._kept: OrderedDict[bytes, tuple[Kept, float]] = OrderedDict()  # and when it was made
        self._size = 0

    async def find(self, key: bytes) -> Kept | None:
        found = self._kept.get(key)
        if found is None:
            return None
        kept = aged(found[0], self._clock() - found[1], self._bounds)
        if kept is None:
            self._drop(key)
        else:
            self._kept.move_to_end(key)
        return kept

    def keep(self, key: bytes, kept: Kept) -> None:
        if len(kept.value) > LARGEST_BYTES:
            return
        self._drop(key)
        self._kept[key] = kept, self._clock()
        self._size += size_of(kept)
        while self._size > self._bounds.max_bytes:
            self._drop(next(iter(self._kept)))

    async def close(self) -> None:
        return

    def holding(self) -> Holding:
        return Holding(len(self._kept), self._size)

    def _drop(self, key: bytes) -> None:
        found = self._kept.pop(key, None)
        if found is not None:
            self._size -= size_of(found[0])
