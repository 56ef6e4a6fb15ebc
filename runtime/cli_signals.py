"""Signals, progress and the end of a job that the command line runs.

The first Ctrl-C or SIGTERM drains, the second aborts, the third ends the process. A lost terminal
(SIGHUP) drains, however often it is told: a shell and the kernel both tell it. Under `nohup`, which
has it ignored, it does nothing.
"""

import errno
import os
import signal
import sys
import termios
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio

from . import progress
from .cli_failure import say
from .report.tally import Tally
from .run.control import Control

Result = TypeVar("Result")


@dataclass(slots=True)
class Stop:
    """The first signal that asked for an end, if any."""

    signal: int = 0

    @property
    def exit_code(self) -> int:
        return 128 + self.signal


async def governed(
    work: Callable[[Control, Tally], Awaitable[Result]],
    stop: Stop,
    emit: Callable[[dict[str, Any]], None] | None = None,
    *,
    shown: bool,
    tally: Tally | None = None,
) -> Result:
    """What `work` returns, while signals stop it and, if `shown`, its progress is told.

    `work` is to feed the tally: `tally`, or one of ours.
    """
    control, tally = Control(), tally or Tally()
    results: list[Result] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_heed, control, tally, stop)
        if shown:
            tasks.start_soon(_show, tally, emit)
        results.append(await work(control, tally))
        tasks.cancel_scope.cancel()
    return results[0]


async def _show(tally: Tally, emit: Callable[[dict[str, Any]], None] | None) -> None:
    """Tell the progress as long as somebody can be told; the run goes on without."""
    with suppress(OSError):
        await progress.show(tally, emit)


async def _heed(control: Control, tally: Tally, stop: Stop) -> None:
    count = 0
    heeded = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        heeded.append(signal.SIGHUP)
    with _restored(*heeded), anyio.open_signal_receiver(*heeded) as signals:
        async for number in signals:
            if number == signal.SIGHUP:
                _leave_lost_terminal()
                if count:
                    continue
            count += 1
            if count == 1:
                stop.signal = number
                control.drain("signal")
                running = tally.snapshot().programs_live
                rows = f"the {running:,} rows that run" if running else "what runs"
                say(f"finishing {rows}, starting no other; once more to stop at once")
            elif count == 2:
                control.abort("signal")
                say("stopping at once")
            else:
                os._exit(stop.exit_code)


@contextmanager
def _restored(*signals: signal.Signals) -> Generator[None]:
    """Their handlers are afterwards what they were: asyncio would leave its own defaults."""
    before = {number: signal.getsignal(number) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave_lost_terminal() -> None:
    """What would be said to a terminal that is gone goes nowhere, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            if _is_lost(stream.fileno()):
                os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), stream.fileno())


def _is_lost(descriptor: int) -> bool:
    try:
        termios.tcgetattr(descriptor)
    except termios.error as error:
        return error.args[0] == errno.EIO  # otherwise it is no terminal
    return False
