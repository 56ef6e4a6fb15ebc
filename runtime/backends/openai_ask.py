"""Chat completions as they are asked for: a request as the body of a POST.

Field names are those of OpenAI's API reference.
"""

from typing import Any

import msgspec

from ..calls import Message, Request, Sampling, Tokenizer, ToolSpec
from ..errors import CallFailed

CHOICE_TOKENS = 32  # for the JSON around a choice


def body_of(request: Request, model: str, choices: list[str], schemas: bool) -> dict[str, Any]:
    """The request body. `schemas`: the server takes JSON Schemas; if not, words must do.

    Raises CallFailed for a request without messages.
    """
    if not request.messages:
        raise CallFailed("this server takes messages, and the request has only token ids")
    schema = choice_schema(choices) if choices else request.schema
    instruction = ""
    if schema is not None and not schemas:
        instruction = choice_instruction(choices) if choices else schema_instruction(schema)
    messages = messages_of(request.messages, instruction)
    body: dict[str, Any] = {"model": model, "messages": messages}
    body |= _of_choice(request) if choices else _of_sampling(request.sampling)
    if request.tools:
        body["tools"] = [_tool(tool) for tool in request.tools]
    if schema is not None and schemas:
        form = {"name": "answer", "strict": True, "schema": _raw(schema)}
        body["response_format"] = {"type": "json_schema", "json_schema": form}
    if request.stream and not choices:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return body


def _of_sampling(sampling: Sampling) -> dict[str, Any]:
    """What is not as servers have it by default; not all of them know `top_k` and `ignore_eos`."""
    body: dict[str, Any] = {
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
    }
    if sampling.top_p != 1.0:
        body["top_p"] = sampling.top_p
    if sampling.top_k:
        body["top_k"] = sampling.top_k
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if sampling.ignore_eos:
        body["ignore_eos"] = True
    return body


def _of_choice(request: Request) -> dict[str, Any]:
    """Room for the longest choice, twice, since the tokens may be an estimate."""
    longest_tokens = max(map(len, request.choices or ()), default=0)
    return {"max_tokens": 2 * longest_tokens + CHOICE_TOKENS, "temperature": 0.0}


def messages_of(messages: tuple[Message, ...], instruction: str = "") -> list[dict[str, Any]]:
    """Messages with the ids that tie a tool's result to its call; `instruction` ends the last."""
    found: list[dict[str, Any]] = []
    waiting: list[str] = []  # calls without a result, in order
    number = 0
    for message in messages:
        one: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.tool_calls:
            waiting = [f"call_{number + place}" for place in range(len(message.tool_calls))]
            number += len(waiting)
            one["tool_calls"] = [
                {"id": key, "type": "function", "function": {"name": name, "arguments": arguments}}
                for key, (name, arguments) in zip(waiting, message.tool_calls, strict=True)
            ]
        elif message.role == "tool":
            one["tool_call_id"] = waiting.pop(0) if waiting else "call_unknown"
        found.append(one)
    if instruction:
        found[-1]["content"] += f"\n\n{instruction}"
    return found


def choice_schema(choices: list[str]) -> str:
    """An object with one member: some servers take no other kind at the top."""
    one = {"type": "string", "enum": choices}
    return _json(
        {
            "type": "object",
            "properties": {"choice": one},
            "required": ["choice"],
            "additionalProperties": False,
        }
    )


def choice_instruction(choices: list[str]) -> str:
    """For servers without schemas."""
    return f"Answer with one of these and nothing else: {', '.join(map(_json, choices))}"


def schema_instruction(schema: str) -> str:
    """For servers without schemas; the answer is validated in any case."""
    return f"Answer with JSON that fits this JSON Schema and nothing else: {schema}"


def texts_of(choices: tuple[tuple[int, ...], ...] | None, tokenizer: Tokenizer) -> list[str]:
    """The texts whose token ids, each with the end of a turn, a request gives as its choices."""
    ends = tokenizer.end_of_turn_ids
    cut = [
        ids[: len(ids) - len(ends)] if ids[-len(ends) :] == ends else ids for ids in choices or ()
    ]
    return [tokenizer.decode(list(ids)) for ids in cut]


def _tool(tool: ToolSpec) -> dict[str, Any]:
    function = {
        "name": tool.name,
        "description": tool.description,
        "parameters": _raw(tool.parameters),
    }
    return {"type": "function", "function": function}


def _raw(text: str) -> msgspec.Raw:
    return msgspec.Raw(text.encode("utf-8", "replace"))


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
