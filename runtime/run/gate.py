"""Where steps that do not go through the scheduler, such as tools, wait while a run is paused."""

from collections.abc import Callable


class Gate:
    """Open, or shut for a while; what comes to a shut gate goes on when it opens."""

    def __init__(self) -> None:
        self.shut = False
        self._waiting: list[Callable[[], None]] = []

    def close(self) -> None:
        self.shut = True

    def wait(self, go_on: Callable[[], None]) -> None:
        """Have `go_on` called when the gate opens."""
        self._waiting.append(go_on)

    def open(self) -> None:
        """Let go on what waits, in the order in which it came."""
        self.shut = False
        waiting, self._waiting = self._waiting, []
        for go_on in waiting:
            go_on()
