"""Order: sorts the rows so that equal prefixes come one after the other (GGR, 2403.05821 §4).

The fields of a prompt keep the author's order, so the rows are sorted by the columns behind them
in that order. Where prompts differ, the one with the most tokens to save decides. The objective is
tokens, not GGR's squared length: the tokens that a call is expected to share with the row before.
"""

from dataclasses import dataclass, replace

from ..cost import distinct_share, sources
from ..graph import LLM
from ..plan import Context, Plan, PlanStep, RowOrder, walk
from ..sizes import Piece, Sources, prompt_pieces
from ..stats import TableStats

UNIQUE = 0.95  # a share of distinct rows above which sorting shares nothing


@dataclass(frozen=True, slots=True)
class _Wish:
    """The order that suits one step, and how much text per row it is about."""

    columns: tuple[str, ...]
    chars: float


def order(plan: Plan, context: Context) -> Plan:
    """The plan with the order of its rows."""
    known = sources(plan, context)
    wishes = [_wish(step, known, plan, context.stats) for step in walk(plan.steps)]
    wishes.sort(key=lambda wish: -wish.chars)  # stable: the author's order breaks ties
    columns = dict.fromkeys(column for wish in wishes for column in wish.columns)
    row_order = RowOrder(tuple(columns))
    return plan if row_order == plan.row_order else replace(plan, row_order=row_order)


def _wish(step: PlanStep, known: Sources, plan: Plan, stats: TableStats | None) -> _Wish:
    if not isinstance(step.step, LLM) or step.scope == "once":
        return _Wish((), 0.0)
    pieces = list(prompt_pieces(step.step, known))
    columns = _columns(pieces, plan.inputs, stats)
    if stats is None:
        chars = sum(piece.chars for piece in pieces)
    else:
        chars = _saved_chars(pieces, columns, stats)
    return _Wish(columns, chars * step.estimate.calls_per_row)


def _columns(
    pieces: list[Piece], names: tuple[str, ...], stats: TableStats | None
) -> tuple[str, ...]:
    """The columns behind a prompt's fields, up to the first that no column decides.

    With statistics, also only as long as rows still agree.
    """
    columns: tuple[str, ...] = ()
    for piece in pieces:
        if piece.columns is None:
            break
        new = tuple(name for name in names if name in piece.columns and name not in columns)
        if new and stats and distinct_share(columns + new, stats) > UNIQUE:
            break
        columns += new
    return columns


def _saved_chars(pieces: list[Piece], columns: tuple[str, ...], stats: TableStats) -> float:
    """The text after the static prefix that a call shares with the row before, on average."""
    saved, seen = 0.0, frozenset[str]()
    for piece in pieces:
        if piece.columns is None or not piece.columns <= frozenset(columns):
            break
        seen |= piece.columns
        if seen:
            saved += piece.chars * (1 - distinct_share(seen, stats))
    return saved
