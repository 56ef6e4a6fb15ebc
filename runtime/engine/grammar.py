"""JSON Schemas as grammars over tokens, by llguidance (the `embedded` extra)."""

from collections.abc import Iterable
from functools import lru_cache

import llguidance
import torch
from torch import Tensor

from ..errors import CallFailed

# JSON as json.dumps writes it. With free whitespace a weak model may write blanks forever.
_ITEM_SEPARATOR, _KEY_SEPARATOR = ", ", ": "


class Matcher:
    """How far one answer is in its grammar."""

    def __init__(self, matcher: llguidance.LLMatcher) -> None:
        self._matcher = matcher
        self.failure: str | None = None  # set when the grammar can tell no next token

    def fill(self, row: Tensor) -> None:
        """Write the allowed next tokens into `row`, int32 [words]: one bit per token."""
        if self.failure is None:
            self._matcher.unsafe_compute_mask_ptr(row.data_ptr(), row.numel() * 4)
        if self._matcher.is_error():
            self.failure = f"the grammar cannot go on: {self._matcher.get_error()}"
            row.fill_(-1)

    def advance(self, token: int) -> None:
        """Note that `token` was drawn. Only allowed tokens are."""
        self._matcher.consume_token(token)


class Grammars:
    """Compiles schemas, each once, for one tokenizer."""

    def __init__(self, tokenizer_json: str, vocab: int, eos_ids: Iterable[int]) -> None:
        self._vocab = vocab
        self._tokenizer = llguidance.LLTokenizer(
            tokenizer_json, n_vocab=vocab, eos_token=sorted(eos_ids) or None
        )
        self._compiled = lru_cache(maxsize=256)(self._compile)

    def matcher(self, schema: str) -> Matcher:
        """A matcher at the start of `schema`. Raises CallFailed if it is not a usable schema."""
        return Matcher(self._compiled(schema).deep_copy())

    def restrict(self, logits: Tensor, matchers: list[tuple[int, Matcher]]) -> Tensor:
        """A copy of logits [rows, vocab], -inf where the grammar of a row forbids the token."""
        words = torch.zeros(len(matchers), -(-self._vocab // 32), dtype=torch.int32)
        for row, (_, matcher) in zip(words, matchers, strict=True):
            matcher.fill(row)
        bits = (words.unsqueeze(-1) >> torch.arange(32, dtype=torch.int32)) & 1
        forbidden = (bits.view(len(matchers), -1)[:, : self._vocab] == 0).to(logits.device)
        rows = [index for index, _ in matchers]
        restricted = logits.clone()
        restricted[rows] = logits[rows].masked_fill(forbidden, float("-inf"))
        return restricted

    def _compile(self, schema: str) -> llguidance.LLMatcher:
        try:
            grammar = llguidance.LLMatcher.grammar_from_json_schema(
                schema,
                overrides={
                    "item_separator": _ITEM_SEPARATOR,
                    "key_separator": _KEY_SEPARATOR,
                    "whitespace_flexible": False,
                },
            )
        except ValueError as error:
            raise CallFailed(f"the schema is not JSON: {error}") from None
        matcher = llguidance.LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise CallFailed(f"the schema cannot be used: {matcher.get_error()}")
        return matcher
