"""Rooflines: every operator of both phases under what the device can do at most.

Williams, Waterman, Patterson: Roofline, CACM 52(4), 2009. Intensity is FLOPs over bytes moved, the
height of a point is FLOPs over time, all per device; its area grows with its share of the phase.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from .blocks import Canvas
from .documents import DeviceFacts, Operator
from .format import number, percent, si
from .plot import Placer, log_axis, tick
from .sections import Entry
from .style import GREY, INK, MARKERS, PHASES, darker, fit, width

Limits = tuple[float, float, float, float]


@dataclass(frozen=True)
class Point:
    """One operator: ``share`` is its part of its phase's time."""

    phase: str
    kind: str
    intensity: float
    achieved: float
    share: float


def points(operators: Sequence[Operator]) -> list[Point]:
    """Operators that compute and move something and take time, the longest last."""
    whole = {phase: sum(o.time_s for o in operators if o.phase == phase) for phase in PHASES}
    found = [
        Point(o.phase, o.kind, o.flops / o.bytes, o.flops / o.time_s, o.time_s / whole[o.phase])
        for o in operators
        if o.flops > 0 and o.bytes > 0 and o.time_s > 0
    ]
    return sorted(found, key=lambda p: p.share)


def omitted(operators: Sequence[Operator]) -> list[str]:
    """Kinds of operators that a roofline cannot show, because they compute nothing."""
    return sorted({o.kind for o in operators if not (o.flops > 0 and o.bytes > 0 and o.time_s > 0)})


def limits(entries: Sequence[Entry]) -> Limits:
    """Axes that hold the points and the ridges of all ``entries``: x low, x high, y low, y high."""
    xs, ys = [], []
    for entry in entries:
        device = entry.document.device
        ridge = device.peak_flops / device.bandwidth
        xs += [ridge * 8]
        ys += [device.peak_flops]
        for p in points(entry.document.operators):
            xs.append(p.intensity)
            ys.append(p.achieved)
    return min(*xs, 0.3) / 2, max(xs) * 1.6, min(ys) / 3, max(ys) * 3


def roofline(canvas: Canvas, entry: Entry, bounds: Limits) -> None:
    """One device, large: points labelled by kind with their share of the phase."""
    canvas.text(0, canvas.height - 0.14, fit(_caption(entry), canvas.width * 0.62, 9.5, True), 9.5, weight="bold")
    x = canvas.width - 0.1
    for phase in reversed(PHASES):
        name = "prefill" if phase == "prefill" else "decode step"
        x -= width(name, 8.5)
        canvas.text(x, canvas.height - 0.14, name, 8.5, darker(PHASES[phase]))
        _mark(canvas, x - 0.12, canvas.height - 0.1, phase)
        x -= 0.45
    box = (0.85, 0.5, canvas.width - 0.95, canvas.height - 0.8)
    axes = canvas.axes(*box)
    _axes(axes, bounds)
    axes.grid(True)
    axes.set_xlabel("arithmetic intensity, FLOP per byte moved", fontsize=8.5)
    _height_label(canvas, box)
    placer = Placer(canvas, (box[0] + 0.03, box[1] + 0.03, box[0] + box[2], box[1] + box[3]))
    _roofs(canvas, axes, entry.document.device, bounds, box, placer)
    found = points(entry.document.operators)
    _scatter(axes, found, 260)
    place = _place(bounds, box)
    for p in found:
        placer.block(*place(p.intensity, p.achieved), 0.05 + 0.06 * math.sqrt(p.share))
    for phase, kind, p, share in _named(found):
        text = f"{kind} {percent(share)}"
        placer.label(*place(p.intensity, p.achieved), text, 8, darker(PHASES[phase]))


def small_roofline(canvas: Canvas, entry: Entry, bounds: Limits, *, bottom: bool, left: bool) -> None:
    """One device of many: the same axes, points without labels; tick labels at the edges of the grid only."""
    box = (0.75, 0.35, canvas.width - 0.8, canvas.height - 0.75)
    canvas.box(box[0], canvas.height - 0.15, 0.09, 0.09, entry.colour)
    canvas.text(box[0] + 0.15, canvas.height - 0.15, fit(entry.label, box[2] - 0.2, 8, True), 8, weight="bold")
    device = entry.document.device
    facts = f"{si(device.peak_flops, 'FLOP/s')} {device.peak_format}, {si(device.bandwidth, 'B/s')}"
    canvas.text(box[0], canvas.height - 0.3, fit(facts, box[2], 7), 7, GREY)
    axes = canvas.axes(*box)
    _axes(axes, bounds)
    axes.grid(True)
    axes.tick_params(labelbottom=bottom, labelleft=left, labelsize=6.5)
    _lines(axes, device, bounds)
    _scatter(axes, points(entry.document.operators), 70)


def small_rooflines(canvas: Canvas, entries: Sequence[Entry], bounds: Limits, columns: int, row: float) -> None:
    """A grid of :func:`small_roofline`, rows of ``row`` inches."""
    each = canvas.width / columns
    for i, entry in enumerate(entries):
        r, c = divmod(i, columns)
        cell = canvas.part(c * each, canvas.height - (r + 1) * row, each, row)
        small_roofline(cell, entry, bounds, bottom=i + columns >= len(entries), left=c == 0)


# -- pieces ----------------------------------------------------------------------------------------
def _caption(entry: Entry) -> str:
    return f"{entry.label}: {entry.document.device.description}"


def _mark(canvas: Canvas, x: float, y: float, phase: str) -> None:
    from matplotlib.lines import Line2D

    w, h = canvas.figure.get_size_inches()
    face = PHASES[phase] if phase == "prefill" else "white"
    canvas.figure.add_artist(
        Line2D(
            [(canvas.left + x) / w], [(canvas.bottom + y) / h], marker=MARKERS[phase], markersize=6,
            markerfacecolor=face, markeredgecolor=PHASES[phase], linestyle="none",
        )
    )  # fmt: skip


def _axes(axes: Axes, bounds: Limits) -> None:
    log_axis(axes, "x", bounds[0], bounds[1], _plain)
    log_axis(axes, "y", bounds[2], bounds[3], tick("FLOP/s"))


def _plain(value: float) -> str:
    return number(value) if value < 10_000 else si(value, "")


def _height_label(canvas: Canvas, box: tuple[float, float, float, float]) -> None:
    canvas.text(
        box[0], box[1] + box[3] + 0.08, "achieved, FLOP per second and device; area: share of the phase's time", 7.5, GREY
    )


def _place(bounds: Limits, box: tuple[float, float, float, float]):  # type: ignore[no-untyped-def]
    """A function from data to inches of the canvas."""
    x0, x1, y0, y1 = (math.log(b) for b in bounds)

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            box[0] + box[2] * (math.log(x) - x0) / (x1 - x0),
            box[1] + box[3] * (math.log(y) - y0) / (y1 - y0),
        )

    return place


def _lines(axes: Axes, device: DeviceFacts, bounds: Limits) -> None:
    for bandwidth, peak, style in (
        (device.bandwidth, device.peak_flops, {"linestyle": (0, (4, 2)), "linewidth": 0.8, "color": GREY}),
        (device.achievable_bandwidth, device.achievable_flops, {"linewidth": 1.3, "color": INK}),
    ):
        ridge = peak / bandwidth
        axes.plot([bounds[0], ridge, bounds[1]], [bounds[0] * bandwidth, peak, peak], **style)  # type: ignore[arg-type]


def _roofs(
    canvas: Canvas, axes: Axes, device: DeviceFacts, bounds: Limits, box: tuple[float, float, float, float], placer: Placer
) -> None:
    """Peak and achievable lines with what they stand for written along them."""
    _lines(axes, device, bounds)
    place = _place(bounds, box)
    right = box[0] + box[2]
    top = place(bounds[1], device.peak_flops)[1]
    below = place(bounds[1], device.achievable_flops)[1]
    for y, text, color in (
        (top + 0.06, f"peak {si(device.peak_flops, 'FLOP/s')} ({device.peak_format})", GREY),
        (below - 0.15, f"achievable {si(device.achievable_flops, 'FLOP/s')}", INK),
    ):
        canvas.text(right - 0.05, y, text, 7.5, color, ha="right")
        placer.taken.append((right - 0.1 - width(text, 7.5), y - 0.03, right, y + 0.11))
    low = max(bounds[0], bounds[2] / device.bandwidth)
    start = place(low, low * device.bandwidth)
    ridge = place(device.peak_flops / device.bandwidth, device.peak_flops)
    length = math.dist(start, ridge)
    if length < 1.5:
        return
    angle = math.atan2(ridge[1] - start[1], ridge[0] - start[0])
    apart = (place(1, device.bandwidth)[1] - place(1, device.achievable_bandwidth)[1]) * math.cos(angle)
    for side, text, color in (
        (0.06, f"peak {si(device.bandwidth, 'B/s')}", GREY),
        (-0.14 - apart, f"achievable {si(device.achievable_bandwidth, 'B/s')}", INK),
    ):
        along = 0.3 * length
        x = start[0] + along * math.cos(angle) - side * math.sin(angle)
        y = start[1] + along * math.sin(angle) + side * math.cos(angle)
        canvas.text(
            x, y, text, 7.5, color, rotation=math.degrees(angle), rotation_mode="anchor", ha="left", va="baseline"
        )
        for step in range(12):  # a rotated text takes its place in squares along it
            s = width(text, 7.5) * (step + 0.5) / 12
            placer.block(x + s * math.cos(angle), y + s * math.sin(angle) + 0.05, 0.09)
    for step in range(60):  # labels keep off the slope
        s = length * (step + 0.5) / 60
        placer.block(start[0] + s * math.cos(angle), start[1] + s * math.sin(angle), 0.03)


def _scatter(axes: Axes, found: Sequence[Point], area: float) -> None:
    for p in found:
        colour = PHASES[p.phase]
        face = colour if p.phase == "prefill" else "white"
        axes.scatter(
            [p.intensity], [p.achieved], s=area * 0.07 + area * p.share, marker=MARKERS[p.phase], facecolors=face,
            edgecolors=colour, linewidths=1.0, alpha=0.9, zorder=3,
        )  # fmt: skip


def _named(found: Sequence[Point]) -> list[tuple[str, str, Point, float]]:
    """One label per phase and kind, at the kind's longest operator, with the kind's share; longest first."""
    kinds: dict[tuple[str, str], tuple[Point, float]] = {}
    for p in found:  # the longest comes last and stays
        kinds[p.phase, p.kind] = (p, kinds.get((p.phase, p.kind), (p, 0.0))[1] + p.share)
    rows = [(phase, kind, p, share) for (phase, kind), (p, share) in kinds.items()]
    return sorted(rows, key=lambda r: -r[3])
