"""What a model's turn says: its text, and the tool calls in it, in the styles that models use."""

import json
import re
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from typing import Any, cast

from ..calls import Message
from .asking import without_thought

TOOL_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)  # in linear time
CALL_TAG, CALL_END = "<tool_call>", "</tool_call>"
PYTHON_TAG = "<|python_tag|>"  # Llama 3 begins a call with it
THINKS, THOUGHT = "<think>", "</think>"
MAX_CALLS = 64  # in one turn
_TAG = re.compile(f"{CALL_TAG}|{THINKS}|{THOUGHT}")
_BLANK = re.compile(r"\s*")
_BETWEEN = re.compile(r"[\s;]*")  # bare calls


def read_turn(text: str, tools: Iterable[str] = ()) -> Message:
    """The assistant's message in `text`, with its calls of `tools`.

    Hermes and Qwen put each call between tags; Llama 3 says a bare JSON object whose `name` is a
    tool's, with `parameters`. What cannot be read stays in the content: `malformed` says why.
    """
    answer = without_thought(text)
    calls: list[tuple[str, str]] = []
    for found in TOOL_CALL.finditer(answer):
        call = _call(found[1])
        if call is not None and len(calls) < MAX_CALLS:
            calls.append(call)
    if calls:
        return Message("assistant", TOOL_CALL.sub("", answer).strip(), tuple(calls))
    bare = _bare(answer, frozenset(tools))
    return Message("assistant", "" if bare else answer, bare)


class CallStream:
    """Finds the calls in an answer while it grows: each once its JSON object is closed.

    They are what `read_turn` will find, unless the answer goes on in a way that takes them back:
    they were part of a thought, or a bare object was not all that was said. In linear time.
    """

    def __init__(self, tools: Collection[str]) -> None:
        self._tools = tools
        self._text = ""
        self._at = 0  # of `_text`: what lies before it has been looked at
        self._state: Callable[[], str | None] = self._beginning
        self._object = _Object()
        self._found = 0

    def push(self, text: str) -> list[tuple[str, str]]:
        """The calls of `tools` that end in the next piece of the answer: names and arguments."""
        self._text, self._at = self._text[self._at :] + text, 0
        found: list[tuple[str, str]] = []
        before: tuple[Any, int] | None = None
        while before != (self._state, self._at):
            before = self._state, self._at
            body = self._state()
            call = _call(body) if body is not None else None
            if call is not None and call[0] in self._tools and self._found < MAX_CALLS:
                self._found += 1
                found.append(call)
        return found

    def _beginning(self) -> None:
        """Nothing was said yet, or bare calls alone: does another one come?"""
        self._skip(_BETWEEN)
        start = self._text[self._at : self._at + len(PYTHON_TAG)]
        if start.startswith("{"):
            self._state = self._bare
        elif start == PYTHON_TAG:
            self._at += len(PYTHON_TAG)
        elif not any(tag.startswith(start) for tag in (CALL_TAG, PYTHON_TAG, THINKS)):
            self._state = self._prose

    def _prose(self) -> None:
        """Up to the next tag of a call or of a thought."""
        tag = _TAG.search(self._text, self._at)
        if tag is not None:
            self._at = tag.end()
            states = {CALL_TAG: self._tagged, THINKS: self._thinking, THOUGHT: self._beginning}
            self._state = states[tag[0]]
        else:
            self._keep_tail(CALL_TAG)

    def _thinking(self) -> None:
        end = self._text.find(THOUGHT, self._at)
        if end >= 0:
            self._at = end + len(THOUGHT)
            self._state = self._beginning
        else:
            self._keep_tail(THOUGHT)

    def _tagged(self) -> str | None:
        """A call behind its tag."""
        if not self._object.open:
            self._skip(_BLANK)
            if self._text[self._at : self._at + 1] not in ("", "{"):
                self._state = self._prose
                return None
        return self._body(self._prose)

    def _bare(self) -> str | None:
        return self._body(self._beginning)

    def _body(self, then: Callable[[], None]) -> str | None:
        body, self._at = self._object.push(self._text, self._at)
        if body is not None:
            self._state = then
        return body

    def _skip(self, blanks: re.Pattern[str]) -> None:
        found = blanks.match(self._text, self._at)
        self._at = found.end() if found is not None else self._at

    def _keep_tail(self, tag: str) -> None:
        """Nothing was found, but `tag` may have begun."""
        self._at = max(self._at, len(self._text) - len(tag) + 1)


class _Object:
    """One JSON object in a text that comes in pieces."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._depth = 0
        self._quoted = self._escaped = False

    @property
    def open(self) -> bool:
        """Whether it has begun and has not ended."""
        return self._depth > 0

    def push(self, text: str, start: int) -> tuple[str | None, int]:
        """The whole object, once its last brace is there, and where in `text` it ends."""
        for place in range(start, len(text)):
            char = text[place]
            if self._escaped:
                self._escaped = False
            elif self._quoted:
                self._quoted, self._escaped = char != '"', char == "\\"
            elif char == '"':
                self._quoted = True
            elif char in "{}":
                self._depth += 1 if char == "{" else -1
                if self._depth == 0:
                    body = "".join((*self._pieces, text[start : place + 1]))
                    self._pieces.clear()
                    return body, place + 1
        self._pieces.append(text[start:])
        return None, len(text)


def malformed(message: Message) -> str | None:
    """What is wrong with a turn that was meant to call a tool and could not be read as such."""
    text = message.content
    tagged = TOOL_CALL.search(text)
    tag = text.removeprefix(PYTHON_TAG) if text.startswith(PYTHON_TAG) else None
    body = tagged[1] if tagged else tag
    if message.tool_calls or body is None:
        return None
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        return f"the tool call is not JSON: {error}"
    return f'the tool call is an object with "name" and "arguments"; it is {_kind(value)}'


def _kind(value: Any) -> str:
    return "an object without a name" if isinstance(value, dict) else f"a {type(value).__name__}"


def _bare(answer: str, tools: frozenset[str]) -> tuple[tuple[str, str], ...]:
    text = answer.removeprefix(PYTHON_TAG).strip()
    if not text.startswith("{"):
        return ()
    calls = [_call(part.strip()) for part in text.split(";\n")]
    if not all(call is not None and call[0] in tools for call in calls):
        return ()
    return tuple(call for call in calls if call is not None)[:MAX_CALLS]


def _call(text: str) -> tuple[str, str] | None:
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    call = cast("dict[str, Any]", value)
    arguments = call.get("arguments", call.get("parameters", {}))
    if isinstance(arguments, str):  # some models say them as JSON in a string
        with suppress(ValueError, RecursionError):
            inner: Any = json.loads(arguments)
            if isinstance(inner, dict):
                arguments = cast("dict[str, Any]", inner)
    if not isinstance(call.get("name"), str):
        return None
    return call["name"], json.dumps(arguments)
