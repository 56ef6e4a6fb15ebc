"""Estimates of what a plan takes: tokens per call, calls per row, seconds per call.

Tokens are those of the model's tokenizer where the context has it, else four characters each; the
trace of a run has the truth. Seconds are those of `hardware`, which the simulator counts with too.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import takewhile
from math import inf, prod
from typing import Any, cast

from .graph import (
    LLM,
    Compute,
    Const,
    DictOf,
    Each,
    Expr,
    ListOf,
    Ref,
    Repeat,
    Select,
    ToolCall,
    Value,
    names_in,
    reads,
)
from .hardware import (
    Hardware,
    ModelShape,
    kv_capacity_tokens,
    prefill_seconds,
    step_seconds,
)
from .plan import CHARS_PER_TOKEN, Context, Estimate, Plan, PlanStep, Tokens, repeatable
from .prompt import Dynamic, Field, Static
from .several import (
    DEFAULT_TOKENS,
    EXPECTED_ROUTED,
    LIST_TOKENS,
    of_agent,
    of_cascade,
    of_pack,
    of_reduce,
    prompt_limit,
    samples,
)
from .stats import ColumnStats, TableStats

EXPRESSION_TOKENS = 5.0
DICT_TOKENS = 1.5  # written around each item
DEFAULT_ITEMS = 4  # of an `each` over a list that is not known
ITERATIONS = 3  # of a `repeat` that may take more
SHARE_OF_MAX_TOKENS = 0.5  # of `max_tokens`, an answer is expected to take


NOTHING = Context()


@dataclass(frozen=True, slots=True)
class Source:
    """Where a name's value comes from: its size, and the columns that determine it.

    `columns` is None where even equal rows may give different values. `most`: at most so many
    values differ. `items`: of a list, where that is known.
    """

    tokens: float
    columns: frozenset[str] | None
    most: float = inf
    items: float | None = None


@dataclass(frozen=True, slots=True)
class Sources:
    """What is known of names so far, and how the texts around them are counted."""

    tokens: Tokens
    of: dict[str, Source] = field(default_factory=dict[str, Source])

    def text(self, text: str) -> float:
        """The tokens of a text."""
        return self.tokens.count([text])[0] if text else 0.0


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
            items, tokens = _items(logical.items, known)
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
        listed = _items(logical.items, known)[0] if isinstance(logical, Each) else None
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
        items = _items(dict(logical.args).get(logical.reduce.over, Ref("")), known)
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
    of_values = most / stats.rows if stats and stats.rows else 1.0
    return min(of_values, distinct_share(columns, stats))


def distinct_share(columns: frozenset[str] | tuple[str, ...], stats: TableStats | None) -> float:
    """At most how many different combinations of the columns there are, per row."""
    if not columns:
        return 1 / stats.rows if stats and stats.rows else 0.0
    if stats is None or not stats.rows or any(name not in stats.columns for name in columns):
        return 1.0
    combinations = prod(max(1, stats.columns[name].distinct) for name in columns)
    return min(1.0, combinations / stats.rows)


# ---- sizes --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a rendered prompt. `field` is "" for text and code."""

    tokens: float
    columns: frozenset[str] | None
    field: str = ""
    most: float = inf

    @property
    def chars(self) -> float:
        """Its length as text, about."""
        return self.tokens * CHARS_PER_TOKEN


def prompt_pieces(step: LLM, known: Sources) -> Iterator[Piece]:
    """The parts of a step's prompt, system prompt first, with their sizes and what decides them."""
    args = dict(step.args)
    for part in (*(step.system.segments if step.system else ()), *step.prompt.segments):
        match part:
            case Static(text):
                yield Piece(known.text(text), frozenset())
            case Field(name):
                value = args.get(name, Ref(name))
                source = known.of.get(value.name) if isinstance(value, Ref) else None
                most = inf if source is None else source.most
                yield Piece(value_tokens(value, known), value_columns(value, known), name, most)
            case Dynamic(uses, chars):
                values = [args.get(name, Ref(name)) for name in uses]
                size = sum(value_tokens(value, known) for value in values)
                size += chars / CHARS_PER_TOKEN
                yield Piece(size, _union([value_columns(value, known) for value in values]))


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


def value_tokens(value: Value, known: Sources) -> float:
    """About how long a value is as text."""
    match value:
        case Const(text):
            return known.text(text)
        case Ref(name, path):
            source = known.of.get(name)
            tokens = source.tokens if source else DEFAULT_TOKENS
            return tokens / 2 if path else tokens
        case Expr():
            return EXPRESSION_TOKENS
        case ListOf(items):
            return sum(value_tokens(item, known) + LIST_TOKENS for item in items)
        case DictOf(items):
            return sum(
                value_tokens(item, known) + known.text(name) + DICT_TOKENS for name, item in items
            )


def value_columns(value: Value, known: Sources) -> frozenset[str] | None:
    """The input columns that determine a value; None where they do not."""
    return _union(
        [known.of[name].columns if name in known.of else None for name in names_in(value)]
    )


def _union(columns: list[frozenset[str] | None]) -> frozenset[str] | None:
    found: frozenset[str] = frozenset()
    for more in columns:
        if more is None:
            return None
        found |= more
    return found


def _columns(step: PlanStep, known: Sources) -> frozenset[str] | None:
    if not repeatable(step.step):
        return None
    return _union(
        [known.of[name].columns if name in known.of else None for name in reads(step.step)]
    )


def _items(value: Value, known: Sources) -> tuple[float, float]:
    """How many items a list has, and how long one is."""
    match value:
        case Const(text):
            listed: Any = json.loads(text)
            count = len(cast("list[Any]", listed)) if isinstance(listed, list) else 1
            return count, known.text(text) / max(1, count)
        case ListOf(items):
            return len(items), value_tokens(value, known) / max(1, len(items))
        case Ref(name, ()) if name in known.of and (count := known.of[name].items):
            return count, value_tokens(value, known) / count
        case _:
            return DEFAULT_ITEMS, value_tokens(value, known) / DEFAULT_ITEMS


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
            return _items(items, known)[0] * value_tokens(result, known)
        case Repeat(result=result):
            return value_tokens(result, known)
        case _:
            return DEFAULT_TOKENS


# ---- seconds ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CallSeconds:
    """What calls of a step take on one engine: `alone_s` from first to last for a single one, and
    `row_s` of the engine's time for each of many that decode together, `prefill_s` of it before
    the first token."""

    alone_s: float
    row_s: float
    prefill_s: float = 0.0


def call_seconds(
    hardware: Hardware, model: ModelShape, expected: Estimate, running: int = 64
) -> CallSeconds:
    """The seconds of a call as the simulator's engine counts them (`hardware.step_seconds`).

    `running` calls decode together, as many as the KV cache holds.
    """
    cached = min(expected.shared_prefix_tokens, max(expected.prompt_tokens - 1, 0))
    prefill_s = prefill_seconds(hardware, model, expected.prompt_tokens - cached, cached)
    context = expected.prompt_tokens + expected.output_tokens // 2
    fits = kv_capacity_tokens(hardware, model) // max(1, context)
    together = max(1, min(running, fits))
    alone_s = step_seconds(hardware, model, 1, context)
    step_s = step_seconds(hardware, model, together, together * context)
    output = expected.output_tokens
    row_s = prefill_s + output * step_s / together
    return CallSeconds(prefill_s + output * alone_s, row_s, prefill_s)


def load_seconds(hardware: Hardware, model: ModelShape) -> float:
    """Seconds to bring a model's weights from the host's memory to its GPUs."""
    return model.weight_bytes / (hardware.host_bytes_per_s * hardware.gpus)
