"""A simulated engine that thinks what was recorded, and samples in rounds: part of
`reasoning_rates`.

The roofline says when tokens come, the records say which answer they lead to and where a thought
ends. The samples of a program are a problem's rollouts; their tokens differ, so no KV is shared
behind the prompt.
"""

import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from msgspec.structs import replace as changed

from tenter.runtime.backends.sim import SimulatedBackend
from tenter.runtime.calls import Chunk, Request
from tenter.runtime.engine.batch import Batch, Work
from tenter.runtime.reasoning.certainty import certaindex
from tenter.runtime.reasoning.nouns import Event, Thought
from tenter.runtime.reasoning.recorded import Recorded
from tenter.runtime.reasoning.strategy import Branch, Step

SUFFIX = "." * 20  # as many tokens as Dynasor's: a byte is a token here
EVERYTHING = 1 << 40
_PLACE = re.compile(r"r(\d+)/.*\.(sample|probe)(\d+)@(\d+)")
_SAMPLES = 64  # token ids that are kept apart for each program
_FIRST_TOKEN = 1_000  # above all bytes


@dataclass(frozen=True, slots=True)
class Place:
    """What a call of a reasoning step asks for: sample and length, and whether a trial answer."""

    row: int
    probe: bool
    sample: int
    at_tokens: int

    @classmethod
    def of(cls, request: Request) -> "Place":
        found = _PLACE.match(request.call)
        if found is None:
            raise ValueError(f"call {request.call!r} is no sample and no probe of a reasoning step")
        row, kind, sample, at = found.groups()
        return cls(int(row), kind == "probe", int(sample), int(at))


class LongestPrefix(Batch):
    """Whoever waits with the most of its prompt in the cache enters first (SGLang's `lpm`)."""

    def plan(self) -> list[Work]:
        size = self.cache.page_tokens
        self.waiting.sort(
            key=lambda one: (-len(self.cache.match(one.tokens, len(one.tokens) // size)), one.order)
        )
        return Batch.plan(self)


class RecordedBackend(SimulatedBackend):
    """Row `i` thinks the rollouts `rollouts[i]`.

    `by_prefix`: a server with nobody in front: it takes every call at once, and orders them itself.
    """

    def __init__(
        self, rollouts: Sequence[Sequence[Recorded]], by_prefix: bool, **settings: Any
    ) -> None:
        super().__init__(answer=self._tokens, **settings)
        self._rollouts = rollouts
        if by_prefix:
            old = self.replica.batch
            self.replica.batch = LongestPrefix(old.cache, old.max_running, old.chunk_tokens)
            self.capabilities = replace(
                self.capabilities, kv_tokens=EVERYTHING, max_running=EVERYTHING
            )

    async def generate(self, request: Request) -> AsyncIterator[Chunk]:
        """The answer in one piece: simulating every step apart would take too long."""
        async for chunk in super().generate(changed(request, stream=False)):
            if chunk.finish == "stop":
                yield self._said(request, chunk)
            else:
                yield chunk

    def _tokens(self, request: Request) -> Sequence[int]:
        place = Place.of(request)
        record = self._rollouts[place.row][place.sample]
        if place.probe:
            trial = record.at(place.at_tokens)
            count = trial.tokens if trial is not None else 1
        else:
            count = record.tokens - place.at_tokens
        token = _FIRST_TOKEN + place.row * _SAMPLES + place.sample
        return [token] * min(max(1, count), request.sampling.max_tokens)

    def _said(self, request: Request, chunk: Chunk) -> Chunk:
        """The text of an answer that is complete, and whether the thought has ended."""
        place = Place.of(request)
        record = self._rollouts[place.row][place.sample]
        if place.probe:
            trial = record.at(place.at_tokens)
            return changed(chunk, text=f"{trial.text if trial is not None else ''}}}")
        if place.at_tokens + len(chunk.token_ids) < record.tokens or not record.ended:
            return changed(chunk, text="", finish="length")
        return changed(chunk, text=f"\\boxed{{{record.answer}}}")


@dataclass(slots=True)
class Rounds(Step):
    """Self-consistency in rounds of `wave` samples, up to `n`; after each it is weighed whether to
    go on: at certaindex `threshold` it stops, None: never (2412.20993, 4.1: from 5 answers on)."""

    n: int = 8
    wave: int = 5
    threshold: float | None = None

    def start(self) -> None:
        self._widen()

    def heed(self, event: Event, branch: Branch) -> None:
        if isinstance(event, Thought) and not event.ended:
            self.think(branch.sample)
        if self.open_requests:
            return
        keys = [self.key(sample.answer) for sample in self.finished]
        if self.threshold is not None and certaindex(keys) >= self.threshold:
            self.settle("settled")
        else:
            self._widen()

    def foresee(self) -> float:
        """The samples of later rounds too, each as long as those so far."""
        lengths = [sample.tokens for sample in self.finished]
        usual = sum(lengths) / len(lengths) if lengths else self.limit_tokens
        return Step.foresee(self) + usual * (self.n - len(self.branches))

    def _widen(self) -> None:
        for _ in range(min(self.wave, self.n - len(self.branches))):
            self.think(max_tokens=max(1, self.budget_tokens // self.n))
