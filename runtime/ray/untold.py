"""What a shard's process is still to be told, beside its rows."""

from collections.abc import Sequence

import msgspec

from .messages import Found, Handed, Tell


class Untold:
    """Gathers what has happened since the process was last told."""

    def __init__(self) -> None:
        self._set = Tell()  # the settings that were changed since the run began
        self._set_told = True
        self._found: list[Found] = []
        self._back: tuple[int, ...] = ()
        self._kept = 0

    def begin_again(self) -> None:
        """Another process is there: it knows of no change, and has recorded nothing."""
        self._set_told = False
        self._found.clear()
        self._back = ()
        self._kept = 0

    def steer(self, change: Tell) -> None:
        """Go on with the settings that `change` has."""
        known = self._set
        self._set = Tell(
            paused=known.paused if change.paused is None else change.paused,
            concurrency=change.concurrency or known.concurrency,
            order=change.order or known.order,
            retention=change.retention or known.retention,
        )
        self._set_told = False

    def keep(self, seq: int) -> None:
        """All its records up to this one are kept."""
        self._kept = max(self._kept, seq)

    def answer(self, found: Found) -> None:
        """Tell what the journal has."""
        self._found.append(found)

    def ask_back(self, rows: Sequence[int]) -> None:
        """Ask for rows that have not begun."""
        self._back = tuple(rows)

    def take(self, rows: Sequence[Handed], drain: bool) -> Tell:
        """All that is to be told, with the next rows."""
        told = Tell() if self._set_told else self._set
        self._set_told = True
        found, self._found = tuple(self._found), []
        back, self._back = self._back, ()
        return msgspec.structs.replace(
            told, rows=tuple(rows), back=back, kept=self._kept, found=found, drain=drain
        )
