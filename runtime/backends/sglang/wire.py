"""From a request to the body of `/generate`, and what its answers look like."""

import math
from typing import Annotated, Any

import msgspec

from ...calls import Request
from ...errors import CallFailed, TryAgain
from ..http_text import shortened
from .info import ServerInfo

_ONCE = 1 << 20  # as the interval of a stream: nothing between its first token and its end
_PRIORITY_LIMIT = 1 << 60  # the server's priorities are 64-bit integers
_PRIORITY_STEPS = 1000  # per unit, where a difference cannot throw a running request out
_REFUSALS = range(400, 500)
_PASSING = (408, 425, 429)
_Token = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
Row = tuple[float | None, int, Any]  # a log-probability, its token and the token's text


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
    input_token_logprobs: list[Row] | None = None
    output_token_logprobs: list[Row] | None = None


class Reply(msgspec.Struct, frozen=True, gc=False):
    """An answer of `/generate`, or a piece of a streamed one; `index` is its place in a batch."""

    meta_info: Meta
    output_ids: list[_Token] = []
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
    text = f"{where}: {shortened(message)}"
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
