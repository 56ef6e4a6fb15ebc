"""Processes that end with us, however we end."""

import os
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

# Reads until every writer of its standard input is gone, then ends the process group it was given.
_WATCH = 'read -r _ || kill -s KILL -- "-$1"'


class Guarded:
    """A command in a process group of its own, all of it killed if this process dies.

    What it says goes to the end of `log`, in whose folder it works. A small shell beside it waits on
    a pipe that only this process holds, so that kill -9 of this process ends it too.
    """

    def __init__(self, command: list[str], log: Path, environment: Mapping[str, str]) -> None:
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                cwd=log.parent,  # Python would look for packages in ours: a clone's are stale
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._watch = subprocess.Popen(
            ["sh", "-c", _WATCH, "sh", str(self.pid)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """Of the command; its process group has the same number."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        """The exit status; None while it runs."""
        return self._process.poll()

    def end(self, patience_s: float) -> None:
        """Ask the command alone to end; after `patience_s` kill what is left of its group."""
        if self.status is None:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(patience_s)
        self.kill()

    def kill(self) -> None:
        """Kill the whole group at once. Without effect on one that is gone."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        self._watch.kill()
        self._watch.communicate()
