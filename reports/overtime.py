"""Figure over time: sequences decoding, requests waiting, KV blocks held, watts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.ticker import FixedFormatter, FixedLocator

from .bars import key
from .blocks import Canvas
from .format import count, number, percent, si
from .plot import linear_ticks
from .runs import Run
from .schema_serving import Served
from .style import GREY, INK, SERVED, fit, width

HIGH = 4.3
"""Inches of the figure."""
ABOVE = 1.08
"""End of an axis over the largest value."""
Box = tuple[float, float, float, float]


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


def over_time(canvas: Canvas, runs: Sequence[Run]) -> None:
    """Four panels over the simulated time; of several runs as lines in the runs' colours."""
    high = canvas.height
    if len(runs) > 1:
        key(canvas, {r.label: r.colour for r in runs})
        high -= 0.28
    left, right = canvas.part(0, 0, canvas.width, high).columns(2, 0.35)
    each = (high - 0.1) / 2
    every = [trends(r.document) for r in runs]
    for i in range(4):
        column = (left, right)[i % 2]
        part = column.part(0, high - (i // 2 + 1) * each - (i // 2) * 0.1, column.width, each)
        if len(runs) == 1:
            _one(part, every[0][i])
        else:
            _several(part, [trend[i] for trend in every], [r.colour for r in runs])


def told(d: Served) -> str:
    """A run's panels in words."""
    return ". ".join(f"{t.heading}, {number(max(t.values))} in the highest bin" for t in trends(d))


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _axes(canvas: Canvas, heading: str, end: float, top: float, unit: str) -> tuple[Axes, Box]:
    canvas.text(0.02, canvas.height - 0.14, fit(heading, canvas.width, 8.5, True), 8.5, weight="bold")
    box = (0.55, 0.3, canvas.width - 0.75, canvas.height - 0.6)
    axes = canvas.axes(*box)
    axes.grid(True)
    axes.set_xlim(0, end)
    axes.set_ylim(0, top)
    ticks, labels, prefix = linear_ticks(end, "s", 6)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FixedFormatter([*labels[:-1], f"{labels[-1]} {prefix}"]))
    if unit == "%":
        ticks = [0, 0.25, 0.5, 0.75, 1.0]
        labels, prefix = [percent(t) for t in ticks], ""
    else:
        ticks, labels, prefix = linear_ticks(top, unit, 4)
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_major_formatter(FixedFormatter([f"{t} {prefix}".rstrip() for t in labels]))
    return axes, box


def _one(canvas: Canvas, trend: Trend) -> None:
    edges = _edges(trend)
    top = max(*trend.values, trend.against or 0.0) * ABOVE or 1.0
    axes, box = _axes(canvas, trend.heading, float(edges[-1]), top, trend.unit)
    colour = SERVED[trend.name]
    axes.stairs(trend.values, edges, fill=True, facecolor=colour, alpha=0.25, linewidth=0)
    axes.stairs(trend.values, edges, color=colour, linewidth=1.0, baseline=None)
    if trend.against is not None:
        axes.axhline(trend.against, color=INK if trend.name == "held" else GREY, linewidth=0.9, linestyle=(0, (4, 2)))
        y = box[1] + box[3] * trend.against / top
        x = box[0] + box[2] - width(trend.said, 7) - 0.04
        room = {"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85}
        canvas.text(x, y - 0.13 if y - box[1] > 0.2 else y + 0.05, trend.said, 7, INK, bbox=room)


def _several(canvas: Canvas, own: Sequence[Trend], colours: Sequence[str]) -> None:
    """One panel of several runs; blocks as shares of each run's own."""
    held = own[0].name == "held"
    scales = [t.against or 1.0 if held else 1.0 for t in own]
    end = max(float(_edges(t)[-1]) for t in own)
    top = 1.05 if held else max(max(t.values) for t in own) * ABOVE or 1.0
    heading = "Share of the KV blocks held" if held else own[0].heading.partition(",")[0]
    axes, _ = _axes(canvas, heading, end, top, "%" if held else own[0].unit)
    for trend, scale, colour in zip(own, scales, colours, strict=True):
        axes.stairs([v / scale for v in trend.values], _edges(trend), color=colour, linewidth=1.0, baseline=None)


def _edges(trend: Trend) -> npt.NDArray[np.float64]:
    return np.linspace(0.0, len(trend.values) * (trend.bin_s or 1.0), len(trend.values) + 1)
