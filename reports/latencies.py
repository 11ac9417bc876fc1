"""Figure of latencies: which share of the requests had to wait how long, of one run or of several."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .bars import key
from .blocks import Canvas
from .format import percent, si
from .plot import log_axis, spread, tick
from .runs import LIMITS, NAMES, Run, attained, share_within
from .style import GREY, INK, WARN, fit, width

PANELS = ("ttft_s", "tpot_s", "e2e_s")
TICKS = (0.0, 0.25, 0.5, 0.75, 0.9, 0.99)
"""Shares that the axis names."""
MARKED = ("p50", "p90", "p99")
HIGH = 2.6
"""Inches of the figure of one run."""
FAR = 30.0
"""A limit that is this many times beyond all latencies is told, and not drawn."""
WIDE = 10.0
"""Least ratio of the ends of the axis: a steady latency is a cliff, not a wide curve."""


def cdfs(canvas: Canvas, runs: Sequence[Run]) -> None:
    """Three panels: time to first token, per token, end to end; one line per run, limits as red strokes."""
    high = canvas.height
    if len(runs) > 1:
        key(canvas, {r.label: r.colour for r in runs})
        high -= 0.28
    for panel, name in zip(canvas.part(0, 0, canvas.width, high).columns(3, 0.3), PANELS, strict=True):
        _panel(panel, runs, name)


def told(runs: Sequence[Run]) -> str:
    """The same in words."""
    found = []
    for run in runs:
        spreads = [(NAMES[name], getattr(run.document, name)) for name in PANELS]
        known = [f"{what} {si(s.p50, 's')}, {si(s.p99, 's')}" for what, s in spreads if s.p50 is not None]
        found.append(f"{run.label}: {'; '.join(known) or 'nothing finished'}")
    return "median and 99th percentile of " + ". ".join(found)


def _panel(canvas: Canvas, runs: Sequence[Run], name: str) -> None:
    drawn = [(r, quantiles) for r in runs if len(quantiles := getattr(r.document.cdf, name)) > 1 and quantiles[-1] > 0]
    heading = NAMES[name][:1].upper() + NAMES[name][1:]
    canvas.text(0.02, canvas.height - 0.14, fit(heading, canvas.width, 8.5, True), 8.5, weight="bold")
    if not drawn:
        canvas.text(0.02, canvas.height - 0.34, "No request came so far.", 8, GREY)
        return
    limits = _limits(runs, name)
    left, right = _ends([q for _, q in drawn], limits)
    box = (0.42, 0.26, canvas.width - 0.5, canvas.height - 0.66)
    axes = canvas.axes(*box)
    axes.grid(True)
    log_axis(axes, "x", left, right, tick("s"))
    axes.set_ylim(0, 1.02)
    axes.set_yticks(TICKS, [percent(t) for t in TICKS])
    for run, quantiles in drawn:
        shares = np.linspace(0, 1, len(quantiles))
        axes.plot([max(q, left) for q in quantiles], shares, color=run.colour, linewidth=1.4, solid_capstyle="butt")
    for limit in limits:
        if left <= limit <= right:
            axes.axvline(limit, color=WARN, linewidth=0.9, linestyle=(0, (4, 2)))
    _limit_label(canvas, box, (left, right), limits, drawn)
    if len(runs) == 1:
        _marks(canvas, box, (left, right), drawn[0][0], name)


def _limits(runs: Sequence[Run], name: str) -> list[float]:
    """Limits on this latency, each once."""
    keys = [k for k, v in LIMITS.items() if v == name]
    return sorted({v for r in runs for k, v in r.document.slo.limits.items() if k in keys})


def _ends(quantiles: Sequence[Sequence[float]], limits: Sequence[float]) -> tuple[float, float]:
    """Ends of the axis: all that is above a hundred-thousandth of the largest, and limits that are not far."""
    largest = max(q[-1] for q in quantiles)
    smallest = min(max(min((v for v in q if v > 0), default=largest), largest * 1e-5) for q in quantiles)
    near = [x for x in limits if smallest / FAR <= x <= largest * FAR]
    left, right = min(smallest, *near, largest) / 1.25, max(largest, *near, smallest) * 1.25
    if right / left < WIDE:
        middle = (left * right) ** 0.5
        left, right = middle / WIDE**0.5, middle * WIDE**0.5
    return left, right


def _x(value: float, box: tuple[float, float, float, float], ends: tuple[float, float]) -> float:
    return box[0] + box[2] * float(np.log(value / ends[0]) / np.log(ends[1] / ends[0]))


def _limit_label(
    canvas: Canvas, box: tuple[float, float, float, float], ends: tuple[float, float], limits: Sequence[float],
    drawn: Sequence[tuple[Run, Sequence[float]]],
) -> None:  # fmt: skip
    """The limit above its stroke; of one run also the share within it."""
    if not limits:
        return
    text = "limit " + ", ".join(si(x, "s") for x in limits)
    if len(drawn) == 1 and len(limits) == 1:
        text += f": kept by {attained(share_within(drawn[0][1], limits[0]))}"
    if not ends[0] <= limits[0] <= ends[1]:
        text += " (outside)"
    text = fit(text, box[2], 7)
    at = _x(min(max(limits[0], ends[0]), ends[1]), box, ends) - width(text, 7) / 2
    at = min(max(box[0], at), box[0] + box[2] - width(text, 7))
    canvas.text(at, box[1] + box[3] + 0.05, text, 7, WARN)


def _marks(
    canvas: Canvas, box: tuple[float, float, float, float], ends: tuple[float, float], run: Run, name: str
) -> None:
    """Dots at the quantiles of the table, each with its value where the curve is not: right below, or left above."""
    times = getattr(run.document, name)
    axes = canvas.figure.axes[-1]
    points = []
    for quantile in MARKED:
        value, share = getattr(times, quantile), float(quantile[1:]) / 100
        if value is not None and ends[0] <= value <= ends[1]:
            axes.plot([value], [share], marker="o", markersize=3.5, color=run.colour, markeredgewidth=0)
            points.append((value, box[1] + box[3] * share / 1.02))
    room = {"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85}
    below = spread([y - 0.1 for _, y in points], 0.125, box[1], box[1] + box[3])
    for (value, y), low in zip(points, below, strict=True):
        x, text = _x(value, box, ends), si(value, "s")
        if x + 0.06 + width(text, 7) < box[0] + box[2]:
            canvas.text(x + 0.06, low, text, 7, INK, bbox=room)
        else:
            canvas.text(x - 0.06, y + 0.03, text, 7, INK, ha="right", bbox=room)
