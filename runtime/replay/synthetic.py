"""Programs with the figures of the Continuum paper (2511.02230), drawn from a seed.

The paper gives means and standard deviations; the distributions are ours and are chosen to have
them (docs/replay.md). Turns: normal, rounded. Tokens of a program (its last prompt and answer):
lognormal. Tool times: lognormal, which has the heavy tail.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

from .program import Pause, Program, Span, Turn, Workload, joined

DrawTool = Callable[[Random], Pause]


@dataclass(frozen=True, slots=True)
class Figures:
    """What a kind of program is like. Means and standard deviations; the rest is assumed."""

    kind: str
    turns: tuple[float, float]
    tokens: tuple[float, float]
    tool: DrawTool
    system_tokens: int = 3000  # shared by all: tool definitions and system prompt
    output_tokens: tuple[float, float] = (200.0, 150.0)  # of a turn


def lognormal(random: Random, mean: float, deviation: float) -> float:
    """A draw from the lognormal distribution of that mean and standard deviation."""
    variance = math.log1p((deviation / mean) ** 2)
    return random.lognormvariate(math.log(mean) - variance / 2, math.sqrt(variance))


# ---- SWE-Bench: tools 925 +- 3,550 ms -----------------------------------------------------------

SWE_TOOL_S = (0.925, 3.550)
# Half of an agent's commands look at files, some change them, few run programs.
SWE_WORDS = (("cat", 3), ("grep", 3), ("sed", 2), ("python", 2), ("ls", 1), ("git", 1))


def swe_tool(random: Random) -> Pause:
    """A shell command. Its first word says nothing about its time: the paper gives one figure."""
    words, weights = zip(*SWE_WORDS, strict=True)
    word = random.choices(words, weights)[0]
    return Pause(lognormal(random, *SWE_TOOL_S), "tool", "bash", word)


# ---- BFCL web search: tools 1,923 +- 2,133 ms ---------------------------------------------------

# The slowest tenth of fetch_url holds 52.5 % of its delay: a lognormal's top tenth holds
# Phi(sigma - Phi^-1(.9)), so sigma is 1.2816 + 0.0627. Half of the calls are fetches of 1 s in the
# mean; the searches are what makes mean and deviation of all come out.
FETCH_SIGMA = 1.3443
FETCH_S = 1.0
SEARCH_S = (2.846, 1.505)


def bfcl_tool(random: Random) -> Pause:
    """A search or a fetch, one as likely as the other."""
    if random.random() < 0.5:
        seconds = random.lognormvariate(math.log(FETCH_S) - FETCH_SIGMA**2 / 2, FETCH_SIGMA)
        return Pause(seconds, "tool", "fetch_url")
    return Pause(lognormal(random, *SEARCH_S), "tool", "search")


SWE_BENCH = Figures("swe-bench", (10.9, 2.1), (70_126, 19_732), swe_tool)
BFCL_WEB = Figures("bfcl-web", (6.3, 2.3), (93_256, 68_687), bfcl_tool)


def swe_bench(programs: int, per_s: float, seed: int) -> Workload:
    """SWE-Bench-like agents, arriving as a Poisson process of `per_s` programs per second."""
    return synthetic(SWE_BENCH, programs, per_s, seed)


def bfcl_web(programs: int, per_s: float, seed: int) -> Workload:
    """BFCL-web-search-like agents, arriving as a Poisson process."""
    return synthetic(BFCL_WEB, programs, per_s, seed)


def synthetic(figures: Figures, programs: int, per_s: float, seed: int) -> Workload:
    """`programs` programs of these figures. Programs and arrivals are drawn from streams of their
    own, so that another rate brings the same programs."""
    if not per_s > 0:
        raise ValueError(f"per_s must be positive, got {per_s}")

    def make() -> Iterator[Program]:
        random, arrivals, now_s = Random(f"{seed}/{figures.kind}"), Random(seed), 0.0
        for index in range(programs):
            now_s += arrivals.expovariate(per_s)
            stages = tuple((turn,) for turn in _turns(figures, index + 1, random))
            name = f"{figures.kind}-{index}"
            yield Program(now_s, name, stages, figures.kind, f"user-{index}")

    return Workload(figures.kind, make)


def _turns(figures: Figures, stream: int, random: Random) -> Iterator[Turn]:
    """Stream 0 is the shared head; the program's own grows by an answer and a result per turn.

    What the answers leave of the program's tokens is dealt to the turns by random shares.
    """
    count = max(round(random.gauss(*figures.turns)), 1)
    outputs = [max(round(lognormal(random, *figures.output_tokens)), 1) for _ in range(count)]
    total = round(lognormal(random, *figures.tokens))
    rest = max(total - figures.system_tokens - sum(outputs), count)
    shares = [random.expovariate(1.0) for _ in range(count)]
    head, tokens, dealt, share = Span(0, 0, figures.system_tokens), 0, 0, 0.0
    for index, output in enumerate(outputs):
        share += shares[index]
        upto = max(round(rest * share / sum(shares)), dealt + 1)
        tokens, dealt = tokens + upto - dealt, upto
        pause = figures.tool(random) if index < count - 1 else None
        yield Turn(joined((head, Span(stream, 0, tokens))), output, pause)
        tokens += output
