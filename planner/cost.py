"""Estimates of what a plan takes: tokens per call, calls per row, seconds per call.

Tokens are guesses from text lengths and column statistics, at four characters per token; the trace
of a run has the truth. Seconds are those of `hardware`, which the simulator counts with too.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
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
    Select,
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
from .plan import Context, Estimate, Plan, PlanStep, repeatable
from .prompt import Dynamic, Field, Static
from .stats import TableStats

CHARS_PER_TOKEN = 4.0
DEFAULT_CHARS = 200.0  # an input without statistics, a tool's result
EXPRESSION_CHARS = 20.0
DEFAULT_ITEMS = 4  # of an `each` over a list that is not known
SHARE_OF_MAX_TOKENS = 0.5  # of `max_tokens`, an answer is expected to take


@dataclass(frozen=True, slots=True)
class Source:
    """Where a name's value comes from: its size, and the columns that determine it.

    `columns` is None where even equal rows may give different values. `most`: at most so many
    values differ.
    """

    chars: float
    columns: frozenset[str] | None
    most: float = inf


Sources = Mapping[str, Source]


def estimate(plan: Plan, context: Context) -> Plan:
    """The plan with fresh estimates."""
    sources = inputs(plan, context)
    steps = tuple(_estimated(plan, context, plan.steps, sources, 1.0))
    return plan if steps == plan.steps else replace(plan, steps=steps)


def inputs(plan: Plan, context: Context) -> dict[str, Source]:
    """The sources of a plan's inputs."""
    found: dict[str, Source] = {}
    for name in plan.inputs:
        stats = context.stats.columns.get(name) if context.stats else None
        chars = stats.mean_chars if stats else DEFAULT_CHARS
        found[name] = Source(chars, frozenset() if name in plan.constants else frozenset({name}))
    return found


def sources(plan: Plan, context: Context) -> dict[str, Source]:
    """The sources of all names of a plan, those in bodies included."""
    found = inputs(plan, context)
    for _ in _estimated(plan, context, plan.steps, found, 1.0):
        pass
    return found


def _estimated(
    plan: Plan,
    context: Context,
    steps: tuple[PlanStep, ...],
    known: dict[str, Source],
    times: float,
) -> Iterator[PlanStep]:
    """The steps with estimates; adds what they make to `known`. `times`: runs per row."""
    for step in steps:
        logical, body = step.step, step.body
        if isinstance(logical, Each):
            items, chars = _items(logical.items, known)
            known[logical.item] = Source(chars, None)
            body = tuple(_estimated(plan, context, body, known, times * items))
        columns = _columns(step, known)
        most = len(logical.choices) if isinstance(logical, LLM) and logical.choices else inf
        known[step.id] = Source(_result_chars(step, known), columns, most)
        calls = times * _share(step, columns, context.stats)
        yield replace(step, body=body, estimate=_of_step(plan, context, step, known, calls))


def _of_step(
    plan: Plan, context: Context, step: PlanStep, known: Sources, calls: float
) -> Estimate:
    if not isinstance(step.step, LLM):
        return Estimate(calls_per_row=calls)
    pieces = list(prompt_pieces(step.step, known))
    total = sum(piece.chars for piece in pieces)
    shared = _shared_chars(pieces, plan.row_order.columns, context.stats)
    return Estimate(tokens(total), tokens(shared), _output_tokens(step.step), calls)


def tokens(chars: float) -> int:
    return round(chars / CHARS_PER_TOKEN)


def _share(step: PlanStep, columns: frozenset[str] | None, stats: TableStats | None) -> float:
    """The share of rows whose call is not answered by an equal one's."""
    if step.scope == "once":
        return 1 / stats.rows if stats and stats.rows else 0.0
    if not step.consolidate or columns is None:
        return 1.0
    return distinct_share(columns, stats)


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

    chars: float
    columns: frozenset[str] | None
    field: str = ""
    most: float = inf


def prompt_pieces(step: LLM, known: Sources) -> Iterator[Piece]:
    """The parts of a step's prompt, system prompt first, with their sizes and what decides them."""
    args = dict(step.args)
    for part in (*(step.system.segments if step.system else ()), *step.prompt.segments):
        match part:
            case Static(text):
                yield Piece(len(text), frozenset())
            case Field(name):
                value = args.get(name, Ref(name))
                most = (
                    known[value.name].most
                    if isinstance(value, Ref) and value.name in known
                    else inf
                )
                yield Piece(value_chars(value, known), value_columns(value, known), name, most)
            case Dynamic(uses, chars):
                values = [args.get(name, Ref(name)) for name in uses]
                size = chars + sum(value_chars(value, known) for value in values)
                yield Piece(size, _union([value_columns(value, known) for value in values]))


def _shared_chars(
    pieces: list[Piece], row_order: tuple[str, ...], stats: TableStats | None
) -> float:
    """The length of the prefix that a call is expected to find in the cache.

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
        shared += piece.chars * (1 - distinct_share(seen, stats)) if seen else piece.chars
    return shared


def value_chars(value: Value, known: Sources) -> float:
    """About how long a value is as text."""
    match value:
        case Const(text):
            return float(len(text))
        case Ref(name, path):
            source = known.get(name)
            chars = source.chars if source else DEFAULT_CHARS
            return chars / 2 if path else chars
        case Expr():
            return EXPRESSION_CHARS
        case ListOf(items):
            return sum(value_chars(item, known) + 2 for item in items)
        case DictOf(items):
            return sum(value_chars(item, known) + len(name) + 6 for name, item in items)


def value_columns(value: Value, known: Sources) -> frozenset[str] | None:
    """The input columns that determine a value; None where they do not."""
    return _union([known[name].columns if name in known else None for name in names_in(value)])


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
    return _union([known[name].columns if name in known else None for name in reads(step.step)])


def _items(value: Value, known: Sources) -> tuple[float, float]:
    """How many items a list has, and how long one is."""
    match value:
        case Const(text):
            listed: Any = json.loads(text)
            count = len(cast("list[Any]", listed)) if isinstance(listed, list) else 1
            return count, len(text) / max(1, count)
        case ListOf(items):
            return len(items), value_chars(value, known) / max(1, len(items))
        case _:
            return DEFAULT_ITEMS, value_chars(value, known) / DEFAULT_ITEMS


def _output_tokens(step: LLM) -> int:
    """A choice is read from the logits of the prefill: nothing is decoded."""
    if step.choices:
        return 0
    limit = step.sampling.max_tokens
    return limit if step.sampling.ignore_eos else round(limit * SHARE_OF_MAX_TOKENS)


def _result_chars(step: PlanStep, known: Sources) -> float:
    match step.step:
        case LLM(choices=choices) if choices:
            return sum(map(len, choices)) / len(choices)
        case LLM():
            return _output_tokens(step.step) * CHARS_PER_TOKEN
        case Select(then=then, otherwise=otherwise):
            return (value_chars(then, known) + value_chars(otherwise, known)) / 2
        case Compute(value=value):
            return value_chars(value, known)
        case Each(items=items, result=result):
            return _items(items, known)[0] * value_chars(result, known)
        case _:
            return DEFAULT_CHARS


# ---- seconds ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CallSeconds:
    """What calls of a step take on one engine: `alone_s` from first to last for a single one, and
    `row_s` of the engine's time for each of many that decode together."""

    alone_s: float
    row_s: float


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
    return CallSeconds(prefill_s + output * alone_s, prefill_s + output * step_s / together)


def load_seconds(hardware: Hardware, model: ModelShape) -> float:
    """Seconds to bring a model's weights from the host's memory to its GPUs."""
    return model.weight_bytes / (hardware.host_bytes_per_s * hardware.gpus)
