"""What a run has finished, kept across its death: the contract, its journals, and the store."""

from .base import (
    JOURNAL_VERSION,
    MAX_VALUE_BYTES,
    Entry,
    Journal,
    Manifest,
    RowRecord,
    RunInfo,
    RunStatus,
    StepRecord,
    Superseded,
)
from .memory import MemoryJournal, NoJournal
from .sqlite import SqliteJournal
from .store import Store, new_run_id

__all__ = [
    "JOURNAL_VERSION",
    "MAX_VALUE_BYTES",
    "Entry",
    "Journal",
    "Manifest",
    "MemoryJournal",
    "NoJournal",
    "RowRecord",
    "RunInfo",
    "RunStatus",
    "SqliteJournal",
    "StepRecord",
    "Store",
    "Superseded",
    "new_run_id",
]
