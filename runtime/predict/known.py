"""What is known of a workflow: predictors per kind of amount, answered calls, and a ranker."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

from ...kvpolicy import Predictor
from ..reasoning.shadow import Shadows
from .asked import Asked, Row

ROWS = 4_000  # answered calls that are kept for a ranker to learn from

Kind = Literal[
    "output_tokens",
    "calls",
    "output_tokens_left",
    "work_tokens_left",
    "tool_s",
    "iterations",
    "routed_percent",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
TOOLS: Kind = "tool_s"  # known of all workflows of a home together


@dataclass(frozen=True, slots=True)
class Judged:
    """What a ranker says of a call: `word` names the calls like it, for the key of a history."""

    word: str
    expected_tokens: float


class Ranks(Protocol):
    """Something that tells calls of one step apart."""

    def judge(self, asked: Asked) -> Judged | None:
        """None where the history of the step does as well."""
        ...

    def data(self) -> Mapping[str, Any]:
        """It as plain data, bytes included."""
        ...


@dataclass(slots=True)
class Known:
    """All that is learned of one workflow on its models, and of all tools.

    `output_tokens` is keyed by step, `calls` by workflow (calls of a whole program), what is left
    by workflow and mark, `tool_s` by tool and first argument word, `iterations` by loop, and
    `routed_percent` by step: the rows that the small model of a cascade answers. `shadows` watch the stop rules
    of its reasoning steps.
    """

    predictors: dict[Kind, Predictor] = field(
        default_factory=lambda: {kind: Predictor() for kind in KINDS}
    )
    rows: deque[Row] = field(default_factory=lambda: deque[Row](maxlen=ROWS))
    rows_since_fit: int = 0
    ranker: Ranks | None = None
    shadows: Shadows = field(default_factory=Shadows)
