"""How a run is stopped from outside: drain (end what runs) or abort (now). Both can be resumed."""

import asyncio
from collections.abc import Callable
from enum import IntEnum
from typing import Literal

Reason = Literal["signal", "asked", "tokens", "time", "approval"]


class Wish(IntEnum):
    """What has been asked for; a later value overrides an earlier one."""

    RUN = 0
    DRAIN = 1
    ABORT = 2


class Control:
    """Asks a run to stop. Safe to call from any thread and from signal handlers."""

    def __init__(self) -> None:
        self.wish = Wish.RUN
        self.reason: Reason | None = None  # of the first wish to stop, if told
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changed: Callable[[], None] | None = None

    def drain(self, reason: Reason | None = None) -> None:
        """Finish what runs, start nothing new; the run stays resumable."""
        self._set(Wish.DRAIN, reason)

    def abort(self, reason: Reason | None = None) -> None:
        """Stop now; the run stays resumable, and what was in flight is done again."""
        self._set(Wish.ABORT, reason)

    def attach(self, changed: Callable[[], None]) -> None:
        """Have `changed` called on the running loop when a wish comes in."""
        self._loop = asyncio.get_running_loop()
        self._changed = changed

    def detach(self) -> None:
        """Call nobody any more."""
        self._loop = self._changed = None

    def _set(self, wish: Wish, reason: Reason | None) -> None:
        if wish <= self.wish:
            return
        if self.wish == Wish.RUN:
            self.reason = reason
        self.wish = wish
        loop, changed = self._loop, self._changed
        if loop is not None and changed is not None and not loop.is_closed():
            loop.call_soon_threadsafe(changed)
