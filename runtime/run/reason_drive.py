"""Performs what a strategy asks for, on the models of a run.

Every sample begins with the step's own prompt, so that its KV is computed once. Thoughts are drawn
in pieces: what was drawn is in the cache when a piece ends, and a probe or a child that branches
there computes nothing but what it adds. What a strategy has decided is aborted at once.
"""

import asyncio
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ...planner.graph import Sampling
from ..calls import CallId, Request
from ..clock import now
from ..errors import CallFailed, Drained, StepFailed
from ..journal.base import StepRecord
from ..reasoning.nouns import (
    Cancel,
    Event,
    Failed,
    Finish,
    Outcome,
    Probe,
    Probed,
    Score,
    Scored,
    Think,
    Thought,
)
from ..reasoning.strategy import Step
from ..scheduler.events import CancelCall
from ..scheduler.loop import Answer, PlanHint
from ..scheduler.placement import OUTPUT_WEIGHT
from .asking import Asking, check_answer
from .codec import decode, encode
from .owner import Owner
from .reason_call import ReasonCall, computed_tokens, told_logprobs
from .reason_samples import Sample, Samples
from .reason_scorer import Scorer

if TYPE_CHECKING:
    from .host import Host

PIECE_TOKENS = 256  # of a thought, between which probes and children may branch
CHUNK_TOKENS, CHUNK_GROWTH = 16, 0.25  # of a piece: what is known of it when it is aborted


@dataclass(slots=True)
class _UnderWay:
    """A request that is being performed: its task, its pieces so far, and the one being drawn.

    `sent`: a probe has been given to the scheduler.
    """

    ask: Think | Probe | Score
    task: "asyncio.Task[None]"
    drawn: int = 0
    call: ReasonCall | None = None
    sent: bool = False


@dataclass(slots=True)
class Drive:
    """One task for each request; events come one at a time.

    `lost_tokens` were decoded for thoughts that were aborted, `lost_probe_tokens` at most for such
    probes; of what they had been granted, `spare_tokens` were not used. `failure` is the last one.
    """

    host: "Host"
    owner: Owner
    path: str
    asking: Asking
    samples: Samples
    strategy: Step
    suffix: tuple[int, ...]
    scorer: Scorer | None = None
    failure: str = ""
    lost_tokens: int = 0
    lost_probe_tokens: int = 0
    spare_tokens: int = 0
    _under_way: dict[int, _UnderWay] = field(default_factory=dict[int, _UnderWay])

    async def run(self) -> Outcome:
        """Until the strategy has decided. Nothing of it runs afterwards, however it ends."""
        events: asyncio.Queue[Event | Exception] = asyncio.Queue()
        asks = self.strategy.begin()
        try:
            while True:
                thoughts = [ask for ask in asks if isinstance(ask, Think) and self._is_new(ask)]
                for ask in asks:
                    match ask:
                        case Finish(outcome):
                            return outcome
                        case Cancel(request):
                            self._stop(request)
                        case _:
                            together = thoughts if ask in thoughts else []
                            task = asyncio.ensure_future(self._perform(ask, together, events))
                            self._under_way[ask.request] = _UnderWay(ask, task)
                event = await events.get()
                if isinstance(event, Exception):
                    raise event
                self._under_way.pop(event.request, None)
                asks = self.strategy.observe(event)
        finally:
            for request in tuple(self._under_way):
                self._stop(request)

    def _stop(self, request: int) -> None:
        """Abort a request, and account for what it had come to."""
        found = self._under_way.pop(request, None)
        if found is None:
            return
        found.task.cancel()
        match found.ask:
            case Think(max_tokens=granted):
                limit = found.call.request.sampling.max_tokens if found.call else 0
                self.lost_tokens += found.drawn + (found.call.heard_tokens if found.call else 0)
                self.spare_tokens += max(0, granted - found.drawn - limit)
            case Probe(max_tokens=granted) if found.sent:
                self.lost_probe_tokens += granted + len(self.suffix)
            case Probe() | Score():
                pass

    async def _perform(
        self,
        ask: Think | Probe | Score,
        together: list[Think],
        events: "asyncio.Queue[Event | Exception]",
    ) -> None:
        event: Event | Exception
        try:
            match ask:
                case Think():
                    event = await self._think(ask, together)
                case Probe():
                    event = await self._probe(ask)
                case Score():
                    event = await self._score(ask)
        except Drained as error:  # the run ends here: this is no answer of the model's
            event = error
        except StepFailed as error:
            self.failure = str(error)
            event = Failed(ask.request, str(error))
        except Exception as error:  # no model any more, or a bug of ours: the step ends
            event = error
        events.put_nowait(event)

    # ---- thoughts -------------------------------------------------------------------------------

    def _is_new(self, ask: Think) -> bool:
        """Whether its first piece has to be drawn: one that the journal has is in no gang."""
        return self._place(ask, self.samples.get(ask)) not in self.owner.recorded

    def _place(self, ask: Think, sample: Sample) -> str:
        return f"{self.path}.sample{ask.sample}@{sample.place}"

    async def _think(self, ask: Think, together: list[Think]) -> Event:
        """Draw up to `max_tokens` more tokens of a sample, in pieces."""
        sample, progress = self.samples.get(ask), self._under_way[ask.request]
        texts, ended, stopped, again = list[str](), False, False, 0
        while progress.drawn < ask.max_tokens and not ended:
            try:
                answer = await self._piece(sample, ask, progress, together)
            except CallFailed as error:
                self.failure = str(error)
                if not progress.drawn:
                    raise
                break  # what came is kept; if it goes on like this the next piece will tell
            together = []  # only the first pieces enter as a gang
            again += computed_tokens(answer) if sample.drawn else 0
            sample.tokens += answer.token_ids
            progress.drawn += len(answer.token_ids)
            texts.append(answer.text)
            ended = answer.finish == "stop"
            stopped = ended and bool(ask.until) and not self.samples.closed(answer.token_ids)
            if not answer.token_ids:
                break
        if not progress.drawn and not ended:
            raise CallFailed("the model gave no token", self.asking.step.id)
        if stopped:
            texts.append(ask.until)
        return Thought(
            ask.request, "".join(texts), progress.drawn, ended and not stopped, stopped, again
        )

    async def _piece(
        self, sample: Sample, ask: Think, progress: _UnderWay, together: list[Think]
    ) -> Answer:
        """One piece, from the journal if an earlier attempt has drawn it."""
        left = ask.max_tokens - progress.drawn
        path = self._place(ask, sample)
        record = self.owner.recorded.get(path)
        if record is not None:
            text, token_ids, finish = decode(record.value)
            if len(token_ids) <= left:
                return Answer(text, tuple(token_ids), finish=finish)
        sampling = replace(
            self._sampling,
            max_tokens=self._piece_tokens(sample, left),
            stop=(ask.until,) if ask.until else (),
            seed=(ask.seed * 1_000_003 + sample.drawn) % 2**63,
        )
        gang = len(together) if len(together) > 1 else 0
        request = Request(
            call=CallId(f"{self.owner.name}/{path}"),
            token_ids=tuple(sample.tokens),
            sampling=sampling,
            deadline_s=self._deadline_s(),
            stream=True,
            chunk_tokens=CHUNK_TOKENS,
            chunk_growth=CHUNK_GROWTH,
            group=f"{self.path}.samples{together[0].request}" if gang else None,
        )
        answer = await self.ask(request, self.asking, gang, progress)
        check_answer(answer, self.asking.step.id)
        value = encode([answer.text, answer.token_ids, answer.finish])
        self.host.journal.record(StepRecord(self.owner.row, path, value))
        return answer

    def _piece_tokens(self, sample: Sample, left: int) -> int:
        """How much to draw at once: up to the end of a page of the cache, and its last token, which
        no cache has."""
        wanted = min(PIECE_TOKENS, self.strategy.grain_tokens() or PIECE_TOKENS)
        if left <= wanted:
            return left
        page_tokens = max(1, self.asking.model.capabilities.page_tokens)
        beyond = (len(sample.tokens) + wanted - 1) % page_tokens
        return wanted - beyond if beyond < wanted else wanted

    # ---- probes and rewards ---------------------------------------------------------------------

    async def _probe(self, ask: Probe) -> Event:
        """A trial answer, from where the sample stands or stood."""
        sample = self.samples.made[ask.sample]
        stood = sample.drawn if ask.at_tokens is None else ask.at_tokens
        if stood < ask.least_tokens:
            return Failed(ask.request, f"the sample has come to {stood} tokens only")
        request = Request(
            call=CallId(f"{self.owner.name}/{self.path}.probe{ask.sample}@{stood}.{ask.request}"),
            token_ids=(*sample.tokens[: sample.began + stood], *self.suffix),
            sampling=replace(self._sampling, max_tokens=ask.max_tokens, temperature=0.0, stop=()),
            logprobs=self.asking.model.capabilities.logprobs,
            deadline_s=self._deadline_s(),
        )
        self._under_way[ask.request].sent = True
        answer = await self.ask(request, self.asking)
        check_answer(answer, self.asking.step.id)
        computed = computed_tokens(answer) if answer.usage.prompt_tokens else len(self.suffix)
        suffix_tokens = min(computed, len(self.suffix))
        return Probed(
            ask.request,
            answer.text,
            len(answer.token_ids),
            suffix_tokens,
            told_logprobs(answer, self.asking.model.tokenizer),
            computed - suffix_tokens,
        )

    async def _score(self, ask: Score) -> Event:
        if self.scorer is None:
            raise StepFailed(f"{type(self.strategy).__name__} asks a scorer, and there is none")
        branch = self.strategy.branches[ask.sample]
        answer = self.strategy.extract(branch.text) if branch.ended else ""
        reward = await self.scorer.score(ask.sample, branch.text, answer, ask.part)
        return Scored(ask.request, reward)

    # ---- calls ----------------------------------------------------------------------------------

    async def ask(
        self,
        request: Request,
        asking: Asking,
        gang: int = 0,
        progress: _UnderWay | None = None,
    ) -> Answer:
        """One call of a model; aborted when this is cancelled."""
        step, scheduler = self.asking.step.id, self.host.scheduler
        call = ReasonCall(request, self.owner.name, step, asking.model.pool, gang)
        if progress is not None:
            progress.call = call
        chain = None
        if progress is not None and isinstance(progress.ask, Think):
            chain = f"{self.path}.sample{progress.ask.sample}"
        left = self._remaining_tokens(request)
        scheduler.submit(call, PlanHint(remaining_tokens=left, chain=chain))
        try:
            return await call.answer
        except asyncio.CancelledError:
            scheduler.send(CancelCall(call=request.call))
            raise
        finally:
            if progress is not None:
                progress.call = None

    def _remaining_tokens(self, request: Request) -> float:
        """The work that the program's reasoning still takes, in the unit of the scheduler: what its
        strategies foresee, and this prompt where nothing of it was computed yet."""
        begun = any(sample.drawn for sample in self.samples.made.values())
        fresh = 0 if begun else len(request.token_ids)
        return fresh + OUTPUT_WEIGHT * self.owner.thinking.forecast_tokens()

    def _deadline_s(self) -> float | None:
        return now() + self.host.call_timeout_s if self.host.call_timeout_s else None

    @property
    def _sampling(self) -> Sampling:
        return self.asking.step.sampling
