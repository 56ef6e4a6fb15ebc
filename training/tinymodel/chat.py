"""The chat format: ChatML turns, <think> blocks, Hermes tool calls, and which spans are learned.

`render` and `CHAT_TEMPLATE` write the same text; tests/training holds them to it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CONTROL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END)
MARKUP_TOKENS = (
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
)

Role = Literal["system", "user", "assistant", "tool"]

TOOLS_HEAD = "Tools you may call:\n<tools>\n"
TOOLS_TAIL = (
    '</tools>\nA call looks like <tool_call>{"name": "...", "arguments": {...}}</tool_call>.'
)

_TEMPLATE_LINES = (
    "{%- set first = messages[0] if messages else {} -%}",
    "{%- set system = first.content if first.role == 'system' else '' -%}",
    "{%- if system or tools -%}",
    "{{- '<|im_start|>system\\n' + system -}}",
    "{%- if tools -%}",
    "{{- '\\n\\n' if system else '' -}}",
    "{{- 'Tools you may call:\\n<tools>\\n' -}}",
    "{%- for tool in tools -%}{{- tool | tojson + '\\n' -}}{%- endfor -%}",
    (
        "{{- '</tools>\\nA call looks like <tool_call>"
        '{"name": "...", "arguments": {...}}</tool_call>.\' -}}'
    ),
    "{%- endif -%}",
    "{{- '<|im_end|>\\n' -}}",
    "{%- endif -%}",
    "{%- for message in messages -%}",
    "{%- set content = message.content if message.content else '' -%}",
    "{%- if message.role == 'tool' -%}",
    "{%- if loop.first or messages[loop.index0 - 1].role != 'tool' -%}",
    "{{- '<|im_start|>user' -}}",
    "{%- endif -%}",
    "{{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' -}}",
    "{%- if loop.last or messages[loop.index0 + 1].role != 'tool' -%}",
    "{{- '<|im_end|>\\n' -}}",
    "{%- endif -%}",
    "{%- elif message.role == 'assistant' -%}",
    "{{- '<|im_start|>assistant\\n' -}}",
    "{%- if message.reasoning_content -%}",
    "{{- '<think>\\n' + message.reasoning_content.strip('\\n') + '\\n</think>\\n' -}}",
    "{%- endif -%}",
    "{{- content -}}",
    "{%- for call in message.tool_calls or [] -%}",
    "{%- set function = call.function if call.function else call -%}",
    "{{- '\\n' if content or not loop.first else '' -}}",
    '{{- \'<tool_call>\\n{"name": "\' + function.name + \'", "arguments": \' -}}',
    "{%- if function.arguments is string -%}{{- function.arguments -}}",
    "{%- else -%}{{- function.arguments | tojson -}}{%- endif -%}",
    "{{- '}\\n</tool_call>' -}}",
    "{%- endfor -%}",
    "{{- '<|im_end|>\\n' -}}",
    "{%- elif message.role != 'system' or not loop.first -%}",
    "{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' -}}",
    "{%- endif -%}",
    "{%- endfor -%}",
    "{%- if add_generation_prompt -%}",
    "{{- '<|im_start|>assistant\\n' -}}",
    "{%- if enable_thinking is defined and enable_thinking is false -%}",
    "{{- '<think>\\n</think>\\n' -}}",
    "{%- endif -%}",
    "{%- endif -%}",
)
CHAT_TEMPLATE = "\n".join(_TEMPLATE_LINES)


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of rendered text, and whether the model is trained to write it."""

    text: str
    learned: bool = False


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation, in spans; only an assistant's spans may be learned."""

    role: Role
    spans: tuple[Span, ...]

    @property
    def text(self) -> str:
        """The message's content without its marks."""
        return "".join(span.text for span in self.spans)


def said(role: Role, text: str) -> Turn:
    """A turn to read, not to learn."""
    return Turn(role, (Span(text),))


def answer(text: str) -> Turn:
    """An assistant turn that is learned as a whole."""
    return Turn("assistant", (Span(text, learned=True),))


def thought(steps: str, conclusion: str) -> Turn:
    """An assistant turn that thinks first and then answers."""
    return answer(f"<think>\n{steps}\n</think>\n{conclusion}")


def call_text(name: str, arguments: dict[str, Any]) -> str:
    """A tool call as the assistant writes it."""
    body = f'{{"name": {json.dumps(name)}, "arguments": {json.dumps(arguments)}}}'
    return f"<tool_call>\n{body}\n</tool_call>"


def system_text(system: str, tools: Sequence[dict[str, Any]]) -> str:
    """The system message's content, with the tool list below the author's text."""
    if not tools:
        return system
    listed = "".join(json.dumps(tool, ensure_ascii=False) + "\n" for tool in tools)
    return (system + "\n\n" if system else "") + TOOLS_HEAD + listed + TOOLS_TAIL


def _render_tool_results(results: Sequence[Turn]) -> Span:
    wrapped = "".join(f"\n<tool_response>\n{r.text}\n</tool_response>" for r in results)
    return Span(f"{TURN_START}user{wrapped}{TURN_END}\n")


def _render_turn(turn: Turn) -> list[Span]:
    head = Span(f"{TURN_START}{turn.role}\n")
    if turn.role != "assistant":
        return [head, Span(f"{turn.text}{TURN_END}\n")]
    learned = turn.spans[-1].learned
    return [head, *turn.spans, Span(TURN_END, learned), Span("\n")]


def render(
    turns: Sequence[Turn], system: str = "", tools: Sequence[dict[str, Any]] = ()
) -> list[Span]:
    """The whole conversation as spans of text, in order."""
    spans: list[Span] = []
    head = system_text(system, tools)
    if head:
        spans.append(Span(f"{TURN_START}system\n{head}{TURN_END}\n"))
    results: list[Turn] = []
    for turn in turns:
        if turn.role == "tool":
            results.append(turn)
            continue
        if results:
            spans.append(_render_tool_results(results))
            results = []
        spans.extend(_render_turn(turn))
    if results:
        spans.append(_render_tool_results(results))
    return spans


def prompt_text(
    turns: Sequence[Turn], system: str = "", tools: Sequence[dict[str, Any]] = ()
) -> str:
    """The text that the model is asked to continue."""
    rendered = "".join(span.text for span in render(turns, system, tools))
    return f"{rendered}{TURN_START}assistant\n"
