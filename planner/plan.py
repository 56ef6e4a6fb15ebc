"""The physical plan of a graph over a batch: the planner's second kind of nouns.

A plan says of each step whether it runs once or for every row, which prefix its prompts share,
and in which order the rows go. It names columns, never rows: the plan for a million rows is as
large as the one for ten.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from .errors import InvariantBroken
from .graph import LLM, Each, Graph, Repeat, Step, ToolCall, Value, names_in, reads
from .stats import TableStats

Scope = Literal["once", "row"]


CHARS_PER_TOKEN = 4.0


def estimated_tokens(texts: Sequence[str]) -> Sequence[float]:
    """The tokens of each text where no tokenizer is at hand: a guess."""
    return [len(text) / CHARS_PER_TOKEN for text in texts]


@dataclass(frozen=True, slots=True)
class Tokens:
    """How texts become tokens: `count` gives those of each of several texts.

    A chat puts `before` tokens in front of what a model reads, and `after` behind it. Equal ones
    count alike: a plan's tokenizer is compared by `name`. `context_tokens` are what the model
    takes, prompt and answer together; None where that is not known.
    """

    count: Callable[[Sequence[str]], Sequence[float]] = field(
        default=estimated_tokens, compare=False
    )
    before: int = 0
    after: int = 0
    name: str = ""
    context_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Expected:
    """What earlier runs have taught: mean tokens of a step's answers, mean seconds of a tool.

    Also how often a `repeat` runs, and the share of a cascade's rows that the small model answers.
    """

    output_tokens: Mapping[str, float] = field(default_factory=dict[str, float])
    tool_s: Mapping[str, float] = field(default_factory=dict[str, float])
    iterations: Mapping[str, float] = field(default_factory=dict[str, float])
    routed: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, slots=True)
class Context:
    """What a plan is made for, besides the graph."""

    stats: TableStats | None = None
    constants: frozenset[str] = frozenset()  # inputs that are the same in every row
    consolidate: bool = True  # whether equal work may be done once
    without: frozenset[str] = frozenset()  # rules that are left out, by name
    tokens: Tokens = Tokens()
    expected: Expected = Expected()


@dataclass(frozen=True, slots=True)
class Prefix:
    """How a step's prompts begin: static text, then fields, outermost first."""

    text: str = ""
    fields: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a step is expected to take, per call: guesses, from text lengths and statistics.

    `shared_prefix_tokens` is the part of `prompt_tokens` that a cache is expected to hold, in the
    plan's row order. `calls_per_row` counts what is left after equal calls were joined; each turn
    of an agent is a call, each sample of a reasoning step, and each fold of a reduce, whose `folds`
    are the calls per level, the last of them the answer. `iterations`: of a `repeat`. `tool_s`:
    None where nothing is known.
    """

    prompt_tokens: int = 0
    shared_prefix_tokens: int = 0
    output_tokens: int = 0
    calls_per_row: float = 0.0
    tool_s: float | None = None
    folds: tuple[int, ...] = ()
    iterations: float = 0.0


@dataclass(frozen=True, slots=True)
class PlanStep:
    """A step and how it is to run.

    `scope` "once": its result is the same for every row of the run. In the body of an `each`,
    "row" means once per item, and in that of a `repeat` once per iteration. `consolidate`: equal
    calls of different rows may be answered once. Up to `packed` rows share a prompt; 0: each has
    its own. `cascaded`: a smaller model is asked first. Calls of one `group` share the static part
    of their prefix. `body` has the steps of an `each` or a `repeat`.
    """

    step: Step
    scope: Scope = "row"
    consolidate: bool = False
    depth: int = 0
    prefix: Prefix = Prefix()
    group: str | None = None
    packed: int = 0
    cascaded: bool = False
    estimate: Estimate = Estimate()
    body: "tuple[PlanStep, ...]" = ()

    @property
    def id(self) -> str:
        return self.step.id

    def with_body(self, body: "tuple[PlanStep, ...]") -> "PlanStep":
        """The same `each` or `repeat` over another body."""
        if not isinstance(self.step, Each | Repeat) or body == self.body:
            return self
        step = replace(self.step, body=tuple(inside.step for inside in body))
        return replace(self, step=step, body=body)


@dataclass(frozen=True, slots=True)
class RowOrder:
    """The input columns by which the rows of a window are sorted; none: as they come."""

    columns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """A graph made ready to run over the rows of a table."""

    name: str
    inputs: tuple[str, ...]
    steps: tuple[PlanStep, ...]
    result: Value
    constants: frozenset[str] = frozenset()
    row_order: RowOrder = field(default=RowOrder())
    notes: tuple[str, ...] = ()

    @property
    def graph(self) -> Graph:
        """The logical graph that the plan carries out."""
        return Graph(self.name, self.inputs, tuple(step.step for step in self.steps), self.result)

    def invariants(self) -> None:
        """Raises `InvariantBroken` where the plan makes no sense."""
        once = {name: name in self.constants for name in self.inputs}
        _check_steps(self.steps, once)
        for name in names_in(self.result):
            if name not in once:
                raise InvariantBroken(f"the result reads {name!r}, which no step makes")
        for column in self.row_order.columns:
            if column not in self.inputs:
                raise InvariantBroken(f"rows are ordered by {column!r}, which is no input")
        seen: set[str] = set()
        for step in walk(self.steps):
            if step.id in seen:
                raise InvariantBroken(f"two steps are called {step.id!r}")
            seen.add(step.id)


def walk(steps: tuple[PlanStep, ...]) -> Iterator[PlanStep]:
    """All steps of a plan, each followed by those of its body."""
    for step in steps:
        yield step
        yield from walk(step.body)


def _check_steps(steps: tuple[PlanStep, ...], once: dict[str, bool]) -> None:
    """Each read resolves to an earlier name; what runs once reads nothing of a row.

    `once` maps the names known so far to whether they are the same for every row.
    """
    for step in steps:
        for name in reads(step.step):
            if name not in once:
                raise InvariantBroken(f"step {step.id!r} reads {name!r} before it is made")
            if step.scope == "once" and not once[name]:
                raise InvariantBroken(f"step {step.id!r} runs once but reads {name!r} of each row")
        if step.scope == "once" and not repeatable(step.step):
            raise InvariantBroken(f"step {step.id!r} runs once though its results may differ")
        if step.packed and not (isinstance(step.step, LLM) and step.step.pack):
            raise InvariantBroken(
                f"step {step.id!r} shares prompts, which its author did not allow"
            )
        if step.cascaded and not (isinstance(step.step, LLM) and step.step.cascade):
            raise InvariantBroken(f"step {step.id!r} asks a model that its author did not allow")
        if isinstance(step.step, Each | Repeat):
            if tuple(inside.step for inside in step.body) != step.step.body:
                raise InvariantBroken(f"the body of {step.id!r} is not that of its step")
            _check_body(step, step.step, once)
        once[step.id] = step.scope == "once"


def _check_body(step: PlanStep, loop: Each | Repeat, once: dict[str, bool]) -> None:
    inner = {**once, loop.item: False}
    _check_steps(step.body, inner)
    for value in loop.ends:
        for name in names_in(value):
            if name not in inner:
                raise InvariantBroken(f"the end of {loop.id!r} reads {name!r}, which is not made")


def repeatable(step: Step) -> bool:
    """Whether a step gives equal results for equal inputs and does nothing else."""
    match step:
        case LLM(sampling=sampling, loop=loop):
            return sampling.deterministic and (loop is None or loop.pure)
        case ToolCall(effect=effect):
            return effect == "pure"
        case Each(body=body) | Repeat(body=body):
            return all(repeatable(inside) for inside in body)
        case _:
            return True


def depths(steps: tuple[Step, ...], above: Mapping[str, int] | None = None) -> dict[str, int]:
    """How many steps must come before each, in a chain."""
    found = dict(above or {})
    for step in steps:
        found[step.id] = max((found[name] + 1 for name in reads(step) if name in found), default=0)
    return found


def with_depths(
    steps: tuple[PlanStep, ...], above: Mapping[str, int] | None = None
) -> tuple[PlanStep, ...]:
    """The steps with their depths counted anew."""
    found = depths(tuple(step.step for step in steps), above)
    return tuple(
        replace(step, depth=found[step.id], body=with_depths(step.body, found)) for step in steps
    )
