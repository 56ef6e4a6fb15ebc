"""Retention by a mark on the request alone, which nothing can renew or take back; or none at all."""

from typing import Any

from ...calls import SessionId
from .info import RetentionName

SESSION_CLASS = 10  # eviction priority of what sessions leave behind; all else has 0


class Marks:
    """For servers that evict by priority: sessions leave KV of a higher class than other calls.

    A server that also schedules by priority (`scheduled`) has one number for both; it is the
    scheduling's, since a wrong order costs more than a lost prefix. Without any mark this is the
    retention called none.
    """

    batches = True

    def __init__(self, name: RetentionName, *, scheduled: bool) -> None:
        self.name: RetentionName = name
        self._scheduled = scheduled
        self.batches = scheduled  # a batch has one priority

    def begin(self, session: SessionId) -> None:
        """Nothing was promised."""

    def fields(self, session: SessionId | None, *, shared: bool = False) -> dict[str, Any]:
        if session is None or self._scheduled:
            return {}
        return {"priority": SESSION_CLASS}

    def end(self, session: SessionId, *, whole: bool) -> None:
        """The mark is on the KV already."""

    async def retain(self, session: SessionId, until_s: float | None) -> None:
        """A mark has no end."""

    async def release(self, session: SessionId) -> None:
        """The mark stays; the server evicts the KV when all of the lower class is gone."""

    async def close(self) -> None:
        """Nothing is held."""
