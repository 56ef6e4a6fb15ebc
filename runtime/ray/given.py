"""The rows that one shard has, until they end: what of them its process was sent, and has begun."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ..jobs.suspects import Suspects
from ..journal.base import StepRecord
from ..run.program import Ended
from .messages import MAX_BYTES, Handed, Step


@dataclass(slots=True)
class Given:
    """A row that a shard has."""

    inputs: bytes
    ended: Ended
    steps: tuple[Step, ...] = ()
    stale: bool = False  # the journal has more of its steps than these


class GivenRows:
    """The rows of a shard that have not ended, in the order in which they are to run."""

    def __init__(self) -> None:
        self._rows: dict[int, Given] = {}
        self._unsent: dict[int, None] = {}  # in order
        self._begun: set[int] = set()

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[int]:
        return iter(self._rows)

    @property
    def unsent(self) -> tuple[int, ...]:
        return tuple(self._unsent)

    @property
    def begun(self) -> frozenset[int]:
        """Rows that the process may be running."""
        return frozenset(self._begun)

    @property
    def waiting(self) -> int:
        """How many have not begun."""
        return len(self._rows) - len(self._begun)

    def not_begun(self) -> list[int]:
        """Those, in order."""
        return [row for row in self._rows if row not in self._begun]

    def hand(self, row: int, given: Given) -> None:
        """Take a row, to be sent."""
        self._rows[row] = given
        self._unsent[row] = None

    def get(self, row: int) -> Given | None:
        return self._rows.get(row)

    def drop(self, row: int) -> Given | None:
        """Forget a row."""
        self._unsent.pop(row, None)
        self._begun.discard(row)
        return self._rows.pop(row, None)

    def begin(self, rows: Iterable[int]) -> None:
        """The process has said that these are next."""
        self._begun.update(row for row in rows if row in self._rows)

    def send(self, suspects: Suspects) -> list[Handed]:
        """The next rows to be sent, as many as fit into a message."""
        sent: list[Handed] = []
        size = 0
        while self._unsent and size < MAX_BYTES:
            row = next(iter(self._unsent))
            del self._unsent[row]
            given = self._rows[row]
            sent.append(Handed(row, given.inputs, given.steps, suspects.of(row)))
            size += len(given.inputs) + sum(len(step.value) for step in given.steps)
        return sent

    def stale(self) -> list[tuple[int, Given]]:
        """Rows of which something was recorded since they were handed."""
        return [(row, given) for row, given in self._rows.items() if given.stale]

    def send_again(self, suspects: Suspects) -> None:
        """Have all rows sent to another process, suspects first."""
        self._begun.clear()
        self._unsent = dict.fromkeys(sorted(self._rows, key=suspects.rank))


def steps_of(recorded: Iterable[StepRecord]) -> tuple[Step, ...]:
    """Recorded steps as a shard is told them."""
    return tuple(
        Step(step.row, step.path, step.value, step.signature, step.spare) for step in recorded
    )
