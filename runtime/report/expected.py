"""What a plan expects of each step, and what that comes to over the rows of a table."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter

from ...planner.graph import LLM, Each, Repeat, Select, Step, ToolCall, reads
from ...planner.plan import Plan, PlanStep
from ...planner.seconds import CallSeconds
from ..scheduler.events import StepPlanned

Seconds = Callable[[PlanStep], CallSeconds | None]
"""What the calls of a step take; None where it is not known."""

NOTHING = 0.0, dict[str, float]()  # the longest chain of no steps


@dataclass(frozen=True, slots=True)
class Expectation:
    """What a step is expected to take over `rows` rows; None where nothing is known.

    `away`: calls that an equal one answers.
    """

    step: str
    kind: str
    rows: int
    calls: float
    away: float | None
    prompt_tokens: float
    cached_tokens: float
    output_tokens: float
    prefill_s: float | None
    decode_s: float | None
    tool_s: float | None
    path_share: float | None


def kind_of(step: Step) -> str:
    """What a step is, in a word."""
    match step:
        case LLM(loop=loop) if loop is not None:
            return "agent"
        case LLM(reasoning=reasoning) if reasoning is not None:
            return "reason"
        case LLM(reduce=reduce) if reduce is not None:
            return "reduce"
        case LLM(choices=choices):
            return "choice" if choices else "llm"
        case ToolCall():
            return "tool"
        case Select():
            return "select"
        case Each():
            return "each"
        case Repeat():
            return "repeat"
        case _:
            return "value"


def planned(plan: Plan, seconds: Seconds = lambda step: None) -> list[StepPlanned]:
    """What the plan expects of its calls and tools, in its order."""
    longest, shares = _longest(plan.steps, seconds)
    return [
        _planned(step, seconds, shares.get(step.id, 0.0) / longest if longest else None)
        for step in _asking(plan.steps)
    ]


def over(step: StepPlanned, rows: int) -> Expectation:
    """What `step` comes to over `rows` rows."""
    calls = (1.0 if rows else 0.0) if step.once else step.calls_per_row * rows
    alone = step.kind in ("llm", "choice", "tool") and (step.once or step.calls_per_row <= 1)
    return Expectation(
        step.step,
        step.kind,
        rows,
        calls,
        rows - calls if alone else None,
        step.prompt_tokens * calls,
        step.cached_tokens * calls,
        step.output_tokens * calls,
        _times(step.prefill_s, calls),
        _times(step.decode_s, calls),
        _times(step.tool_s, calls),
        step.path_share,
    )


def _times(seconds: float | None, calls: float) -> float | None:
    return None if seconds is None else seconds * calls


def _asking(steps: Sequence[PlanStep]) -> Iterator[PlanStep]:
    for step in steps:
        if isinstance(step.step, LLM | ToolCall):
            yield step
        yield from _asking(step.body)


def _planned(step: PlanStep, seconds: Seconds, path_share: float | None) -> StepPlanned:
    guess = step.estimate
    took = seconds(step) if isinstance(step.step, LLM) else None
    return StepPlanned(
        step=step.id,
        kind=kind_of(step.step),
        calls_per_row=guess.calls_per_row,
        once=step.scope == "once",
        prompt_tokens=guess.prompt_tokens,
        cached_tokens=guess.shared_prefix_tokens,
        output_tokens=guess.output_tokens,
        prefill_s=None if took is None else took.prefill_s,
        decode_s=None if took is None else took.row_s - took.prefill_s,
        tool_s=guess.tool_s,
        path_share=path_share,
    )


def _longest(steps: Sequence[PlanStep], seconds: Seconds) -> tuple[float, dict[str, float]]:
    """The longest chain of steps in seconds of one program alone, and what each step has of it."""
    ends: dict[str, tuple[float, dict[str, float]]] = {}
    for step in steps:
        before = [ends[name] for name in reads(step.step) if name in ends]
        start_s, parts = max(before, key=itemgetter(0), default=NOTHING)
        if step.body:
            own_s, own = _longest(step.body, seconds)
            if isinstance(step.step, Repeat):
                times = step.estimate.iterations
                own_s, own = own_s * times, {name: s * times for name, s in own.items()}
        else:
            own_s = _alone_s(step, seconds)
            own = {step.id: own_s}
        ends[step.id] = start_s + own_s, {**parts, **own}
    return max(ends.values(), key=itemgetter(0), default=NOTHING)


def _alone_s(step: PlanStep, seconds: Seconds) -> float:
    if isinstance(step.step, ToolCall):
        return step.estimate.tool_s or 0.0
    took = seconds(step) if isinstance(step.step, LLM) else None
    return 0.0 if took is None else took.alone_s
