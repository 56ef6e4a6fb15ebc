"""Retention by Tenter's plugin in the server: pins with an end, told in `kv_hints`.

Every turn of a session pins what it leaves behind for a grace, as cheaply as a pin can be; what
the scheduler decides then is told with the next turn that goes to the server, or by a request of
one token. Requests without a session bring nothing: nobody would hear whether they arrived.
"""

import math
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count
from typing import Any

import anyio

from ...calls import SessionId
from .decisions import Decision, Decisions
from .info import RetentionName
from .retention import Server

GRACE_S = 30.0  # of a turn's own pin: another client's clock may be so far ahead of ours
TRUSTED_S = 2.0  # how long it is relied on: such pins are the first to give way
MARGIN_S = 0.25  # a pin that ends so soon may be gone before the server hears of it
CLOSE_S = 5.0  # longest wait for pins to be given back
CARRIER = (0,)  # the prompt of a request that only brings decisions
GRACE_PRIORITY = 1  # of 100: how dear a pin is when the server needs room
SESSION_PRIORITY = 50
SHARED_PRIORITY = 80
VERSION = "1.0"
FEW_PINS = 4096  # below, those that have ended are not looked for
Action = dict[str, Any]


@dataclass(slots=True)
class _Pin:
    """What the server may hold of a session until `until_s`, and does hold until `sure_s`."""

    until_s: float
    sure_s: float


class Pins:
    """Implements `Retention`. `wall_s` is the time of day, whose progress the loop's clock tells."""

    name: RetentionName = "pins"
    batches = True

    def __init__(self, server: Server, *, wall_s: float | None = None) -> None:
        self._server = server
        self._offset_s = (time.time() if wall_s is None else wall_s) - server.now()
        self._pins: dict[SessionId, _Pin] = {}
        self._sweep_at = FEW_PINS
        self._turns = Counter[SessionId]()  # on their way
        self._shared: set[SessionId] = set()
        self._decisions = Decisions(self._carry)
        self._riding: dict[SessionId, list[Decision]] = {}  # on the turns of a session
        self._ids = count(1)

    def begin(self, session: SessionId) -> None:
        """The turn's own pin will supersede the one in force."""
        self._turns[session] += 1

    def fields(self, session: SessionId | None, *, shared: bool = False) -> dict[str, Any]:
        """The envelope: the clock, and with a turn its own pin and decisions that wait."""
        if session is None:
            return self._envelope(())
        if shared:
            self._shared.add(session)
        self._decisions.put_back(self._riding.pop(session, ()))  # of a batch that was refused
        taken = self._decisions.take()
        if taken:
            self._riding[session] = taken
        return self._envelope(taken, self._retain(session, GRACE_S, GRACE_PRIORITY))

    def end(self, session: SessionId, *, whole: bool) -> None:
        self._turns[session] -= 1
        others = self._turns[session] > 0
        if not others:
            del self._turns[session]
        if not whole:
            self._decisions.put_back(self._riding.pop(session, ()))
            return
        if not others:
            self._decisions.confirm(self._riding.pop(session, ()))
        now_s = self._now()
        self._pins[session] = _Pin(now_s + GRACE_S, now_s + TRUSTED_S)
        self._sweep(now_s)

    async def retain(self, session: SessionId, until_s: float | None) -> None:
        """Extends the pin in force; where it may be gone, the session's tokens are sent again.

        Comes too late, and does nothing, once the end has passed or the next turn has begun.
        """
        now_s, end_s = self._now(), math.inf if until_s is None else until_s
        if self._turns[session] or end_s <= now_s:
            return
        known, decided = self._pins.get(session), _Pin(end_s, end_s - MARGIN_S)
        if known is not None and known.sure_s > now_s:
            self._pins[session] = decided
            self._decisions.put(Decision(session, now_s, until_s, self._priority(session)))
            return
        tokens = self._server.contexts.get(session)
        if tokens is None:
            return
        trying = self._pins[session] = _Pin(end_s, -math.inf)
        retain = self._retain(session, self._duration(until_s), self._priority(session))
        await self._bring(tokens, self._decisions.take(), retain)
        if self._pins.get(session) is trying:  # else a turn has come and gone
            self._pins[session] = decided

    async def release(self, session: SessionId) -> None:
        self._shared.discard(session)
        pin, now_s = self._pins.pop(session, None), self._now()
        if pin is not None and pin.until_s > now_s:
            self._decisions.put(Decision(session, now_s, None, 0, release=True))

    async def close(self) -> None:
        self._decisions.stop()
        for taken in self._riding.values():
            self._decisions.put_back(taken)
        for session in list(self._pins):
            await self.release(session)
        with anyio.move_on_after(CLOSE_S):
            while self._decisions:
                await self._bring(CARRIER, self._decisions.take())

    # ---- requests of our own ------------------------------------------------------------------

    def _carry(self) -> None:
        """No turn came by: send requests that say nothing else; one to try, if the last failed."""
        while self._decisions:
            self._server.spawn(self._bring(CARRIER, self._decisions.take()))
            if self._decisions.failing:
                return

    async def _bring(self, tokens: tuple[int, ...], taken: list[Decision], *more: Action) -> None:
        arrived = False
        try:
            await self._server.prefill(tokens, self._envelope(taken, *more))
            arrived = True
        finally:
            (self._decisions.confirm if arrived else self._decisions.put_back)(taken)

    # ---- what is said -------------------------------------------------------------------------

    def _envelope(self, decisions: Iterable[Decision], *more: Action) -> dict[str, Any]:
        clock = self._action("tenter.clock", {}, self._now())
        return {
            "kv_hints": {
                "protocol_version": VERSION,
                "message_id": self._server.scope(f"message {next(self._ids)}"),
                "actions": [clock, *map(self._told, decisions), *more],
            }
        }

    def _told(self, decision: Decision) -> Action:
        """As of now; its time is when it was made, since requests may overtake one another."""
        payload: dict[str, Any] = {"scope": self._server.scope(decision.session)}
        if decision.release:
            return self._action("kv.deref", payload, decision.made_s)
        payload["duration"] = self._duration(decision.until_s)
        payload["priority"] = decision.priority
        return self._action("tenter.extend", payload, decision.made_s)

    def _retain(self, session: SessionId, duration_s: float | None, priority: int) -> Action:
        directive = {
            "start": 0,
            "end": None,
            "covers_output": True,
            "priority": priority,
            "duration": duration_s,
        }
        payload = {"scope": self._server.scope(session), "directives": [directive]}
        return self._action("kv.retain", payload, self._now())

    def _action(self, kind: str, payload: dict[str, Any], at_s: float) -> Action:
        return {
            "action_id": str(next(self._ids)),
            "action_type": kind,
            "action_version": VERSION,
            "payload": {"now_s": at_s + self._offset_s, **payload},
        }

    def _sweep(self, now_s: float) -> None:
        """Forget pins that have ended, now and then."""
        if len(self._pins) > self._sweep_at:
            self._pins = {name: pin for name, pin in self._pins.items() if pin.until_s > now_s}
            self._sweep_at = max(FEW_PINS, 2 * len(self._pins))

    def _priority(self, session: SessionId) -> int:
        return SHARED_PRIORITY if session in self._shared else SESSION_PRIORITY

    def _duration(self, until_s: float | None) -> float | None:
        return None if until_s is None else max(0.0, until_s - self._now())

    def _now(self) -> float:
        return self._server.now()
