"""The node of a placement: memories with the engines that work from them, links with what they carry."""

from __future__ import annotations

import math
from dataclasses import dataclass

from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from .blocks import Canvas
from .format import percent, si
from .holdings import memories
from .schema_placement import Placement
from .style import GREY, INK, KINDS, PALE, RULE, fit, width

LINE = 0.17
"""Inches of a line of text in a box."""
WIDEST = 6.0
"""Points of the arrow that carries most."""
LABELS = 12
"""Arrows that are labelled, those that carry most first; the table has all."""


@dataclass(frozen=True)
class Arrow:
    """All that goes from one memory to another: bytes of a request, and the share of its latency for which the link
    that works longest does."""

    source: int
    target: int
    network: str
    bytes: float
    busy: float


def arrows(placement: Placement) -> list[Arrow]:
    """What moves between memories, links between the same two taken together."""
    home = {engine: i for i, held in enumerate(placement.memory) for engine in held.device.split("+")}
    found: dict[tuple[int, int], Arrow] = {}
    for link in placement.links:
        at = home.get(link.source, -1), home.get(link.target, -1)
        if -1 in at:
            continue
        busy = link.busy_s / placement.latency_s
        before = found.get(at, Arrow(*at, link.network, 0.0, 0.0))
        found[at] = Arrow(*at, link.network, before.bytes + link.bytes, max(before.busy, busy))
    return list(found.values())


def height(placement: Placement) -> float:
    """Inches asked for: a row of two, or a ring."""
    n = len(placement.memory)
    lines = max(h.device.count("+") + 1 for h in placement.memory)
    return 1.5 + LINE * lines if n <= 2 else min(6.2, 2.6 + 0.35 * n + LINE * lines)


def topology(canvas: Canvas, placement: Placement) -> None:
    """Boxes on a ring; an arrow each way between two, as wide as its share of what is moved."""
    boxes = _boxes(canvas, placement)
    every = sorted(arrows(placement), key=lambda a: -a.bytes)
    most = max((a.bytes for a in every), default=0.0) or 1.0
    for a in reversed(every):
        start, end, _ = _ends(boxes, a)
        wide = 0.7 + (WIDEST - 0.7) * math.sqrt(a.bytes / most)
        _line(canvas, start, end, wide if a.bytes else 0.0)
    taken = [b.bounds for b in boxes]
    for a in every[:LABELS]:
        if a.bytes:
            _label(canvas, boxes, a, taken)
    for b in boxes:
        _box(canvas, b)


@dataclass(frozen=True)
class _Box:
    """A memory: ``x``, ``y`` its middle."""

    x: float
    y: float
    width: float
    height: float
    colour: str
    full: float
    lines: tuple[tuple[str, str], ...]
    foot: str

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        return self.x - self.width / 2, self.y - self.height / 2, self.x + self.width / 2, self.y + self.height / 2


def _boxes(canvas: Canvas, placement: Placement) -> list[_Box]:
    rows = memories(placement)
    made: list[tuple[tuple[tuple[str, str], ...], str, float]] = []
    for held, row in zip(placement.memory, rows, strict=True):
        lines = tuple(
            (engine, f"works {percent(placement.busy_s.get(engine, 0.0) / placement.latency_s)}")
            for engine in held.device.split("+")
        )
        foot = f"{'DRAM' if held.tier == 'dram' else held.tier}: {si(row.used, 'B')} of {si(row.capacity, 'B')}"
        made.append((lines, foot, row.used / row.capacity))
    n = len(made)
    most = canvas.width / (2.4 if n <= 4 else 4.6)
    wide = min(most, max(max(width(f, 7.5), *(width(a, 8, True) + width(b, 7.5) + 0.25 for a, b in ls))
                         for ls, f, _ in made) + 0.3)  # fmt: skip
    high = [LINE * len(ls) + 0.42 for ls, _, _ in made]
    rx, ry = (canvas.width - wide) / 2 - 0.05, (canvas.height - max(high)) / 2 - 0.05
    places = []
    for i in range(n):
        turn = math.pi - 2 * math.pi * i / n if n <= 2 else math.pi / 2 - 2 * math.pi * i / n
        if n == 4:  # corners leave more room between than the ends of a cross
            places.append(((-1, 1, 1, -1)[i] * 0.8, (1, 1, -1, -1)[i] * 1.0))
        elif n == 3:
            places.append(((0.0, 0.85, -0.85)[i], (1.0, -1.0, -1.0)[i]))
        else:
            places.append((math.cos(turn) * (0.75 if n == 2 else 1.0), math.sin(turn)))
    x0, y0 = canvas.width / 2, canvas.height / 2
    return [
        _Box(x0 + rx * px * (n > 1), y0 + ry * py * (n > 2), wide, h, row.colour, min(1.0, full), lines, foot)
        for (px, py), h, row, (lines, foot, full) in zip(places, high, rows, made, strict=True)
    ]


def _box(canvas: Canvas, b: _Box) -> None:
    x0, y0, x1, y1 = b.bounds
    w, h = canvas.figure.get_size_inches()
    frame = FancyBboxPatch(
        ((canvas.left + x0) / w, (canvas.bottom + y0) / h), b.width / w, b.height / h,
        boxstyle="square,pad=0", facecolor="white", edgecolor=GREY, linewidth=0.8, zorder=3,
    )  # fmt: skip
    canvas.figure.add_artist(frame)
    _patch(canvas, x0, y0, 0.07, b.height, b.colour)
    for i, (name, busy) in enumerate(b.lines):
        y = y1 - 0.15 - i * LINE
        side = width(busy, 7.5) + 0.1
        canvas.text(x0 + 0.14, y, fit(name, b.width - 0.3 - side, 8, True), 8, weight="bold", zorder=5)
        canvas.text(x1 - 0.08, y, busy, 7.5, GREY, ha="right", zorder=5)
    bar = b.width - 0.22
    _patch(canvas, x0 + 0.14, y0 + 0.07, bar, 0.05, PALE)
    _patch(canvas, x0 + 0.14, y0 + 0.07, bar * b.full, 0.05, b.colour)
    canvas.text(x0 + 0.14, y0 + 0.16, fit(b.foot, bar, 7.5), 7.5, zorder=5)


def _patch(canvas: Canvas, x: float, y: float, width: float, height: float, colour: str) -> None:
    w, h = canvas.figure.get_size_inches()
    patch = FancyBboxPatch(
        ((canvas.left + x) / w, (canvas.bottom + y) / h), width / w, height / h, boxstyle="square,pad=0",
        facecolor=colour, edgecolor="none", linewidth=0, zorder=4,
    )  # fmt: skip
    canvas.figure.add_artist(patch)


Point = tuple[float, float]


def _ends(boxes: list[_Box], a: Arrow) -> tuple[Point, Point, Point]:
    """Where an arrow starts and ends, on the boxes' edges, a little to its right; and the direction it goes in."""
    p, q = boxes[a.source], boxes[a.target]
    dx, dy = q.x - p.x, q.y - p.y
    far = math.hypot(dx, dy) or 1.0
    ux, uy = dx / far, dy / far
    aside = 0.14 + 0.25 * abs(uy)  # labels are level: steep arrows need more room between them
    ox, oy = uy * aside, -ux * aside

    def edge(b: _Box, sign: float) -> Point:
        # how far along the direction the middle line leaves the box
        tx = (b.width / 2 - sign * ox * _sign(ux)) / abs(ux) if abs(ux) > 1e-9 else math.inf
        ty = (b.height / 2 - sign * oy * _sign(uy)) / abs(uy) if abs(uy) > 1e-9 else math.inf
        t = min(tx, ty) + 0.03
        return b.x + ox + sign * ux * t, b.y + oy + sign * uy * t

    return edge(p, 1.0), edge(q, -1.0), (ux, uy)


def _sign(x: float) -> float:
    return 1.0 if x >= 0 else -1.0


def _line(canvas: Canvas, start: Point, end: Point, wide: float) -> None:
    """An arrow ``wide`` points wide; a dashed line where nothing moves."""
    w, h = canvas.figure.get_size_inches()
    a, b = (((canvas.left + x) / w, (canvas.bottom + y) / h) for x, y in (start, end))
    patch = FancyArrowPatch(
        a, b, arrowstyle="-|>" if wide else "-", mutation_scale=7 + 1.2 * wide, shrinkA=0, shrinkB=0, zorder=1,
        color=KINDS["transfer"] if wide else RULE, linewidth=wide or 0.7, linestyle="-" if wide else "--",
    )  # fmt: skip
    patch.set_transform(canvas.figure.transFigure)
    canvas.figure.add_artist(patch)


def _label(canvas: Canvas, boxes: list[_Box], a: Arrow, taken: list[tuple[float, float, float, float]]) -> None:
    """Bytes and share on the arrow, where they cover no box and no other label; nothing where there is no room."""
    (x0, y0), (x1, y1), (ux, uy) = _ends(boxes, a)
    text = f"{si(a.bytes, 'B')}, {percent(a.busy)} busy"
    wide, high = width(text, 7.5) + 0.08, 0.15
    middle = 0.5 if len(boxes) <= 3 or abs(uy) < 0.1 else 0.3  # of a ring, arrows cross in the middle
    for aside in (0.25, 0.45, 0.0, -0.1):
        for t in (middle, 0.38, 0.62, 0.28, 0.72, 0.2, 0.8, 0.5):
            out = aside * abs(uy)  # away from the arrow that comes back
            x, y = x0 + (x1 - x0) * t + uy * out, y0 + (y1 - y0) * t - ux * out
            box = (x - wide / 2, y - high / 2, x + wide / 2, y + high / 2)
            inside = box[0] >= 0 and box[1] >= 0 and box[2] <= canvas.width and box[3] <= canvas.height
            if inside and all(box[2] <= o[0] or o[2] <= box[0] or box[3] <= o[1] or o[3] <= box[1] for o in taken):
                taken.append(box)
                _patch(canvas, box[0], box[1], wide, high, "white")
                canvas.text(x, y, text, 7.5, INK, ha="center", va="center_baseline", zorder=5)
                return


def told(placement: Placement) -> str:
    """The arrows in words."""
    names = [h.device for h in placement.memory]
    parts = [
        f"{names[a.source]} to {names[a.target]} {si(a.bytes, 'B')} ({percent(a.busy)} busy)"
        for a in arrows(placement)
        if a.bytes
    ]
    return "; ".join(parts) or "nothing moves between memories"
