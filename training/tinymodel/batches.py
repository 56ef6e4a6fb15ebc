"""Endless training batches: rows packed with samples, loss weights, and stretched positions."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor

from .mix import draw_dressed, spans_of
from .sample import Random

LABEL_JOBS = frozenset({"classify", "route"})
LABEL_WEIGHT = 4.0  # a label is one or two tokens beside the hundred of a calculation
STRETCHED_SHARE = 0.3  # batches whose positions jump, so that distances beyond the row are seen
STRETCHED_FROM_TOKENS = 1024  # jumps in short rows slow the learning of arithmetic
MOST_MISFITS = 8  # samples passed over because they do not fit into the rest of a row


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of equal length; `weights` is zero where nothing is learned."""

    ids: Tensor
    positions: Tensor
    targets: Tensor
    weights: Tensor


def _encode(r: Random, tokenizer: Tokenizer, row_tokens: int) -> tuple[list[int], list[float]]:
    """One sample as token ids with a loss weight per token."""
    sample = draw_dressed(r, row_tokens)
    weight = LABEL_WEIGHT if sample.job in LABEL_JOBS else 1.0
    spans = spans_of(sample)
    ids: list[int] = []
    weights: list[float] = []
    for encoding, span in zip(tokenizer.encode_batch([s.text for s in spans]), spans, strict=True):
        ids += encoding.ids
        weights += [weight if span.learned else 0.0] * len(encoding.ids)
    return ids, weights


def _row(r: Random, tokenizer: Tokenizer, row_tokens: int) -> tuple[list[int], list[float]]:
    """Whole samples one after the other; only the last one is cut where the row ends."""
    ids: list[int] = []
    weights: list[float] = []
    misfits = 0
    while len(ids) <= row_tokens:
        more_ids, more_weights = _encode(r, tokenizer, row_tokens)
        if len(ids) + len(more_ids) > row_tokens + 1 and misfits < MOST_MISFITS:
            misfits += 1
            continue
        ids += more_ids
        weights += more_weights
    return ids[: row_tokens + 1], weights[: row_tokens + 1]


def stretched_positions(r: Random, row_tokens: int, longest: int) -> Tensor:
    """0, 1, 2, ...; in long rows sometimes with up to three jumps, at most to `longest` - 1."""
    steps = [1] * row_tokens
    if STRETCHED_FROM_TOKENS <= row_tokens < longest and r.random() < STRETCHED_SHARE:
        jumps = r.randint(1, 3)
        for _ in range(jumps):
            steps[r.randrange(row_tokens)] += r.randint(0, (longest - row_tokens) // jumps)
    return torch.tensor(steps).cumsum(0) - 1


class Batches:
    """Draws batches of `batch_tokens` tokens from one seed."""

    def __init__(self, tokenizer: Tokenizer, seed: int, batch_tokens: int, longest: int) -> None:
        self.tokenizer, self.batch_tokens, self.longest = tokenizer, batch_tokens, longest
        self.random = random.Random(seed)

    def draw(self, row_tokens: int) -> Batch:
        """The next batch, in rows of `row_tokens`."""
        rows = [
            _row(self.random, self.tokenizer, row_tokens)
            for _ in range(max(1, self.batch_tokens // row_tokens))
        ]
        ids = torch.tensor([ids for ids, _ in rows])
        weights = torch.tensor([weights for _, weights in rows])
        positions = stretched_positions(self.random, row_tokens, self.longest)
        return Batch(ids[:, :-1], positions, ids[:, 1:], weights[:, 1:])


def corpus(seed: int, samples: int, row_tokens: int) -> Iterator[str]:
    """Texts to train the tokenizer on."""
    r = random.Random(seed)
    for _ in range(samples):
        yield "".join(span.text for span in spans_of(draw_dressed(r, row_tokens)))
