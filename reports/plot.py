"""Shared pieces of the figures: axes with readable ticks, device rows, labels that stay apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from .blocks import Canvas
from .format import exponent, prefixed, short, si_tick
from .style import GREY, INK, fit, shorten, width

ROW, LEAST_ROW = 0.235, 0.135
"""Inches from one device's bar to the next, at best and at least."""
HATCH = "/////"
BAR = 0.62
"""Share of a row that its bar fills."""
POINT = 1 / 72


class Named(Protocol):
    """What a row of bars is of."""

    @property
    def label(self) -> str:
        """Its name."""

    @property
    def colour(self) -> str:
        """The colour of its name's swatch."""


def names_width(entries: Sequence[Named], size: float = 8, most: float = 2.3) -> float:
    """Inches that the device names need at the left of bars."""
    return min(most, max(width(e.label, size) for e in entries) + 0.27)


def rows_height(number_of_rows: int, row: float = ROW, head: float = 0.3, foot: float = 0.32) -> float:
    """Height of a panel of bars with its heading and axis."""
    return head + number_of_rows * row + foot


@dataclass
class Rows:
    """A panel of horizontal bars, one row per entry, top row first, that fills its canvas; lengths in inches.

    ``limit`` is the value at the right end. Values beyond it are drawn to the end and marked as cut.
    """

    canvas: Canvas
    entries: Sequence[Named]
    limit: float
    unit: str
    heading: str
    names: float = 0.0
    gutter: float = 0.9
    head: float = 0.3
    foot: float = 0.32
    scale: Literal["si", "percent"] = "si"
    axes: Axes = field(init=False)
    row: float = field(init=False)
    size: float = field(init=False)

    def __post_init__(self) -> None:
        c, rows = self.canvas, len(self.entries)
        top = c.height - self.head
        self.row = min(ROW, (top - self.foot) / rows)
        self.size = min(8.0, self.row / POINT * 0.75)
        span = c.width - self.names - self.gutter
        self.axes = axes = c.axes(self.names, top - rows * self.row, span, rows * self.row)
        axes.set_xlim(0, self.limit)
        axes.set_ylim(rows - 0.5, -0.5)
        axes.yaxis.set_major_locator(NullLocator())
        axes.grid(axis="x")
        if self.scale == "percent":
            ticks, labels, unit = [0, 0.25, 0.5, 0.75, 1.0], ["0", "25", "50", "75", "100 %"], ""
        else:
            ticks, labels, unit = linear_ticks(self.limit, self.unit, max(2, min(6, int(span / 0.8))))
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_major_formatter(FixedFormatter(labels))
        heading = f"{self.heading}, {unit}" if unit else self.heading
        c.text(self.names, top + 0.09, fit(heading, span + self.gutter, 8, True), 8, weight="bold")
        if self.names:
            for i, entry in enumerate(self.entries):
                y = self.y(i)
                c.box(0.02, y - 0.045, 0.09, 0.09, entry.colour)
                c.text(0.17, y, shorten(entry.label, self.names - 0.25, self.size), self.size, va="center_baseline")

    def y(self, row: int) -> float:
        """The middle of a row, in the canvas's inches."""
        return self.canvas.height - self.head - (row + 0.5) * self.row

    def x(self, value: float) -> float:
        """Where a value lies, in the canvas's inches; at most the end of the axis."""
        span = self.canvas.width - self.names - self.gutter
        return self.names + span * min(1.0, value / self.limit)

    def bar(
        self, row: int, start: float, end: float, color: str, alpha: float = 1.0, outline: str | None = None
    ) -> None:
        """A bar from ``start`` to ``end``, cut at the axis's end; hollow and hatched when it has an ``outline``."""
        end = min(end, self.limit)
        if end <= start:
            return
        style: dict[str, Any] = {"facecolor": color, "alpha": alpha, "linewidth": 0}
        if outline:
            style = {"facecolor": "white", "edgecolor": outline, "hatch": HATCH, "linewidth": 0.6}
        self.axes.add_artist(Rectangle((start, row - BAR / 2), end - start, BAR, **style))

    def end(self, row: int, value: float, text: str, color: str = INK) -> None:
        """``text`` just right of ``value`` in a row; says that the bar was cut where it was."""
        cut = value > self.limit * 1.0001
        x = self.x(value) + 0.06
        if cut:
            gap = Line2D([self.limit * 0.985] * 2, [row - 0.42, row + 0.42], color="white", linewidth=2)
            self.axes.add_artist(gap)
            text = "» " + text
        room = self.canvas.width - x + 0.02
        size = min(7.5, self.size)
        self.canvas.text(x, self.y(row), fit(text, room, size), size, color=color, va="center_baseline")

    def whisker(self, row: int, low: float, high: float) -> None:
        """A 90 % interval: a thin line with end strokes, as far as the axis reaches."""
        if low < self.limit:
            self.stroke([low, min(high, self.limit)], [row, row])
        for end in (low, high):
            if end <= self.limit:
                self.stroke([end, end], [row - 0.15, row + 0.15])

    def stroke(self, x: list[float], y: list[float], linewidth: float = 0.8) -> None:
        """A black line in the panel."""
        self.axes.add_artist(Line2D(x, y, color=INK, linewidth=linewidth, solid_capstyle="butt"))


def axis_end(values: Sequence[float]) -> float:
    """Where a linear axis should end: the largest value, or short of outliers ten times the typical one."""
    known = sorted(v for v in values if v > 0)
    if not known:
        return 1.0
    typical = known[(len(known) - 1) // 2]
    kept = [v for v in known if v <= 10 * typical]
    return kept[-1] * (1.02 if kept[-1] == known[-1] else 1.15)


def linear_ticks(limit: float, unit: str, most: int = 5) -> tuple[list[float], list[str], str]:
    """Round ticks from 0 to ``limit``, their labels, and the unit with the prefix the labels are in."""
    power = math.floor(math.log10(limit / most)) - 1
    steps = (m * 10.0**p for p in range(power, power + 4) for m in (1, 2, 5))
    step = next(s for s in steps if int(limit / s * 1.0001) <= most)
    ticks = [i * step for i in range(int(limit / step * 1.0001) + 1)]
    three = exponent(ticks[-1], unit)
    return ticks, [short(t / 10.0**three) for t in ticks], prefixed(three, unit)


def log_axis(axes: Axes, which: Literal["x", "y"], low: float, high: float, label: Callable[[float], str]) -> None:
    """A logarithmic axis with labelled decades, and 2 and 5 between them where there are few."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    (axes.set_xlim if which == "x" else axes.set_ylim)(low, high)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = max(1, math.ceil((last - first) / 9))
    steps = (1, 2, 5) if last - first <= 2 else (1, 3) if last - first <= 3 else (1,)
    ticks = [m * 10.0**p for p in range(first, last + 1) if p % every == 0 for m in steps]
    _ticks(axis, [t for t in ticks if low * 0.999 <= t <= high * 1.001], label)


def token_axis(axes: Axes, low: float, high: float, inches: float) -> None:
    """A logarithmic x axis in powers of two: 16, 64, … 4k, 16k."""
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    first, last = math.ceil(math.log2(low) - 1e-9), math.floor(math.log2(high) + 1e-9)
    every = max(1, math.ceil((last - first + 1) * 0.36 / inches))
    _ticks(axes.xaxis, [2.0**p for p in range(first, last + 1) if (p - first) % every == 0], power_of_two)


def power_of_two(value: float) -> str:
    """16, 512, 4k, 128k, 1M: tokens as the field writes context lengths."""
    for scale, name in ((2**20, "M"), (2**10, "k")):
        if value >= scale:
            return f"{short(value / scale)}{name}"
    return short(value)


def _ticks(axis, ticks: list[float], label: Callable[[float], str]) -> None:  # type: ignore[no-untyped-def]
    axis.set_minor_locator(NullLocator())
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FixedFormatter([label(t) for t in ticks]))


def tick(unit: str) -> Callable[[float], str]:
    """Tick labels with a unit: 10 ms, 1 TFLOP/s."""
    return lambda value: si_tick(value, unit)


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions near ``wanted`` at least ``gap`` apart within ``low`` to ``high``, in the same order."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    if len(wanted) * gap > high - low + gap:
        gap = (high - low) / max(1, len(wanted) - 1)
    groups: list[tuple[float, list[int]]] = []  # (middle, members in order)
    for i in order:
        middle, members = min(max(wanted[i], low), high), [i]
        while groups and groups[-1][0] + _half(groups[-1][1], gap) + gap > middle - _half(members, gap):
            before = groups.pop()[1]
            members = before + members
            middle = sum(wanted[m] for m in members) / len(members)
            middle = min(max(middle, low + _half(members, gap)), high - _half(members, gap))
        groups.append((middle, members))
    placed = [0.0] * len(wanted)
    for middle, members in groups:
        for k, i in enumerate(members):
            placed[i] = middle - _half(members, gap) + k * gap
    return placed


def _half(members: list[int], gap: float) -> float:
    return (len(members) - 1) * gap / 2


@dataclass
class Placer:
    """Puts labels beside points without covering other labels or points; boxes are (x0, y0, x1, y1) inches."""

    canvas: Canvas
    bounds: tuple[float, float, float, float]
    taken: list[tuple[float, float, float, float]] = field(default_factory=list)
    labels: list[tuple[float, float, float, float]] = field(default_factory=list)

    def block(self, x: float, y: float, radius: float) -> None:
        """Keep labels off a point."""
        self.taken.append((x - radius, y - radius, x + radius, y + radius))

    def label(self, x: float, y: float, text: str, size: float, color: str) -> bool:
        """Place ``text`` near (x, y) with a hair line where it is not adjacent; ``False`` when there is no room."""
        wide, high = width(text, size) * 1.03, size * POINT * 1.15
        for reach in (0.09, 0.18, 0.3, 0.45, 0.65, 0.9):
            for turn in (0, 0.5, -0.5, 1.0, -1.0, 1.5, -1.5, 2.0, -2.0, 2.5, -2.5, 3.14):
                dx, dy = reach * math.cos(turn), reach * math.sin(turn)
                left = x + dx - (0 if abs(turn) < 1.3 else wide if abs(turn) > 1.8 else wide / 2)
                box = (left, y + dy - high / 2, left + wide, y + dy + high / 2)
                way = [(x + dx * t, y + dy * t) for t in (0.35, 0.5, 0.65, 0.8, 0.9)] if reach > 0.15 else []
                if self._free(box) and not any(_inside(p, label) for p in way for label in self.labels):
                    self.labels.append(box)
                    self.taken += [box, *((a - 0.02, b - 0.02, a + 0.02, b + 0.02) for a, b in way)]
                    if way:
                        hair(
                            self.canvas, (x + dx * 0.06 / reach, y + dy * 0.06 / reach), (x + dx * 0.95, y + dy * 0.95)
                        )
                    self.canvas.text(box[0], (box[1] + box[3]) / 2, text, size, color=color, va="center_baseline")
                    return True
        return False

    def _free(self, box: tuple[float, float, float, float]) -> bool:
        x0, y0, x1, y1 = self.bounds
        if box[0] < x0 or box[1] < y0 or box[2] > x1 or box[3] > y1:
            return False
        return all(box[2] <= t[0] or t[2] <= box[0] or box[3] <= t[1] or t[3] <= box[1] for t in self.taken)


def _inside(point: tuple[float, float], box: tuple[float, float, float, float]) -> bool:
    return box[0] <= point[0] <= box[2] and box[1] <= point[1] <= box[3]


def hair(canvas: Canvas, start: tuple[float, float], end: tuple[float, float], color: str = GREY) -> None:
    """A hair line between two points of the canvas, in inches."""
    w, h = canvas.figure.get_size_inches()
    xs = [(canvas.left + p[0]) / w for p in (start, end)]
    ys = [(canvas.bottom + p[1]) / h for p in (start, end)]
    canvas.figure.add_artist(Line2D(xs, ys, color=color, linewidth=0.4))
