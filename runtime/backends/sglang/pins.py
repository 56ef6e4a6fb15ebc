"""Retention by Tenter's plugin in the server: pins with an end, told in `kv_hints`.

Every turn of a session pins what it leaves behind for a grace, as cheaply as a pin can be; what
the scheduler decides then is told with the next request that goes to the server, or by a request
of one token.
"""

import asyncio
import math
import time
from collections import Counter, deque
from itertools import count
from typing import Any

from ...calls import SessionId
from .info import RetentionName
from .retention import Server

GRACE_S = 30.0  # of a turn's own pin: another client's clock may be so far ahead of ours
TRUSTED_S = 2.0  # how long it is relied on: such pins are the first to give way
GATHER_S = 0.02  # how long a decision waits for a request to ride on
CARRIED = 14  # decisions on one request; the plugin reads 16 actions
MARGIN_S = 0.25  # a pin that ends so soon may be gone before the server hears of it
CARRIER = (0,)  # the prompt of a request that only brings decisions
GRACE_PRIORITY = 1  # of 100: how dear a pin is when the server needs room
SESSION_PRIORITY = 50
SHARED_PRIORITY = 80
VERSION = "1.0"


class Pins:
    """Implements `Retention`. `wall_s` is the time of day, whose progress the loop's clock tells."""

    name: RetentionName = "pins"
    batches = True

    def __init__(self, server: Server, *, wall_s: float | None = None) -> None:
        self._server = server
        self._offset_s = (time.time() if wall_s is None else wall_s) - server.now()
        self._ends: dict[SessionId, float] = {}  # when its pin ends, on the loop's clock
        self._undecided: set[SessionId] = set()  # its pin is that of a turn
        self._turns = Counter[SessionId]()  # on their way
        self._wanted: dict[SessionId, float | None] = {}  # asked for during a turn
        self._shared: set[SessionId] = set()
        self._pending: deque[dict[str, Any]] = deque()
        self._flush: asyncio.TimerHandle | None = None
        self._closing = False
        self._ids = count(1)

    def begin(self, session: SessionId) -> None:
        """The turn's own pin will supersede the one in force."""
        self._turns[session] += 1
        self._wanted.pop(session, None)

    def fields(self, session: SessionId | None, *, shared: bool = False) -> dict[str, Any]:
        """The envelope: the clock, decisions that wait, and the pin of this turn."""
        actions = [self._action("tenter.clock", {})]
        while self._pending and len(actions) <= CARRIED:
            actions.append(self._pending.popleft())
        if not self._pending and self._flush is not None:
            self._flush.cancel()
            self._flush = None
        if session is not None:
            if shared:
                self._shared.add(session)
            actions.append(self._retain(session, GRACE_S, GRACE_PRIORITY))
        return {
            "kv_hints": {
                "protocol_version": VERSION,
                "message_id": self._server.scope(f"message {next(self._ids)}"),
                "actions": actions,
            }
        }

    def end(self, session: SessionId, *, whole: bool) -> None:
        self._turns[session] -= 1
        if self._turns[session] <= 0:
            del self._turns[session]
        if whole:
            self._ends[session] = self._now() + GRACE_S
            self._undecided.add(session)
            if session in self._wanted:
                self._extend(session, self._wanted.pop(session))
        self._sweep()

    async def retain(self, session: SessionId, until_s: float | None) -> None:
        """Extends the pin in force; where it may be gone, the session's tokens are sent again."""
        if self._turns[session]:
            self._wanted[session] = until_s
            return
        margin_s = GRACE_S - TRUSTED_S if session in self._undecided else MARGIN_S
        if self._ends.get(session, 0.0) - self._now() > margin_s:
            self._extend(session, until_s)
            return
        tokens = self._server.contexts.get(session)
        if tokens is not None:
            fields = self.fields(None)
            retain = self._retain(session, self._duration(until_s), self._priority(session))
            fields["kv_hints"]["actions"].append(retain)
            await self._server.prefill(tokens, fields)
            self._decided(session, until_s)

    async def release(self, session: SessionId) -> None:
        self._wanted.pop(session, None)
        self._shared.discard(session)
        self._undecided.discard(session)
        if self._ends.pop(session, 0.0) > self._now():
            self._push(self._action("kv.deref", {"scope": self._server.scope(session)}))

    async def close(self) -> None:
        self._closing = True
        if self._flush is not None:
            self._flush.cancel()
            self._flush = None
        for session in list(self._ends):
            await self.release(session)
        while self._pending:
            await self._server.prefill(CARRIER, self.fields(None))

    # ---- decisions ----------------------------------------------------------------------------

    def _decided(self, session: SessionId, until_s: float | None) -> None:
        self._undecided.discard(session)
        self._ends[session] = math.inf if until_s is None else until_s

    def _extend(self, session: SessionId, until_s: float | None) -> None:
        self._decided(session, until_s)
        payload = {
            "scope": self._server.scope(session),
            "duration": self._duration(until_s),
            "priority": self._priority(session),
        }
        self._push(self._action("tenter.extend", payload))

    def _retain(
        self, session: SessionId, duration_s: float | None, priority: int
    ) -> dict[str, Any]:
        directive = {
            "start": 0,
            "end": None,
            "covers_output": True,
            "priority": priority,
            "duration": duration_s,
        }
        payload = {"scope": self._server.scope(session), "directives": [directive]}
        return self._action("kv.retain", payload)

    def _push(self, action: dict[str, Any]) -> None:
        self._pending.append(action)
        if self._flush is None and not self._closing:
            self._flush = asyncio.get_running_loop().call_later(GATHER_S, self._carry)

    def _carry(self) -> None:
        """No request came by: send one that says nothing else."""
        self._flush = None
        while self._pending:
            self._server.spawn(self._send(self.fields(None)))

    async def _send(self, fields: dict[str, Any]) -> None:
        await self._server.prefill(CARRIER, fields)

    def _action(self, kind: str, payload: dict[str, Any]) -> dict[str, Any]:
        return {
            "action_id": str(next(self._ids)),
            "action_type": kind,
            "action_version": VERSION,
            "payload": {"now_s": self._now() + self._offset_s, **payload},
        }

    def _sweep(self) -> None:
        """Forget pins that have ended, now and then."""
        if len(self._ends) > 4096:
            now_s = self._now()
            self._ends = {name: end for name, end in self._ends.items() if end > now_s}
            self._undecided &= self._ends.keys()

    def _priority(self, session: SessionId) -> int:
        return SHARED_PRIORITY if session in self._shared else SESSION_PRIORITY

    def _duration(self, until_s: float | None) -> float | None:
        return None if until_s is None else max(0.0, until_s - self._now())

    def _now(self) -> float:
        return self._server.now()
