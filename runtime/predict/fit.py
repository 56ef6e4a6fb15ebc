"""Learning to rank answers by length from a run's own calls, in PyTorch, on one core.

ListMLE (Xia et al. 2008, as in vllm-ltr, 2408.15792, section 4.2): of a list of calls of one step,
the likelihood that drawing without replacement by exp(score) yields them longest first. Programs
are dealt into three parts: to fit, to give scores a length, to judge. A step is ranked only where
Kendall's tau on the last part beats that of the history's means by more than SURE standard errors.
Calls of a program are alike, so that error is a jackknife over groups of programs.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from .asked import Row
from .known import Known
from .ranker import CLIP, FEATURES, HIDDEN, Ranker, StepRank, features
from .tau import kendall_tau, tau_error

if TYPE_CHECKING:
    import torch

FIT_ROWS = 300  # fewer calls teach nothing that holds
STEP_ROWS = 30  # of a step, in each of the parts that are held back
PARTS = 5  # of programs: one judges, one calibrates, the others fit
LIST, LISTS, ROUNDS = 32, 16, 200
RATE, DECAY = 3e-3, 1e-2
SURE = 2.5
LEFT_OUT = 10  # groups of programs, each left out once
GROUPS = 4  # of calls of a step that are taken to be alike
KNOTS = 12
AGAIN = 0.5  # a new fit is due when so many calls are new, as a share of those that are kept


@dataclass(frozen=True, slots=True)
class Report:
    """What a fit has come to. `steps`: calls held back, tau of the history, tau of the ranker.

    `tau_history` and `tau` are over all calls held back, of all steps together: by the means of the
    steps, and by what is used after the fit. `used` are the steps that are ranked now.
    """

    rows: int
    tau_history: float
    tau: float
    steps: dict[str, tuple[int, float, float]]
    used: tuple[str, ...]


def due(known: Known) -> bool:
    """Whether enough calls are new for a fit to be worth its seconds."""
    return known.rows_since_fit >= max(FIT_ROWS, AGAIN * len(known.rows))


def fit(known: Known, seed: int) -> Report | None:
    """Learn a ranker from the calls that are kept, and use it where it does better.

    Deterministic, given `seed`; PyTorch uses one thread meanwhile. None where PyTorch is not
    installed, or too little was seen; then all stays as it is.
    """
    rows = list(known.rows)
    fitting, lining, judging = _parted(rows)
    steps = _by_step(fitting)
    if len(rows) < FIT_ROWS or not any(len(found) >= 2 for found in steps.values()):
        return None
    try:
        weights = _weights(list(steps.values()), seed)
    except ImportError:
        return None
    name = blake2b(weights, digest_size=3).hexdigest()
    ranker = Ranker(name, weights, {})
    lines, held_back = _by_step(lining), _by_step(judging)
    measured: dict[str, tuple[int, float, float]] = {}
    for step, judged in held_back.items():
        lined = lines.get(step, [])
        if min(len(judged), len(lined)) < STEP_ROWS:
            continue
        scored = [float(one) for one in ranker.scores([row.asked for row in judged])]
        usual = [row.asked.usual_tokens for row in judged]
        tau_history, tau = _tau(usual, judged), _tau(scored, judged)
        measured[step] = len(judged), tau_history, tau
        if tau - max(0.0, tau_history) > SURE * _error(scored, usual, judged):
            ranker.steps[step] = _line(ranker, lined, tau, tau_history)
    known.ranker = ranker if ranker.steps else None
    known.rows_since_fit = 0
    before = _tau([row.asked.usual_tokens for row in judging], judging)
    after = _tau([_expected(ranker, row) for row in judging], judging)
    return Report(len(rows), before, after, measured, tuple(sorted(ranker.steps)))


def _parted(rows: Sequence[Row]) -> tuple[list[Row], list[Row], list[Row]]:
    """To fit, to line up scores with lengths, to judge; calls of a program stay together."""
    parts: tuple[list[Row], list[Row], list[Row]] = ([], [], [])
    for row in rows:
        place = int.from_bytes(blake2b(b"%d" % row.program, digest_size=2).digest()) % PARTS
        parts[2 if place == 0 else 1 if place == 1 else 0].append(row)
    return parts


def _by_step(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        found[row.asked.step].append(row)
    return found


def _tau(expected: Sequence[float], rows: Sequence[Row]) -> float:
    return kendall_tau(expected, [row.tokens for row in rows])


def _error(scored: Sequence[float], usual: Sequence[float], rows: Sequence[Row]) -> float:
    """The standard error of how much more tau one order has than the other.

    At least that of as many calls that have nothing to do with each other.
    """
    gains: list[float] = []
    for group in range(LEFT_OUT):
        kept = [at for at, row in enumerate(rows) if row.program % LEFT_OUT != group]
        found = [rows[at] for at in kept]
        gain = _tau([scored[at] for at in kept], found) - _tau([usual[at] for at in kept], found)
        gains.append(gain)
    mean = sum(gains) / LEFT_OUT
    spread = sum((gain - mean) ** 2 for gain in gains)
    return max(tau_error(len(rows)), ((LEFT_OUT - 1) / LEFT_OUT * spread) ** 0.5)


def _expected(ranker: Ranker, row: Row) -> float:
    judged = ranker.judge(row.asked)
    return row.asked.usual_tokens if judged is None else judged.expected_tokens


# ---- from scores to lengths ---------------------------------------------------------------------


def _line(ranker: Ranker, rows: Sequence[Row], tau: float, tau_history: float) -> StepRank:
    """Mean lengths along the scores of `rows`, made monotone by pooling neighbours (PAV)."""
    found = ranker.scores([row.asked for row in rows])
    points = sorted((float(score), row.tokens) for score, row in zip(found, rows, strict=True))
    count = min(KNOTS, max(2, len(points) // 10))
    ends = [len(points) * part // count for part in range(count + 1)]
    pools: list[list[tuple[float, int]]] = []
    for start, end in pairwise(ends):
        pools.append(points[start:end])
        while len(pools) > 1 and _mean_tokens(pools[-2]) >= _mean_tokens(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    line = {sum(score for score, _ in pool) / len(pool): _mean_tokens(pool) for pool in pools}
    scores = sorted(line)
    cuts = [points[len(points) * part // GROUPS][0] for part in range(1, GROUPS)]
    return StepRank(cuts, scores, [line[score] for score in scores], tau, tau_history)


def _mean_tokens(points: Sequence[tuple[float, int]]) -> float:
    return sum(tokens for _, tokens in points) / len(points)


# ---- the network --------------------------------------------------------------------------------


def _weights(steps: Sequence[Sequence[Row]], seed: int) -> bytes:
    """A network that ranks the calls of each step, as `Ranker` takes it."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the same sums each time, and nothing to wait for
    try:
        return _trained(steps, torch.Generator().manual_seed(seed))
    finally:
        torch.set_num_threads(threads)


def _trained(steps: Sequence[Sequence[Row]], generator: "torch.Generator") -> bytes:
    import torch

    rows = [row for step in steps for row in step]
    given = torch.tensor([features(row.asked) for row in rows], dtype=torch.float32)
    tokens = torch.tensor([row.tokens for row in rows], dtype=torch.float32)
    mean, spread = given.mean(0), given.std(0)
    scale = torch.where(spread > 1e-3, 1 / spread.clamp(min=1e-3), torch.zeros_like(spread))
    given = ((given - mean) * scale).clamp(-CLIP, CLIP)
    network = _network(generator)
    optimizer = torch.optim.AdamW(network, lr=RATE, weight_decay=DECAY)
    into, bias, out, through = network
    sizes = [len(step) for step in steps]
    for _ in range(ROUNDS):
        chosen = _lists(sizes, generator)
        scores = torch.tanh(given[chosen] @ into + bias) @ out + given[chosen] @ through
        loss = _list_mle(scores, tokens[chosen], generator)
        optimizer.zero_grad()
        loss.backward()  # pyright: ignore[reportUnknownMemberType]
        optimizer.step()  # pyright: ignore[reportUnknownMemberType]
    kept = [mean, scale, *(one.detach().flatten() for one in network)]
    return torch.cat(kept).numpy().astype("<f4").tobytes()


def _network(generator: "torch.Generator") -> "list[torch.Tensor]":
    """Into a hidden layer, its bias, out of it, and past it."""
    import torch

    into = torch.randn(FEATURES, HIDDEN, generator=generator) / FEATURES**0.5
    out = torch.randn(HIDDEN, generator=generator) / HIDDEN**0.5
    parts = [into, torch.zeros(HIDDEN), out, torch.zeros(FEATURES)]
    return [part.requires_grad_() for part in parts]


def _lists(sizes: Sequence[int], generator: "torch.Generator") -> "torch.Tensor":
    """LISTS lists of LIST places of rows, each of one step; steps as often as their rows."""
    import torch

    ends = list(accumulate(sizes))
    lists: list[torch.Tensor] = []
    for _ in range(LISTS):
        place = int(torch.randint(0, ends[-1], (), generator=generator))
        step = bisect_right(ends, place)
        places = torch.randint(0, sizes[step], (LIST,), generator=generator)
        lists.append(ends[step] - sizes[step] + places)
    return torch.stack(lists)


def _list_mle(
    scores: "torch.Tensor", tokens: "torch.Tensor", generator: "torch.Generator"
) -> "torch.Tensor":
    """The mean negative log-likelihood per place of lists sorted longest first; ties by lot."""
    import torch

    lots = torch.rand(tokens.shape, generator=generator) / 2  # lengths are whole numbers
    order = (tokens + lots).argsort(dim=1, descending=True)
    ordered = scores.gather(1, order)
    rest = ordered.flip(1).logcumsumexp(1).flip(1)
    return (rest - ordered).mean()
