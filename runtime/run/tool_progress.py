"""What a tool tells of its end while it runs, on its way to the scheduler."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress

from ..clock import now
from ..scheduler.events import ToolProgress, ToolStarted

NEWS_SHARE = 0.1  # of the time left, by which a told end must move to be passed on
NEWS_S = 0.05


class Progress:
    """What a tool tells of its end, from any thread, as events; what is no news is passed over."""

    def __init__(self, started: ToolStarted, send: Callable[[ToolProgress], None]) -> None:
        self._started = started
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._end_s: float | None = None
        self.over = False

    def report(self, seconds: float) -> None:
        """The tool still takes `seconds`."""
        if threading.get_ident() == self._thread:
            self._tell(seconds)
        else:
            with suppress(RuntimeError):  # the run is over, and the tool was left behind
                self._loop.call_soon_threadsafe(self._tell, seconds)

    def tell(self, send: Callable[[ToolProgress], None]) -> None:
        """From now on `send` hears of it, and of what was told before."""
        self._send = send
        if self._end_s is not None:
            left_s, self._end_s = max(0.0, self._end_s - now()), None
            self._tell(left_s)

    def _tell(self, seconds: float) -> None:
        end_s = now() + seconds
        known_s = self._end_s
        if self.over or (
            known_s is not None and abs(end_s - known_s) < max(NEWS_S, NEWS_SHARE * seconds)
        ):
            return
        self._end_s = end_s
        started = self._started
        self._send(
            ToolProgress(
                program=started.program,
                step=started.step,
                tool=started.tool,
                left_s=seconds,
                session=started.session,
                word=started.word,
            )
        )
