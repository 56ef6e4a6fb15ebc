"""Estimates of what a plan takes: tokens per call, calls per row.

Tokens are those of the model's tokenizer where the context has it, else four characters each; the
trace of a run has the truth. `sizes` has how long prompts are, `seconds` what calls take.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import takewhile
from math import inf, prod

from .graph import (
    LLM,
    Compute,
    Each,
    Ref,
    Repeat,
    Select,
    ToolCall,
    reads,
)
from .plan import CHARS_PER_TOKEN, Context, Estimate, Plan, PlanStep, repeatable
from .several import (
    DEFAULT_TOKENS,
    EXPECTED_ROUTED,
    of_agent,
    of_cascade,
    of_pack,
    of_reduce,
    prompt_limit,
    samples,
)
from .sizes import Piece, Source, Sources, list_items, prompt_pieces, union, value_tokens
from .stats import ColumnStats, TableStats

ITERATIONS = 3  # of a `repeat` that may take more
SHARE_OF_MAX_TOKENS = 0.5  # of `max_tokens`, an answer is expected to take


NOTHING = Context()


def estimate(plan: Plan, context: Context) -> Plan:
    """The plan with fresh estimates."""
    known = inputs(plan, context)
    steps = tuple(_estimated(plan, context, plan.steps, known, 1.0))
    return plan if steps == plan.steps else replace(plan, steps=steps)


def inputs(plan: Plan, context: Context) -> Sources:
    """The sources of a plan's inputs."""
    known = Sources(context.tokens)
    for name in plan.inputs:
        stats = context.stats.columns.get(name) if context.stats else None
        columns = frozenset[str]() if name in plan.constants else frozenset({name})
        items = stats.mean_items or None if stats is not None else None
        known.of[name] = Source(_mean_tokens(stats), columns, items=items)
    return known


def sources(plan: Plan, context: Context) -> Sources:
    """The sources of all names of a plan, those in bodies included."""
    known = inputs(plan, context)
    for _ in _estimated(plan, context, plan.steps, known, 1.0):
        pass
    return known


def _mean_tokens(column: ColumnStats | None) -> float:
    if column is None:
        return DEFAULT_TOKENS
    return column.mean_chars / CHARS_PER_TOKEN if column.mean_tokens is None else column.mean_tokens


def _estimated(
    plan: Plan,
    context: Context,
    steps: tuple[PlanStep, ...],
    known: Sources,
    times: float,
) -> Iterator[PlanStep]:
    """The steps with estimates; adds what they make to `known`. `times`: runs per row."""
    for step in steps:
        logical, body = step.step, step.body
        if isinstance(logical, Each):
            items, tokens = list_items(logical.items, known)
            known.of[logical.item] = Source(tokens, None)
            body = tuple(_estimated(plan, context, body, known, times * items))
        elif isinstance(logical, Repeat):
            known.of[logical.item] = Source(value_tokens(logical.start, known), None)
            body = tuple(
                _estimated(plan, context, body, known, times * iterations(logical, context))
            )
        columns = _columns(step, known)
        asked = _most(step, known)
        most = len(logical.choices) if isinstance(logical, LLM) and logical.choices else asked
        listed = list_items(logical.items, known)[0] if isinstance(logical, Each) else None
        known.of[step.id] = Source(_result_tokens(step, known, context), columns, most, listed)
        calls = times * _share(step, columns, asked, context.stats)
        yield replace(step, body=body, estimate=_of_step(plan, context, step, known, calls))


def _of_step(
    plan: Plan, context: Context, step: PlanStep, known: Sources, calls: float
) -> Estimate:
    logical = step.step
    if isinstance(logical, ToolCall):
        return Estimate(calls_per_row=calls, tool_s=context.expected.tool_s.get(logical.tool))
    if isinstance(logical, Repeat):
        return Estimate(calls_per_row=calls, iterations=iterations(logical, context))
    if not isinstance(logical, LLM):
        return Estimate(calls_per_row=calls)
    pieces = list(prompt_pieces(logical, known))
    around = context.tokens.before + context.tokens.after
    total = around + sum(piece.tokens for piece in pieces)
    shared = context.tokens.before + _shared_tokens(pieces, plan.row_order.columns, context.stats)
    output = _output_tokens(logical, context)
    single = Estimate(round(total), round(shared), output, calls * samples(logical))
    if logical.loop is not None:
        return of_agent(logical.loop, total, shared, output, calls)
    if logical.reduce is not None:
        items = list_items(dict(logical.args).get(logical.reduce.over, Ref("")), known)
        limit = prompt_limit(logical, known.tokens.context_tokens)
        return of_reduce(single, *items, limit, logical.reduce.tree)
    if step.packed and logical.pack is not None:
        leading = takewhile(lambda piece: piece.columns == frozenset(), pieces)
        head = around + sum(piece.tokens for piece in leading)
        return of_pack(single, logical.pack, step.packed, head)
    routed = context.expected.routed.get(step.id, EXPECTED_ROUTED)
    return of_cascade(single, routed) if step.cascaded else single


def _most(step: PlanStep, known: Sources) -> float:
    """At most how many different things a step is asked, as far as what it reads tells."""
    if not repeatable(step.step):
        return inf
    found = [known.of[name] for name in reads(step.step) if name in known.of]
    return prod(source.most for source in found if source.columns != frozenset())


def _share(
    step: PlanStep, columns: frozenset[str] | None, most: float, stats: TableStats | None
) -> float:
    """The share of rows whose call is not answered by an equal one's; `most` calls differ."""
    if step.scope == "once":
        return 1 / stats.rows if stats and stats.rows else 0.0
    if not step.consolidate or columns is None:
        return 1.0
    share = distinct_share(columns, stats)
    if stats is None or not stats.rows:
        return share
    rows = inf if stats.distinct_rows is None else stats.distinct_rows
    return min(share, most / stats.rows, rows / stats.rows)


def distinct_share(columns: frozenset[str] | tuple[str, ...], stats: TableStats | None) -> float:
    """At most how many different combinations of the columns there are, per row."""
    if not columns:
        return 1 / stats.rows if stats and stats.rows else 0.0
    if stats is None or not stats.rows or any(name not in stats.columns for name in columns):
        return 1.0
    combinations = prod(max(1, stats.columns[name].distinct) for name in columns)
    return min(1.0, combinations / stats.rows)


def _shared_tokens(
    pieces: list[Piece], row_order: tuple[str, ...], stats: TableStats | None
) -> float:
    """The prefix that a call is expected to find in the cache.

    A field is shared with the row before if the rows are sorted by what decides it.
    """
    seen: frozenset[str] = frozenset()
    shared = 0.0
    for piece in pieces:
        if piece.columns is None:
            break
        seen |= piece.columns
        if not seen <= frozenset(row_order[: len(seen)]):
            break
        if seen and stats is None:
            break
        shared += piece.tokens * (1 - distinct_share(seen, stats)) if seen else piece.tokens
    return shared


def _columns(step: PlanStep, known: Sources) -> frozenset[str] | None:
    if not repeatable(step.step):
        return None
    return union(
        [known.of[name].columns if name in known.of else None for name in reads(step.step)]
    )


def iterations(step: Repeat, context: Context = NOTHING) -> float:
    """How often the body of a `repeat` is expected to run."""
    return min(step.max_iterations, context.expected.iterations.get(step.id, ITERATIONS))


def _output_tokens(step: LLM, context: Context) -> int:
    """A choice is read from the logits of the prefill: nothing is decoded."""
    if step.choices:
        return 0
    limit = step.sampling.max_tokens
    if step.sampling.ignore_eos:
        return limit
    learned = context.expected.output_tokens.get(step.id)
    learned = learned if step.pack is None else None  # that of packs, perhaps
    return round(limit * SHARE_OF_MAX_TOKENS if learned is None else min(learned, limit))


def _result_tokens(step: PlanStep, known: Sources, context: Context) -> float:
    match step.step:
        case LLM(choices=choices) if choices:
            return sum(map(known.text, choices)) / len(choices)
        case LLM():
            return _output_tokens(step.step, context)
        case Select(then=then, otherwise=otherwise):
            return (value_tokens(then, known) + value_tokens(otherwise, known)) / 2
        case Compute(value=value):
            return value_tokens(value, known)
        case Each(items=items, result=result):
            return list_items(items, known)[0] * value_tokens(result, known)
        case Repeat(result=result):
            return value_tokens(result, known)
        case _:
            return DEFAULT_TOKENS
