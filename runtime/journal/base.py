"""The journal's door: what a run has finished, recorded before anybody acts on it.

A journal belongs to one run. Steps are keyed by (row, path), results are content-addressed, and
writes are committed in groups (the ideas: DBOS's operation outputs; SAFEFLOW 2506.07564).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

JOURNAL_VERSION = 1

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


@dataclass(frozen=True, slots=True)
class StepRecord:
    """A finished step of a row. `value` is its JSON result as bytes.

    `path` is the step's place in the row ("kind", "parts[3].score"); `signature` is set when
    equal work may be answered from this result (16 bytes).
    """

    row: int
    path: str
    value: bytes
    signature: bytes | None = None


@dataclass(frozen=True, slots=True)
class RowRecord:
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


class Journal(Protocol):
    """One run's record. All methods are called on the event loop's thread and never block it."""

    def record(
        self, entry: StepRecord | RowRecord, then: Callable[[], None] | None = None
    ) -> None:
        """Append `entry`; call `then` on the loop once it is durable. Order is kept.

        After a failed write every waiting program ends with JournalError (`failed`), and
        nothing is acknowledged any more.
        """
        ...

    async def steps(self, first_row: int, last_row: int) -> Mapping[tuple[int, str], StepRecord]:
        """What was recorded for rows first_row..last_row (both included)."""
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
        """Commit what is pending and let go of the store."""
        ...
