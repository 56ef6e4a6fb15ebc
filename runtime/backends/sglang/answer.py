"""From the replies of `/generate` to chunks, if they add up.

Token ids come in; text is made from them here, so that it is the same as the embedded engine's,
and never ends within a character or a stop string.
"""

import math
from collections.abc import Sequence
from typing import Any

from ...calls import Chunk, FinishReason, Request, Usage
from ...engine.text import TextStream
from ...errors import CallFailed, TryAgain
from ...tokenizer import Detokenizer
from .wire import Meta, Reply, Row, aborted

DECODE_WEIGHT = 16  # a decoded token is taken to last as long as so many prefilled ones
_FINISHES: dict[str, FinishReason] = {"stop": "stop", "length": "length"}


class Answer:
    """One answer on its way in: replies to chunks, tokens to text.

    Raises CallFailed if the tokens drawn by an earlier attempt end the answer by themselves.
    `incremental`: a reply has what is new, not all that was drawn so far. `vocabulary` is one more
    than the largest token id, if that is known. A reply that does not add up raises TryAgain.
    """

    def __init__(
        self,
        request: Request,
        detokenizer: Detokenizer,
        eos_ids: frozenset[int],
        vocabulary: int | None = None,
        *,
        incremental: bool,
        where: str,
    ) -> None:
        self.tokens: list[int] = []  # the whole answer so far
        self.come = 0  # tokens that this attempt has brought
        self._vocabulary = vocabulary
        self._request = request
        self._incremental = incremental
        self._where = where
        self._detokenizer = detokenizer
        stop = request.sampling.stop
        self._text = TextStream(detokenizer, stop) if any(stop) else None
        self._eos_ids = frozenset[int]() if request.sampling.ignore_eos else eos_ids
        self._said = ""  # set free and not handed out yet
        self._handed = 0  # tokens handed out
        self._logprobs: list[float] = []
        for token in request.drawn:
            if self._accept(token):
                raise CallFailed("the answer ends within the tokens that were drawn before")

    def read(self, reply: Reply) -> Chunk | None:
        """The chunk that `reply` sets free, if any. Raises where the server gave up by itself."""
        meta = reply.meta_info
        reason = meta.finish_reason
        if reason is not None and (failure := aborted(reason, self._where)) is not None:
            raise failure
        self._take_logprobs(meta)
        finish = self._take_tokens(reply)
        if reason is not None:
            end = self._end(reason, reply)
            finish = finish or end
        if finish is not None:
            return self._last(finish, meta)
        request, new = self._request, len(self.tokens) - self._handed
        least = max(request.chunk_tokens, request.chunk_growth * self._handed)
        ready = request.stream and new >= least and self._has_logprobs()
        return self._chunk() if ready else None

    def abort(self, reply: Reply) -> Chunk:
        """The last chunk of an answer that was aborted at our wish."""
        self._take_logprobs(reply.meta_info)
        self._take_tokens(reply)
        return self._last("abort", reply.meta_info)

    def _take_tokens(self, reply: Reply) -> FinishReason | None:
        """Add the new tokens; `stop` if a stop string was found that the server did not see."""
        new = reply.output_ids if self._incremental else reply.output_ids[self.come :]
        self.come += len(new)
        self._check_tokens(new)
        if self._text is None:
            self.tokens += new
            spoken = new[:-1] if new and new[-1] in self._eos_ids else new
            self._said += self._detokenizer.extend(spoken)
            return None
        for token in new:
            if self._accept(token) and self._text.stopped:
                return "stop"
        return None

    def _check_tokens(self, new: Sequence[int]) -> None:
        limit = self._vocabulary
        if limit is not None and max(new, default=0) >= limit:
            raise TryAgain(f"{self._where}: token {max(new)} came, of a vocabulary of {limit}")
        wanted = self._request.sampling.max_tokens
        if new and len(self._request.drawn) + self.come > wanted:
            raise TryAgain(f"{self._where}: {wanted} tokens were asked for, and more came")

    def _end(self, reason: dict[str, Any], reply: Reply) -> FinishReason:
        """How the server says that the answer ended, once everything adds up."""
        kind, counted = reason.get("type"), reply.meta_info.completion_tokens
        finish = _FINISHES.get(kind) if isinstance(kind, str) else None
        if finish is None:
            raise TryAgain(f"{self._where}: the answer ended for no known reason")
        matched, stop = reason.get("matched"), self._request.sampling.stop
        if isinstance(matched, str) and matched not in stop:  # such as "NaN happened"
            raise TryAgain(f"{self._where}: the answer ended at {matched[:100]!r}, no stop string")
        if counted != self.come:
            raise TryAgain(f"{self._where}: {counted} tokens were drawn, {self.come} came")
        known = self.tokens[len(self._request.drawn) :]
        if not self._incremental and reply.output_ids[: len(known)] != known:
            raise TryAgain(f"{self._where}: the pieces of the answer contradict each other")
        values = len(self._logprobs) - len(self._request.drawn)
        if self._request.logprobs and values != self.come:
            raise TryAgain(f"{self._where}: {self.come} tokens came, {values} log-probabilities")
        return finish

    def _has_logprobs(self) -> bool:
        """Whether they have come for all tokens, if they are wanted."""
        return not self._request.logprobs or len(self._logprobs) >= len(self.tokens)

    def _accept(self, token: int) -> bool:
        """Add a token; whether the answer ends with it."""
        self.tokens.append(token)
        if token in self._eos_ids:
            return True
        if self._text is None:
            self._said += self._detokenizer.push(token)
            return False
        self._said += self._text.push(token)
        return self._text.stopped

    def _take_logprobs(self, meta: Meta) -> None:
        if not self._request.logprobs:
            return
        if not self._logprobs and self._request.drawn:
            drawn = self._request.drawn
            self._logprobs = logprobs(meta.input_token_logprobs, drawn, self._where)
        known = len(self._logprobs) - len(self._request.drawn)
        new = meta.output_token_logprobs or []
        self._logprobs += map(_value, new if self._incremental else new[known:])

    def _chunk(self) -> Chunk:
        first, self._handed = self._handed, len(self.tokens)
        text, self._said = self._said, ""
        wanted = self._request.logprobs
        return Chunk(
            text=text,
            token_ids=tuple(self.tokens[first:]),
            logprobs=tuple(self._logprobs[first : self._handed]) if wanted else None,
        )

    def _last(self, finish: FinishReason, meta: Meta) -> Chunk:
        if not self._has_logprobs():
            raise TryAgain(f"{self._where}: log-probabilities are missing")
        if self._text is not None:
            self._said += self._text.finish()
        rest = self._chunk()
        drawn = len(self.tokens) - len(self._request.drawn)
        return Chunk(
            text=rest.text,
            token_ids=rest.token_ids,
            logprobs=rest.logprobs,
            finish=finish,
            usage=usage(meta, len(self._request.token_ids), drawn),
        )


def usage(meta: Meta, prompt_tokens: int, output_tokens: int) -> Usage:
    """What the server measured; where it keeps no metrics, its total time is shared out."""
    cached = max(0, min(meta.cached_tokens, prompt_tokens))
    queue_s, prefill_s, decode_s = _timings(meta, prompt_tokens - cached, output_tokens)
    return Usage(
        prompt_tokens=prompt_tokens,
        cached_tokens=cached,
        output_tokens=output_tokens,
        queue_s=max(0.0, queue_s),
        prefill_s=max(0.0, prefill_s),
        decode_s=max(0.0, decode_s),
    )


def _timings(meta: Meta, computed: int, drawn: int) -> tuple[float, float, float]:
    begun_s, filled_s = meta.forward_entry_time, meta.prefill_finished_time
    if meta.queue_time is not None and begun_s and filled_s:
        done_s = meta.request_finished_ts or filled_s
        return meta.queue_time, filled_s - begun_s, done_s - filled_s
    total_s = meta.e2e_latency or 0.0
    weight = computed + DECODE_WEIGHT * drawn
    share = computed / weight if weight else 0.0
    return 0.0, total_s * share, total_s * (1.0 - share)


def logprobs(raw: Sequence[Row] | None, tokens: Sequence[int], where: str) -> list[float]:
    """The log-probabilities of `tokens`, with which a prompt ends, of the rows of the prompt."""
    count = len(tokens)
    rows = list(raw or ())[-count:] if count else []
    if len(rows) != count:
        raise TryAgain(f"{where}: {count} log-probabilities were asked for, {len(rows)} came")
    if any(row[1] != token for row, token in zip(rows, tokens, strict=True)):
        raise TryAgain(f"{where}: the log-probabilities are those of other tokens")
    return [_value(row) for row in rows]


def _value(row: Row) -> float:
    """JSON has no infinity: a token that cannot follow has null."""
    return -math.inf if row[0] is None else row[0]
