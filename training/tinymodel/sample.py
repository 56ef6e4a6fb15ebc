"""The noun that every job produces: a conversation with a known answer."""

import random
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .chat import Span, Turn

HELD_OUT_SHARE = 10  # one key in this many is kept for evaluation
INTERRUPTED_SHARE = 0.1  # thinking samples that are cut short, so that a forced answer is learned

Tool = dict[str, Any]
Random = random.Random


@dataclass(frozen=True, slots=True)
class Sample:
    """A conversation that ends with the assistant's answer."""

    job: str
    turns: tuple[Turn, ...]
    answer: str  # what follows the last thinking block
    key: str  # the question's content without its wording; it decides training or evaluation
    system: str = ""
    tools: tuple[Tool, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)  # call text -> what the tool returns

    @property
    def held_out(self) -> bool:
        """Whether this question belongs to evaluation and may not be trained on."""
        return zlib.crc32(f"{self.job}:{self.key}".encode()) % HELD_OUT_SHARE == 0


def thinking(r: Random, steps: str, conclusion: str) -> Turn:
    """A thinking turn; some are cut at a random place, where only the forced answer is learned."""
    if r.random() < INTERRUPTED_SHARE:
        cut = r.randint(0, len(steps))
        return interrupted(steps[:cut], conclusion)
    return Turn("assistant", (Span(f"<think>\n{steps}\n</think>\n{conclusion}", learned=True),))


def interrupted(partial_steps: str, conclusion: str) -> Turn:
    """Thinking that a budget ended: the steps are context, the answer is learned."""
    body = partial_steps.rstrip("\n")
    body = body + "\n" if body else ""
    return Turn("assistant", (Span(f"<think>\n{body}</think>\n"), Span(conclusion, learned=True)))
