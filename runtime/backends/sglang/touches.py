"""Retention on a stock server: a promised prefix is used again before it becomes the oldest.

A server that evicts what was used least recently keeps a prefix until as many new tokens have
come as its pool holds. How many have come is read from its load, and a prefix is touched (a
request that draws nothing) only when they may soon be too many.
"""

import asyncio
import logging
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

from ...calls import SessionId
from ...errors import TenterError
from .info import RetentionName, ServerInfo
from .retention import Server

LOOK_S = 1.0  # between two looks at the server's load, which is as stale as that
FILL_SHARE = 0.5  # of the pool: so many new tokens may come before a prefix is touched
MOST_TOUCHES = 16  # of one promise: more would cost more than computing the prefix again
COMPUTED_TOKENS = "computed_tokens"  # counter of a load: prompt tokens computed since the start

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Promise:
    until_s: float
    computed: float | None  # tokens that the server had computed when the prefix was last used
    touches: int = 0


class Touches:
    """Implements `Retention`. `lost` counts promises that the server had evicted nevertheless."""

    name: RetentionName = "touch"
    batches = True

    def __init__(self, server: Server, info: ServerInfo, *, look_s: float = LOOK_S) -> None:
        self._server = server
        self._look_s = look_s
        self._fill_tokens = FILL_SHARE * info.max_total_num_tokens
        self._page_tokens = info.page_size
        self._promises: dict[SessionId, _Promise] = {}
        self._turns = Counter[SessionId]()  # on their way
        self._watching = False
        self.touches = 0
        self.lost = 0

    def begin(self, session: SessionId) -> None:
        self._turns[session] += 1
        self._promises.pop(session, None)

    def fields(self, session: SessionId | None, *, shared: bool = False) -> dict[str, Any]:
        return {}

    def end(self, session: SessionId, *, whole: bool) -> None:
        """Its prefix is the one used last."""
        self._turns[session] -= 1
        if self._turns[session] <= 0:
            del self._turns[session]

    async def retain(self, session: SessionId, until_s: float | None) -> None:
        """Comes too late, and does nothing, once the end has passed or the next turn has begun."""
        end_s = math.inf if until_s is None else until_s
        if self._turns[session] or end_s <= self._server.now():
            return
        self._promises.setdefault(session, _Promise(end_s, None)).until_s = end_s
        if not self._watching:
            self._watching = True
            self._server.spawn(self._watch())

    async def release(self, session: SessionId) -> None:
        self._promises.pop(session, None)

    async def close(self) -> None:
        self._promises.clear()

    async def _watch(self) -> None:
        """Runs while there is a promise."""
        try:
            while self._promises:
                try:
                    await self._look()
                except TenterError as error:
                    log.debug("the server did not tell its load: %s", error)
                await asyncio.sleep(self._look_s)
        finally:
            self._watching = False

    async def _look(self) -> None:
        load = await self._server.load()
        computed = load.counters.get(COMPUTED_TOKENS)
        if computed is None:  # an older server: it cannot be told when a touch would pay
            self._promises.clear()
            return
        for session, promise in list(self._promises.items()):
            if self._promises.get(session) is not promise:
                continue  # given up since
            if promise.until_s <= self._server.now():
                del self._promises[session]
            elif promise.computed is None:
                promise.computed = computed
            elif computed < promise.computed:  # it counts anew, with an empty cache
                del self._promises[session]
            elif computed - promise.computed >= self._fill_tokens:
                promise.computed = computed
                await self._touch(session, promise)

    async def _touch(self, session: SessionId, promise: _Promise) -> None:
        tokens = self._server.contexts.get(session)
        if tokens is None or promise.touches >= MOST_TOUCHES:
            self._promises.pop(session, None)
            return
        promise.touches += 1
        self.touches += 1
        try:
            usage = await self._server.prefill(tokens, {})
        except TenterError as error:
            log.debug("a prefix was not touched: %s", error)
            promise.computed = None  # ask again when as much has come once more
            return
        if len(tokens) - usage.cached_tokens > self._page_tokens + 1:
            self.lost += 1  # it has just been computed in vain; do not do so again
            if self._promises.get(session) is promise:
                del self._promises[session]
