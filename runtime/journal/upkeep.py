"""What `tenter journal` finds out about a run's journal, and what it has thrown away."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from ..errors import JournalError

PROBLEMS_SHOWN = 20


@dataclass(slots=True)
class Checked:
    """What a journal holds, every record of it read and compared with its checksum."""

    steps: int = 0
    rows: int = 0
    blobs: int = 0
    unused_blobs: int = 0
    size: int = 0  # bytes of the file, or of the values in Redis
    lost: int = (
        0  # records that Redis has acknowledged and has no more, as far as this machine knows
    )
    damaged: int = 0
    problems: list[str] = field(default_factory=list[str])  # the first of them

    def count(self, kind: str, records: Iterable[Callable[[], object]]) -> None:
        """Read each record; one that raises JournalError is damaged."""
        for read in records:
            try:
                read()
            except JournalError as error:
                self.blame(str(error))
            setattr(self, kind, getattr(self, kind) + 1)

    def blame(self, problem: str) -> None:
        self.damaged += 1
        if len(self.problems) < PROBLEMS_SHOWN:
            self.problems.append(problem)


@dataclass(frozen=True, slots=True)
class Compacted:
    """What was thrown away: steps that no resume asks for, blobs that nothing names."""

    steps: int
    blobs: int
    size_before: int
    size_after: int


def pieces(numbers: Iterable[int], size: int) -> Iterator[tuple[int, int]]:
    """The first and last row of the stretches of `size` rows that hold any of `numbers`."""
    last: int | None = None
    for number in numbers:
        if last is None or number // size != last:
            last = number // size
            yield last * size, last * size + size - 1
