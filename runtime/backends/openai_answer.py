"""Chat completions as they come back: events into text, tool calls, counts and choices.

Field names are those of OpenAI's API reference, plus `reasoning_content`, which SGLang and vLLM
give. A tool call that comes as structure becomes the text that a model would have written.
"""

import re
from typing import Any, cast

import msgspec

from ..calls import FinishReason, Request, Usage
from ..errors import CallFailed, TryAgain
from .http_text import shortened

FINISHES: dict[str, FinishReason] = {
    "stop": "stop",
    "tool_calls": "stop",
    "function_call": "stop",
    "eos": "stop",
    "length": "length",
}

CONTEXTS = 4  # a context that nobody told is a guess: counts may be so many times as large


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | dict[str, Any] | None = None


class _ToolCall(msgspec.Struct):
    index: int | None = None
    function: _Function = msgspec.field(default_factory=_Function)


class Said(msgspec.Struct):
    """A message of the assistant, or what a stream adds to it."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Choice(msgspec.Struct):
    message: Said | None = None
    delta: Said | None = None
    finish_reason: str | None = None


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class Counts(msgspec.Struct):
    """What a server counted, in tokens."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _PromptDetails | None = None

    def credible(self, context_tokens: int) -> bool:
        """Whether a model of about this context may have counted so: budgets go by it."""
        most = CONTEXTS * context_tokens
        return 0 <= self.prompt_tokens <= most and 0 <= self.completion_tokens <= most

    def usage(self, prefill_s: float, decode_s: float) -> Usage:
        """With the seconds that the client measured."""
        details, prompt = self.prompt_tokens_details, max(0, self.prompt_tokens)
        cached = (details.cached_tokens if details else None) or 0
        return Usage(
            prompt_tokens=prompt,
            cached_tokens=max(0, min(cached, prompt)),
            output_tokens=max(0, self.completion_tokens),
            prefill_s=prefill_s,
            decode_s=decode_s,
        )


class _Error(msgspec.Struct):
    message: str
    code: int | str | None = None


class Part(msgspec.Struct):
    """One event of a stream, or the whole of a plain answer."""

    choices: list[_Choice] = []
    usage: Counts | None = None
    error: Any = None


def read_part(value: Any, where: str) -> Part:
    """Raises TryAgain for another shape, and for an answer that the server gave up by itself;
    TryAgain or CallFailed for an error in its place."""
    try:
        part = msgspec.convert(value, Part)
    except (msgspec.ValidationError, RecursionError) as error:
        raise TryAgain(f"{where}: the answer is no chat completion: {error}") from None
    if part.error is not None:
        raise _told(part.error, where)
    if any(choice.finish_reason == "abort" for choice in part.choices):
        raise TryAgain(f"{where}: the server aborted the call")
    return part


def _told(error: Any, where: str) -> CallFailed:
    """The error that a server puts into an answer whose status was 200 already."""
    try:
        said = msgspec.convert(error, _Error)
    except (msgspec.ValidationError, RecursionError):
        said = _Error(str(error))
    text = f"{where}: the server says: {shortened(said.message)}"
    lasting = isinstance(said.code, int) and 400 <= said.code < 500 and said.code not in (408, 429)
    return CallFailed(text) if lasting else TryAgain(text)


class Text:
    """An answer's text, put together from its parts: `<think>` block, content, tool calls."""

    def __init__(self) -> None:
        self.finish: str | None = None
        self.counts: Counts | None = None
        self._thinking = False
        self._calls: dict[int, tuple[list[str], list[str]]] = {}  # names, arguments

    def add(self, part: Part) -> str:
        """What `part` adds to the text."""
        self.counts = part.usage or self.counts
        if not part.choices:
            return ""
        choice = part.choices[0]
        self.finish = choice.finish_reason or self.finish
        said = choice.delta or choice.message or Said()
        for place, call in enumerate(said.tool_calls or ()):
            self._hear(place if call.index is None else call.index, call.function)
        return self._think(said.reasoning_content or said.reasoning) + self._speak(said.content)

    def end(self) -> str:
        """What is left to say once all parts have come."""
        calls = [_call_text("".join(names), "".join(args)) for names, args in self._calls.values()]
        return self._close() + "\n".join(calls)

    def _hear(self, index: int, function: _Function) -> None:
        names, arguments = self._calls.setdefault(index, ([], []))
        names.append(function.name or "")
        given = function.arguments
        arguments.append(given if isinstance(given, str) else _json(given) if given else "")

    def _think(self, thought: str | None) -> str:
        if not thought:
            return ""
        opening, self._thinking = "" if self._thinking else "<think>\n", True
        return opening + thought

    def _speak(self, content: str | None) -> str:
        return self._close() + content if content else ""

    def _close(self) -> str:
        thinking, self._thinking = self._thinking, False
        return "\n</think>\n\n" if thinking else ""


class Pieces:
    """Text held back until it is as long as the request wants its chunks; a part is a token."""

    def __init__(self, request: Request) -> None:
        self._tokens, self._growth = request.chunk_tokens, request.chunk_growth
        self._held: list[str] = []
        self._told = 0

    def push(self, text: str) -> str:
        if not text:
            return ""
        self._held.append(text)
        if len(self._held) < max(self._tokens, self._growth * self._told):
            return ""
        return self.rest()

    def rest(self) -> str:
        self._told += len(self._held)
        text = "".join(self._held)
        self._held.clear()
        return text


def chosen(text: str, choices: list[str]) -> int | None:
    """Which choice an answer names: as JSON, as it is, or as the only one that occurs in it."""
    text = text.rpartition("</think>")[2].strip()
    try:
        value: Any = msgspec.json.decode(text)
    except (ValueError, RecursionError):
        value = text
    if isinstance(value, dict):
        value = cast("dict[str, Any]", value).get("choice")
    if value in choices:
        return choices.index(value)
    plain = [choice.strip().casefold() for choice in choices]
    said = str(value).strip().strip("\"'`*.").casefold()
    if said in plain:
        return plain.index(said)
    found = [
        place
        for place, choice in enumerate(plain)
        if choice and re.search(rf"(?<!\w){re.escape(choice)}(?!\w)", said)
    ]
    longest = max(found, key=lambda place: len(plain[place]), default=None)
    if longest is None or any(plain[place] not in plain[longest] for place in found):
        return None  # none, or several of which none says more than the others
    return longest


def _call_text(name: str, arguments: str) -> str:
    """A tool call as a model of the Hermes and Qwen kind writes it."""
    try:
        value: Any = msgspec.json.decode(arguments or "{}")
    except (ValueError, RecursionError):
        value = arguments
    # Within a JSON string only: it would end the call.
    call = _json({"name": name, "arguments": value}).replace("</", "<\\/")
    return f"<tool_call>\n{call}\n</tool_call>"


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
