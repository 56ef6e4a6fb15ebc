"""From a request to the body of `/generate`, and from its answers to chunks.

Token ids go in and come out; text is made from them here, so that it is the same as the embedded
engine's, and never ends within a character or a stop string.
"""

import math
from collections.abc import Sequence
from typing import Any

import msgspec

from ...calls import Chunk, FinishReason, Request, Usage
from ...engine.text import TextStream
from ...errors import CallFailed, TryAgain
from ...tokenizer import Detokenizer
from .info import ServerInfo

DECODE_WEIGHT = 16  # a decoded token is taken to last as long as so many prefilled ones
_ONCE = 1 << 20  # as the interval of a stream: nothing between its first token and its end
_PRIORITY_LIMIT = 1 << 60  # the server's priorities are 64-bit integers
_PRIORITY_STEPS = 1000  # per unit, where a difference cannot throw a running request out
_REFUSALS = range(400, 500)
_PASSING = (408, 425, 429)


class Meta(msgspec.Struct, frozen=True, gc=False):
    """`meta_info` of an answer. A request that was aborted in the queue has few of these."""

    finish_reason: dict[str, Any] | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    e2e_latency: float | None = None
    queue_time: float | None = None
    forward_entry_time: float | None = None
    prefill_finished_time: float | None = None
    request_finished_ts: float | None = None
    input_token_logprobs: list[list[Any]] | None = None
    output_token_logprobs: list[list[Any]] | None = None


class Reply(msgspec.Struct, frozen=True, gc=False):
    """An answer of `/generate`, or a piece of a streamed one; `index` is its place in a batch."""

    meta_info: Meta
    output_ids: list[int] = []
    index: int = 0


class _Error(msgspec.Struct):
    message: str = "the server gave no reason"
    code: int | str | None = None


class _Refusal(msgspec.Struct):
    error: _Error | str


def read_reply(raw: Any, where: str) -> Reply:
    """Raises what an error in the place of an answer means; TryAgain if it is no answer at all."""
    try:
        if not isinstance(raw, dict) or "error" not in raw:
            return msgspec.convert(raw, Reply)
        error = msgspec.convert(raw, _Refusal).error
    except msgspec.ValidationError as problem:
        raise TryAgain(f"{where}: the answer is not that of /generate: {problem}") from None
    if isinstance(error, str):
        raise _refusal(error, None, where)
    raise _refusal(error.message, error.code, where)


def aborted(reason: dict[str, Any], where: str) -> CallFailed | None:
    """What it means that the server ended a request by itself; None if it did not."""
    if reason.get("type") != "abort":
        return None
    message = str(reason.get("message") or "the server aborted the call")
    return _refusal(message, reason.get("status_code"), where)


def _refusal(message: str, status: object, where: str) -> CallFailed:
    text = f"{where}: {message[:500]}"
    final = isinstance(status, int) and status in _REFUSALS and status not in _PASSING
    return CallFailed(text) if final else TryAgain(text)


# ---- asking ------------------------------------------------------------------------------------


def sampling_params(request: Request, room: int) -> dict[str, Any]:
    """`sampling_params` of one request that may draw `room` tokens more at most.

    All that shapes the distribution is spelled out, since a server may have other defaults.
    """
    sampling = request.sampling
    params: dict[str, Any] = {
        "max_new_tokens": room,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or -1,
        "min_p": 0.0,
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
        "repetition_penalty": 1.0,
        "min_new_tokens": 0,
    }
    if any(sampling.stop):
        params["stop"] = [text for text in sampling.stop if text]
    if sampling.seed is not None and sampling.temperature > 0:
        params["sampling_seed"] = sampling.seed
    if sampling.ignore_eos:
        params["ignore_eos"] = True
    if request.schema is not None:
        params["json_schema"] = request.schema
    return params


def stream_interval(request: Request, incremental: bool) -> int:
    """Tokens between two pieces of a streamed answer.

    A server that repeats the whole answer each time is asked for fewer, larger pieces, so that
    the traffic does not grow with the square of the answer.
    """
    if not request.stream:
        return _ONCE
    if incremental:
        return max(1, request.chunk_tokens)
    growing = math.ceil(request.chunk_growth * request.sampling.max_tokens / 4)
    return max(1, request.chunk_tokens, growing)


def room_for(request: Request, context_tokens: int) -> int:
    """Tokens that `request` may draw; raises CallFailed if it can never be answered."""
    prompt, drawn = len(request.token_ids), len(request.drawn)
    if prompt == 0:
        raise CallFailed("the prompt is empty")
    choices = request.choices
    if choices is not None and not all(choices or ((),)):
        raise CallFailed("choices must be given, each of at least one token")
    wanted = max(request.sampling.max_tokens, 0)
    follow = max(map(len, choices)) if choices else min(wanted, 1)
    if prompt + max(follow, drawn + 1 if drawn else 0) > context_tokens:
        raise CallFailed(
            f"the prompt has {prompt} tokens; with {max(follow, drawn)} to follow it does not fit "
            f"the {context_tokens} tokens that the server allows"
        )
    if drawn and drawn >= wanted:
        raise CallFailed("the answer ends within the tokens that were drawn before")
    return min(wanted, context_tokens - prompt) - drawn


def server_priority(priority: float, info: ServerInfo) -> int:
    """`priority` (smaller goes first, any range) as the integer that the server orders by."""
    steps = _PRIORITY_STEPS if info.disable_priority_preemption else 1
    if math.isnan(priority):
        return 0
    limited = max(-_PRIORITY_LIMIT, min(priority * steps, _PRIORITY_LIMIT))
    value = math.floor(limited)
    return value if info.schedule_low_priority_values_first else -value


# ---- answering ---------------------------------------------------------------------------------


class Answer:
    """One answer on its way in: replies to chunks, tokens to text.

    Raises CallFailed if the tokens drawn by an earlier attempt end the answer by themselves.
    `incremental`: a reply has what is new, not all that was drawn so far.
    """

    def __init__(
        self,
        request: Request,
        detokenizer: Detokenizer,
        eos_ids: frozenset[int],
        *,
        incremental: bool,
        where: str,
    ) -> None:
        self.tokens: list[int] = []  # the whole answer so far
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
        finish = self._take_tokens(reply) or _finish(reason)
        if finish is not None:
            return self._last(finish, meta)
        request, new = self._request, len(self.tokens) - self._handed
        least = max(request.chunk_tokens, request.chunk_growth * self._handed)
        return self._chunk() if request.stream and new >= least else None

    def abort(self, reply: Reply) -> Chunk:
        """The last chunk of an answer that was aborted at our wish."""
        self._take_logprobs(reply.meta_info)
        self._take_tokens(reply)
        return self._last("abort", reply.meta_info)

    def _take_tokens(self, reply: Reply) -> FinishReason | None:
        """Add the new tokens; `stop` if a stop string was found that the server did not see."""
        before = len(self.tokens) - len(self._request.drawn)
        new = reply.output_ids if self._incremental else reply.output_ids[before:]
        if self._text is None:
            self.tokens += new
            spoken = new[:-1] if new and new[-1] in self._eos_ids else new
            self._said += self._detokenizer.extend(spoken)
            return None
        for token in new:
            if self._accept(token) and self._text.stopped:
                return "stop"
        return None

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
            drawn = len(self._request.drawn)
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


def _finish(reason: dict[str, Any] | None) -> FinishReason | None:
    if reason is None:
        return None
    return "length" if reason.get("type") == "length" else "stop"


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


def logprobs(raw: Sequence[list[Any]] | None, count: int, where: str) -> list[float]:
    """The last `count` log-probabilities of the prompt's tokens, of [value, token, text] rows."""
    values = [] if count == 0 else list(raw or ())[-count:]
    if len(values) != count:
        raise TryAgain(f"{where}: {count} log-probabilities were asked for, {len(values)} came")
    return [_value(row) for row in values]


def _value(row: Sequence[Any] | None) -> float:
    """JSON has no infinity: a token that cannot follow has null."""
    value = row[0] if row else None
    return float(value) if isinstance(value, int | float) else -math.inf
