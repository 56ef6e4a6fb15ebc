"""What a model's turn says: its text, and the tool calls in it, in the styles that models use."""

import json
import re
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, cast

from ..calls import Message
from .asking import without_thought

TOOL_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)  # in linear time
PYTHON_TAG = "<|python_tag|>"  # Llama 3 begins a call with it
MAX_CALLS = 64  # in one turn


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
