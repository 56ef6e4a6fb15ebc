"""The logical graph: what a workflow computes, as a typed DAG of steps over named values.

Workflow inputs and step ids share one namespace. A row is data, never a node: the graph of a
workflow is the same for ten rows and for a million.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from heapq import heapify, heappop, heappush
from typing import Any, Literal, cast

from .errors import PlannerError
from .prompt import Prompt

Effect = Literal["pure", "idempotent", "once"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn.

    `temperature` 0 is greedy. With `temperature` above 0 a `seed` makes the draw repeatable and
    independent of the batch that the call runs in.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0  # 0: no limit
    top_p: float = 1.0
    stop: tuple[str, ...] = ()  # cut from the text; found across token borders
    seed: int | None = None
    ignore_eos: bool = False  # for benchmarks: run to `max_tokens`

    @property
    def deterministic(self) -> bool:
        """Whether the same request gives the same answer each time."""
        return self.temperature == 0.0 or self.seed is not None


@dataclass(frozen=True, slots=True)
class Loop:
    """What makes an LLM step an agent: it calls `tools` until it can answer.

    `max_turns` bounds the model's turns, `max_tokens` what it writes in all of them together
    (None: no limit). `allow` names the tools that run whatever the agent has read. `pure`: no tool
    has an effect, so that the step does nothing but answer. With `approve` "pause" the program
    stops where another tool would need a rule, until somebody has answered. With `speculate` calls
    of pure tools start while the turn that asks for them is still being written.
    """

    tools: tuple[str, ...] = ()
    max_turns: int = 10
    max_tokens: int | None = None
    allow: tuple[str, ...] = ()
    pure: bool = False
    approve: Literal["pause"] | None = None
    speculate: bool = False


@dataclass(frozen=True, slots=True)
class Reasoning:
    """What makes an LLM step think for as long as it pays: several samples or one that is probed.

    `strategy` is a name in `runtime.reasoning.named`, `settings` its settings as canonical JSON.
    What it asks for rewards is the tool `scorer`, or the model of `judge`.
    """

    strategy: str = "thought"
    settings: str = "{}"
    scorer: str | None = None
    judge: "LLM | None" = None


@dataclass(frozen=True, slots=True)
class Reduce:
    """What makes an LLM step a reduce: it makes one answer of the list in its field `over`.

    A list that does not fit into a prompt is folded in batches that fit, and then the folds are
    (`planner.folds`): with the prompt `merge`, None for the step's own. `batch_tokens` is the
    longest prompt where the author wants shorter ones than the model takes. Without `tree` there
    is one call, whatever the length.
    """

    over: str
    merge: Prompt | None = None
    batch_tokens: int | None = None
    tree: bool = True


@dataclass(frozen=True, slots=True)
class Pack:
    """What lets calls of different rows share one prompt: up to `rows` of them, as numbered items.

    With `votes` above 1 each item is asked in so many orders at most, and the majority wins
    (BatchPrompt, 2309.00384: batch permutation and ensembling).
    """

    rows: int
    votes: int = 1


@dataclass(frozen=True, slots=True)
class Cascade:
    """What lets the smaller `model` answer rows of a choice that it is sure of.

    At least the share `target` of all answers agrees with those of the step's own model, with
    probability `confidence` over the draw of the `sample` of rows that both of them answer.
    """

    model: str
    target: float = 0.95
    confidence: float = 0.9
    sample: int = 200


@dataclass(frozen=True, slots=True)
class Place:
    """Where the author wrote a step; lines and columns count from 1, 0 is unknown."""

    file: str = ""
    line: int = 0
    column: int = 0


NOWHERE = Place()


# ---- values: what is handed to a step ---------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Const:
    """A constant, kept as canonical JSON text so that it can be hashed and compared."""

    json: str


@dataclass(frozen=True, slots=True)
class Ref:
    """An input, a step's result or an `each` item by name, perhaps a part of it."""

    name: str
    path: tuple[str | int, ...] = ()


@dataclass(frozen=True, slots=True)
class Expr:
    """A pure expression in Jinja's expression language over the names in `uses`."""

    source: str
    uses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ListOf:
    items: "tuple[Value, ...]"


@dataclass(frozen=True, slots=True)
class DictOf:
    items: "tuple[tuple[str, Value], ...]"


Value = Const | Ref | Expr | ListOf | DictOf
Args = tuple[tuple[str, Value], ...]


# ---- steps -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class LLM:
    """A call of a model.

    `args` feeds the fields of `prompt` and `system`, and of what `reduce` merges with. With
    `choices` the result is one of them (a string); with `schema` (JSON Schema as text) it is a JSON
    value; otherwise text.
    With a `loop` it is an agent: `sampling` is that of each of its turns. With `reasoning` it
    thinks: `sampling` is that of each sample, its `max_tokens` the longest. With `reduce` it folds
    a list, in several calls where that is long.
    With `pack` rows may share a prompt, with `cascade` a smaller model may answer. Those of
    `free_fields` may change places in the prompt, where the author leaves their order open.
    A false `when` skips the step: its result is then None, and only a `Select` may read it.
    """

    id: str
    prompt: Prompt
    system: Prompt | None = None
    args: Args = ()
    model: str = "default"
    sampling: Sampling = Sampling()
    choices: tuple[str, ...] = ()
    schema: str | None = None
    loop: Loop | None = None
    reasoning: Reasoning | None = None
    reduce: Reduce | None = None
    pack: Pack | None = None
    cascade: Cascade | None = None
    free_fields: tuple[str, ...] = ()
    when: Value | None = None
    place: Place = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call of the tool registered under `tool`."""

    id: str
    tool: str
    args: Args = ()
    effect: Effect = "once"
    when: Value | None = None
    place: Place = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Select:
    """Joins two branches: `then` where `condition` is true, else `otherwise`.

    The steps of the branches carry the condition in their own `when`.
    """

    id: str
    condition: Value
    then: Value
    otherwise: Value
    when: Value | None = None
    place: Place = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Each:
    """Runs `body` for every item of the list `items`, all at once; the result is the list of
    `result`s in the order of the items. Inside the body the item is called `item`; outer names
    are visible.
    """

    id: str
    items: Value
    item: str
    body: "tuple[Step, ...]"
    result: Value
    when: Value | None = None
    place: Place = field(default=NOWHERE, compare=False)

    @property
    def begins(self) -> Value:
        """What is known before the body runs."""
        return self.items

    @property
    def ends(self) -> tuple[Value, ...]:
        """What is worked out of the names of the body once it has run."""
        return (self.result,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeat:
    """Runs `body` again and again until `until` holds, at most `max_iterations` times.

    Inside the body the value that an iteration begins with is called `item`: `start` in the first
    one, later the `result` of the one before. `until` is looked at after each iteration and reads
    its names. Where it never holds, `on_limit` says whether the step fails or takes what the last
    iteration gave.
    """

    id: str
    start: Value
    item: str
    body: "tuple[Step, ...]"
    result: Value
    until: Value
    max_iterations: int
    on_limit: Literal["fail", "last"] = "fail"
    when: Value | None = None
    place: Place = field(default=NOWHERE, compare=False)

    @property
    def begins(self) -> Value:
        """What is known before the body runs."""
        return self.start

    @property
    def ends(self) -> tuple[Value, ...]:
        """What is worked out of the names of the body once it has run."""
        return (self.result, self.until)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compute:
    """A value put together from others without a call: a template, a list, a dict."""

    id: str
    value: Value
    when: Value | None = None
    place: Place = field(default=NOWHERE, compare=False)


Step = LLM | ToolCall | Select | Each | Repeat | Compute


@dataclass(frozen=True, slots=True)
class Graph:
    """A workflow's steps in an order in which each comes after what it reads."""

    name: str
    inputs: tuple[str, ...]
    steps: tuple[Step, ...]
    result: Value


def names_in(value: Value | None) -> Iterator[str]:
    """The names that `value` reads, in order, with repeats."""
    match value:
        case Ref(name):
            yield name
        case Expr(_, uses):
            yield from uses
        case ListOf(items):
            for item in items:
                yield from names_in(item)
        case DictOf(items):
            for _, item in items:
                yield from names_in(item)
        case Const() | None:
            return


def reads(step: Step) -> tuple[str, ...]:
    """The names that `step` reads from outside itself, each once, in order."""
    found: dict[str, None] = dict.fromkeys(names_in(step.when))
    match step:
        case LLM(args=args) | ToolCall(args=args):
            for _, value in args:
                found.update(dict.fromkeys(names_in(value)))
        case Select(condition=condition, then=then, otherwise=otherwise):
            for value in (condition, then, otherwise):
                found.update(dict.fromkeys(names_in(value)))
        case Compute(value=value):
            found.update(dict.fromkeys(names_in(value)))
        case Each(item=item, body=body) | Repeat(item=item, body=body):
            found.update(dict.fromkeys(names_in(step.begins)))
            inner = {item, *(inside.id for inside in body)}
            for inside in body:
                found.update((name, None) for name in reads(inside) if name not in inner)
            for value in step.ends:
                found.update((name, None) for name in names_in(value) if name not in inner)
    return tuple(found)


def walk(steps: Iterable[Step]) -> Iterator[Step]:
    """All steps, each followed by those of its body."""
    for step in steps:
        yield step
        if isinstance(step, Each | Repeat):
            yield from walk(step.body)


def sort(graph: Graph) -> Graph:
    """The graph with each step after what it reads, and else in the order of the author.

    Raises `PlannerError` where steps wait for each other.
    """
    steps = _sorted(graph.steps)
    return graph if steps == graph.steps else replace(graph, steps=steps)


def _sorted(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    place = {step.id: index for index, step in enumerate(steps)}
    readers: dict[int, list[int]] = {index: [] for index in range(len(steps))}
    waits = [0] * len(steps)
    for index, step in enumerate(steps):
        for name in reads(step):
            if name in place:
                readers[place[name]].append(index)
                waits[index] += 1
    ready = [index for index, count in enumerate(waits) if not count]
    heapify(ready)
    order: list[Step] = []
    while ready:
        index = heappop(ready)
        order.append(_sorted_within(steps[index]))
        for reader in readers[index]:
            waits[reader] -= 1
            if not waits[reader]:
                heappush(ready, reader)
    if len(order) < len(steps):
        stuck = ", ".join(step.id for step, count in zip(steps, waits, strict=True) if count)
        raise PlannerError(f"these steps wait for each other: {stuck}")
    return tuple(order)


def _sorted_within(step: Step) -> Step:
    if not isinstance(step, Each | Repeat):
        return step
    body = _sorted(step.body)
    return step if body == step.body else replace(step, body=body)


def tools_of(step: Step) -> tuple[str, ...]:
    """The names of the tools that a step calls, or may call."""
    match step:
        case ToolCall(tool=name):
            return (name,)
        case LLM(loop=Loop(tools=names)):
            return names
        case LLM(reasoning=Reasoning(scorer=str(name))):
            return (name,)
        case _:
            return ()


def models_of(step: Step) -> tuple[str, ...]:
    """The names of the models that a step asks: its own, and that of its judge."""
    match step:
        case LLM(model=own, reasoning=Reasoning(judge=LLM(model=judge))):
            return (own, judge)
        case LLM(model=own, cascade=Cascade(model=small)):
            return (own, small)
        case LLM(model=own):
            return (own,)
        case _:
            return ()


def acts(step: Step) -> bool:
    """Whether a step may do something besides making its result."""
    match step:
        case ToolCall(effect=effect):
            return effect != "pure"
        case LLM(loop=Loop(pure=pure)):
            return not pure
        case Each(body=body) | Repeat(body=body):
            return any(acts(inside) for inside in body)
        case _:
            return False


def canonical(graph: Graph) -> str:
    """The graph as canonical JSON text, without places: equal texts mean equal graphs."""
    return json.dumps(_plain(graph), ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def _unset(node: Any, name: str) -> bool:
    """Whether a part that came later is not used: graphs without it keep their text."""
    late = (
        "loop",
        "reasoning",
        "scorer",
        "judge",
        "free_fields",
        "approve",
        "speculate",
        "reduce",
        "pack",
        "cascade",
    )
    return name in late and getattr(node, name) in (None, (), False)


def _plain(node: Any) -> Any:
    match node:
        case Prompt(source):
            return {"prompt": source}
        case tuple():
            return [_plain(item) for item in cast("tuple[Any, ...]", node)]
        case _ if is_dataclass(node):
            plain = {
                part.name: _plain(getattr(node, part.name))
                for part in fields(node)
                if part.name != "place" and not _unset(node, part.name)
            }
            return {"kind": type(node).__name__, **plain}
        case _:
            return node
