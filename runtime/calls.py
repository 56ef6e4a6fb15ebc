"""The nouns of one generation request: what a backend is asked, and what it answers.

Everything that crosses the backend door is here, so that the scheduler, the engine and the
backends share words without importing each other. Token counts are `_tokens`, times `_s`.
"""

from dataclasses import dataclass, field
from typing import Literal, NewType, Protocol

import msgspec

from ..planner.graph import Sampling

CallId = NewType("CallId", str)
SessionId = NewType("SessionId", str)

FinishReason = Literal["stop", "length", "abort", "error"]


GREEDY = Sampling()


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool as a model sees it. `parameters` is a JSON Schema as text."""

    name: str
    description: str
    parameters: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat. `tool_calls` holds (name, arguments as JSON text)."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    tool_calls: tuple[tuple[str, str], ...] = ()


class Request(msgspec.Struct, frozen=True, gc=False):
    """One generation request.

    `token_ids` is the whole prompt, so that a prefix stays a prefix. With `choices` (token ids of
    each choice, closing token included) nothing is decoded: the last chunk carries the
    log-probability of each. `schema` is a JSON Schema as text that the output must satisfy.
    `session` names the KV context that the call extends and that `retain` keeps. With `drawn` the
    answer goes on where an earlier attempt of the same call was cut off: those tokens are part of
    it, and are not drawn again (`Capabilities.resumes`). Calls of one `group` that are asked in the
    same turn of the event loop go to a remote server as one batch. `messages` and `tools` are what
    `token_ids` was made of, for servers that take nothing but text.
    """

    call: CallId
    token_ids: tuple[int, ...]
    sampling: Sampling = GREEDY
    session: SessionId | None = None
    choices: tuple[tuple[int, ...], ...] | None = None
    schema: str | None = None
    logprobs: bool = False
    priority: float = 0.0  # smaller goes first
    deadline_s: float | None = None  # on the clock of `clock.now`
    stream: bool = False  # chunks as tokens come; otherwise one last chunk
    chunk_tokens: int = 1  # of a streamed answer: at least so many tokens per chunk,
    chunk_growth: float = 0.0  # and at least this share of what was handed out before
    drawn: tuple[int, ...] = ()  # the answer's first tokens, drawn by an earlier attempt
    group: str | None = None
    messages: tuple[Message, ...] = ()
    tools: tuple[ToolSpec, ...] = ()


class Usage(msgspec.Struct, frozen=True, gc=False):
    """What the engine measured for one call. Seconds are of the backend's own clock."""

    prompt_tokens: int = 0
    cached_tokens: int = 0  # of the prompt, taken from the KV cache
    output_tokens: int = 0  # drawn for this request (not those of `Request.drawn`)
    queue_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0


class Chunk(msgspec.Struct, frozen=True, gc=False):
    """A piece of an answer. Only the last one has `finish` and `usage`.

    `text` and `token_ids` are what is new since the previous chunk; `text` never ends within a
    character and never holds a part of a stop string. `token_ids` includes the closing token.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] | None = None  # one per token of `token_ids`, if asked for
    finish: FinishReason | None = None
    usage: Usage | None = None
    choice_logprobs: tuple[float, ...] | None = None  # one per choice: natural log, summed
    error: str | None = None  # with finish == "error"


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend can do, found by asking it."""

    name: str
    model: str  # name or path, as the backend reports it
    model_fingerprint: str  # changes when the weights or the tokenizer change
    context_tokens: int  # longest prompt plus output
    kv_tokens: int  # capacity of the KV cache
    page_tokens: int  # granularity of prefix reuse
    max_running: int  # calls that decode together
    retention: Literal["pins", "sessions", "priority", "touch", "none"] = "none"
    schemas: bool = False
    choices: bool = False
    logprobs: bool = False
    resumes: Literal["no", "text", "all"] = "no"  # takes `Request.drawn`: never, without a schema
    joins: bool = False  # calls that run share what they compute of equal prompts
    tiered: bool = False  # evicted KV comes back from a tier below, as of the host's memory
    priorities: bool = False  # orders its own waiting line by `Request.priority`
    remote: bool = False  # others may use it too: its load is asked for, and it may come back
    place: str = ""  # names it to all processes that use it, such as its URL; "": it is not shared


@dataclass(frozen=True, slots=True)
class Load:
    """What a backend is doing now."""

    running: int = 0
    waiting: int = 0
    kv_used_tokens: int = 0  # in use or cached, not free
    kv_pinned_tokens: int = 0
    counters: dict[str, float] = field(default_factory=dict[str, float])


class Tokenizer(Protocol):
    """Text to token ids and back, with the model's chat template."""

    eos_ids: frozenset[int]
    end_of_turn_ids: tuple[int, ...]  # what closes an assistant turn

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, special tokens recognised, none added."""
        ...

    def decode(self, token_ids: list[int]) -> str:
        """Text of `token_ids`, special tokens left out."""
        ...

    def chat(self, messages: list[Message], tools: tuple[ToolSpec, ...] = ()) -> list[int]:
        """Token ids of a chat, ready for the assistant's next turn."""
        ...

    def follow(self, messages: list[Message], tools: tuple[ToolSpec, ...] = ()) -> list[int] | None:
        """What comes behind an assistant's text: its end, `messages`, and the next turn's opening.

        Put behind the tokens of a chat and of its answer, they are the chat that goes on, and the
        KV of those tokens stays of use. None where the template cannot be taken apart so.
        """
        ...
