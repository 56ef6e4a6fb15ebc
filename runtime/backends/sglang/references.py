"""Retention by session references: KV that a session names is evicted after all other KV.

The server keeps a reference for as long as the session is open, so it is closed from here when
its pin ends, and soon after a turn that no pin follows.
"""

import asyncio
from collections import Counter
from typing import Any

from ...calls import SessionId
from ...errors import BackendUnavailable, TryAgain
from .info import RetentionName
from .retention import GRACE_S, Server

RETRY_S = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # pauses before a session is closed once more


class References:
    """Implements `Retention`. A session that was closed is opened again under another name, so
    that a late close cannot hit its next turn."""

    name: RetentionName = "sessions"
    batches = False  # a batch has one session

    def __init__(self, server: Server, *, grace_s: float = GRACE_S) -> None:
        self._server = server
        self._grace_s = grace_s
        self._names: dict[SessionId, str] = {}  # of sessions that may be open on the server
        self._opened = 0
        self._turns = Counter[SessionId]()  # on their way
        self._closing: set[str] = set()  # names that the server may not have heard the end of
        self._timers: dict[SessionId, asyncio.TimerHandle] = {}

    def begin(self, session: SessionId) -> None:
        self._turns[session] += 1
        self._stop_timer(session)

    def fields(self, session: SessionId | None, *, shared: bool = False) -> dict[str, Any]:
        return {} if session is None else {"session_id": self._name(session)}

    def end(self, session: SessionId, *, whole: bool) -> None:
        self._turns[session] -= 1
        if self._turns[session] > 0:
            return
        del self._turns[session]
        self._close_at(session, self._server.now() + self._grace_s)

    async def retain(self, session: SessionId, until_s: float | None) -> None:
        """Moves the end; where the session was closed, its tokens are sent again.

        Comes too late, and does nothing, once the end has passed or the next turn has begun.
        """
        if self._turns[session] or (until_s is not None and until_s <= self._server.now()):
            return
        if session in self._names:
            self._close_at(session, until_s)
            return
        tokens = self._server.contexts.get(session)
        if tokens is not None:
            await self._open(session, tokens, until_s)

    async def release(self, session: SessionId) -> None:
        if not self._turns[session]:  # else the end of the turn closes it
            self._close(session)

    async def close(self) -> None:
        names, self._names = [*self._names.values(), *self._closing], {}
        self._closing.clear()
        for session in list(self._timers):
            self._stop_timer(session)
        await asyncio.gather(*map(self._tell, names), return_exceptions=True)

    async def _open(
        self, session: SessionId, tokens: tuple[int, ...], until_s: float | None
    ) -> None:
        """Send the tokens again; a turn that begins meanwhile takes the session over."""
        try:
            await self._server.prefill(tokens, self.fields(session))
        except BaseException:
            if self._is_idle(session):
                self._close(session)
            raise
        if self._is_idle(session):
            self._close_at(session, until_s)

    def _is_idle(self, session: SessionId) -> bool:
        """Whether no turn has used it since it was opened."""
        return not self._turns[session] and session not in self._timers

    def _name(self, session: SessionId) -> str:
        if session not in self._names:
            self._opened += 1
            self._names[session] = self._server.scope(f"{self._opened} {session}")
        return self._names[session]

    def _close_at(self, session: SessionId, until_s: float | None) -> None:
        self._stop_timer(session)
        if until_s is not None:
            loop = asyncio.get_running_loop()
            self._timers[session] = loop.call_at(until_s, self._close, session)

    def _close(self, session: SessionId) -> None:
        self._stop_timer(session)
        name = self._names.pop(session, None)
        if name is not None:
            self._closing.add(name)
            self._server.spawn(self._insist(name))

    def _stop_timer(self, session: SessionId) -> None:
        timer = self._timers.pop(session, None)
        if timer is not None:
            timer.cancel()

    async def _insist(self, name: str) -> None:
        """A session that stays open would be kept for as long as the server runs."""
        for pause_s in RETRY_S:
            if name not in self._closing:
                return  # told by `close`
            try:
                await self._tell(name)
                break
            except (BackendUnavailable, TryAgain):
                await asyncio.sleep(pause_s)
        self._closing.discard(name)

    async def _tell(self, name: str) -> None:
        await self._server.post("/close_session", {"session_id": name})
