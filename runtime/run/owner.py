"""Whom work is done for."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..errors import BackendUnavailable, Drained
from ..journal.base import StepRecord
from ..reasoning.pool import Thinking
from .speech import OnText


@dataclass(slots=True)
class Owner:
    """The program that work is done for. `recorded` holds what an earlier attempt finished."""

    name: str
    row: int
    recorded: Mapping[str, StepRecord]
    tenant: str = ""  # for whom it runs
    ended: bool = False
    stopped: Drained | BackendUnavailable | None = None  # why a step of it was not done
    session: str | None = None  # the KV context that waits while a tool runs
    task: asyncio.Task[None] | None = None  # of an `async def` program
    # Calls with an effect of which nobody knows whether they had it: by tool and arguments, where
    # each was made.
    unknown: dict[tuple[str, str], str] = field(default_factory=dict[tuple[str, str], str])
    on_text: OnText | None = None  # is told what its chats say, while they say it
    thinking: Thinking = field(default_factory=Thinking)

    def note(self, error: Exception | None) -> None:
        """Remember where a step was not done for want of a run or of a worker."""
        if isinstance(error, Drained | BackendUnavailable):
            self.stopped = error
