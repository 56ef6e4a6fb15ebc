"""Answers that are not whole yet: written down as they grow, so that a kill costs little of them."""

from ..calls import Chunk
from ..errors import JournalError
from ..journal.base import Journal, StepRecord
from .codec import decode, encode

CHUNK_TOKENS = 16  # an answer is written down when it has grown by so many tokens,
GROWTH = 0.05  # and by this share, so that long answers are not written over and over
TOLD_GROWTH = 0.02  # where somebody else hears the answer too, token by token at first
WORTH_TOKENS = 16  # an answer that cannot be longer is not written down
MARK = b"~"  # no JSON begins with it: the value of a step that has not ended


class Draft:
    """The tokens drawn so far of one call's answer. The step's own record will replace it.

    `drawn` is what an earlier attempt left.
    """

    def __init__(self, journal: Journal, row: int, path: str, record: StepRecord | None) -> None:
        self._journal = journal
        self._row = row
        self._path = path
        self.drawn = _drawn(record)
        self._tokens: list[int] = []

    def restart(self) -> None:
        """The worker died: the answer begins anew."""
        self._tokens.clear()

    def heard(self, chunk: Chunk) -> None:
        """Take a piece of the answer; the first one begins with what an earlier attempt drew."""
        self._tokens += chunk.token_ids
        try:
            record = StepRecord(self._row, self._path, MARK + encode(self._tokens), spare=True)
            self._journal.record(record)
        except JournalError:
            return  # the run is told of it, and ends


def is_draft(record: StepRecord) -> bool:
    """Whether a recorded step had not ended."""
    return record.value.startswith(MARK)


def _drawn(record: StepRecord | None) -> tuple[int, ...]:
    """The tokens that an earlier attempt drew, if it was cut off."""
    if record is None or not is_draft(record):
        return ()
    return tuple(decode(record.value[len(MARK) :]))
