"""Lint: fields that cost the cache, since they differ in each row and stand before shared text."""

import re
from dataclasses import dataclass
from math import isfinite

from .cost import distinct_share, sources
from .graph import LLM, Graph, Step
from .lower import NOTHING, lower
from .plan import Context, Plan, PlanStep, walk
from .sizes import Piece, prompt_pieces
from .stats import TableStats

LOST_TOKENS = 16  # a loss below this is not worth a word
_UNIQUE = 0.9
_VOLATILE = re.compile(
    r"(^|_)(id|uuid|guid|timestamp|time|date|datetime|now|today|nonce)$|[a-z](Id|Date|Time)$"
)


@dataclass(frozen=True, slots=True)
class LintWarning:
    """A field that breaks a prefix: `tokens_lost` tokens per call could have been shared.

    `line` counts from 1 in the template that has the field, 0 where it cannot be told. `calls` are
    those of the whole run where statistics tell them, else 0.
    """

    step: str
    field: str
    tokens_lost: int
    why: str
    line: int = 0
    calls: int = 0

    def __str__(self) -> str:
        line = f" (line {self.line})" if self.line else ""
        total = f", {self.tokens_lost * self.calls:,} in the run" if self.calls else ""
        return (
            f"step {self.step!r}: the field {self.field!r}{line} {self.why} and stands before about "
            f"{self.tokens_lost} tokens that calls share{total}, so none of them is found in the "
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
        if not why:
            continue
        lost = round(_shared_tokens(pieces[index + 1 :], stats))
        if lost < LOST_TOKENS:
            return ()
        rows = stats.rows if stats and not stats.sampled else 0
        calls = round(rows * step.estimate.calls_per_row)
        line = _line(step.step, piece.field)
        return (LintWarning(step.id, piece.field, lost, why, line, calls),)
    return ()


def _shared_tokens(rest: list[Piece], stats: TableStats | None) -> float:
    """The text behind a field that calls would share if the field were not before it.

    What comes behind columns is shared by the rows that agree in them, if the statistics know.
    """
    shared, seen = 0.0, frozenset[str]()
    for piece in rest:
        if piece.columns == frozenset():
            shared += piece.tokens * (1 - (distinct_share(seen, stats) if seen else 0.0))
        elif stats and piece.columns and piece.columns <= stats.columns.keys():
            seen |= piece.columns
            shared += piece.tokens * (1 - distinct_share(seen, stats))
    return shared


def _line(step: Step, field: str) -> int:
    """The line on which a field is printed first, in the system prompt or else in the prompt."""
    if not isinstance(step, LLM):
        return 0
    printed = re.compile(r"\{\{[-+]?\s*" + re.escape(field) + r"\b")
    for prompt in (step.system, step.prompt):
        found = printed.search(prompt.source) if prompt else None
        if prompt and found:
            return prompt.source.count("\n", 0, found.start()) + 1
    return 0


def _why(piece: Piece, stats: TableStats | None) -> str:
    """What is wrong with a field: the statistics say, else its name does."""
    if piece.columns == frozenset() or isfinite(piece.most):
        return ""
    if stats and stats.rows > 1 and piece.columns and piece.columns <= stats.columns.keys():
        share = distinct_share(piece.columns, stats)
        return "differs in nearly every row" if share >= _UNIQUE else ""
    return "looks unique per row by its name" if _VOLATILE.search(piece.field) else ""
