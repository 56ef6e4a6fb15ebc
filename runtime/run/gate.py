"""Where steps that do not go through the scheduler, such as tools, wait while a run is paused."""

from collections.abc import Callable


class Gate:
    """Open, or shut for a while; what comes to a shut gate goes on when it opens."""

    def __init__(self) -> None:
        self.shut = False
        self._waiting: list[tuple[tuple[str, str], Callable[[], None]]] = []

    def close(self) -> None:
        self.shut = True

    def wait(self, program: str, path: str, go_on: Callable[[], None]) -> None:
        """Have `go_on` called when the gate opens, for the step at `path` of a program."""
        self._waiting.append(((program, path), go_on))

    def forget(self, program: str, path: str) -> None:
        """The step is not wanted any more."""
        self._waiting = [each for each in self._waiting if each[0] != (program, path)]

    def open(self) -> None:
        """Let go on what waits, in the order in which it came."""
        self.shut = False
        waiting, self._waiting = self._waiting, []
        for _, go_on in waiting:
            go_on()
