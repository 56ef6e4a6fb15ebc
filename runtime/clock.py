"""Time as a seam: the live clock, and an event loop whose clock jumps to the next timer.

On `VirtualLoop` the whole runtime is its own simulator (the idea: trio's autojump clock).
Use it as `anyio.run(main, backend_options={"loop_factory": VirtualLoop})`.
"""

import asyncio
import inspect
import selectors
from collections.abc import Callable
from pathlib import Path
from typing import Any

SHOWN = 10  # of the tasks that wait for ever, in an error,
INNERMOST = 3  # and of the coroutines of each


class StandsStill(RuntimeError):
    """Every task waits, and no timer is set: a deadlock, or a wait for a thread."""


def now() -> float:
    """Seconds on the running loop's clock; monotonic, virtual in a simulation."""
    return asyncio.get_running_loop().time()


class _JumpingSelector(selectors.SelectSelector):
    """Never waits: where the loop would, the virtual clock is set forward instead."""

    def __init__(self, who_waits: Callable[[], str]) -> None:
        super().__init__()
        self.now_s = 0.0
        self._who_waits = who_waits

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None:
            raise StandsStill(
                f"virtual time stands still at {self.now_s:,.3f} s: every task waits and no timer "
                "is set (a deadlock, or a thread, which virtual time cannot wait for): "
                + self._who_waits()
            )
        self.now_s += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An asyncio event loop on virtual time, starting at 0 s; deterministic, without waiting.

    Raises StandsStill, which names the tasks and where each of them waits, when nothing can happen.
    """

    def __init__(self) -> None:
        self._selector_clock = _JumpingSelector(self._who_waits)
        super().__init__(self._selector_clock)
        self._clock_resolution: Any = 1e-9

    def time(self) -> float:
        return self._selector_clock.now_s

    def _who_waits(self) -> str:
        tasks = sorted(asyncio.all_tasks(self), key=lambda task: task.get_name())
        told = [f"{task.get_name()} in {_places(task.get_coro())}" for task in tasks[:SHOWN]]
        more = [f"{len(tasks) - SHOWN:,} more"] if len(tasks) > SHOWN else []
        return "; ".join(told + more) or "there is no task"


def _places(coroutine: Any) -> str:
    """The coroutines that a suspended one waits through, with their lines; the innermost last."""
    places: list[str] = []
    while inspect.iscoroutine(coroutine):
        frame = coroutine.cr_frame
        if frame is not None:
            file = Path(frame.f_code.co_filename).name
            places.append(f"{coroutine.__qualname__} ({file}:{frame.f_lineno})")
        coroutine = coroutine.cr_await
    return " > ".join(places[-INNERMOST:]) or repr(coroutine)
