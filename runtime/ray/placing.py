"""Processes of a cluster that are there for a shard."""

from dataclasses import dataclass
from typing import Protocol

from .cluster import Process
from .messages import Hello

PLACING_S = 300.0  # for a process to be there, with its models


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """A process whose models answer; `shift_s` takes times of its clock to those of ours."""

    process: Process
    hello: Hello
    shift_s: float

    @property
    def host(self) -> str:
        return self.hello.host


class Placing(Protocol):
    """Makes processes for shards."""

    async def __call__(self, shard: int) -> Placed:
        """A process whose models answer. Raises TenterError."""
        ...
