"""A small model first, where a step says `cascade`: it answers the rows that it is sure of.

Of each window of rows a sample, drawn evenly, runs first and is asked of both models; that tells
from which confidence on the small one's choice may stand (`reasoning.cascade`). Other rows wait for
that. Sampled rows keep the large model's answer.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from random import Random
from typing import TYPE_CHECKING, Any

import anyio

from ...planner.graph import LLM, Cascade
from ..calls import Message
from ..errors import BackendUnavailable, CallFailed, Drained
from ..reasoning.cascade import Paired, Threshold, certainty, learn
from ..scheduler.events import CallShared, CascadeLearned
from ..scheduler.loop import NO_PLAN, Answer, PlanHint
from .asking import Asking, check_answer
from .owner import Owner
from .sharing import Settled
from .work import LLMWork

if TYPE_CHECKING:
    from .host import Host

HOLD_S = 60.0  # for which rows wait for the sample; then the large model answers them
Heard = Callable[[str, float], None]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Call:
    """One row's call: what is asked, and who is told."""

    owner: Owner
    path: str
    asking: Asking
    chat: list[Message]
    values: Mapping[str, Any]
    signature: bytes | None
    done: Settled


@dataclass(slots=True)
class _Sample:
    """What is known of one step in one window: rows still to come, and pairs so far."""

    step: LLM
    wanted: set[int]
    pairs: list[Paired] = field(default_factory=list[Paired])
    held: list[_Call] = field(default_factory=list[_Call])
    found: Threshold | None = None
    timer: asyncio.Task[None] | None = None


Window = Mapping[str, _Sample]
NO_WINDOW: Window = {}


class Cascades:
    """The cascades of one run over rows: `steps` by id, as its plan has them."""

    def __init__(self, host: "Host", steps: Mapping[str, LLM]) -> None:
        self._host = host
        self._steps = steps
        self._windows: dict[int, Window] = {}  # by row

    def window(self, rows: Sequence[int], order: Sequence[int]) -> list[int]:
        """The order of a window's rows, those of its sample in front. At most half are sampled."""
        if not self._steps or not order:
            return list(order)
        random = Random(f"{self._host.seed}/{rows[order[0]]}")
        drawn = random.sample(sorted(order), len(order) // 2)
        most = max(_cascade(step).sample for step in self._steps.values())
        first = set(drawn[:most])
        window = {
            name: _Sample(step, {rows[index] for index in drawn[: _cascade(step).sample]})
            for name, step in self._steps.items()
        }
        self._windows.update((rows[index], window) for index in order)
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

    def start_of(
        self,
        owner: Owner,
        path: str,
        asking: Asking,
        chat: list[Message],
        values: Mapping[str, Any],
        signature: bytes | None,
        done: Settled,
    ) -> Callable[[], None] | None:
        """How a call begins; None where it is no cascade's."""
        window = self._windows.get(owner.row)
        sample = window.get(path) if window is not None else None  # steps of loops have other paths
        if sample is None:
            return None
        if owner.row in sample.wanted and signature is not None:
            self._stand_in(sample, owner.row, signature)
        call = _Call(owner, path, asking, chat, values, signature, done)
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

    def _start(self, sample: _Sample, call: _Call) -> None:
        if call.owner.ended:
            self._host.abandon(call.signature)
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

    def _large(self, call: _Call, done: Settled | None = None) -> None:
        LLMWork(
            self._host,
            call.owner,
            call.path,
            call.asking,
            call.chat,
            call.signature,
            done or call.done,
            call.values,
        ).start()

    def _small(self, call: _Call, heard: Heard, failed: Callable[[], None]) -> None:
        asking = self._host.asking(_small_step(call.asking.step))
        _SmallWork(self._host, call, asking, heard, failed).start()

    def _route(self, call: _Call, at: float, choice: str, confidence: float) -> None:
        """Take the small model's choice, or ask the large one."""
        if not confidence >= at:  # nor where it is no number
            self._large(call)
            return
        host, owner = self._host, call.owner
        host.note(CallShared(program=owner.name, step=call.path, how="small-model"))
        host.record(owner, call.path, choice, call.signature, call.done, known=True)

    # ---- the sample -----------------------------------------------------------------------------

    def _pair(self, sample: _Sample, call: _Call) -> None:
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
        if sample.wanted or sample.found is not None:
            return
        wish = _cascade(sample.step)
        found = sample.found = learn(sample.pairs, wish.target, wish.confidence, self._host.seed)
        if found.at is None and not self._host.draining:
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
        held, sample.held = sample.held, []
        for call in held:
            self._start(sample, call)

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
        call: _Call,
        asking: Asking,
        heard: Heard,
        failed: Callable[[], None],
    ) -> None:
        path = f"{call.path}.small"
        super().__init__(host, call.owner, path, asking, call.chat, None, call.done, {})
        self._call, self._said, self._failed = call, heard, failed

    def _plan(self, call: str) -> PlanHint:
        return NO_PLAN

    def _refused(self, error: Exception) -> None:
        self._failed()

    def done(self, answer: Answer) -> None:
        """Tell the choice and how sure the model is of it, or that there is none."""
        call = self._call
        if call.owner.ended:
            self._host.abandon(call.signature)
            return
        try:
            check_answer(answer, self.step)
            choice = self._asking.read(answer)
        except (Drained, BackendUnavailable, CallFailed):
            self._failed()
            return
        self._said(choice, certainty(answer.choice_logprobs or (0.0,)))


def _cascade(step: LLM) -> Cascade:
    assert step.cascade is not None
    return step.cascade


@lru_cache(maxsize=256)
def _small_step(step: LLM) -> LLM:
    return replace(step, model=_cascade(step).model, cascade=None)
