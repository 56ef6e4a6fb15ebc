"""How far a live program has come, and what there was to come at each of its marks.

Marks are numbers of ended calls: 0, 1, 2, 3, then a half and a whole power of two in turn. When a
program ends, what was left at each of its marks is known; so what is left of another one is that of
those which have reached the same mark and then outlasted what it has done since.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from .asked import Asked
from .known import Judged

LARGEST = 4_096  # calls; a longer program stays on the last mark
MARKS = frozenset((0, 1, 2, 3, *(2**p for p in range(2, 13)), *(3 * 2**p for p in range(1, 11))))


class Done(NamedTuple):
    """What a program has done: ended calls, output tokens, and work (`Remaining.work_tokens`)."""

    calls: int = 0
    output_tokens: int = 0
    work_tokens: int = 0


NOTHING = Done()


@dataclass(slots=True)
class Progress:
    """A program between its arrival and its end."""

    workflow: str
    serial: int
    done: Done = NOTHING
    last_tokens: int = 0
    marks: list[Done] = field(default_factory=lambda: [NOTHING])
    asked: dict[str, tuple[Asked, Judged | None]] = field(  # calls that have not ended
        default_factory=dict[str, tuple[Asked, Judged | None]]
    )
    whole: bool = True  # nothing of it was done in an earlier run

    def add(self, output_tokens: int, computed_tokens: int, weight: int) -> None:
        """A call has ended, whose prompt took `computed_tokens`."""
        calls, output, work = self.done
        self.last_tokens = output_tokens
        work += computed_tokens + weight * output_tokens
        self.done = Done(calls + 1, output + output_tokens, work)
        if calls + 1 in MARKS:
            self.marks.append(self.done)

    @property
    def mark(self) -> Done:
        """The last mark that it has reached."""
        return self.marks[-1]
