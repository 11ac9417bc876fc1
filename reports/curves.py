"""Figures of lines: latency against context, prompt and batch; throughput against batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .blocks import Canvas
from .format import count, short
from .plot import hair, log_axis, spread, tick, token_axis
from .sections import Entry, Section
from .style import BAND, GREY, INK, fit, shorten, width


@dataclass(frozen=True)
class Line:
    """One device's curve; ``solid`` is how many points hold the model (the others are drawn dashed)."""

    entry: Entry
    suffix: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None
    high: Sequence[float] | None
    solid: int


def over_tokens(canvas: Canvas, section: Section) -> None:
    """Decode step against context, and prefill against prompt, side by side."""
    entries, banded = section.explained("curves"), section.banded
    left, right = canvas.columns(2, 0.35)
    request = section.best.document
    for panel, name, heading, asked in (
        (left, "context", "Decode step against context, tokens already there", request.decode.context),
        (right, "prompt", "Prefill against prompt length, tokens", float(section.prompt)),
    ):
        lines = []
        for entry in entries:
            curve = getattr(entry.document.curves, name)
            low, high = (curve.low_s, curve.high_s) if entry in banded else (None, None)
            solid = len(curve.x) if entry.fits else 0
            lines.append(Line(entry, "", curve.x, curve.latency_s, low, high, solid))
        _panel(panel, lines, heading, "s", asked)


def over_batch(canvas: Canvas, section: Section) -> None:
    """Decode step and throughput against batch; dashed beyond the batch that still fits."""
    entries, banded = section.explained("curves"), section.banded
    left, right = canvas.columns(2, 0.35)
    steps, rates = [], []
    for entry in entries:
        curves = entry.document.curves
        assert curves is not None
        curve = curves.batch
        held = next((i for i, fits in enumerate(curve.fits) if not fits), len(curve.x))
        low, high = (curve.low_s, curve.high_s) if entry in banded else (None, None)
        steps.append(Line(entry, "", curve.x, curve.latency_s, low, high, held))
        rates.append(Line(entry, f", {_held(curve.x, held)}", curve.x, curve.tokens_per_s, None, None, held))
    _panel(left, steps, "Decode step against batch, sequences", "s", float(section.batch))
    _panel(right, rates, "Decode throughput against batch, tokens/s", "", float(section.batch))


def _held(batches: Sequence[float], held: int) -> str:
    if held == 0:
        return "does not fit"
    if held == len(batches):
        return f"fits {count(batches[-1])}"
    return f"fits {count(batches[held - 1])}, not {count(batches[held])}"


def _panel(canvas: Canvas, lines: Sequence[Line], heading: str, unit: str, asked: float) -> None:
    size = 7.5
    gutter = min(canvas.width * 0.45, max(width(line.entry.label + line.suffix, size) for line in lines) + 0.27)
    box = (0.62, 0.38, canvas.width - 0.62 - gutter, canvas.height - 0.72)
    canvas.text(0.02, canvas.height - 0.14, fit(heading, canvas.width - 0.1, 8.5, True), 8.5, weight="bold")
    axes = canvas.axes(*box)
    axes.grid(True)
    x0, x1 = min(line.x[0] for line in lines), max(line.x[-1] for line in lines)
    if x0 == x1:
        x0, x1 = x0 / 2, x1 * 2
    token_axis(axes, x0, x1, box[2])
    values = [v for line in lines for v in (*line.y, *(line.low or ()), *(line.high or ()))]
    y0, y1 = min(values) / 1.25, max(values) * 1.25
    log_axis(axes, "y", y0, y1, tick(unit) if unit else _rate)
    for line in lines:
        _draw(axes, line)
    if x0 <= asked <= x1:
        axes.axvline(asked, color=GREY, linewidth=0.7, linestyle=":")
        share = math.log(asked / x0) / math.log(x1 / x0)
        text = f"asked: {short(asked)}"
        left = min(max(box[0], box[0] + box[2] * share - width(text, 7) / 2), box[0] + box[2] - width(text, 7))
        canvas.text(left, box[1] + box[3] + 0.05, text, 7, GREY)
    _end_labels(canvas, box, lines, (y0, y1), size, gutter)


def _rate(value: float) -> str:
    """20k, 1M: counts on an axis."""
    if value < 10_000:
        return short(value)
    return f"{short(value / 1e6)}M" if value >= 1e6 else f"{short(value / 1e3)}k"


def _draw(axes, line: Line) -> None:  # type: ignore[no-untyped-def]
    colour, n = line.entry.colour, line.solid
    if line.low is not None and line.high is not None:
        axes.fill_between(line.x, line.low, line.high, color=colour, alpha=BAND, linewidth=0)
        for edge in (line.low, line.high):
            axes.plot(line.x, edge, color=colour, linewidth=0.5, alpha=0.6)
    if n:
        axes.plot(line.x[:n], line.y[:n], color=colour, linewidth=1.4)
    if n < len(line.x):
        start = max(0, n - 1)
        axes.plot(line.x[start:], line.y[start:], color=colour, linewidth=1.0, linestyle=(0, (3, 2)), alpha=0.8)
        if n:
            axes.plot([line.x[n - 1]], [line.y[n - 1]], marker="|", markersize=9, markeredgewidth=1.6, color=colour)


def _end_labels(
    canvas: Canvas, box: tuple[float, float, float, float], lines: Sequence[Line], span: tuple[float, float],
    size: float, gutter: float,
) -> None:  # fmt: skip
    """Device names at the right ends of their lines, moved apart, joined by hair lines."""
    height = math.log(span[1] / span[0])
    ends = [box[1] + box[3] * math.log(line.y[-1] / span[0]) / height for line in lines]
    low, high = box[1] + 0.05, box[1] + box[3] - 0.02
    right = box[0] + box[2]
    for line, end, y in zip(lines, ends, spread(ends, 0.135, low, high), strict=True):
        name = shorten(line.entry.label, gutter - 0.22 - width(line.suffix, size), size)
        canvas.text(right + 0.2, y, name + line.suffix, size, INK, va="center_baseline")
        hair(canvas, (right + 0.02, end), (right + 0.12, y))
        canvas.box(right + 0.13, y - 0.035, 0.05, 0.07, line.entry.colour)
