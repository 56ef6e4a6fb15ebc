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
from .results import Bounds, Holding, Kept, MemoryResults, Results, ResultStore
from .results_thread import ThreadedResults
from .sqlite import SqliteJournal
from .store import Store, new_run_id

__all__ = [
    "JOURNAL_VERSION",
    "MAX_VALUE_BYTES",
    "Bounds",
    "Entry",
    "Holding",
    "Journal",
    "Kept",
    "Manifest",
    "MemoryJournal",
    "MemoryResults",
    "NoJournal",
    "ResultStore",
    "Results",
    "RowRecord",
    "RunInfo",
    "RunStatus",
    "SqliteJournal",
    "StepRecord",
    "Store",
    "Superseded",
    "ThreadedResults",
    "new_run_id",
]
