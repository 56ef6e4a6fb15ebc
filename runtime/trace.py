"""The trace: the ordered record of every event and decision of a run, append-only and versioned.

Records are msgspec Structs with a tag; one is one line of JSONL: `{"at_s": ..., "type": ..., ...}`.
Metrics, summaries and reports are folds over it.
"""

from typing import Protocol

import msgspec

TRACE_VERSION = 1


class Record(msgspec.Struct, frozen=True, tag_field="type", tag=True, kw_only=True):
    """Base of everything that goes into a trace. Subclasses add fields; the tag is the class name."""


class Trace(Protocol):
    """Where records go."""

    def write(self, at_s: float, record: Record) -> None:
        """Append `record`, stamped with `at_s` on the run's clock."""
        ...


class NoTrace:
    """Drops everything."""

    def write(self, at_s: float, record: Record) -> None:
        return
