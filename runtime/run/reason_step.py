"""A reasoning step: a strategy that says what to think, and the calls that do it.

Every sample begins with the step's own prompt, so that its KV is computed once. Thoughts are drawn
in pieces: what was drawn is in the cache when a piece ends, and a probe that branches there computes
nothing but its suffix. What a strategy has decided is aborted at once.
"""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ...planner.graph import Sampling
from ..calls import CallId, Chunk, Message, Request
from ..clock import now
from ..errors import StepFailed
from ..journal.base import StepRecord
from ..reasoning.named import build, suffix_of
from ..reasoning.nouns import Cancel, Event, Failed, Finish, Outcome, Probe, Probed, Think, Thought
from ..reasoning.shadow import is_shadow
from ..reasoning.strategy import Step
from ..reasoning.thought import ChainOfThought
from ..scheduler.events import CancelCall, Reasoned
from ..scheduler.loop import Answer
from .asking import Asking, check_answer, seed_for
from .codec import decode, encode
from .owner import Owner
from .sharing import Settled

if TYPE_CHECKING:
    from .host import Host

PIECE_TOKENS = 256  # of a thought, between which probes may branch


class ReasonWork:
    """One reasoning step of one program. Its pieces are recorded below the step's path, so that a
    resumed run thinks on where it was stopped."""

    def __init__(
        self,
        host: "Host",
        owner: Owner,
        path: str,
        asking: Asking,
        chat: list[Message],
        signature: bytes | None,
        done: Settled,
    ) -> None:
        assert asking.step.reasoning is not None
        self._host = host
        self._owner = owner
        self._path = path
        self._asking = asking
        self._chat = chat
        self._signature = signature
        self._done = done
        self._strategy = asking.step.reasoning.strategy
        self._settings: Mapping[str, Any] = json.loads(asking.step.reasoning.settings)

    def start(self) -> None:
        """Let it run, unless its program has ended."""
        if self._owner.ended:
            self._host.abandon(self._signature)
        else:
            self._host.run_for(self._owner, self._run())

    async def _run(self) -> None:
        host, owner = self._host, self._owner
        error: Exception | None = None
        value: Any = None
        try:
            value = await self._reason()
        except asyncio.CancelledError:
            if owner.ended:  # otherwise the whole run ends, and nobody can take over
                host.abandon(self._signature)
            raise
        except Exception as failure:
            error = failure
            owner.note(failure)
        if owner.ended:
            host.abandon(self._signature)
        elif error is not None:
            host.failed(self._signature, error, self._done)
        else:
            host.record(owner, self._path, value, self._signature, self._done)

    async def _reason(self) -> Any:
        """The answer that the strategy decides on."""
        step, owner = self._asking.step, self._owner
        tokenizer = self._asking.model.tokenizer
        suffix = tuple(tokenizer.encode(suffix_of(self._settings)))
        shadow = is_shadow(f"{owner.name}/{self._path}", float(self._settings.get("shadow", 0.0)))
        seed = step.sampling.seed
        if seed is None:
            seed = seed_for(self._host.seed, owner.row, self._path)
        strategy = build(
            self._strategy,
            self._settings,
            step.sampling.max_tokens,
            seed,
            len(suffix),
            stop=not shadow,
        )
        prompt = tuple(tokenizer.chat(self._chat))
        drive = _Drive(self._host, owner, self._path, self._asking, prompt, suffix)
        outcome = await drive.run(strategy)
        self._account(strategy, outcome, shadow)
        if self._host.observe_thought is not None:
            self._host.observe_thought(owner.row, strategy, outcome)
        if outcome.answer is None:
            why = drive.failure or f"its budget of {strategy.budget_tokens} tokens gave no answer"
            raise StepFailed(why, step.id)
        return outcome.answer

    def _account(self, strategy: Step, outcome: Outcome, shadow: bool) -> None:
        would = strategy.would_stop if isinstance(strategy, ChainOfThought) and shadow else None
        kept = None
        if would is not None:
            kept = outcome.answer is not None and would.key == strategy.key(outcome.answer)
        whole = [sample.tokens for sample in outcome.finished]
        typical = sum(whole) / len(whole) if whole else strategy.limit_tokens
        samples = len(strategy.branches)
        asked = getattr(strategy, "n", 1)
        self._host.note(
            Reasoned(
                program=self._owner.name,
                step=self._asking.step.id,
                strategy=self._strategy,
                stopped=outcome.stopped,
                samples=samples,
                thought_tokens=outcome.thought_tokens,
                probe_tokens=outcome.probe_tokens,
                full_tokens=round(typical * asked),
                certainty=outcome.certainty,
                shadow=kept,
            )
        )


@dataclass(slots=True)
class _Sample:
    """The tokens of one chain of thought, and how many of them are the prompt."""

    tokens: list[int]
    began: int
    pieces: int = 0


@dataclass(slots=True)
class _Drive:
    """Performs what a strategy asks for. One task for each request; events come one at a time."""

    host: "Host"
    owner: Owner
    path: str
    asking: Asking
    prompt: tuple[int, ...]
    suffix: tuple[int, ...]
    failure: str = ""
    _samples: dict[int, _Sample] = field(default_factory=dict[int, _Sample])
    _tasks: dict[int, asyncio.Task[None]] = field(default_factory=dict[int, asyncio.Task[None]])

    async def run(self, strategy: Step) -> Outcome:
        """Until the strategy has decided. Nothing of it runs afterwards, however it ends."""
        events: asyncio.Queue[Event] = asyncio.Queue()
        asks = strategy.begin()
        try:
            while True:
                thoughts = sum(isinstance(ask, Think) for ask in asks)
                for ask in asks:
                    match ask:
                        case Finish(outcome):
                            return outcome
                        case Cancel(request):
                            self._stop(request)
                        case Think() | Probe():
                            gang = thoughts if isinstance(ask, Think) else 0
                            work = self._perform(ask, gang, events)
                            self._tasks[ask.request] = asyncio.ensure_future(work)
                        case _:
                            message = "a scorer is needed, and a step has none"
                            events.put_nowait(Failed(ask.request, message))
                asks = strategy.observe(await events.get())
        finally:
            for request in tuple(self._tasks):
                self._stop(request)

    def _stop(self, request: int) -> None:
        task = self._tasks.pop(request, None)
        if task is not None:
            task.cancel()

    async def _perform(self, ask: Think | Probe, gang: int, events: "asyncio.Queue[Event]") -> None:
        try:
            event = await (self._think(ask, gang) if isinstance(ask, Think) else self._probe(ask))
        except StepFailed as error:
            self.failure = str(error)
            event = Failed(ask.request, str(error))
        events.put_nowait(event)
        self._tasks.pop(ask.request, None)

    async def _think(self, ask: Think, gang: int) -> Event:
        """Draw up to `max_tokens` more tokens of a sample, in pieces."""
        sample = self._sample(ask)
        drawn, texts, ended, stopped = 0, list[str](), False, False
        while drawn < ask.max_tokens and not ended and not stopped:
            at = len(sample.tokens) - sample.began
            answer = await self._piece(sample, ask, ask.max_tokens - drawn, gang, at)
            gang = 0  # only the first pieces come together
            sample.tokens += answer.token_ids
            drawn += len(answer.token_ids)
            texts.append(answer.text)
            ended = answer.finish == "stop"
            stopped = ended and bool(ask.until) and not self._closed(answer)
            if not answer.token_ids:
                break
        return Thought(ask.request, "".join(texts), drawn, ended and not stopped, stopped)

    async def _piece(self, sample: _Sample, ask: Think, left: int, gang: int, at: int) -> Answer:
        """One piece, from the journal if an earlier attempt has drawn it."""
        path = f"{self.path}.sample{ask.sample}@{at}"
        record = self.owner.recorded.get(path)
        if record is not None:
            text, token_ids, finish = decode(record.value)
            if len(token_ids) <= left:
                return Answer(text, tuple(token_ids), finish=finish)
        sampling = replace(
            self._sampling(),
            max_tokens=min(PIECE_TOKENS, left),
            stop=(ask.until,) if ask.until else (),
            seed=(ask.seed * 1_000_003 + at) % 2**63,
        )
        answer = await self._ask(path, tuple(sample.tokens), sampling, gang)
        value = encode([answer.text, answer.token_ids, answer.finish])
        self.host.journal.record(StepRecord(self.owner.row, path, value))
        return answer

    async def _probe(self, ask: Probe) -> Event:
        """A trial answer, from where the sample stands or stood."""
        sample = self._samples[ask.sample]
        stood = len(sample.tokens) - sample.began if ask.at_tokens is None else ask.at_tokens
        tokens = (*sample.tokens[: sample.began + stood], *self.suffix)
        sampling = replace(self._sampling(), max_tokens=ask.max_tokens, temperature=0.0, stop=())
        path = f"{self.path}.probe{ask.sample}@{stood}"
        answer = await self._ask(path, tokens, sampling, 0, ask.max_tokens)
        computed = max(0, answer.usage.prompt_tokens - answer.usage.cached_tokens)
        return Probed(
            ask.request,
            answer.text,
            len(answer.token_ids),
            min(computed, len(self.suffix)) if answer.usage.prompt_tokens else len(self.suffix),
            answer.logprobs or (),
        )

    async def _ask(
        self,
        path: str,
        token_ids: tuple[int, ...],
        sampling: Sampling,
        gang: int,
        probe_tokens: int = 0,
    ) -> Answer:
        """One call of the model; aborted when this is cancelled."""
        host, model = self.host, self.asking.model
        call = CallId(f"{self.owner.name}/{path}")
        request = Request(
            call=call,
            token_ids=token_ids,
            sampling=sampling,
            logprobs=bool(probe_tokens) and model.capabilities.logprobs,
            deadline_s=now() + host.call_timeout_s if host.call_timeout_s else None,
            group=f"{self.path}.samples" if gang > 1 else None,
        )
        asked = _Asked(request, self.owner.name, self.asking.step.id, model.pool, gang)
        host.scheduler.submit(asked)
        try:
            answer = await asked.answer
        except asyncio.CancelledError:
            host.scheduler.send(CancelCall(call=call))
            raise
        check_answer(answer, self.asking.step.id)
        return answer

    def _sampling(self) -> Sampling:
        return self.asking.step.sampling

    def _sample(self, ask: Think) -> _Sample:
        """The sample to think on; a new one begins at the prompt, or where its parent stands."""
        sample = self._samples.get(ask.sample)
        if sample is None:
            tokens = self.prompt if ask.parent is None else self._samples[ask.parent].tokens
            sample = self._samples[ask.sample] = _Sample(list(tokens), len(self.prompt))
        if ask.instruction:
            sample.tokens += self.asking.model.tokenizer.encode(ask.instruction)
        return sample

    def _closed(self, answer: Answer) -> bool:
        """Whether the model itself ended, rather than a stop text."""
        eos_ids = self.asking.model.tokenizer.eos_ids
        return bool(answer.token_ids) and answer.token_ids[-1] in eos_ids


class _Asked:
    """One call on its way through the scheduler (a `Submission`)."""

    shared_tokens = 0

    def __init__(self, request: Request, program: str, step: str, model: str, gang: int) -> None:
        self.request = request
        self.program = program
        self.step = step
        self.model = model
        self.gang = gang if gang > 1 else 0
        self.answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def heard(self, chunk: Chunk) -> None:
        """Nothing is streamed."""

    def lost(self) -> None:
        """The answer begins anew."""

    def done(self, answer: Answer) -> None:
        """Hand the answer over, if somebody still waits."""
        if not self.answer.done():
            self.answer.set_result(answer)
