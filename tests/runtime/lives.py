"""Programs that die and are resumed, in one process: what was written down outlives them, no more.

A life ends where its journal crashes: from the given write on nothing is acknowledged, and all that
ran is cancelled.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast

from tenter.runtime.approvals import NOT_GIVEN, Question, answer, questions
from tenter.runtime.backends.base import Backend
from tenter.runtime.errors import ApprovalWanted
from tenter.runtime.journal.base import Entry, StepRecord
from tenter.runtime.journal.memory import MemoryJournal
from tenter.runtime.journal.store import Store
from tenter.runtime.run.local import open_host
from tenter.runtime.run.program import Programs
from tenter.runtime.workflow import Workflow

Answers = Callable[[list[Question]], tuple[Question, bool, Any]]
"""What the author says next: to which question, whether the call is made, and what it gave."""


@dataclass
class Book:
    """What has been written, in all lives. The write of number `crash` (from 0) is the last of its
    life, and not acknowledged; it is kept or not."""

    crash: int | None = None
    keep: bool = True
    writes: int = 0
    steps: dict[str, StepRecord] = field(default_factory=dict[str, StepRecord])


class Mortal(MemoryJournal):
    """The journal of one life."""

    def __init__(self, book: Book) -> None:
        super().__init__()
        for step in book.steps.values():
            super().record(step)
        self._book = book
        self.crashed = asyncio.Event()

    def record(
        self, entry: Entry, then: Callable[[], None] | None = None, sync: bool = False
    ) -> None:
        book = self._book
        if self.crashed.is_set() or not isinstance(entry, StepRecord):
            return
        crashes, book.writes = book.writes == book.crash, book.writes + 1
        if book.keep or not crashes:
            book.steps[entry.path] = entry
        if crashes:
            self.crashed.set()
        else:
            super().record(entry, then, sync)


class OneRun:
    """The book as a store of which questions are asked and answered."""

    def __init__(self, book: Book) -> None:
        self._book = book

    def entries(self, run: str) -> Iterator[Entry]:
        return iter(list(self._book.steps.values()))

    def open(self, run: str) -> tuple[None, MemoryJournal]:
        return None, _Answered(self._book)


class _Answered(MemoryJournal):
    def __init__(self, book: Book) -> None:
        super().__init__()
        self._book = book

    def record(
        self, entry: Entry, then: Callable[[], None] | None = None, sync: bool = False
    ) -> None:
        assert isinstance(entry, StepRecord)
        self._book.steps[entry.path] = entry
        super().record(entry, then, sync)


async def live(work: Callable[[], Awaitable[Any]], backend: Backend, book: Book) -> Any:
    """One life: the program's value or its error; None where it was cut off."""
    journal = Mortal(book)
    ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def over(value: Any, error: Exception | None) -> None:
        ended.set_result(value if error is None else error)

    with suppress(asyncio.CancelledError):
        async with open_host(
            {"default": backend}, journal=journal, resumed=True, run="run"
        ) as host:
            recorded: Mapping[str, StepRecord] = dict(book.steps)
            Programs(host, Workflow("w", (), program=work)).arrive(0, {}, over, recorded)
            crash = asyncio.ensure_future(journal.crashed.wait())
            await asyncio.wait([ended, crash], return_when=asyncio.FIRST_COMPLETED)
            crash.cancel()
            if not ended.done():
                raise asyncio.CancelledError  # all that still runs dies with it
    return ended.result() if ended.done() and not journal.crashed.is_set() else None


async def lives(
    work: Callable[[], Awaitable[Any]], backend: Backend, book: Book, answers: Answers
) -> Any:
    """What a program comes to that is resumed until it ends, its questions answered one by one."""
    store = cast("Store", OneRun(book))
    for _ in range(20):
        found = await live(work, backend, book)
        if isinstance(found, ApprovalWanted):
            question, approve, result = answers(questions(store, "run"))
            await answer(store, "run", [question], approve, result)
        elif found is not None:
            return found
    raise AssertionError("the program does not come to its end")


def approve(question: Question) -> tuple[Question, bool, Any]:
    """Let a call run."""
    return question, True, NOT_GIVEN
