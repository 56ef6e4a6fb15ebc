"""The summary of a run, for people and for programs: what it did, what it cost, what it saved."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from .tally import ReasonTally, StepTally, TallySnapshot


def summary(snapshot: TallySnapshot) -> dict[str, Any]:
    """The figures as one JSON-able object; rates are 0 where nothing has run."""
    total = snapshot.total
    return {
        "run": snapshot.run,
        "workflow": snapshot.workflow,
        "rows": {
            "total": snapshot.rows_total,
            "done": snapshot.rows_done,
            "failed": snapshot.rows_failed,
            "resumed": snapshot.rows_resumed,
        },
        "calls": {
            "made": total.calls,
            "failed": total.failed,
            "saved": sum(_models_shared(snapshot).values()),
            "saved_by": _models_shared(snapshot),
            "broken_attempts": snapshot.broken_attempts,
            "broken_by": dict(snapshot.broken),
        },
        "tool_calls": {
            "made": total.tool_calls,
            "saved": sum(snapshot.tools_shared.values()),
            "saved_by": dict(snapshot.tools_shared),
            "early": snapshot.early,
            "wasted": snapshot.wasted,
        },
        "tokens": {
            "prompt": total.prompt_tokens,
            "cached": total.cached_tokens,
            "output": total.output_tokens,
            "saved_prompt": snapshot.saved_prompt_tokens,
            "saved_output": snapshot.saved_output_tokens,
        },
        "hit_rate": hit_rate(total),
        "seconds": _seconds(total) | {"elapsed": snapshot.elapsed_s},
        "rates": {
            "rows_per_s": _ratio(
                snapshot.rows_done + snapshot.rows_failed, snapshot.last_s - snapshot.first_s
            ),
            "output_tokens_per_s": _ratio(total.output_tokens, snapshot.elapsed_s),
            "prompt_tokens_per_s": _ratio(total.prompt_tokens, snapshot.elapsed_s),
        },
        "reasoning": reasoning_record(snapshot.reasoning),
        "refused_tool_calls": snapshot.refused,
        "approvals_wanted": snapshot.approvals,
        "unknown_effects": snapshot.unknown,
        "slowest_step": slowest_step(snapshot),
        "steps": {name: _step(step) for name, step in snapshot.steps.items()},
        "errors": {
            kind: {"count": error.count, "first": error.first}
            for kind, error in snapshot.errors.items()
        },
    }


def hit_rate(step: StepTally) -> float:
    """The part of the prompt tokens that the KV cache had."""
    return _ratio(step.cached_tokens, step.prompt_tokens)


def slowest_step(snapshot: TallySnapshot) -> str | None:
    """The step with the most seconds in calls and tools."""
    return max(snapshot.steps, key=lambda name: snapshot.steps[name].seconds, default=None)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0


def _seconds(step: StepTally) -> dict[str, float]:
    return {
        "queue": step.waited_s + step.queue_s,
        "prefill": step.prefill_s,
        "decode": step.decode_s,
        "tools": step.tool_s,
    }


def _step(step: StepTally) -> dict[str, Any]:
    return {
        "calls": step.calls,
        "failed": step.failed,
        "saved": step.shared,
        "tool_calls": step.tool_calls,
        "prompt_tokens": step.prompt_tokens,
        "cached_tokens": step.cached_tokens,
        "output_tokens": step.output_tokens,
        "seconds": _seconds(step),
    }


def render(snapshot: TallySnapshot) -> str:
    """The figures as plain text of some twenty lines."""
    total = snapshot.total
    rates = summary(snapshot)["rates"]
    tokens = (
        f"{total.prompt_tokens:,} in ({total.cached_tokens:,} cached, {hit_rate(total):.1%}), "
        f"{total.output_tokens:,} out"
    )
    seconds = ", ".join(f"{where} {_time(s)}" for where, s in _seconds(total).items())
    speed = (
        f"{rates['rows_per_s']:,.1f} rows/s, {rates['output_tokens_per_s']:,.1f} output tokens/s, "
        f"{_time(snapshot.elapsed_s)} in all"
    )
    lines = [
        ("rows", _rows(snapshot)),
        ("calls", f"{total.calls:,} made, {_saved(_models_shared(snapshot))}"),
        ("tokens", tokens),
        ("time in", seconds),
        ("speed", speed),
    ]
    if snapshot.tools_shared or snapshot.early:
        tools = f"{total.tool_calls:,} calls made, {_saved(snapshot.tools_shared)}"
        if snapshot.early:
            tools += f"; {snapshot.early:,} started early, {snapshot.wasted:,} of them for nothing"
        lines.insert(2, ("tools", tools))
    if snapshot.broken:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in snapshot.broken.items())
        lines.append(("no answer", f"{snapshot.broken_attempts:,} attempts: {kinds}"))
    if snapshot.reasoning.steps:
        lines += reasoning_lines(snapshot.reasoning)
    if snapshot.refused:
        lines.append(("refused", f"{snapshot.refused:,} tool calls, after untrusted text"))
    if snapshot.approvals:
        asked = f"{snapshot.approvals:,} calls of tools wait: see `tenter approve {snapshot.run}`"
        lines.append(("approvals", asked))
    if snapshot.unknown:
        cut = f"{snapshot.unknown:,} calls of tools were cut off: see whether they had their effect"
        lines.append(("unknown", cut))
    slowest = slowest_step(snapshot)
    if slowest is not None:
        lines.append(("slowest step", f"{slowest} ({_time(snapshot.steps[slowest].seconds)})"))
    lines += [(f"error x{e.count:,}", _first_line(e.first)) for e in snapshot.errors.values()]
    width = max(len(name) for name, _ in lines)
    head = [f"{name:<{width}}  {text}" for name, text in lines]
    return "\n".join([*head, *_step_table(snapshot)])


def _rows(snapshot: TallySnapshot) -> str:
    of = "" if snapshot.rows_total is None else f" of {snapshot.rows_total:,}"
    text = f"{snapshot.done_in_all:,}{of} done, {snapshot.failed_in_all:,} failed"
    return text + (f" ({snapshot.rows_resumed:,} before)" if snapshot.rows_resumed else "")


def _models_shared(snapshot: TallySnapshot) -> dict[str, int]:
    """The calls of models alone that were not made, by how."""
    tools = snapshot.tools_shared
    left = {how: count - tools.get(how, 0) for how, count in snapshot.shared.items()}
    return {how: count for how, count in left.items() if count}


def _saved(shared: Mapping[str, int]) -> str:
    how = ", ".join(f"{count:,} {name}" for name, count in shared.items())
    return f"{sum(shared.values()):,} saved" + (f" ({how})" if how else "")


def _time(seconds: float) -> str:
    """`12.3 s`, `4 min 05 s`, `2 h 03 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


def reasoning_record(found: ReasonTally) -> dict[str, Any]:
    """The same as JSON."""
    return asdict(found) | {"saved_tokens": found.full_tokens - found.spent_tokens}


def reasoning_lines(found: ReasonTally) -> list[tuple[str, str]]:
    """What thoughts took, the rules in force, and what shadow runs say of them."""
    rules = [("stop rule", f"{step}: {rule}") for step, rule in found.rules.items()]
    return [("reasoning", _reasoning(found)), *rules, *(("drift", text) for text in found.drifts)]


def _reasoning(found: ReasonTally) -> str:
    text = (
        f"{found.steps:,} steps, {found.settled:,} settled early: {found.thought_tokens:,} tokens of "
        f"thought, {found.probe_tokens:,} of probes"
    )
    if found.again_tokens:
        text += f", {found.again_tokens:,} computed again behind them"
    text += f", about {found.full_tokens:,} to the end"
    if found.full_tokens:
        saved = found.full_tokens - found.spent_tokens
        text += f": {saved:,} saved ({-saved / found.full_tokens:+.0%})"
    if found.kept + found.lost:
        text += f"; {found.kept:,} of {found.kept + found.lost:,} shadow runs keep the answer"
    if found.scores:
        text += f"; {found.scores:,} rewards"
        text += f" ({found.score_tokens:,} tokens)" if found.score_tokens else ""
        text += f", {found.unscored:,} of them came to nothing" if found.unscored else ""
    if found.lent_tokens:
        text += f"; {found.lent_tokens:,} tokens from the budgets of settled steps"
    return text


def _first_line(text: str) -> str:
    line = text.split("\n", 1)[0]
    return line if len(line) <= 100 else line[:99] + "…"


def _step_table(snapshot: TallySnapshot) -> Iterable[str]:
    if not snapshot.steps:
        return ()
    head = ("step", "calls", "saved", "tools", "in", "cached", "out", "seconds")
    rows = [head, *(_cells(name, step) for name, step in snapshot.steps.items())]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return [
        "",
        *(
            "  ".join(
                cell.ljust(width) if i == 0 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ),
    ]


def _cells(name: str, step: StepTally) -> tuple[str, ...]:
    return (
        name,
        f"{step.calls:,}",
        f"{step.shared:,}",
        f"{step.tool_calls:,}",
        f"{step.prompt_tokens:,}",
        f"{hit_rate(step):.0%}",
        f"{step.output_tokens:,}",
        f"{step.seconds:,.1f}",
    )
