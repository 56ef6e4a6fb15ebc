"""Questions that a run has stopped at, in its journal: tool calls that wait for somebody's approval,
and those of which nobody knows whether they had their effect."""

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from .errors import InvalidInput, JournalError
from .journal.base import RowRecord, StepRecord
from .journal.store import Store
from .run.codec import encode
from .run.effects import INTENT, QUESTION, WITHDRAWN
from .run.tool_failures import FAILURE, FORGOTTEN
from .run.trust import ASKS, approval_id

NOT_GIVEN: Any = object()  # a result may be null


class _Asked(msgspec.Struct):
    """A question as the journal keeps it (`trust.Approval`)."""

    tool: str
    arguments: dict[str, Any]
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Question:
    """A call that waits: its tool, its arguments, and whose words the chat had read before it.

    `began`: it was started, and cut off or failed; whether it had its effect is the question.
    """

    id: str
    row: int
    path: str
    tool: str
    arguments: dict[str, Any]
    sources: tuple[str, ...]
    began: bool = False


def questions(store: Store, run: str) -> list[Question]:
    """Those that nobody has answered yet, in the order of their rows."""
    found: dict[int, list[Question]] = {}
    failed: set[int] = set()
    for entry in store.entries(run):
        if isinstance(entry, RowRecord):
            if entry.error is None:
                found.pop(entry.row, None)
            elif entry.row in found:
                failed.add(entry.row)
        elif (question := _question(entry)) is not None:
            found.setdefault(entry.row, []).append(question)
    if failed and store.info(run).status == "done":
        for row in failed:  # what came of a call is asked still, for `tenter retry`
            found[row] = [question for question in found[row] if question.began]
    return [question for row in sorted(found) for question in found[row]]


async def answer(
    store: Store, run: str, asked: Iterable[Question], approve: bool, result: Any = NOT_GIVEN
) -> None:
    """Record the answers, so that a resumed run acts on them.

    To approve of a call that had begun is to say that it had no effect, and is to be made; `result`
    says that it had, and what it gave. Raises JournalError where somebody runs the run at present.
    """
    _, journal = store.open(run)
    try:
        durable = [
            _recorded(journal.record, question.row, path, value)
            for question in asked
            for path, value in _answers(question, approve, result)
        ]
        await asyncio.gather(*durable)
    finally:
        await journal.close()


def chosen(asked: list[Question], ids: Iterable[str]) -> list[Question]:
    """The questions of these names; raises InvalidInput for one that is not asked."""
    by_id = {question.id: question for question in asked}
    for name in ids:
        if name not in by_id:
            known = ", ".join(by_id) or "none"
            raise InvalidInput(f"no call {name!r} waits for approval; those that wait: {known}")
    return [by_id[name] for name in dict.fromkeys(ids)]


def _answers(question: Question, approve: bool, result: Any) -> Iterator[tuple[str, bytes]]:
    """What is recorded, and where."""
    yield question.path, encode(approve)
    call = question.path.removesuffix(QUESTION)
    if question.began and result is not NOT_GIVEN:
        yield call, encode(result)
    elif question.began and approve:
        yield f"{call}{FAILURE}", FORGOTTEN
        yield f"{call}{INTENT}", WITHDRAWN


def _recorded(record: Any, row: int, path: str, value: bytes) -> "asyncio.Future[None]":
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    record(StepRecord(row, path, value), lambda: done.set_result(None), True)
    return done


def _question(entry: StepRecord) -> Question | None:
    step = entry.path.rpartition("@")[0].rpartition(".")[0]
    began = entry.path.endswith(QUESTION)
    asks = began or step == ASKS or step.endswith(f".{ASKS}")
    if not asks or not entry.value.startswith(b"{"):
        return None
    try:
        asked = msgspec.json.decode(entry.value, type=_Asked)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        where = f"row {entry.row}: the question at {entry.path!r}"
        raise JournalError(f"{where} cannot be read: {error}") from None
    about = asked.tool, asked.arguments, asked.sources
    return Question(approval_id(entry.row, entry.path), entry.row, entry.path, *about, began)


def shown(question: Question, width: int = 100) -> Iterator[str]:
    """A question for somebody who is to answer it."""
    given = (
        f"{name if name.isidentifier() else repr(name)}={value!r}"
        for name, value in question.arguments.items()
    )
    call = f"{question.tool}({', '.join(given)})"
    yield f"{question.id}  row {question.row:,}  {call[:width]}{'…' if len(call) > width else ''}"
    if question.began:
        yield f"{'':10}was started, and cut off or failed: did it have its effect?"
    else:
        yield f"{'':10}after it had read {', '.join(question.sources)}"
