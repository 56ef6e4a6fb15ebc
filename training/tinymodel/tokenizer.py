"""Trains the byte-level BPE tokenizer on the generated jobs."""

import re
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from .chat import CONTROL_TOKENS, MARKUP_TOKENS

VOCABULARY = 1024
_MARKS = re.compile("|".join(re.escape(mark) for mark in (*CONTROL_TOKENS, *MARKUP_TOKENS)))


def _blank() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def train_tokenizer(texts: Iterable[str], vocabulary: int = VOCABULARY) -> Tokenizer:
    """A tokenizer with one token per digit; markup such as <think> stays visible in decoded text."""
    tokenizer = _blank()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[*CONTROL_TOKENS, *MARKUP_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((p for t in texts for p in _MARKS.split(t) if p), trainer)
    return _with_visible_markup(tokenizer)


def _with_visible_markup(trained: Tokenizer) -> Tokenizer:
    """The same vocabulary, with only the control tokens marked special."""
    tokenizer = Tokenizer.from_str(trained.to_str())
    bare = _blank()
    bare.model = tokenizer.model
    bare.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in CONTROL_TOKENS])
    bare.add_tokens([AddedToken(t, normalized=False, special=False) for t in MARKUP_TOKENS])
    return bare


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a checkpoint folder."""
    return Tokenizer.from_file(str(folder / "tokenizer.json"))
