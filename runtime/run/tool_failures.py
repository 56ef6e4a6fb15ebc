"""Failures of tool calls in the journal: a resumed program is told of them again, word for word."""

from collections.abc import Mapping

import msgspec

from ..errors import OutcomeUnknown, ToolFailed
from ..journal.base import StepRecord

FAILURE = "~"  # behind a call's path: that it failed, and what was said of it
FORGOTTEN = b"false"  # a failure that is to be told to nobody any more: the call is made again


class _Failure(msgspec.Struct):
    """`unknown` is the place of the call of which nobody knows whether it had its effect, if any."""

    said: str
    step: str
    unknown: str | None = None


def spell_failure(error: ToolFailed) -> bytes:
    """A failure as the journal keeps it."""
    unknown = error.path if isinstance(error, OutcomeUnknown) else None
    return msgspec.json.encode(_Failure(str(error), error.step, unknown))


def failed_before(recorded: Mapping[str, StepRecord], path: str) -> ToolFailed | None:
    """How an earlier attempt at the call at `path` failed, if it did."""
    record = recorded.get(f"{path}{FAILURE}")
    if record is None or record.value == FORGOTTEN:
        return None
    kept = msgspec.json.decode(record.value, type=_Failure)
    if kept.unknown is None:
        error = ToolFailed(kept.said)
    else:
        error = OutcomeUnknown(kept.said, "", kept.unknown)
    error.step = kept.step
    return error


def is_failure(path: str) -> bool:
    """Whether what is recorded there is a failure: a row that is tried again is not told of it."""
    return path.endswith(FAILURE)
