"""The journal's door: what a run has finished, recorded before anybody acts on it.

A journal belongs to one run. Steps are keyed by (row, path), results are content-addressed, and
writes are committed in groups (the ideas: DBOS's operation outputs; SAFEFLOW 2506.07564).

A record is *kept* once the death of the process cannot lose it, and *durable* once the death of the
machine cannot.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from msgspec import Struct

from ..errors import JournalError

JOURNAL_VERSION = 1

MAX_VALUE_BYTES = 64 * 1024 * 1024  # of one recorded value

RunStatus = Literal["running", "paused", "done", "failed"]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a run is of. The fingerprints decide whether it may be resumed."""

    run: str  # run_<sortable id>
    workflow: str
    workflow_fingerprint: str
    model_fingerprint: str
    input_fingerprint: str
    settings: Mapping[str, str]  # what `resume` needs: files, columns, limits (never a secret)
    created_at: str  # ISO 8601, UTC

    @property
    def once(self) -> bool:
        """Whether the run is for a single input, and not over a table."""
        return "once" in self.settings


class StepRecord(Struct, frozen=True, gc=False):
    """A finished step of a row. `value` is its JSON result as bytes.

    `path` is the step's place in the row ("kind", "parts[3].score"); `signature` is set when
    equal work may be answered from this result (16 bytes). A `spare` one is only there to save
    work after a crash, and nobody waits for it: a store that is far behind leaves it out.
    """

    row: int
    path: str
    value: bytes
    signature: bytes | None = None
    spare: bool = False


class RowRecord(Struct, frozen=True, gc=False):
    """A finished row: its JSON result, or the error that ended it."""

    row: int
    value: bytes | None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class RunInfo:
    """A run as `ls` and `show` see it."""

    manifest: Manifest
    status: RunStatus
    rows_done: int
    rows_failed: int
    summary: Mapping[str, float]


Entry = StepRecord | RowRecord


class Superseded(JournalError):
    """Another runner has claimed the run; the store refuses this one's writes."""

    def __init__(self, run: str, by: object = None) -> None:
        taken = "was taken over" if by is None else f"was taken over by {by}"
        super().__init__(
            f"{run} {taken}, since this process gave no sign of life; nothing that it has done "
            "since is recorded"
        )


def check(entry: Entry) -> int:
    """The size of an entry. Refused: one too large, or with a path that is not Unicode."""
    value = entry.value
    size = 0 if value is None else len(value)
    if size > MAX_VALUE_BYTES:
        raise JournalError(
            f"row {entry.row}: a result of {size:,} bytes is larger than a journal takes "
            f"({MAX_VALUE_BYTES:,} bytes); return a reference to it instead"
        )
    if isinstance(entry, StepRecord) and not entry.path.isascii():
        try:
            entry.path.encode()
        except UnicodeEncodeError:
            raise JournalError(
                f"row {entry.row}: step {entry.path!r} is not Unicode text"
            ) from None
    return size


class Journal(Protocol):
    """One run's record. All methods are called on the event loop's thread; none waits there
    for the disk."""

    on_failure: Callable[[JournalError], None] | None
    """Called once on the loop when a write has failed; from then on `record` raises the error."""

    def record(
        self,
        entry: StepRecord | RowRecord,
        then: Callable[[], None] | None = None,
        sync: bool = False,
    ) -> None:
        """Append `entry`; call `then` on the loop once it is kept. Order is kept.

        With `sync`, `then` waits until it is durable, and all that was recorded before it; without,
        it becomes so soon after: use `sync` for what must not be done again, not even after a
        power cut.

        The last record of a key wins. Raises JournalError for an entry that cannot be held (the
        others go on), and after a failed write: then no waiting `then` is ever called,
        `on_failure` is called once, and the caller ends every program with its error.
        """
        ...

    async def steps(self, first_row: int, last_row: int) -> Mapping[tuple[int, str], StepRecord]:
        """What was recorded for rows first_row..last_row (both included), in order of (row, path).

        Like all reads it sees every record made before it, acknowledged or not.
        """
        ...

    async def rows(self, first_row: int, last_row: int) -> Mapping[int, RowRecord]:
        """The finished rows among first_row..last_row."""
        ...

    async def results(self, signatures: Iterable[bytes]) -> Mapping[bytes, bytes]:
        """Recorded JSON results of equal work, by signature."""
        ...

    async def set_status(self, status: RunStatus, summary: Mapping[str, float]) -> None:
        """Durable when it returns."""
        ...

    async def close(self) -> None:
        """Make durable what is pending and let go of the store."""
        ...
