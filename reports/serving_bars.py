"""Figures of bars of serving runs: latencies, rates, price and energy, one row per run."""

from __future__ import annotations

from collections.abc import Sequence

from .bars import key, stack
from .blocks import Canvas
from .format import percent, si
from .plot import LEAST_ROW, ROW, Rows, axis_end, names_width, rows_height
from .runs import MEASURES, Measure, Run, figure
from .style import GREY, INK, SERVED_ENERGY, hues, width

PALE = 0.4
"""Opacity of the part of a bar from p50 to p99."""
LATENCY, REST = ("ttft_s", "tpot_s"), tuple(MEASURES)[4:]
GUTTER = 1.2


def heights(runs: Sequence[Run]) -> tuple[float, float]:
    """Inches that the comparison asks for, and the least it can be drawn in."""
    return tuple(2 * rows_height(len(runs), row) + 0.25 for row in (ROW, LEAST_ROW))  # type: ignore[return-value]


def compare(canvas: Canvas, every: Sequence[Run], runs: Sequence[Run]) -> None:
    """TTFT, tokens/s and $ above; TPOT, goodput and J below. ``every`` run sets the axes, ``runs`` are drawn."""
    names = names_width(runs, most=2.0)
    each = (canvas.height - 0.25) / 2
    room = (canvas.width - names - 0.3) / 3
    canvas.text(
        0.02, canvas.height - 0.13, "TTFT, TPOT: dark to p50, pale to p99. Strokes: intervals (of p99).", 8, GREY
    )
    rows: tuple[tuple[str, ...], ...] = (
        ("ttft_s", "throughput_tokens_per_s", "cost_usd_per_mtoken"),
        ("tpot_s", "goodput_requests_per_s", "energy_per_token_j"),
    )
    for i, row in enumerate(rows):
        bottom = canvas.height - 0.25 - (i + 1) * each
        for j, name in enumerate(row):
            x = 0 if j == 0 else names + j * (room + 0.15)
            wide = room + (names if j == 0 else 0)
            panel = canvas.part(x, bottom, wide, each)
            own = names if j == 0 else 0.0
            if name in LATENCY:
                _latency(panel, every, runs, name, own)
            else:
                _measure(panel, every, runs, MEASURES[name], own)


def _latency(canvas: Canvas, every: Sequence[Run], runs: Sequence[Run], name: str, names: float) -> None:
    low, high = MEASURES[f"{name}.p50"], MEASURES[f"{name}.p99"]
    ends = [v for r in every for v in (high.of(r), *(r.document.span(high.key) or ())) if v]
    heading = f"{low.heading} and p99"
    rows = Rows(canvas, runs, axis_end(ends), "s", heading, names, gutter=GUTTER)
    for i, run in enumerate(runs):
        p50, p99 = low.of(run), high.of(run)
        if p50 is None or p99 is None:
            _nothing(rows, i)
            continue
        rows.bar(i, 0, p99, run.colour, PALE)
        rows.bar(i, 0, p50, run.colour)
        span = run.document.span(high.key)
        if span:
            rows.whisker(i, *span)
        rows.end(i, max(p99, span[1]) if span else p99, f"{si(p50, 's')}, {si(p99, 's')}")


def _measure(canvas: Canvas, every: Sequence[Run], runs: Sequence[Run], measure: Measure, names: float) -> None:
    ends = [v for r in every for v in (measure.of(r), *(r.document.span(measure.key) or ())) if v]
    heading = {"$": "Price per million tokens", "J": "Energy per token"}.get(measure.unit, measure.heading)
    limit = 1.02 * max(ends, default=1.0) if measure.more else axis_end(ends)
    rows = Rows(canvas, runs, limit, measure.unit, heading[:1].upper() + heading[1:], names, gutter=GUTTER * 0.8)
    for i, run in enumerate(runs):
        value = measure.of(run)
        if value is None:
            _nothing(rows, i, "no price" if measure.unit == "$" and run.document.requests.finished else "none")
            continue
        rows.bar(i, 0, value, run.colour, 0.85)
        span = run.document.span(measure.key)
        if span:
            rows.whisker(i, *span)
        rows.end(i, max(value, span[1]) if span else value, figure(value, measure.unit))


def _nothing(rows: Rows, row: int, text: str = "none") -> None:
    rows.canvas.text(rows.x(0) + 0.06, rows.y(row), text, min(7.5, rows.size), GREY, va="center_baseline")


def energy(canvas: Canvas, run: Run) -> None:
    """Joules of a run by part, as one bar; parts under a millionth are not named."""
    parts = run.document.energy_parts
    total = sum(parts.values())
    named = [n for n in (*SERVED_ENERGY, *sorted(set(parts) - set(SERVED_ENERGY))) if parts.get(n, 0) > 1e-6 * total]
    colours = hues(named, SERVED_ENERGY)
    key(canvas, {f"{n} {si(parts[n], 'J')} ({percent(parts[n] / total)})": c for n, c in colours.items()})
    panel = canvas.part(0.12, 0, canvas.width - 0.12, canvas.height - 0.22)
    rows = Rows(panel, [run], total or 1.0, "J", "Energy of all devices", 0.0, gutter=width("» 999 kJ", 7.5) + 0.3)
    stack(rows, 0, parts, colours)
    rows.end(0, total, si(total, "J"), INK)
