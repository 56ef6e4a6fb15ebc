"""A server without a scheduler in front: each call goes to it at once, and it knows no programs.

What a program written with a common agent library gets from a stock server: calls in the order in
which they come, the least recently used KV evicted first, preemption where memory runs out. Of
several replicas the one with the fewest calls takes the next one, as balancers do.
"""

from ..scheduler.events import (
    CallEnded,
    CallReady,
    Command,
    Dispatch,
    Event,
    ProgramArrived,
    StartProgram,
    WorkerUp,
)


class Stock:
    """Takes the place of the scheduler's core."""

    def __init__(self) -> None:
        self._running: dict[str, int] = {}  # worker -> calls there
        self._where: dict[str, str] = {}  # call -> worker

    def handle(self, event: Event, now_s: float) -> list[Command]:
        """Start whatever arrives."""
        match event:
            case ProgramArrived():
                return [StartProgram(program=event.program)]
            case CallReady():
                worker = min(self._running, key=lambda name: self._running[name])
                self._running[worker] += 1
                self._where[event.call] = worker
                return [Dispatch(call=event.call, worker=worker, priority=0.0)]
            case CallEnded():
                self._running[self._where.pop(event.call)] -= 1
            case WorkerUp():
                self._running[event.worker] = 0
            case _:
                pass
        return []

    def chooses(self, model: str) -> bool:
        """Blocks of prompts do not matter to it."""
        return False
