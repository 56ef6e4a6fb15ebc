"""From logits to tokens: greedy or drawn, per row, so that no row depends on its neighbours."""

from collections.abc import Sequence as Rows

import torch
from torch import Tensor

from ..calls import Sampling
from .state import Sequence

_UNIFORM_STEPS = 2**24  # draws fit a float32 exactly, and stay below 1


def sample(logits: Tensor, settings: Rows[Sampling], draws: Rows[float]) -> list[int]:
    """One token for each row of logits [rows, vocab], by the row's settings.

    `draws` are uniform from [0, 1), one per row; greedy rows ignore theirs.
    """
    tokens: list[int] = logits.argmax(-1).tolist()
    hot = [i for i, sampling in enumerate(settings) if sampling.temperature > 0]
    if hot:
        drawn = _draw(logits[hot].float(), [(settings[i], draws[i]) for i in hot])
        for i, token in zip(hot, drawn, strict=True):
            tokens[i] = token
    return tokens


def log_probabilities(logits: Tensor, tokens: list[int]) -> list[float]:
    """Natural log-probability of one token per row, of the model's own distribution."""
    chosen = torch.tensor(tokens, device=logits.device).unsqueeze(1)
    return logits.float().log_softmax(-1).gather(1, chosen).squeeze(1).tolist()


def score(logits: Tensor, scoring: list[tuple[Sequence, int]]) -> None:
    """Add to the scores of each sequence what its choices gain at one position per row.

    `scoring` names the sequence and the position of each row of logits [rows, vocab].
    """
    if not scoring:
        return
    values = logits.float().log_softmax(-1)
    rows, tokens, choices = list[int](), list[int](), list[tuple[Sequence, int]]()
    for row, (sequence, position) in enumerate(scoring):
        if sequence.forks is None:
            continue
        for token, choice in sequence.forks.targets[position]:
            rows.append(row)
            tokens.append(token)
            choices.append((sequence, choice))
    gained: list[float] = values[rows, tokens].tolist()
    for (sequence, choice), value in zip(choices, gained, strict=True):
        sequence.scores[choice] += value


def _draw(logits: Tensor, rows: Rows[tuple[Sampling, float]]) -> list[int]:
    """Draw by inverting the cumulative distribution: one uniform number per token and row."""

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=logits.device).unsqueeze(1)

    weights = torch.softmax(logits / column([s.temperature for s, _ in rows]), -1)
    order = None
    if any(s.top_k > 0 or s.top_p < 1 for s, _ in rows):
        weights, order = weights.sort(-1, descending=True, stable=True)
        limits = column([float(s.top_k or weights.shape[1]) for s, _ in rows])
        weights = _nucleus(weights, limits, column([s.top_p for s, _ in rows]))
    summed = weights.cumsum(-1)
    total = summed[:, -1:]
    uniform = column([int(draw * _UNIFORM_STEPS) / _UNIFORM_STEPS for _, draw in rows])
    point = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    chosen = torch.searchsorted(summed, point, right=True)
    return (chosen if order is None else order.gather(1, chosen)).squeeze(1).tolist()


def _nucleus(weights: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Of descending weights keep the first `top_k`, then the fewest that reach `top_p` of those
    (nucleus sampling, 1904.09751, section 3.1); at least one."""
    ranks = torch.arange(weights.shape[1], device=weights.device)
    weights = weights.masked_fill(ranks >= top_k, 0.0)
    before = weights.cumsum(-1) - weights
    beyond = (before >= top_p * weights.sum(-1, keepdim=True)) & (top_p < 1) & (ranks > 0)
    return weights.masked_fill(beyond, 0.0)
