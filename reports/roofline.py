"""Rooflines: every operator of both phases under what the device can do at most.

Williams, Waterman, Patterson: Roofline, CACM 52(4), 2009. Intensity is FLOPs over bytes moved, the
height of a point is FLOPs over time, all per device; its area grows with its share of the phase.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from .blocks import Canvas
from .format import percent, short, si, si_tick
from .plot import Placer, log_axis, tick
from .schema import DeviceFacts, Operator
from .sections import Entry
from .style import GREY, INK, MARKERS, PHASES, darker, fit, shorten, width

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
        if _shown(o)
    ]
    return sorted(found, key=lambda p: p.share)


def omitted(operators: Sequence[Operator]) -> list[str]:
    """Kinds of operators that a roofline cannot show, because they compute nothing."""
    return sorted({o.kind for o in operators if not _shown(o)})


def _shown(o: Operator) -> bool:
    return o.flops >= 1e-6 and o.bytes >= 1e-6 and o.time_s >= 1e-15


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
    canvas.text(0.02, canvas.height - 0.14, shorten(_caption(entry), canvas.width * 0.7, 9.5, True), 9.5, weight="bold")
    said = "achieved, FLOP per second and device; a point's area is its share of the phase's time; dashed: peak"
    canvas.text(0.02, canvas.height - 0.34, fit(said, canvas.width, 7.5), 7.5, GREY)
    x = canvas.width - 0.1
    for phase in reversed(PHASES):
        name = "prefill" if phase == "prefill" else "decode step"
        x -= width(name, 8.5)
        canvas.text(x, canvas.height - 0.14, name, 8.5, darker(PHASES[phase]))
        _mark(canvas, x - 0.12, canvas.height - 0.1, phase)
        x -= 0.45
    box = (0.85, 0.45, canvas.width - 0.95, canvas.height - 0.9)
    axes = canvas.axes(*box)
    _axes(axes, bounds)
    axes.grid(True)
    axes.set_xlabel("arithmetic intensity, FLOP per byte moved", fontsize=8.5)
    found = points(entry.document.operators)
    place = _place(bounds, box)
    placer = Placer(canvas, (box[0] + 0.03, box[1] + 0.03, box[0] + box[2], box[1] + box[3]))
    for p in found:
        placer.block(*place(p.intensity, p.achieved), 0.05 + 0.06 * math.sqrt(p.share))
    _roofs(canvas, axes, entry.document.device, bounds, box, placer)
    _scatter(axes, found, 260)
    for phase, kind, p, share in _named(found):
        text = f"{kind} {percent(share)}"
        placer.label(*place(p.intensity, p.achieved), text, 8, darker(PHASES[phase]))


def small_roofline(canvas: Canvas, entry: Entry, bounds: Limits, *, bottom: bool, left: bool) -> None:
    """One device of many: the same axes, points without labels; tick labels at the edges of the grid only."""
    box = (0.0, 0.3, canvas.width - 0.15, canvas.height - 0.7)
    canvas.box(box[0], canvas.height - 0.15, 0.09, 0.09, entry.colour)
    canvas.text(box[0] + 0.15, canvas.height - 0.15, shorten(entry.label, box[2] - 0.2, 8, True), 8, weight="bold")
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
    margin = 0.75
    each = (canvas.width - margin) / columns
    for i, entry in enumerate(entries):
        r, c = divmod(i, columns)
        cell = canvas.part(margin + c * each, canvas.height - (r + 1) * row, each, row)
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
    return short(value) if value < 10_000 else si_tick(value, "")


def _place(bounds: Limits, box: tuple[float, float, float, float]) -> Callable[[float, float], tuple[float, float]]:
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
    canvas: Canvas,
    axes: Axes,
    device: DeviceFacts,
    bounds: Limits,
    box: tuple[float, float, float, float],
    placer: Placer,
) -> None:
    """Peak and achievable lines with what they stand for written along them."""
    _lines(axes, device, bounds)
    place = _place(bounds, box)
    lines = []
    for rate, bandwidth in (
        (device.peak_flops, device.bandwidth),
        (device.achievable_flops, device.achievable_bandwidth),
    ):
        low = max(bounds[0], bounds[2] / bandwidth)
        ridge = place(rate / bandwidth, rate)
        lines += [(place(low, low * bandwidth), ridge), (ridge, place(bounds[1], rate))]
    said = "peak {}, achievable {}"
    flat = said.format(
        f"{si(device.peak_flops, 'FLOP/s')} ({device.peak_format})", si(device.achievable_flops, "FLOP/s")
    )
    slope = said.format(si(device.bandwidth, "B/s"), si(device.achievable_bandwidth, "B/s"))
    right = place(bounds[1], device.peak_flops)
    _along(canvas, placer, (right[0] - width(flat, 7.5) * 1.03, right[1]), right, flat)
    _along(canvas, placer, *lines[0], slope)
    for start, end in lines:  # labels keep off the lines
        for step in range(60):
            share = (step + 0.5) / 60
            placer.block(start[0] + (end[0] - start[0]) * share, start[1] + (end[1] - start[1]) * share, 0.03)


def _along(canvas: Canvas, placer: Placer, start: tuple[float, float], end: tuple[float, float], text: str) -> None:
    """``text`` above a line, where nothing can lie, and where it covers the fewest points' labels."""
    wide, length, side = width(text, 7.5) * 1.02, math.dist(start, end), 0.06
    if length < wide:
        return
    angle = math.atan2(end[1] - start[1], end[0] - start[0])
    cos, sin = math.cos(angle), math.sin(angle)

    def hits(along: float) -> int:
        count = 0
        for x0, y0, x1, y1 in placer.taken:
            dx, dy, r = (x0 + x1) / 2 - start[0], (y0 + y1) / 2 - start[1], (x1 - x0) / 2
            t, off = dx * cos + dy * sin, dy * cos - dx * sin
            count += along - r < t < along + wide + r and -r < off < side + 0.12 + r
        return count

    along = min(((length - wide) * i / 12 for i in (4, 5, 6, 7, 8, 9, 3, 2, 1, 10, 11, 12, 0)), key=hits)
    x, y = start[0] + along * cos - side * sin, start[1] + along * sin + side * cos
    canvas.text(x, y, text, 7.5, GREY, rotation=math.degrees(angle), rotation_mode="anchor", ha="left")
    for step in range(24):  # a turned text takes its place in squares along it
        s = wide * (step + 0.5) / 24
        square = (x + s * cos - 0.05 * sin, y + s * sin + 0.05 * cos)
        placer.block(*square, 0.08)
        placer.labels.append((square[0] - 0.07, square[1] - 0.07, square[0] + 0.07, square[1] + 0.07))


def _scatter(axes: Axes, found: Sequence[Point], area: float) -> None:
    for phase, colour in PHASES.items():
        own = [p for p in found if p.phase == phase]
        axes.scatter(
            [p.intensity for p in own], [p.achieved for p in own], s=[area * (0.07 + p.share) for p in own],
            marker=MARKERS[phase], facecolors=colour if phase == "prefill" else "white", edgecolors=colour,
            linewidths=1.0, alpha=0.9, zorder=3,
        )  # fmt: skip


def _named(found: Sequence[Point]) -> list[tuple[str, str, Point, float]]:
    """One label per phase and kind, at the kind's longest operator, with the kind's share; longest first."""
    kinds: dict[tuple[str, str], tuple[Point, float]] = {}
    for p in found:  # the longest comes last and stays
        kinds[p.phase, p.kind] = (p, kinds.get((p.phase, p.kind), (p, 0.0))[1] + p.share)
    rows = [(phase, kind, p, share) for (phase, kind), (p, share) in kinds.items()]
    return sorted(rows, key=lambda r: -r[3])
