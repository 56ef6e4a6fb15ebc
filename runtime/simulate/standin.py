"""Values that a simulated step hands on: nobody has answered, but later prompts need text.

Equal draws give equal values, so that equal calls of different rows stay equal.
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from random import Random
from typing import Any, cast

from ...kvpolicy import key
from ...planner.graph import LLM
from ...planner.plan import CHARS_PER_TOKEN
from ...planner.several import DEFAULT_CHARS
from ...planner.sizes import DEFAULT_ITEMS
from ..calls import Tokenizer
from ..predict import Learned

RESULT_TOKENS = round(DEFAULT_CHARS / CHARS_PER_TOKEN)  # of a tool
WORD = "word "
DEPTH = 8  # of a schema; what lies deeper is text


class StandIns:
    """Draws lengths, seconds, and values of those lengths.

    Lengths of answers and seconds of tools are drawn from what earlier runs have taught, by way of
    its quantiles. Where nothing was learned, a length is drawn evenly from 1 to `max_tokens`, and a
    tool takes `tool_s`.
    """

    def __init__(
        self, workflow: str, tokenizer: Tokenizer, learned: Learned | None, tool_s: float
    ) -> None:
        self._workflow, self._tool_s = workflow, tool_s
        self._known = learned.known.predictors if learned is not None else None
        self._words_per_token = 100 / max(len(tokenizer.encode(WORD * 100)), 1)

    def knows_length(self, step: str) -> bool:
        """Whether answers of `step` were seen."""
        return self._known is not None and self._known["output_tokens"].count(self._key(step)) > 0

    def knows_seconds(self, tool: str) -> bool:
        """Whether calls of `tool` were seen."""
        return self._known is not None and self._known["tool_s"].count(key(tool)) > 0

    def output_tokens(self, step: LLM, random: Random) -> int:
        """How long an answer of `step` is. A choice is read from the logits of the prefill."""
        if step.choices:
            return 1
        most, share = max(step.sampling.max_tokens, 1), random.random()
        if step.sampling.ignore_eos:
            return most
        if self._known is not None and self.knows_length(step.id):
            drawn = self._known["output_tokens"].left(self._key(step.id), share)
            return min(max(round(drawn or 1), 1), most)
        return 1 + int(share * most)

    def seconds(self, tool: str, random: Random) -> float:
        """How long a call of `tool` takes."""
        if self._known is None or not self.knows_seconds(tool):
            return self._tool_s
        return max(self._known["tool_s"].left(key(tool), random.random()) or 0.0, 0.0)

    def answer(self, step: LLM, tokens: int, random: Random) -> Any:
        """An answer of `step` that is `tokens` long."""
        if step.choices:
            return random.choice(step.choices)
        if step.schema is None:
            return self.text(tokens, random)
        return self._of_schema(_schema(step.schema), tokens, random, DEPTH)

    def text(self, tokens: int, random: Random) -> str:
        """Text of about `tokens` tokens, which differs from draw to draw from its beginning on."""
        tag = f"{random.getrandbits(32):08x} "
        return tag + WORD * max(round(tokens * self._words_per_token) - 2, 0)

    def _of_schema(self, schema: Any, tokens: int, random: Random, depth: int) -> Any:
        match schema:
            case {"const": value}:
                return value
            case {"enum": [_, *_] as values}:
                return random.choice(cast("list[Any]", values))
            case {"anyOf": [first, *_]} | {"oneOf": [first, *_]} if depth:
                return self._of_schema(first, tokens, random, depth - 1)
            case {"properties": found} if depth:
                parts = cast("Mapping[str, Any]", found)
                each = tokens // max(len(parts), 1)
                return {
                    name: self._of_schema(part, each, random, depth - 1)
                    for name, part in parts.items()
                }
            case {"type": "array", "items": part} if depth:
                each = tokens // DEFAULT_ITEMS
                return [
                    self._of_schema(part, each, random, depth - 1) for _ in range(DEFAULT_ITEMS)
                ]
            case {"type": "boolean"}:
                return random.random() < 0.5
            case {"type": "integer" | "number"}:
                return random.randrange(100)
            case _:
                return self.text(tokens, random)

    def _key(self, step: str) -> str:
        return key(f"{self._workflow}/{step}")


@lru_cache(maxsize=256)
def _schema(text: str) -> Any:
    return json.loads(text)
