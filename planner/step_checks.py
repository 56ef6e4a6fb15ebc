"""What can be wrong with a step by itself: its values, prompt, choices, schema and sampling.

Everything here yields messages; `validate` gives them a step and a place.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from math import isfinite

from .errors import EvaluationError, PlannerError, PromptError
from .graph import (
    LLM,
    Args,
    Cascade,
    Compute,
    Const,
    DictOf,
    Each,
    Expr,
    ListOf,
    Loop,
    Pack,
    Reduce,
    Repeat,
    Sampling,
    Select,
    Step,
    ToolCall,
    Value,
)
from .reorder.template import free_fields
from .values import check_expression, compile_value

MAX_ITERATIONS = 10_000  # of a `repeat`
MAX_PACK = 64  # rows in a prompt
MAX_VOTES = 15
MAX_SHARE = 0.999  # that a cascade promises: more would take more rows than a window has
ON_LIMIT = ("fail", "last")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name."""
    names = sorted(set(known))
    if close := get_close_matches(name, names, n=1):
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(names)}" if names else ""


# ---- values -------------------------------------------------------------------------------------


def value_messages(step: Step) -> Iterator[str]:
    """What is wrong with the values that a step is given."""
    for what, value in _values_of(step):
        for message in messages_of(value):
            yield f"{what}: {message}"


def _values_of(step: Step) -> Iterator[tuple[str, Value]]:
    if step.when is not None:
        yield "when", step.when
    match step:
        case LLM(args=args) | ToolCall(args=args):
            yield from ((f"argument {name!r}", value) for name, value in args)
        case Select():
            yield from (("then", step.then), ("otherwise", step.otherwise))
            yield "condition", step.condition
        case Each():
            yield from (("items", step.items), ("result", step.result))
        case Repeat():
            yield from (("start", step.start), ("result", step.result), ("until", step.until))
        case Compute():
            yield "value", step.value


def messages_of(value: Value) -> Iterator[str]:
    """What is wrong with a value and its parts."""
    match value:
        case Expr():
            yield from _expression(value)
        case Const():
            try:
                compile_value(value)
            except EvaluationError as error:
                yield str(error)
        case ListOf(items):
            for item in items:
                yield from messages_of(item)
        case DictOf(items):
            for _, item in items:
                yield from messages_of(item)
        case _:
            return


def _expression(value: Expr) -> Iterator[str]:
    try:
        found = check_expression(value.source)
    except PromptError as error:
        yield f"{value.source!r} is no expression: {error.message}"
        return
    if missing := sorted(set(found) - set(value.uses)):
        yield f"{value.source!r} also reads {', '.join(missing)}"


# ---- kinds of steps -----------------------------------------------------------------------------


def step_messages(step: Step) -> Iterator[str]:
    """What is wrong with a step besides its values and names."""
    match step:
        case LLM():
            yield from _prompts(step)
            yield from (*_repeated(step.args), *_choices(step), *_schema(step))
            yield from _sampling(step.sampling)
            if step.free_fields:
                yield from _free(step)
            if step.loop is not None:
                yield from _loop(step, step.loop)
            if step.cascade is not None:
                yield from _cascade(step, step.cascade)
            if step.pack is not None:
                yield from _pack(step, step.pack)
            if step.reduce is not None:
                yield from _reduce(step, step.reduce)
        case ToolCall(args=args):
            yield from _repeated(args)
        case Repeat(max_iterations=most) if not 1 <= most <= MAX_ITERATIONS:
            yield f"max_iterations is {most}; it must be from 1 to {MAX_ITERATIONS:,}"
        case Repeat(on_limit=on_limit) if on_limit not in ON_LIMIT:
            yield f"on_limit is {on_limit!r}; it must be one of {', '.join(ON_LIMIT)}"
        case _:
            return


def _prompts(step: LLM) -> Iterator[str]:
    """Templates that do not parse, or else fields and arguments that do not fit."""
    fields: dict[str, None] = {}
    broken = False
    merge = step.reduce.merge if step.reduce is not None else None
    for what, prompt in (("system", step.system), ("prompt", step.prompt), ("merge", merge)):
        try:
            fields.update(dict.fromkeys(prompt.fields if prompt else ()))
        except PromptError as error:
            broken = True
            yield f"its {what} does not parse: {error}"
    if not broken:
        yield from _args([name for name, _ in step.args], tuple(fields))


def _args(given: list[str], fields: tuple[str, ...]) -> Iterator[str]:
    spare = [name for name in given if name not in fields]
    for name in fields:
        if name not in given:
            cure = did_you_mean(name, spare) if spare else ""
            yield f"the prompt's field {name!r} has no argument{cure}"
    for name in dict.fromkeys(spare):
        cure = did_you_mean(name, fields) or "; the prompt has no fields"
        yield f"no field of the prompt uses the argument {name!r}{cure}"


def _free(step: LLM) -> Iterator[str]:
    """Fields that are said to be free and cannot be moved."""
    unknown = [name for name in step.free_fields if name not in step.prompt.fields]
    for name in unknown:
        cure = did_you_mean(name, step.prompt.fields) or "; the prompt has no fields"
        yield f"the free field {name!r} is not in the prompt{cure}"
    if not unknown:
        try:
            free_fields(step.prompt, step.free_fields)
        except PlannerError as error:
            yield f"its free fields cannot be moved: {error}"


def _repeated(args: Args) -> Iterator[str]:
    for name, count in Counter(name for name, _ in args).items():
        if count > 1:
            yield f"the argument {name!r} is given {count} times"


def _choices(step: LLM) -> Iterator[str]:
    if not step.choices:
        return
    if step.schema is not None:
        yield "it has choices and an output model; keep one of them"
    if len(step.choices) == 1:
        yield f"the only choice is {step.choices[0]!r}; give two or more"
    for choice, count in Counter(step.choices).items():
        if count > 1:
            yield f"the choice {choice!r} is there {count} times"
        if not choice.strip():
            yield "a choice is empty; give each some text"


def _schema(step: LLM) -> Iterator[str]:
    if step.schema is None:
        return
    try:
        schema = json.loads(step.schema)
    except ValueError as error:
        yield f"its output schema is not JSON: {error}"
        return
    if not isinstance(schema, dict | bool):
        yield "its output schema must be a JSON object"


def _loop(step: LLM, loop: Loop) -> Iterator[str]:
    if step.choices:
        yield "an agent has no choices; give it an output model"
    for name, count in Counter(loop.tools).items():
        if count > 1:
            yield f"the tool {name!r} is given to it {count} times"
    for name in loop.allow:
        if name not in loop.tools:
            yield f"allow names {name!r}, which is no tool of it{did_you_mean(name, loop.tools)}"
    if loop.max_turns < 1:
        yield f"max_turns is {loop.max_turns}; it must be 1 or more"
    if loop.max_tokens is not None and loop.max_tokens < 1:
        yield f"max_tokens of all turns is {loop.max_tokens}; it must be 1 or more"


def _reduce(step: LLM, reduce: Reduce) -> Iterator[str]:
    for what, prompt in (("prompt", step.prompt), ("merge", reduce.merge)):
        try:
            fields = prompt.fields if prompt is not None else (reduce.over,)
        except PromptError:  # told with the prompts
            continue
        if reduce.over not in fields:
            cure = did_you_mean(reduce.over, fields) or "; it has no fields"
            yield f"it reduces over {reduce.over!r}, which is no field of its {what}{cure}"
    if reduce.batch_tokens is not None and reduce.batch_tokens < 1:
        yield f"batch_tokens is {reduce.batch_tokens}; it must be 1 or more"
    if not reduce.tree and (reduce.merge is not None or reduce.batch_tokens is not None):
        yield "with tree: false there is one call, so that merge and batch_tokens mean nothing"


def _pack(step: LLM, pack: Pack) -> Iterator[str]:
    if not 2 <= pack.rows <= MAX_PACK:
        yield f"pack is {pack.rows}; it must be from 2 to {MAX_PACK}"
    if not 1 <= pack.votes <= MAX_VOTES:
        yield f"votes is {pack.votes}; it must be from 1 to {MAX_VOTES}"
    if pack.votes > 1 and not step.choices and step.schema is None:
        yield "votes are counted over equal answers: give it choices or an output"
    if step.sampling.stop:
        yield "it has a pack and stop texts, which would cut all answers; keep one of them"


def _cascade(step: LLM, cascade: Cascade) -> Iterator[str]:
    if not step.choices:
        yield "a cascade is for choices, of which a model tells how sure it is"
    if step.pack is not None:
        yield "it has a cascade and a pack; keep one of them"
    if cascade.model == step.model:
        yield f"its cascade names its own model {step.model!r}; name a smaller one"
    for name, share in (("target", cascade.target), ("confidence", cascade.confidence)):
        if not 0 < share <= MAX_SHARE:
            told = f"it must be above 0 and at most {MAX_SHARE:g}"
            yield f"{name} of its cascade is {share:g}; {told}"
    if cascade.sample < 1:
        yield f"sample of its cascade is {cascade.sample}; it must be 1 or more"


def _sampling(sampling: Sampling) -> Iterator[str]:
    if sampling.max_tokens < 1:
        yield f"max_tokens is {sampling.max_tokens}; it must be 1 or more"
    if not (isfinite(sampling.temperature) and sampling.temperature >= 0):
        yield f"temperature is {sampling.temperature}; it must be 0 or more"
    if sampling.top_k < 0:
        yield f"top_k is {sampling.top_k}; it must be 0 (no limit) or more"
    if not 0 < sampling.top_p <= 1:
        yield f"top_p is {sampling.top_p}; it must be above 0 and at most 1"
    if "" in sampling.stop:
        yield "a stop text is empty; it would stop every answer at once"
