"""Plans as indented text."""

from collections.abc import Iterator

from .graph import LLM, Args, Compute, Each, Graph, Loop, Reduce, Repeat, Select, Step, ToolCall
from .lint import lint
from .lower import NOTHING, lower
from .optimize import optimize
from .placement import Placement
from .plan import Context, Plan, PlanStep, walk
from .values import spell

_WIDTH = 60
MOST_VISITS = 6  # of a worker that are listed


def explain(plan: Plan, estimates: bool = True) -> str:
    """The plan, a line per step; estimates are marked with a tilde."""
    lines = [f"plan {plan.name}: {_counts(plan)}"]
    lines.append(f"  inputs: {', '.join(_inputs(plan)) or 'none'}")
    lines.append(f"  rows: {_rows(plan)}")
    for step in plan.steps:
        lines += _step(step, "  ", estimates)
    lines.append(f"  result: {shorten(spell(plan.result))}")
    lines += [f"  note: {note}" for note in plan.notes]
    return "\n".join(lines) + "\n"


def after_rules(graph: Graph, context: Context = NOTHING) -> list[tuple[str, str]]:
    """The plan before any rule and after each, by name; "unchanged" where one found nothing."""
    parts = [("lower", explain(lower(graph, context)))]

    def observe(rule: str, plan: Plan, changed: bool) -> None:
        parts.append((rule, explain(plan) if changed else "unchanged\n"))

    optimize(graph, context, observe)
    return parts


def explain_rules(graph: Graph, context: Context = NOTHING) -> str:
    """The same as one text, with what is unwise in the workflow."""
    parts = [f"== {rule}\n{text}" for rule, text in after_rules(graph, context)]
    parts += [f"warning: {each}\n" for each in lint(optimize(graph, context), context)]
    return "".join(parts)


def _counts(plan: Plan) -> str:
    steps = list(walk(plan.steps))
    once = sum(step.scope == "once" for step in plan.steps)
    return f"{len(steps)} steps, {once} once" if len(steps) != 1 else f"1 step, {once} once"


def _inputs(plan: Plan) -> Iterator[str]:
    for name in plan.inputs:
        yield f"{name} (constant)" if name in plan.constants else name


def _rows(plan: Plan) -> str:
    columns = plan.row_order.columns
    return f"sorted by {', '.join(columns)}" if columns else "as they come"


def _step(step: PlanStep, indent: str, estimates: bool) -> Iterator[str]:
    logical = step.step
    yield f"{indent}{step.scope:<4} {step.id} = {_what(logical)}{''.join(_marks(step))}"
    if estimates and (told := "; ".join(_estimate(step))):
        yield f"{indent}       ~ {told}"
    for inside in step.body:
        yield from _step(inside, indent + "    ", estimates)
    if isinstance(logical, Each):
        yield f"{indent}    result: {shorten(spell(logical.result))}"
    if isinstance(logical, Repeat):
        yield f"{indent}    next: {shorten(spell(logical.result))}"
        yield f"{indent}    until: {shorten(spell(logical.until))}"


def _what(step: Step) -> str:
    match step:
        case LLM():
            kind = "choice" if step.choices else "json" if step.schema else "text"
            if step.loop is not None:
                return f"agent {step.model} {kind}({_args(step.args)}) {_loop(step.loop)}"
            if step.reduce is not None:
                return f"reduce {step.model} {kind}({_args(step.args)}) over {step.reduce.over}"
            return f"llm {step.model} {kind}({_args(step.args)})"
        case ToolCall():
            return f"tool {step.tool}({_args(step.args)}) {step.effect}"
        case Select():
            branches = f"{spell(step.then)} else {spell(step.otherwise)}"
            return f"select {spell(step.condition)} ? {branches}"
        case Each():
            return f"each {step.item} of {shorten(spell(step.items))}"
        case Repeat():
            most = f"at most {step.max_iterations} times, then {step.on_limit}"
            return f"repeat {step.item} from {shorten(spell(step.start))}; {most}"
        case Compute():
            return f"compute {shorten(spell(step.value))}"


def _loop(loop: Loop) -> str:
    tokens = "" if loop.max_tokens is None else f", {loop.max_tokens} tokens"
    allowed = f", allowed {', '.join(loop.allow)}" if loop.allow else ""
    early = ", pure tools early" if loop.speculate else ""
    tools = ", ".join(loop.tools) or "no tools"
    return f"with {tools}; at most {loop.max_turns} turns{tokens}{allowed}{early}"


def _args(args: Args) -> str:
    return ", ".join(
        name if spell(value) == name else f"{name}={shorten(spell(value))}" for name, value in args
    )


def _marks(step: PlanStep) -> Iterator[str]:
    if step.step.when is not None:
        yield f" when {spell(step.step.when)}"
    if step.consolidate and step.scope == "row":
        yield " [shared]"
    if step.cascaded and isinstance(step.step, LLM) and step.step.cascade is not None:
        yield f" [{step.step.cascade.model} first]"
    if step.packed:
        yield f" [{step.packed} rows a prompt]"
    if step.group is not None:
        yield f" [group {step.group}]"


def _estimate(step: PlanStep) -> Iterator[str]:
    guess = step.estimate
    if isinstance(step.step, LLM):
        yield f"prompt {guess.prompt_tokens} tokens, {guess.shared_prefix_tokens} of them shared"
        yield f"output {guess.output_tokens}"
    if isinstance(step.step, LLM) and step.step.reduce is not None:
        yield _folds(step.step.reduce, guess.folds)
    if isinstance(step.step, Repeat):
        yield f"{guess.iterations:.3g} of at most {step.step.max_iterations} iterations"
    if isinstance(step.step, LLM | ToolCall) and step.scope == "row":
        yield f"{guess.calls_per_row:.3g} calls per row"


def _folds(reduce: Reduce, calls: tuple[int, ...]) -> str:
    if not reduce.tree or calls == (1,):
        return "all items in one call"
    if not calls:
        return "two answers do not fit a prompt together: a long list will fail"
    return f"{len(calls)} levels of {', '.join(map(str, calls))} calls"


def shorten(text: str, width: int = _WIDTH) -> str:
    """The text on one line, cut to `width` characters."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"


def explain_placement(found: Placement, bound_s: float) -> str:
    """Which worker has which share of each step's rows, and when, as text.

    `bound_s`: the seconds that no placement could beat.
    """
    seconds = f"{found.makespan_s:,.1f} s expected, at least {bound_s:,.1f} s by load"
    lines = [f"placement of {found.rows:,} rows: {seconds}"]
    for worker, visits in found.visits.items():
        told = [
            f"{visit.stage} {sum(b - a for a, b in visit.rows) / found.rows:.0%} "
            f"({visit.start_s:,.1f}-{visit.end_s:,.1f} s)"
            for visit in visits[:MOST_VISITS]
        ]
        more = len(visits) - len(told)
        told += [f"{more} more visits"] if more else []
        lines.append(f"  {worker}: {', '.join(told) or 'nothing'}")
    return "\n".join(lines) + "\n"
