"""A small model first, where a step says `cascade`: it answers the rows that it is sure of.

Of each window of rows a sample, drawn evenly, runs first and is asked of both models; that tells
from which confidence on the small one's choice may stand (`reasoning.cascade`). Other rows wait for
that. Sampled rows keep the large model's answer.

The promise is one for all rows of a run: its chance of failing is shared out over the windows, so
that the chance that any of them breaks it is no larger (a union bound). What a window's sample has
told is in the journal, and a resumed run keeps it.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from hashlib import blake2b
from random import Random
from typing import TYPE_CHECKING, Any

import anyio
import msgspec

from ...planner.graph import LLM, Cascade
from ..errors import BackendUnavailable, CallFailed, Drained, JournalError
from ..journal.base import StepRecord
from ..reasoning.cascade import Paired, Threshold, certainty, learn
from ..scheduler.events import CallShared, CascadeLearned
from ..scheduler.loop import NO_PLAN, Answer, PlanHint
from .asking import Asking, check_answer
from .codec import encode
from .sharing import Settled
from .work import LLMWork, RowCall

if TYPE_CHECKING:
    from .host import Host

HOLD_S = 60.0  # for which rows wait for the sample; then the large model answers them
Heard = Callable[[str, float], None]

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Sample:
    """What is known of one step in one window: rows still to come, and pairs so far."""

    step: LLM
    first: int  # the row of the table with which its window begins
    failing: float  # the chance of breaking the promise that this window may have
    wanted: set[int]
    pairs: list[Paired] = field(default_factory=list[Paired])
    held: list[RowCall] = field(default_factory=list[RowCall])
    found: Threshold | None = None
    recalling: bool = False  # the journal is asked what an earlier attempt has found
    timer: asyncio.Task[None] | None = None


Window = Mapping[str, _Sample]
NO_WINDOW: Window = {}


class Cascades:
    """The cascades of one run over rows: `steps` by id, as its plan has them.

    `rows`: so many the table has; None: nobody knows.
    """

    def __init__(self, host: "Host", steps: Mapping[str, LLM], rows: int | None = None) -> None:
        self._host = host
        self._steps = steps
        self._rows = rows
        self._begun = 0  # windows
        self._first = 0  # the row with which the latest one begins,
        self._share = 1.0  # and its share of the chance that the promise is broken
        self._windows: dict[int, Window] = {}  # by row

    def begin(self, rows: Sequence[int]) -> None:
        """The next window has these rows, whichever of them are still to be run."""
        self._begun += 1
        self._first = rows[0] if rows else self._first
        self._share = window_share(self._begun, len(rows), self._rows)

    def window(self, rows: Sequence[int], order: Sequence[int]) -> list[int]:
        """The order of a window's rows, those of its sample in front. At most half are sampled."""
        if not self._steps or not order:
            return list(order)
        random = Random(f"{self._host.seed}/{rows[order[0]]}")
        drawn = random.sample(sorted(order), len(order) // 2)
        most = max(_cascade(step).sample for step in self._steps.values())
        first = set(drawn[:most])
        window = {
            name: _Sample(
                step,
                self._first,
                (1 - _cascade(step).confidence) * self._share,
                {rows[index] for index in drawn[: _cascade(step).sample]},
                recalling=self._host.resumed,
            )
            for name, step in self._steps.items()
        }
        self._windows.update((rows[index], window) for index in order)
        if self._host.resumed:
            self._host.run_task(self._recall(list(window.values())))
        for sample in window.values():
            self._learn(sample)  # where there is no row to wait for
        return sorted(order, key=lambda index: index not in first)  # stable

    def ended(self, row: int) -> None:
        """A row has ended: its calls tell nothing more."""
        for sample in self._windows.pop(row, NO_WINDOW).values():
            if row in sample.wanted:
                sample.wanted.discard(row)
                self._learn(sample)

    def told(self, row: int, path: str, done: Settled) -> Settled:
        """`done` of a step; a sampled row that had its answer elsewhere is waited for no more."""
        sample = self._windows.get(row, NO_WINDOW).get(path)
        if sample is None or row not in sample.wanted:
            return done

        def settled(value: Any, error: Exception | None) -> None:
            self._drop(sample, row)
            done(value, error)

        return settled

    def start_of(self, call: RowCall) -> Callable[[], None] | None:
        """How a call begins; None where it is no cascade's."""
        owner, signature = call.owner, call.signature
        window = self._windows.get(owner.row, NO_WINDOW)
        sample = window.get(call.path)  # steps of loops have other paths
        if sample is None:
            return None
        if owner.row in sample.wanted and signature is not None:
            self._stand_in(sample, owner.row, signature)
        return partial(self._start, sample, call)

    def _stand_in(self, sample: _Sample, row: int, signature: bytes) -> None:
        """Where an equal call waits for the sample already, and this one would wait for that call,
        its row is sampled instead."""
        found = next((n for n, call in enumerate(sample.held) if call.signature == signature), None)
        if found is None:
            return
        call = sample.held.pop(found)
        if not call.owner.ended:
            sample.wanted.add(call.owner.row)
            sample.wanted.discard(row)
        self._start(sample, call)

    def _start(self, sample: _Sample, call: RowCall) -> None:
        if call.owner.ended:
            self._host.abandon(call.signature)
        elif sample.recalling:
            sample.held.append(call)
        elif sample.found is None and call.owner.row in sample.wanted:
            self._pair(sample, call)
        elif sample.found is None:
            sample.held.append(call)
            if sample.timer is None:
                sample.timer = self._host.run_task(self._give_up(sample))
        elif sample.found.at is None:
            self._large(call)
        else:
            self._small(
                call, partial(self._route, call, sample.found.at), partial(self._large, call)
            )

    def _large(self, call: RowCall, done: Settled | None = None) -> None:
        LLMWork(self._host, call if done is None else replace(call, done=done)).start()

    def _small(self, call: RowCall, heard: Heard, failed: Callable[[], None]) -> None:
        asking = self._host.asking(_small_step(call.asking.step))
        _SmallWork(self._host, call, asking, heard, failed).start()

    def _route(self, call: RowCall, at: float, choice: str, confidence: float) -> None:
        """Take the small model's choice, or ask the large one."""
        if not confidence >= at:  # nor where it is no number
            self._large(call)
            return
        host, owner = self._host, call.owner
        host.note(CallShared(program=owner.name, step=call.path, how="small-model"))
        host.record(owner, call.path, choice, call.signature, call.done, known=True)

    # ---- the sample -----------------------------------------------------------------------------

    def _pair(self, sample: _Sample, call: RowCall) -> None:
        """Ask both models, the small one first: with the large one's answer the row may end."""

        def heard(choice: str, confidence: float) -> None:
            def answered(value: Any, error: Exception | None) -> None:
                if error is None and call.owner.row in sample.wanted:
                    sample.pairs.append(Paired(confidence, choice == value))
                self._drop(sample, call.owner.row)
                call.done(value, error)

            self._large(call, answered)

        def failed() -> None:
            self._drop(sample, call.owner.row)
            self._large(call)

        self._small(call, heard, failed)

    def _drop(self, sample: _Sample, row: int) -> None:
        sample.wanted.discard(row)
        self._learn(sample)

    def _learn(self, sample: _Sample) -> None:
        """Once no more pairs will come: find the threshold, and let the others go on."""
        if sample.wanted or sample.found is not None or sample.recalling:
            return
        wish = _cascade(sample.step)
        found = learn(sample.pairs, wish.target, 1 - sample.failing, self._host.seed)
        sample.found = found
        if not self._host.draining:  # which cuts a sample short: a resumed run takes another
            with suppress(JournalError):  # the run ends by itself where nothing can be recorded
                self._host.journal.record(_record(sample, found))
            if found.at is None:
                log.warning("step %r: %s", sample.step.id, found.message)
        self._host.note(
            CascadeLearned(
                step=sample.step.id,
                threshold=found.at,
                sampled=found.sampled,
                routed=found.routed,
                message=found.message,
            )
        )
        if sample.timer is not None:
            sample.timer.cancel()
        self._go_on(sample)

    def _go_on(self, sample: _Sample) -> None:
        held, sample.held = sample.held, []
        for call in held:
            self._start(sample, call)

    async def _recall(self, samples: Sequence[_Sample]) -> None:
        """Keep what an earlier attempt has found for the window; what it had not is learned now."""
        first = samples[0].first
        recorded = await self._host.journal.steps(first, first)
        for sample in samples:
            record = recorded.get((first, _path(sample.step)))
            if record is not None:
                with suppress(msgspec.DecodeError):  # of another version
                    sample.found = msgspec.json.decode(record.value, type=Threshold)
                    sample.wanted.clear()
            sample.recalling = False
            self._learn(sample)
            self._go_on(sample)

    async def _give_up(self, sample: _Sample) -> None:
        await anyio.sleep(HOLD_S)
        sample.timer = None
        held, sample.held = sample.held, []
        for call in held:
            self._large(call)


class _SmallWork(LLMWork):
    """The small model's answer to a call: not recorded by itself, since it may not stand."""

    def __init__(
        self,
        host: "Host",
        call: RowCall,
        asking: Asking,
        heard: Heard,
        failed: Callable[[], None],
    ) -> None:
        path = f"{call.path}.small"
        super().__init__(host, replace(call, path=path, asking=asking, signature=None, values={}))
        self._signature, self._said, self._failed = call.signature, heard, failed

    def _plan(self, call: str) -> PlanHint:
        return NO_PLAN

    def _refused(self, error: Exception) -> None:
        self._failed()

    def done(self, answer: Answer) -> None:
        """Tell the choice and how sure the model is of it, or that there is none."""
        if self._call.owner.ended:
            self._host.abandon(self._signature)
            return
        try:
            check_answer(answer, self.step)
            choice = self._call.asking.read(answer)
        except (Drained, BackendUnavailable, CallFailed):
            self._failed()
            return
        self._said(choice, certainty(answer.choice_logprobs or (0.0,)))


def window_share(number: int, rows: int, total: int | None) -> float:
    """The share of a promise's chance of failing that the window of this number has.

    That of its `rows` in those of the table; where nobody knows how many these are, 1/2, 1/6, 1/12
    and so on. All shares together are at most 1.
    """
    return 1 / (number * (number + 1)) if not total else min(1.0, rows / total)


def _path(step: LLM) -> str:
    """Where the journal has what the sample of a window has told, below its first row."""
    return f"{step.id}.cascade"


def _record(sample: _Sample, found: Threshold) -> StepRecord:
    """What is kept of a sample; with a signature, so that compaction keeps it beyond its row."""
    path = _path(sample.step)
    signature = blake2b(f"{sample.first}/{path}".encode(), digest_size=16).digest()
    return StepRecord(sample.first, path, encode(found), signature)


def _cascade(step: LLM) -> Cascade:
    assert step.cascade is not None
    return step.cascade


@lru_cache(maxsize=256)
def _small_step(step: LLM) -> LLM:
    return replace(step, model=_cascade(step).model, cascade=None)
