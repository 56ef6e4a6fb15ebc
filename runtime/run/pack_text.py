"""Several rows in one prompt, as text: numbered items, and an answer that names them. Pure.

BatchPrompt (2309.00384): items are numbered, asked in several orders, and voted on; an item that
the model is sure of twice running is asked no more (self-reflection-guided early stopping).
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from ...planner.graph import LLM
from ...planner.prompt import Field, Static
from ..calls import Message
from ..errors import OutputInvalid
from .answers import parse_json

SURE_VOTES = 2  # in a row, equal and sure: no more are taken
ITEM_TOKENS = 24  # of an answer, around the value itself


@dataclass(slots=True)
class Ballot:
    """What was said of one item so far, each as canonical JSON, and whether the model was sure."""

    votes: list[tuple[str, bool]] = field(default_factory=list[tuple[str, bool]])
    bad: bool = False

    def add(self, value: Any, sure: bool) -> None:
        """Count a vote."""
        said = json.dumps(value, ensure_ascii=False, sort_keys=True)
        self.votes.append((said, sure))

    def settled(self, most: int) -> bool:
        """Whether no more votes are needed, where `most` are taken at most."""
        last = self.votes[-SURE_VOTES:]
        twice = len(last) == SURE_VOTES and len(set(last)) == 1 and last[0][1]
        ranked = Counter(said for said, _ in self.votes).most_common(2)
        lead = ranked[0][1] - (ranked[1][1] if len(ranked) > 1 else 0) if ranked else 0
        return self.bad or twice or lead > most - len(self.votes)

    def winner(self) -> Any:
        """The value with the most votes; of several the one with more sure ones, then the first."""
        sure = Counter(said for said, sure in self.votes if sure)
        count = Counter(said for said, _ in self.votes)  # in the order of their first votes
        return json.loads(max(count, key=lambda said: (count[said], sure[said])))


def pack_chat(
    step: LLM, texts: Sequence[str], values: Sequence[Mapping[str, Any]], system: str | None
) -> list[Message]:
    """What a model reads: what all prompts begin and end with once, between it the rest of each.

    `texts` are the prompts as rendered, of which `values` are the fields.
    """
    head = _head(step, values)
    tail = _tail(step)
    cut = len(tail)
    rest = [text[len(head) : len(text) - cut].strip("\n") for text in texts]
    parts = [head.rstrip("\n")] if head.strip() else []
    parts += [f"Item {number}:\n{text}" for number, text in enumerate(rest, start=1)]
    parts += [tail.strip("\n")] if tail.strip() else []
    parts.append(_instruction(step, len(texts)))
    user = Message("user", "\n\n".join(parts))
    return [user] if system is None else [Message("system", system), user]


def pack_schema(step: LLM, rows: int) -> str:
    """The JSON Schema of an answer to `rows` items."""
    assert step.pack is not None
    value: dict[str, Any] = {"type": "string"}
    if step.choices:
        value = {"type": "string", "enum": list(step.choices)}
    elif step.schema is not None:
        value = json.loads(step.schema)
    shared = value.pop("$defs", None)
    parts: dict[str, Any] = {"answer": value}
    if step.pack.votes > 1:
        parts["sure"] = {"type": "boolean"}
    items = [_item({"item": {"const": number}, **parts}) for number in range(1, rows + 1)]
    schema: dict[str, Any] = {
        "type": "array",
        "prefixItems": items,
        "items": False,
        "minItems": rows,
        "maxItems": rows,
    }
    return json.dumps(schema if shared is None else {**schema, "$defs": shared})


def _item(parts: dict[str, Any]) -> dict[str, Any]:
    """The schema of one answer."""
    return {
        "type": "object",
        "properties": parts,
        "required": list(parts),
        "additionalProperties": False,
    }


def pack_tokens(step: LLM, rows: int) -> int:
    """The longest answer to `rows` items."""
    longest = max((len(choice.encode()) for choice in step.choices), default=0)  # at most
    return rows * (ITEM_TOKENS + (longest or step.sampling.max_tokens))


def read_pack(text: str, step: LLM, rows: int) -> list[tuple[Any, bool] | None]:
    """The answer to each item, and whether the model is sure; None where there is no good one.

    What is cut off, or has another number than its place, costs that item alone.
    """
    found: list[tuple[Any, bool] | None] = [None] * rows
    for place, said in enumerate(_objects(text)[:rows]):
        number, value = said.get("item"), said.get("answer")
        if number == place + 1 and type(number) is int and _right(value, step):
            found[place] = (value, said.get("sure") is True)
    return found


def _right(value: Any, step: LLM) -> bool:
    if step.choices:
        return isinstance(value, str) and value in step.choices
    try:
        parse_json(json.dumps(value), step.schema or '{"type": "string"}', step.id)
    except OutputInvalid:
        return False
    return True


def _objects(text: str) -> list[dict[str, Any]]:
    """The objects of a JSON array, as far as it goes."""
    decoder, found = json.JSONDecoder(), list[dict[str, Any]]()
    at = text.find("[") + 1
    while at and at < len(text):
        at += len(text[at:]) - len(text[at:].lstrip(" \n\r\t,"))
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            break
        if not isinstance(value, dict):
            break
        found.append(cast("dict[str, Any]", value))
    return found


def _instruction(step: LLM, rows: int) -> str:
    assert step.pack is not None
    sure = ', "sure": true or false}' if step.pack.votes > 1 else "}"
    told = " Say whether you are sure of it." if step.pack.votes > 1 else ""
    return (
        f"There are {rows} items. Answer for each of them by itself, in their order.{told} Write a "
        f'JSON array of {rows} objects: {{"item": its number, "answer": the answer{sure}.'
    )


def _head(step: LLM, values: Sequence[Mapping[str, Any]]) -> str:
    """What all prompts of a pack begin with: text, and fields that have one value in all rows."""
    text = ""
    for part in step.prompt.segments:
        match part:
            case Static():
                text += part.text
            case Field(name, ()):
                printed = {str(each.get(name)) for each in values}
                if len(printed) > 1:
                    break
                text += printed.pop()
            case _:
                break
    return text


def _tail(step: LLM) -> str:
    """The text that all prompts of a step end with."""
    parts = step.prompt.segments
    last = parts[-1] if len(parts) > 1 else None
    return last.text if isinstance(last, Static) else ""
