"""Errors on their way from a shard to the run: as plain data, of which the run makes errors again."""

from typing import cast

from ..errors import BackendUnavailable, Drained, InvalidInput, RunMismatch, TenterError
from ..run.rows import tell
from .messages import Failure, Over


class ShardFailed(BackendUnavailable):
    """A shard of a run cannot be run: its processes die, or none can be placed."""

    def __init__(self, shard: int, why: str, rows: int) -> None:
        self.shard = shard
        super().__init__(
            f"shard {shard}, with {rows:,} rows left, is given up: {why}. What is recorded stays; "
            f"when the cause is mended (the logs of Ray's workers tell more), resume the run; "
            "`tenter resume RUN --engine local` goes on without Ray"
        )


# ---- in the shard ------------------------------------------------------------------------------


def failure_of(error: BaseException) -> Failure:
    """What ended a shard: the first error of a group."""
    while isinstance(error, BaseExceptionGroup):
        error = cast("BaseExceptionGroup[BaseException]", error).exceptions[0]
    return Failure(_told(error), kind_of(error))


def kind_of(error: BaseException) -> str:
    """What the run must know of an error, beside its text."""
    match error:
        case RunMismatch():
            return "mismatch"
        case InvalidInput():
            return "input"
        case BackendUnavailable():
            return "backend"
        case Drained():
            return "drained"
        case _:
            return ""


def _told(error: BaseException) -> str:
    return tell(error) if isinstance(error, Exception) else type(error).__name__


# ---- in the run --------------------------------------------------------------------------------


def raised(failure: Failure, shard: int, host: str) -> TenterError:
    """The error of a shard that could not go on."""
    return _made(failure.kind, f"shard {shard} on {host}: {failure.message}")


def error_of(over: Over) -> TenterError:
    """The error that a row has ended with."""
    return _made(over.kind, over.error or "")


def _made(kind: str, message: str) -> TenterError:
    match kind:
        case "input":
            return InvalidInput(message)
        case "mismatch":
            return RunMismatch(message)
        case "drained":
            return Drained(message)
        case "backend":
            return BackendUnavailable(message)
        case _:
            return TenterError(message)
