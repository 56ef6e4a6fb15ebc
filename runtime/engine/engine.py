"""The engine: requests in, chunks out, one synchronous step at a time. No threads, no I/O.

submit -> waiting -> (plan: admitted, prefilled in chunks, decoded) -> sampled -> finished
            ^------------------- preempted when pages run out ------------'
"""

from collections.abc import Callable
from dataclasses import asdict
from itertools import count
from typing import NamedTuple

import torch

from ..calls import CallId, Chunk, FinishReason, Load, Request, SessionId
from ..errors import CallFailed
from ..tokenizer import HFTokenizer
from .attention import PagedAttention
from .batch import Batch, Work
from .cache import PAGE_TOKENS, PageCache
from .check import check
from .counters import Counters, StepReport
from .execute import Executor, Results
from .grammar import Grammars, Matcher
from .model import Model
from .sample import log_probabilities, sample, score
from .sessions import Sessions
from .state import Sequence
from .text import TextStream


class Output(NamedTuple):
    """A chunk of the answer to `call`."""

    call: CallId
    chunk: Chunk


class Engine:
    """Answers many requests together over one model and one KV cache.

    `clock` gives seconds; deadlines of `retain` are on it. Not thread-safe: one caller at a time.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: HFTokenizer,
        clock: Callable[[], float],
        *,
        kv_tokens: int,
        max_running: int = 64,
        chunk_tokens: int = 512,
    ) -> None:
        pages = max(kv_tokens // PAGE_TOKENS, 1) + 1
        self.model, self.tokenizer, self.clock = model, tokenizer, clock
        self.cache = PageCache(pages)
        self.batch = Batch(self.cache, max_running, chunk_tokens)
        self.attention = PagedAttention(model.config, pages, model.dtype, model.device)
        self.counters = Counters()
        self.last_step = StepReport(0, 0, 0)
        self.kv_tokens = self.cache.capacity * PAGE_TOKENS
        self._eos_ids = tokenizer.eos_ids | frozenset(model.config.eos_ids)
        self._calls: dict[CallId, Sequence] = {}
        self.sessions = Sessions(self.cache, clock)
        self._arrivals = count()
        self._grammars: Grammars | None = None
        self._executor = Executor(model, self.attention)

    # -- requests

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._calls)

    def submit(self, request: Request) -> None:
        """Take `request` in; its chunks come out of `step`.

        With `max_tokens` 0 the KV of the prompt is computed and nothing drawn. Raises CallFailed
        if the request can never be answered.
        """
        if request.call in self._calls:
            raise CallFailed(f"call {request.call!r} is running already")
        check(request, self.model.config, self.kv_tokens)
        limit = min(self.model.config.context, self.kv_tokens)
        max_output = max(min(request.sampling.max_tokens, limit - len(request.token_ids)), 0)
        sequence = Sequence(request, next(self._arrivals), self.clock(), max_output)
        if not sequence.draws and sequence.forks is None:
            whole = sequence.prompt // PAGE_TOKENS * PAGE_TOKENS  # only full pages stay cached
            del sequence.tokens[whole:]
            sequence.prompt = whole
        if request.schema is not None and sequence.draws:
            sequence.grammar = self._matcher(request.schema)
        if sequence.draws:
            sequence.text = TextStream(self.tokenizer.detokenizer(), request.sampling.stop)
        self._take_up(sequence)
        self._calls[request.call] = sequence
        self.batch.add(sequence)

    def _take_up(self, sequence: Sequence) -> None:
        """Begin the answer with what an earlier attempt has drawn of it."""
        for token in sequence.request.drawn:
            _random(sequence)  # its draw is used up
            if not sequence.draws or sequence.accept(token, self._eos_ids) is not None:
                raise CallFailed("the answer ends within the tokens that were drawn before")

    def abort(self, call: CallId) -> Output | None:
        """Stop `call` and give its pages back; None if it is unknown."""
        sequence = self._calls.get(call)
        return None if sequence is None else self._finish(sequence, "abort")

    # -- sessions

    def retain(self, session: SessionId, until_s: float | None) -> None:
        """Keep the KV of `session` until `until_s` (None: until released), also what a running
        call of it will have added when it ends."""
        self.sessions.retain(session, until_s)

    def release(self, session: SessionId) -> None:
        """Forget `session`; its KV may be evicted."""
        self.sessions.release(session)

    def fork(self, session: SessionId, child: SessionId) -> None:
        """Let `child` name the context of `session`, of which nothing is copied: the pages are
        found in the tree by their tokens. `child` is retained on its own."""
        self.sessions.fork(session, child)

    def load(self) -> Load:
        """What the engine is doing, and its counters."""
        cache = self.cache
        sums = asdict(self.counters) | asdict(cache.counters)
        sums |= {"pins_held": len(cache.pins), "preemptions": self.batch.preemptions}
        return Load(
            running=len(self.batch.running),
            waiting=len(self.batch.waiting),
            kv_used_tokens=(cache.capacity - cache.free_pages) * PAGE_TOKENS,
            kv_pinned_tokens=cache.pinned_pages * PAGE_TOKENS,
            counters={name: float(value) for name, value in sums.items()},
        )

    # -- one step

    @torch.inference_mode()
    def step(self) -> list[Output]:
        """Compute one step, and return what it brought forth."""
        began_s = self.clock()
        self.sessions.expire(began_s)
        work = self.batch.plan()
        outputs = [self._finish(s, "length") for s, tokens in work if tokens == 0]
        work = [item for item in work if item.length]
        if not work:
            return outputs
        self._note(work, began_s)
        plan = self.attention.plan(work)
        planned_s = self.clock()
        results = self._executor.run(plan)
        computed_s = self.clock()
        self.batch.advance(plan.work)
        outputs += self._draw(results)
        outputs += self._score(plan.work, results)
        self.counters.plan_s += planned_s - began_s
        self.counters.model_s += computed_s - planned_s
        self.counters.sample_s += self.clock() - computed_s
        return outputs

    def _note(self, work: list[Work], now_s: float) -> None:
        """Count the step."""
        decoding = sum(1 for sequence, _ in work if sequence.decoding)
        context = 0
        for sequence, tokens in work:
            context += sequence.done + tokens
            if sequence.started_s is None:
                sequence.started_s = now_s
        prefilled = sum(item.length for item in work) - decoding
        self.last_step = StepReport(prefilled, decoding, context)
        sums = self.counters
        sums.steps += 1
        sums.step_rows += len(work)
        sums.largest_batch = max(sums.largest_batch, len(work))
        sums.decode_tokens += decoding
        sums.prefill_tokens += prefilled

    def _draw(self, results: Results) -> list[Output]:
        """Draw the next token of every row that is ready for one."""
        sequences = results.drawing
        if not sequences:
            return []
        logits = results.logits[: len(sequences)]
        matchers = [(row, s.grammar) for row, s in enumerate(sequences) if s.grammar is not None]
        raw = logits
        if matchers and self._grammars is not None:
            logits = self._grammars.restrict(logits, matchers)
        tokens = sample(
            logits, [s.request.sampling for s in sequences], [_random(s) for s in sequences]
        )
        wanted = [row for row, s in enumerate(sequences) if s.request.logprobs]
        if wanted:
            values = log_probabilities(raw[wanted], [tokens[row] for row in wanted])
            for row, value in zip(wanted, values, strict=True):
                sequences[row].logprobs.append(value)
        now_s, outputs = self.clock(), list[Output]()
        for sequence, token in zip(sequences, tokens, strict=True):
            outputs += self._accept(sequence, token, now_s)
        return outputs

    def _accept(self, sequence: Sequence, token: int, now_s: float) -> list[Output]:
        """Add the drawn `token` to its answer; what there is to hand out."""
        self._reached(sequence, now_s)
        reason = sequence.accept(token, self._eos_ids)
        if reason is not None:
            return [self._finish(sequence, reason)]
        request, handed = sequence.request, sequence.handed
        if request.stream and sequence.outputs - handed >= max(
            request.chunk_tokens, request.chunk_growth * handed
        ):
            return [Output(request.call, sequence.chunk())]
        return []

    def _score(self, work: list[Work], results: Results) -> list[Output]:
        """Score choices; end what draws nothing and is computed."""
        score(results.logits[len(results.drawing) :], results.scoring)
        outputs: list[Output] = []
        for sequence, _ in work:
            if not sequence.draws and sequence.done == len(sequence.tokens):
                self._reached(sequence, self.clock())
                outputs.append(self._finish(sequence, "stop" if sequence.forks else "length"))
        return outputs

    def _reached(self, sequence: Sequence, now_s: float) -> None:
        """Note that the prompt of `sequence` is computed, the first time that it is."""
        if sequence.first_s is None:
            sequence.first_s = now_s
            sequence.cached = sequence.prompt - sequence.computed
            self.counters.prompt_tokens += sequence.prompt
            self.counters.cached_tokens += sequence.cached

    # -- the end of a call

    def _finish(self, sequence: Sequence, reason: FinishReason) -> Output:
        call, session = sequence.request.call, sequence.request.session
        self.batch.remove(sequence)
        if session is not None:
            known = min(sequence.done, sequence.sharable)
            self.sessions.extend(session, sequence.tokens[:known])
        del self._calls[call]
        self.counters.calls += 1
        self.counters.aborted += reason == "abort"
        return Output(call, sequence.last_chunk(reason, self.clock()))

    def _matcher(self, schema: str) -> Matcher:
        if self._grammars is None:
            vocab, eos_ids = self.model.config.vocab, self._eos_ids
            self._grammars = Grammars(self.tokenizer.json, vocab, eos_ids)
        return self._grammars.matcher(schema)


def _random(sequence: Sequence) -> float:
    """The next draw of the sequence's own generator: neighbours have no part in it."""
    return 0.0 if sequence.random is None else sequence.random.random()
