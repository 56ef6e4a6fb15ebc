"""Plans and runs as tables for people and as records for programs: `explain` and `--analyze`."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from .analysis import Analysis, StepAnalysis
from .expected import Expectation, over
from .summary import reasoning_lines, reasoning_record

HEAD = (
    *("step", "rows", "calls", "away", "prompt", "cached", "output"),
    *("queued s", "prefill s", "decode s", "tool s", "path"),
)
PAID_SHARE = 0.5  # of the tokens expected in the cache, below which a word is said
EXPECTED_SHARE = 0.1  # of the prompts, from which on that matters


# ---- before a run ------------------------------------------------------------------------------


def expectation_table(steps: Sequence[Expectation]) -> str:
    """What steps are expected to take, all rows together."""
    rows = [_expected_cells(step, step.step + f" ({step.kind})") for step in steps]
    return _table([HEAD, *rows])


def expectation_record(step: Expectation) -> dict[str, Any]:
    """The same as JSON."""
    return {
        "step": step.step,
        "kind": step.kind,
        "rows": step.rows,
        "calls": round(step.calls, 1),
        "consolidated": None if step.away is None else round(step.away, 1),
        "prompt_tokens": round(step.prompt_tokens),
        "cached_tokens": round(step.cached_tokens),
        "output_tokens": round(step.output_tokens),
        "seconds": {
            "prefill": step.prefill_s,
            "decode": step.decode_s,
            "tool": step.tool_s,
        },
        "path_share": step.path_share,
    }


def _expected_cells(step: Expectation, name: str) -> tuple[str, ...]:
    model = step.kind != "tool"
    tokens = (step.prompt_tokens, step.cached_tokens, step.output_tokens)
    return (
        name,
        f"{step.rows:,}",
        _count(step.calls),
        "" if step.away is None else _count(step.away),
        *(_count(each) if model else "" for each in tokens),
        "",
        *map(_seconds, (step.prefill_s, step.decode_s, step.tool_s)),
        "" if step.path_share is None else f"{step.path_share:.0%}",
    )


# ---- after it ----------------------------------------------------------------------------------


def analysis_text(found: Analysis) -> str:
    """What each step took; below it, behind a tilde, what was expected for as many rows."""
    tally = found.tally
    of = "" if tally.rows_total is None else f" of {tally.rows_total:,}"
    head = (
        f"{tally.run or 'run'} of {tally.workflow}: {tally.rows_finished:,}{of} rows, "
        f"{tally.failed_in_all:,} failed, {tally.elapsed_s:,.1f} s"
    )
    rows: list[tuple[str, ...]] = [HEAD]
    for step in found.steps:
        rows.append(_cells(step))
        if step.expected is not None:
            expected = over(step.expected, tally.rows_finished)
            rows.append(("  ~ expected", "", *_expected_cells(expected, "")[2:]))
    if found.between_share:
        rows.append(("between steps", *("",) * (len(HEAD) - 2), f"{found.between_share:.0%}"))
    learned = (f"cascade {step}: {text}" for step, text in found.cascades.items())
    thought = (line for step in found.steps for line in _thought(step))
    told = (f"warning: {text}" for text in warnings(found))
    return "\n".join((head, "", _table(rows), *learned, *thought, *told))


def analysis_record(found: Analysis) -> dict[str, Any]:
    """The same as one JSON object."""
    tally = found.tally
    return {
        "type": "analysis",
        "run": tally.run,
        "workflow": tally.workflow,
        "rows": {
            "total": tally.rows_total,
            "done": tally.done_in_all,
            "failed": tally.failed_in_all,
        },
        "elapsed_s": tally.elapsed_s,
        "between_share": found.between_share,
        "cascades": dict(found.cascades),
        "steps": [_record(step, tally.rows_finished) for step in found.steps],
        "warnings": list(warnings(found)),
    }


def warnings(found: Analysis) -> Iterator[str]:
    """Where far fewer tokens were found in the cache than the plan had expected, in whole pages."""
    for step in found.steps:
        if step.expected is None:
            continue
        pages = step.expected.cached_tokens // found.page_tokens
        expected = pages * found.page_tokens * step.took.calls
        if expected < EXPECTED_SHARE * step.took.prompt_tokens:
            continue
        if step.took.cached_tokens < PAID_SHARE * expected:
            yield (
                f"step {step.step!r}: {step.took.cached_tokens:,} tokens were found in the cache, "
                f"and {round(expected):,} were expected: its prefix changes, or was evicted"
            )


def _cells(step: StepAnalysis) -> tuple[str, ...]:
    took = step.took
    kind = "" if step.expected is None else f" ({step.expected.kind})"
    model = took.calls > 0 or not took.tool_calls
    tokens = (took.prompt_tokens, took.cached_tokens, took.output_tokens)
    times = (step.queued_s, took.prefill_s, took.decode_s) if model else (None,) * 3
    return (
        step.step + kind,
        f"{step.rows:,}",
        f"{took.calls + took.tool_calls:,}",
        ", ".join(f"{many:,} {how}" for how, many in step.shared.items()) or "0",
        *(f"{each:,}" if model else "" for each in tokens),
        *map(_seconds, times),
        _seconds(took.tool_s if took.tool_calls else None),
        f"{step.path_share:.0%}",
    )


def _record(step: StepAnalysis, rows: int) -> dict[str, Any]:
    took = step.took
    expected = None if step.expected is None else over(step.expected, rows)
    return {
        "step": step.step,
        "kind": None if expected is None else expected.kind,
        "rows": step.rows,
        "calls": took.calls,
        "tool_calls": took.tool_calls,
        "failed": took.failed,
        "consolidated": dict(step.shared),
        "prompt_tokens": took.prompt_tokens,
        "cached_tokens": took.cached_tokens,
        "promised_tokens": step.promised_tokens,
        "output_tokens": took.output_tokens,
        "seconds": {
            "queued": step.queued_s,
            "prefill": took.prefill_s,
            "decode": took.decode_s,
            "tool": took.tool_s,
        },
        "path_share": step.path_share,
        "expected": None if expected is None else expectation_record(expected),
        "reasoning": None if step.reasoning is None else reasoning_record(step.reasoning),
    }


def _thought(step: StepAnalysis) -> Iterator[str]:
    """What a reasoning step took, and by which rule."""
    if step.reasoning is not None:
        for name, text in reasoning_lines(step.reasoning):
            yield f"{name} {text}" if name != "reasoning" else f"{name} {step.step}: {text}"


# ---- tables ------------------------------------------------------------------------------------


def _count(value: float) -> str:
    return f"{round(value):,}"


def _seconds(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.1f}" if value >= 10 else f"{value:.2f}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Names to the left, numbers to the right; columns that are empty are left out."""
    columns = range(1, len(rows[0]))
    wanted = [0, *(column for column in columns if any(row[column] for row in rows[1:]))]
    widths = {index: max(len(row[index]) for row in rows) for index in wanted}
    return "\n".join(_line(row, widths) for row in rows)


def _line(row: Sequence[str], widths: dict[int, int]) -> str:
    cells: Iterable[str] = (
        row[index].rjust(width) if index else row[index].ljust(width)
        for index, width in widths.items()
    )
    return "  ".join(cells).rstrip()
