"""Time as a seam: the live clock, and an event loop whose clock jumps to the next timer.

On `VirtualLoop` the whole runtime is its own simulator (the idea: trio's autojump clock).
Use it as `anyio.run(main, backend_options={"loop_factory": VirtualLoop})`.
"""

import asyncio
import selectors
from typing import Any


def now() -> float:
    """Seconds on the running loop's clock; monotonic, virtual in a simulation."""
    return asyncio.get_running_loop().time()


class _JumpingSelector(selectors.SelectSelector):
    """Never waits: where the loop would, the virtual clock is set forward instead."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None:
            raise RuntimeError(
                "virtual time stands still: every task waits and no timer is set "
                "(a deadlock, or a thread, which virtual time cannot wait for)"
            )
        self.now_s += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An asyncio event loop on virtual time, starting at 0 s; deterministic, without waiting."""

    def __init__(self) -> None:
        self._selector_clock = _JumpingSelector()
        super().__init__(self._selector_clock)
        self._clock_resolution: Any = 1e-9

    def time(self) -> float:
        return self._selector_clock.now_s
