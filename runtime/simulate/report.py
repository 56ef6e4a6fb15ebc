"""Results of simulations as one HTML page: a curve of completion times, a table; nothing is fetched."""

from collections.abc import Sequence
from html import escape
from math import ceil, log

from .result import Result

WIDTH, HEIGHT, LEFT, BOTTOM = 760, 320, 50, 40  # pixels of the plot, and of its margins
POINTS = 200  # of a curve
COLORS = ("#1b6ca8", "#c8553d", "#3a7d44", "#7b4b94", "#b8860b", "#4a4e69", "#008080", "#9d0208")
STYLE = """body{font:15px/1.45 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;margin-top:1rem}td,th{padding:.25rem .6rem;text-align:right}
th{border-bottom:1px solid #999}td:nth-child(-n+3),th:nth-child(-n+3){text-align:left}
tr:nth-child(even){background:#f4f4f4}svg text{font:12px system-ui,sans-serif}"""
HEAD = (
    *("", "what if", "policy, order", "mean s", "p50 s", "p95 s", "p99 s", "programs/h"),
    *("hit", "recomputed", "GPU h", "$"),
)


def page(title: str, about: str, named: Sequence[tuple[str, Result]]) -> str:
    """The page. `named` gives each result with what was changed for it, "" for nothing."""
    rows = "".join(map(_row, range(len(named)), named))
    head = "".join(f"<th>{escape(name)}</th>" for name in HEAD)
    return (
        "<!doctype html>\n"
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head><body><h1>{escape(title)}</h1><p>{escape(about)}</p>"
        f"{_plot([result for _, result in named])}"
        "<p>The share of programs that are complete within so many seconds of their arrival; "
        "the scale of the seconds is logarithmic. Prices are those of the hardware's preset.</p>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></body></html>\n"
    )


def _row(index: int, named: tuple[str, Result]) -> str:
    change, result = named
    span_h = max(result.span_s, 1e-9) / 3600
    setup = result.setup
    cells = (
        escape(change or "as asked"),
        escape(f"{setup.policy}, {setup.order}"),
        *(
            f"{result.percentile_s(p):,.1f}" if p else f"{result.mean_s:,.1f}"
            for p in (0, 50, 95, 99)
        ),
        f"{result.programs / span_h:,.1f}",
        f"{result.hit_rate:.1%}",
        f"{result.recomputed_tokens:,}",
        f"{result.gpu_s / 3600:,.2f}",
        f"{result.dollars:,.2f}",
    )
    key = f'<td style="color:{_color(index)}">&#9632;</td>'
    return f"<tr>{key}{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _color(index: int) -> str:
    return COLORS[index % len(COLORS)]


def _plot(results: Sequence[Result]) -> str:
    """Cumulative shares of completion times over a logarithmic axis."""
    times = [sorted(result.completion_s) for result in results]
    known = [seconds for one in times for seconds in one if seconds > 0]
    if not known:
        return "<p>No program was completed.</p>"
    low, high = min(known), max(max(known), min(known) * 1.1)
    axes = [
        _text(LEFT - 8, _y(share), f"{share:.0%}", "end") + _line(LEFT, _y(share), WIDTH, _y(share))
        for share in (0, 0.25, 0.5, 0.75, 1)
    ]
    for step in range(5):
        seconds = low * (high / low) ** (step / 4)
        axes.append(_text(_x(seconds, low, high), HEIGHT - BOTTOM + 20, f"{seconds:,.3g} s"))
    curves = [_curve(one, low, high, _color(at)) for at, one in enumerate(times)]
    label = "Share of programs complete by time since arrival"
    return (
        f'<svg viewBox="0 0 {WIDTH + 30} {HEIGHT}" role="img" aria-label="{label}">'
        f"{''.join(axes)}{''.join(curves)}</svg>"
    )


def _curve(times: Sequence[float], low: float, high: float, color: str) -> str:
    size = len(times)
    every = ceil(size / POINTS) or 1
    shown = sorted({*range(0, size, every), size - 1}) if size else []
    points = " ".join(
        f"{_x(max(times[at], low), low, high):.1f},{_y((at + 1) / size):.1f}" for at in shown
    )
    return f'<polyline fill="none" stroke="{color}" stroke-width="2" points="{points}"/>'


def _x(seconds: float, low: float, high: float) -> float:
    return LEFT + (WIDTH - LEFT) * log(seconds / low) / log(high / low)


def _y(share: float) -> float:
    return (HEIGHT - BOTTOM) - share * (HEIGHT - BOTTOM - 10)


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _line(x: float, y: float, to_x: float, to_y: float) -> str:
    return f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}" stroke="#ddd"/>'
