"""Lint: fields that cost the cache, since they differ in each row and stand before shared text."""

import re
from dataclasses import dataclass
from math import isfinite

from .cost import Piece, distinct_share, prompt_pieces, sources, tokens
from .graph import LLM, Graph
from .lower import NOTHING, lower
from .plan import Context, Plan, PlanStep, walk
from .stats import TableStats

LOST_TOKENS = 16  # a loss below this is not worth a word
_UNIQUE = 0.9
_VOLATILE = re.compile(
    r"(^|_)(id|uuid|guid|timestamp|time|date|datetime|now|today|nonce)$|[a-z](Id|Date|Time)$"
)


@dataclass(frozen=True, slots=True)
class LintWarning:
    """A field that breaks a prefix: `tokens_lost` static tokens per call could have been shared."""

    step: str
    field: str
    tokens_lost: int
    why: str

    def __str__(self) -> str:
        return (
            f"step {self.step!r}: the field {self.field!r} {self.why} and stands before about "
            f"{self.tokens_lost} tokens that all calls share, so none of them is found in the "
            "cache; move it to the end of the prompt"
        )


def lint(subject: Graph | Plan, context: Context = NOTHING) -> tuple[LintWarning, ...]:
    """At most one warning per step: its first field that breaks the prefix."""
    plan = lower(subject, context) if isinstance(subject, Graph) else subject
    known = sources(plan, context)
    found: list[LintWarning] = []
    for step in walk(plan.steps):
        if isinstance(step.step, LLM) and step.scope == "row":
            pieces = list(prompt_pieces(step.step, known))
            found += _first(step, pieces, context.stats)
    return tuple(found)


def _first(
    step: PlanStep, pieces: list[Piece], stats: TableStats | None
) -> tuple[LintWarning, ...]:
    for index, piece in enumerate(pieces):
        why = _why(piece, stats) if piece.field else ""
        if why:
            rest = sum(part.chars for part in pieces[index + 1 :] if part.columns == frozenset())
            lost = tokens(rest)
            return (LintWarning(step.id, piece.field, lost, why),) if lost >= LOST_TOKENS else ()
    return ()


def _why(piece: Piece, stats: TableStats | None) -> str:
    """What is wrong with a field: the statistics say, else its name does."""
    if piece.columns == frozenset() or isfinite(piece.most):
        return ""
    if stats and stats.rows > 1 and piece.columns and piece.columns <= stats.columns.keys():
        share = distinct_share(piece.columns, stats)
        return "differs in nearly every row" if share >= _UNIQUE else ""
    return "looks unique per row by its name" if _VOLATILE.search(piece.field) else ""
