"""The journal of a run, as one of its shards has it: the run records, the shard hears what is kept."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from itertools import count

from ..errors import JournalError
from ..journal.base import Entry, RowRecord, RunStatus, StepRecord, check
from .messages import MAX_BYTES, Asked, Found, Step

SPARE_BYTES = 32 * 1024 * 1024  # that wait to be sent, above which spare records are left out


class RemoteJournal:
    """Holds records until the run has asked for them; `wake` is called when there is one.

    The ends of rows are no records of a shard's: the run keeps them.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self.on_failure: Callable[[JournalError], None] | None = None
        self._wake = wake
        self._seq = 0
        self._pending: deque[Step] = deque()
        self._pending_bytes = 0
        self._waiting: deque[tuple[int, Callable[[], None]]] = deque()
        self._numbers = count(1)
        self._asked: list[Asked] = []
        self._over = False
        self._answers: dict[int, asyncio.Future[Mapping[bytes, bytes]]] = {}

    def record(
        self, entry: Entry, then: Callable[[], None] | None = None, sync: bool = False
    ) -> None:
        """Have `entry` recorded; `then` is called once the run has."""
        size = check(entry)
        if isinstance(entry, RowRecord):
            raise JournalError(f"row {entry.row}: its end is for the run to record")
        if entry.spare and self._pending_bytes > SPARE_BYTES:
            return
        self._seq += 1
        self._pending.append(
            Step(entry.row, entry.path, entry.value, entry.signature, entry.spare, sync, self._seq)
        )
        self._pending_bytes += size
        if then is not None:
            self._waiting.append((self._seq, then))
        self._wake()

    async def steps(self, first_row: int, last_row: int) -> Mapping[tuple[int, str], StepRecord]:
        return {}  # each row has come with its own

    async def rows(self, first_row: int, last_row: int) -> Mapping[int, RowRecord]:
        return {}  # those that are finished do not come

    async def results(self, signatures: Iterable[bytes]) -> Mapping[bytes, bytes]:
        """What the run's journal has."""
        if self._over:
            raise JournalError("the shard is over")
        number = next(self._numbers)
        self._asked.append(Asked(number, tuple(signatures)))
        self._answers[number] = asyncio.get_running_loop().create_future()
        self._wake()
        try:
            return await self._answers[number]
        finally:
            del self._answers[number]

    async def set_status(self, status: RunStatus, summary: Mapping[str, float]) -> None:
        return

    async def close(self) -> None:
        return

    # ---- what the run hears and tells ----------------------------------------------------------

    @property
    def has_news(self) -> bool:
        return bool(self._pending or self._asked)

    def take(self) -> tuple[tuple[Step, ...], tuple[Asked, ...]]:
        """What is to be recorded next, and what is asked."""
        steps: list[Step] = []
        size = 0
        while self._pending and size < MAX_BYTES:
            step = self._pending.popleft()
            size += len(step.value)
            steps.append(step)
        self._pending_bytes -= size
        asked, self._asked = tuple(self._asked), []
        return tuple(steps), asked

    def kept(self, seq: int) -> None:
        """The run has recorded all up to this one."""
        while self._waiting and self._waiting[0][0] <= seq:
            self._waiting.popleft()[1]()

    def let_go(self) -> None:
        """Nobody asks for what is here any more: whoever waits for an answer hears that."""
        self._over = True
        for future in self._answers.values():
            if not future.done():
                future.set_exception(JournalError("the shard is over"))

    def found(self, answer: Found) -> None:
        """The run has looked."""
        future = self._answers.get(answer.number)
        if future is not None and not future.done():
            future.set_result(answer.results)
