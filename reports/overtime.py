"""Figure over time: sequences decoding, requests waiting, KV blocks held, watts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import FixedFormatter, FixedLocator

from .blocks import Canvas
from .format import count, number, percent, short, si
from .plot import linear_ticks
from .schema_serving import Served
from .style import GREY, INK, SERVED, fit, width

HIGH = 4.3
"""Inches of the figure."""
FULL = 0.6
"""Share of the total from which a top line is at the axis's end."""


@dataclass(frozen=True)
class Trend:
    """One panel: means of bins of ``bin_s`` seconds, and a line that they are held against."""

    name: str
    heading: str
    values: Sequence[float]
    bin_s: float
    unit: str = ""
    against: float | None = None
    said: str = ""


def trends(d: Served) -> list[Trend]:
    """The four panels of a run."""
    kv, watts = d.kv_blocks, d.power_w
    share = f", {percent(kv.peak / kv.total)}" if kv.total else ""
    return [
        Trend("decoding", f"Sequences decoding, {number(_mean(d.series.decoding))} on average", d.series.decoding,
              d.series.bin_s),
        Trend("waiting", f"Requests waiting, {number(_mean(d.series.waiting))} on average", d.series.waiting,
              d.series.bin_s),
        Trend("held", f"KV blocks held, at most {count(kv.peak)} of {count(kv.total)}{share}", d.series.held,
              d.series.bin_s, "", float(kv.total), f"all {count(kv.total)}"),
        Trend("power", f"Power, {si(watts.mean, 'W')} on average", watts.series, watts.bin_s, "W", watts.mean,
              f"mean {si(watts.mean, 'W')}"),
    ]  # fmt: skip


def over_time(canvas: Canvas, document: Served) -> None:
    """Four panels over the simulated time."""
    left, right = canvas.columns(2, 0.35)
    each = (canvas.height - 0.1) / 2
    for i, trend in enumerate(trends(document)):
        column = (left, right)[i % 2]
        _panel(column.part(0, canvas.height - (i // 2 + 1) * each - (i // 2) * 0.1, column.width, each), trend)


def told(d: Served) -> str:
    """The same in words."""
    return ". ".join(f"{t.heading}, {number(max(t.values))} in the highest bin" for t in trends(d))


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _panel(canvas: Canvas, trend: Trend) -> None:
    canvas.text(0.02, canvas.height - 0.14, fit(trend.heading, canvas.width, 8.5, True), 8.5, weight="bold")
    box = (0.55, 0.3, canvas.width - 0.65, canvas.height - 0.6)
    axes = canvas.axes(*box)
    axes.grid(True)
    edges = np.arange(len(trend.values) + 1) * (trend.bin_s or 1.0)
    top = max(*trend.values, trend.against or 0.0) * 1.08 or 1.0
    axes.set_xlim(0, edges[-1])
    axes.set_ylim(0, top)
    ticks, labels, unit = linear_ticks(float(edges[-1]), "s", 6)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FixedFormatter([f"{t} {unit}" if t == labels[-1] else t for t in labels]))
    ticks, labels, unit = linear_ticks(top, trend.unit, 4)
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_major_formatter(FixedFormatter([f"{t} {unit}".rstrip() for t in labels]))
    colour = SERVED[trend.name]
    axes.stairs(trend.values, edges, fill=True, facecolor=colour, alpha=0.25, linewidth=0)
    axes.stairs(trend.values, edges, color=colour, linewidth=1.0, baseline=None)
    if trend.against is not None:
        axes.axhline(trend.against, color=INK if trend.name == "held" else GREY, linewidth=0.9, linestyle=(0, (4, 2)))
        y = box[1] + box[3] * trend.against / top
        x = box[0] + box[2] - width(trend.said, 7) - 0.04
        room = {"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85}
        canvas.text(x, y - 0.13, trend.said, 7, INK, bbox=room)
