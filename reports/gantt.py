"""The schedule of a placement: what every device and link does in a whole pass, and in a few layers of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from .bars import key
from .blocks import Canvas
from .format import percent, plural, si
from .plot import POINT, linear_ticks
from .schema_placement import Placement, Schedule
from .style import GREY, INK, KIND_GROUPS, KINDS, PALE, fit, on, shorten, width

ROW, HIGHEST = 0.21, 0.34
"""Inches of a lane, and where there is room."""
TALL = 6.3
"""Inches of a page for a picture alone."""
HEAD, FOOT, KEY = 0.42, 0.28, 0.26
SEEN = 0.002
"""Share of a lane's height that can be seen."""
LANES = 24
"""Lanes drawn of a pass; of links, those that work longest."""
TITLES = {"prefill": "Prefill", "decode": "One decode step", "handover": "Handover of caches"}
Busy = dict[str, dict[str, float]]


def drawn(placement: Placement) -> list[Schedule]:
    """The passes that are drawn: prefill and decode (a handover only moves caches)."""
    return [s for s in placement.replay.schedule if s.phase != "handover"]


def lanes(schedule: Schedule, placement: Placement) -> list[str]:
    """Engines, all of them, then ports that send: all that a link carries leaves by one. At most :data:`LANES`."""
    sending = [lane for lane in schedule.whole if lane not in placement.devices and not lane.endswith(" in")]
    room = max(0, LANES - len(placement.devices))
    longest = sorted(sending, key=lambda lane: -sum(schedule.busy_s.get(lane, {}).values()))[:room]
    return [*placement.devices[:LANES], *(lane for lane in sending if lane in longest)]


def height(placement: Placement, schedules: Sequence[Schedule]) -> float:
    """Inches that the picture of these passes asks for: :data:`TALL` at most where lanes of :data:`ROW` fit in."""
    fixed, rows = KEY + (HEAD + FOOT) * len(schedules), sum(len(lanes(s, placement)) for s in schedules)
    return fixed + rows * max(ROW, min(HIGHEST, (TALL - fixed) / max(1, rows)))


def grouped(parts: dict[str, float]) -> dict[str, float]:
    """Seconds by the names of :data:`.style.KINDS`."""
    found: dict[str, float] = {}
    for kind, seconds in parts.items():
        name = KIND_GROUPS.get(kind, "others")
        found[name] = found.get(name, 0.0) + seconds
    return found


def gantt(canvas: Canvas, placement: Placement, schedules: Sequence[Schedule]) -> None:
    """Per pass two panels on the same lanes: left the whole pass, right a few layers operator by operator."""
    key(canvas, _seen(schedules), extra="→ what leaves by a port of a link")
    each = [lanes(s, placement) for s in schedules]
    row = (canvas.height - KEY - (HEAD + FOOT) * len(schedules)) / max(1, sum(map(len, each)))
    names = min(2.1, max((width(_lane(r), 7.5) for rows in each for r in rows), default=0.0) + 0.12)
    y = canvas.height - KEY
    for schedule, rows in zip(schedules, each, strict=True):
        high = HEAD + FOOT + row * len(rows)
        y -= high
        _pass(canvas.part(0, y, canvas.width, high), schedule, rows, placement, names)


def _seen(schedules: Sequence[Schedule]) -> dict[str, str]:
    """Colours of the kinds that take a visible part of some pass."""
    seen: set[str] = set()
    for schedule in schedules:
        total: dict[str, float] = {}
        for lane in schedule.busy_s.values():
            for name, seconds in grouped(lane).items():
                total[name] = total.get(name, 0.0) + seconds
        seen |= {name for name, seconds in total.items() if seconds > 1e-3 * sum(total.values())}
    return {name: colour for name, colour in KINDS.items() if name in seen}


def _pass(canvas: Canvas, schedule: Schedule, rows: list[str], placement: Placement, names: float) -> None:
    room = canvas.width - names - 0.75
    left, right = room * 0.4, room * 0.6
    inner = canvas.height - HEAD - FOOT
    row = inner / len(rows)
    size = min(7.5, row / POINT * 0.72)
    whole = canvas.axes(names, FOOT, left, inner)
    zoom = canvas.axes(names + left + 0.65, FOOT, right, inner)
    window = schedule.window
    for axes, start, end in ((whole, 0.0, schedule.seconds), (zoom, window.start_s, window.end_s)):
        span = max(end - start, 1e-12)
        axes.set_xlim(0, span)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.yaxis.set_major_locator(NullLocator())
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        ticks, labels, unit = linear_ticks(span, "s", 5)
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_major_formatter(FixedFormatter([*labels[:-1], f"{labels[-1]} {unit}"]))
        for i in range(len(rows)):
            axes.add_artist(Line2D([0, span], [i + 0.5] * 2, color="#e4e4e8", linewidth=0.5))
    for i, lane in enumerate(rows):
        y = FOOT + inner - (i + 0.5) * row
        canvas.text(0.0, y, shorten(_lane(lane), names - 0.1, size), size, va="center_baseline")
        busy = sum(schedule.busy_s.get(lane, {}).values()) / schedule.seconds
        canvas.text(names + left + 0.05, y, percent(busy) if busy else "idle", size, GREY, va="center_baseline")
        _stretches(whole, i, schedule.whole.get(lane, {}), schedule.edges_s)
    if window.alike is not None:
        whole.axvspan(window.start_s, window.end_s, facecolor=INK, alpha=0.3, lw=0)
    _zoomed(zoom, rows, schedule, right, size)
    top = FOOT + inner + 0.1
    moved = next((s.seconds for s in placement.replay.schedule if s.phase == "handover"), 0.0)
    after = f", then {si(moved, 's')} for caches to move" if schedule.phase == "prefill" and moved else ""
    title = f"{TITLES.get(schedule.phase, schedule.phase)}: {si(schedule.seconds, 's')}{after}"
    canvas.text(names, top, fit(title, left + 0.6, 8, True), 8, weight="bold")
    number = "all layers" if window.alike is None else _window(schedule)
    canvas.text(names + left + 0.65, top, fit(number, right, 8, True), 8, weight="bold")


def _lane(name: str) -> str:
    return f"{name.removesuffix(' out')} →" if name.endswith(" out") else name


def _window(schedule: Schedule) -> str:
    w = schedule.window
    if w.layers == 1:
        return f"Layer {w.first} ({w.alike} of {schedule.layers} are placed like it)"
    last = w.first + w.layers - 1
    return f"Layers {w.first} to {last} (grey on the left; {w.alike} of {schedule.layers} are placed like the first)"


def _stretches(axes: Axes, row: int, lane: dict[str, list[float]], edges: list[float]) -> None:
    """How much of each stretch of the pass a lane works, stacked by kind, from the lane's foot up."""
    if not lane:
        return
    by: dict[str, np.ndarray] = {}
    for kind, shares in lane.items():
        name = KIND_GROUPS.get(kind, "others")
        by[name] = by.get(name, 0.0) + np.array(shares)
    tops = np.minimum(np.cumsum([by[name] for name in KINDS if name in by], axis=0), 1.0)
    # stretches that look like the one before are drawn with it
    new = np.append(True, np.abs(np.diff(tops, axis=1)).max(axis=0) > SEEN)
    at, tops = np.append(np.array(edges[:-1])[new], edges[-1]), tops[:, new]
    foot = np.zeros(tops.shape[1])
    for name, top in zip((name for name in KINDS if name in by), tops, strict=True):
        if (top - foot).max() > SEEN:
            low, high = (row + 0.42 - 0.84 * np.append(v, v[-1]) for v in (foot, top))
            axes.fill_between(at, low, high, step="post", color=KINDS[name], lw=0)
        foot = top


def _zoomed(axes: Axes, rows: list[str], schedule: Schedule, inches: float, size: float) -> None:
    """Every span of the window, named where its name has room; a hair line where a layer begins."""
    window = schedule.window
    span = max(window.end_s - window.start_s, 1e-12)
    at = {lane: i for i, lane in enumerate(rows)}
    begins: dict[int, float] = {}
    shown = min(6.5, size)
    for s in schedule.spans:
        if s.lane not in at:
            continue
        start, end = max(s.start_s, window.start_s) - window.start_s, min(s.end_s, window.end_s) - window.start_s
        group = KIND_GROUPS.get(s.kind, "others")
        edge = {"edgecolor": "white", "linewidth": 0.3} if (end - start) / span * inches > 0.03 else {"linewidth": 0}
        axes.add_artist(Rectangle((start, at[s.lane] - 0.4), end - start, 0.8, facecolor=KINDS[group], **edge))
        begins[s.layer] = min(begins.get(s.layer, start), start)
        name = s.name.rpartition(" → ")[2].rpartition(".")[2] if group != "transfer" else ""
        if name and (end - start) / span * inches > width(name, shown) + 0.04:
            axes.text(
                (start + end) / 2, at[s.lane], name, fontsize=shown, color=on(KINDS[group]), ha="center",
                va="center_baseline", clip_on=True,
            )  # fmt: skip
    if window.layers <= 4:
        for layer, start in begins.items():
            if window.first < layer < window.first + window.layers:
                axes.axvline(start, color=GREY, lw=0.8, ls=(0, (4, 3)))
    axes.set_facecolor("white")
    if not schedule.spans:
        axes.set_facecolor(PALE)


def told(schedule: Schedule, placement: Placement) -> str:
    """One pass in words, for those who do not see the picture."""
    parts = []
    for lane in lanes(schedule, placement):
        busy = schedule.busy_s.get(lane)
        if busy:
            whole = grouped(busy)
            most = max(whole, key=whole.__getitem__)
            parts.append(f"{lane} works {percent(sum(whole.values()) / schedule.seconds)}, most of it {most}")
    return f"{schedule.phase} of {si(schedule.seconds, 's')}, {plural(len(parts), 'lane')}: {'; '.join(parts)}"
