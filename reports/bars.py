"""Figures of bars, one row per device: throughput, where the time goes, memory, energy, price."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .blocks import Canvas
from .format import dollars, interval, number, percent, si
from .plot import BAR, ROW, Rows, axis_end, names_width, rows_height
from .sections import Entry, Section
from .style import ENERGY, GREY, INK, MEMORY, OTHER, REASONS, WARN, fit, on, width

HATCH = "/////"
LEAST_LABEL = 0.02
"""Smallest share worth naming in a key."""


def throughput_height(section: Section) -> float:
    """Inches for :func:`throughput`."""
    return rows_height(len(section.entries))


def throughput(canvas: Canvas, section: Section) -> None:
    """Tokens per second with 90 % intervals; devices that do not hold the model are hollow."""
    entries = section.entries
    limit = axis_end([e.throughput_interval[1] for e in entries])
    rows = Rows(canvas, entries, limit, "tokens/s", "Output of the whole request", names_width(entries), gutter=3.1)
    for i, entry in enumerate(entries):
        low, high = entry.throughput_interval
        value = min(entry.throughput, limit)
        if entry.fits:
            rows.axes.barh(i, value, BAR, color=entry.colour, alpha=0.85, linewidth=0)
            said, tone = f"{number(entry.throughput)} tokens/s", INK
        else:
            rows.axes.barh(i, value, BAR, color="white", edgecolor=entry.colour, hatch=HATCH, linewidth=0.6)
            short = si(entry.document.memory.missing_bytes, "B")
            said, tone = f"does not fit, {short} short (were it to fit: {number(entry.throughput)})", WARN
        rows.whisker(i, low, high)
        rows.end(i, max(high, entry.throughput), said, tone)


def breakdown_height(section: Section) -> float:
    """Inches for :func:`breakdown`."""
    return 2 * rows_height(len(section.entries)) + 0.45


def breakdown(canvas: Canvas, section: Section) -> None:
    """Seconds of prefill and of a decode step by what bound them, beside the same as shares."""
    entries = section.entries
    both = [(e.document.prefill, e.document.decode) for e in entries]
    reasons = _present([p.bound for pair in both for p in pair], REASONS)
    key(canvas, reasons, REASONS)
    names = names_width(entries)
    each = rows_height(len(entries))
    left = names + (canvas.width - names) * 0.55
    steps = (("Prefill (time to first token)", 0), ("One decode step (time per output token)", 1))
    for heading, phase in steps:
        bottom = canvas.height - 0.3 - each if phase == 0 else canvas.height - 0.45 - 2 * each
        panel = canvas.part(0, bottom, left, each)
        limit = axis_end([pair[phase].latency_s for pair in both])
        rows = Rows(panel, entries, limit, "s", heading, names, gutter=1.75)
        beside = canvas.part(left + 0.2, bottom, canvas.width - left - 0.2, each)
        shares = Rows(beside, entries, 1.0, "", "Share of that time", gutter=0.35, scale="percent")
        for i, pair in enumerate(both):
            time = pair[phase].latency_s
            _stack(rows, i, {k: v * time for k, v in pair[phase].bound.items()}, reasons, REASONS, hollow=not entries[i].fits)
            span = interval(pair[phase].interval_s.low, pair[phase].interval_s.high, "s")
            rows.end(i, time, f"{si(time, 's')} ({span})", INK if entries[i].fits else GREY)
            _stack(shares, i, pair[phase].bound, reasons, REASONS, labels=True, hollow=not entries[i].fits)


def memory_height(section: Section) -> float:
    """Inches for :func:`memory`."""
    return rows_height(len(section.entries)) + 0.25


def memory(canvas: Canvas, section: Section) -> None:
    """What must be held on the fullest device, against its capacity."""
    entries = section.entries
    needs = [
        {"weights": m.weights_bytes, "KV cache": m.kv_bytes, "activations": m.activation_bytes}
        for m in (e.document.memory for e in entries)
    ]
    key(canvas, list(MEMORY), MEMORY, extra="black stroke: capacity per device")
    panel = canvas.part(0, 0, canvas.width, canvas.height - 0.25)
    capacities = [e.document.memory.capacity_bytes for e in entries]
    limit = axis_end([*(sum(n.values()) for n in needs), *capacities])
    rows = Rows(panel, entries, limit, "B", "Held by the fullest device", names_width(entries), gutter=2.5)
    for i, (entry, need, capacity) in enumerate(zip(entries, needs, capacities, strict=True)):
        _stack(rows, i, need, list(MEMORY), MEMORY)
        if capacity <= limit:
            rows.axes.plot([capacity] * 2, [i - 0.42, i + 0.42], color=INK, linewidth=1.8, solid_capstyle="butt")
        total = sum(need.values())
        if entry.fits:
            said, tone = f"{si(total, 'B')} of {si(capacity, 'B')} ({percent(total / capacity)})", INK
        else:
            missing = si(entry.document.memory.missing_bytes, "B")
            said, tone = f"{si(total, 'B')} of {si(capacity, 'B')}: {missing} short", WARN
        rows.end(i, max(total, capacity), said, tone)


def energy_and_price_height(section: Section) -> float:
    """Inches for :func:`energy_and_price`."""
    return rows_height(len(section.entries)) + 0.25


def energy_and_price(canvas: Canvas, section: Section) -> None:
    """Joules per output token by part, and dollars per million output tokens."""
    entries = section.entries
    names = names_width(entries)
    parts = [e.energy_parts for e in entries]
    order = _present(parts, ENERGY)
    key(canvas, order, ENERGY)
    split = names + (canvas.width - names) * 0.56
    panel = canvas.part(0, 0, split, canvas.height - 0.25)
    totals = [e.document.total.energy_per_token_j for e in entries]
    rows = Rows(panel, entries, axis_end(totals), "J", "Energy per output token", names, gutter=0.8)
    for i, (entry, joules) in enumerate(zip(entries, totals, strict=True)):
        _stack(rows, i, parts[i], order, ENERGY, hollow=not entry.fits)
        rows.end(i, joules, si(joules, "J"), INK if entry.fits else GREY)
    prices = [e.document.total.cost_usd_per_mtoken for e in entries]
    beside = canvas.part(split + 0.2, 0, canvas.width - split - 0.2, canvas.height - 0.25)
    rows = Rows(beside, entries, axis_end([p for p in prices if p]), "$", "Price per million output tokens", gutter=0.85)
    for i, (entry, price) in enumerate(zip(entries, prices, strict=True)):
        if price is None:
            rows.canvas.text(rows.x(0) + 0.06, rows.y(i), "no price in the device file", 7.5, GREY, va="center_baseline")
            continue
        style = {"color": entry.colour, "alpha": 0.85, "linewidth": 0}
        if not entry.fits:
            style = {"color": "white", "edgecolor": entry.colour, "hatch": HATCH, "linewidth": 0.6}
        rows.axes.barh(i, min(price, rows.limit), BAR, **style)
        rows.end(i, price, dollars(price), INK if entry.fits else GREY)


# -- pieces ----------------------------------------------------------------------------------------
def key(canvas: Canvas, names: Sequence[str], colours: Mapping[str, str], extra: str = "") -> None:
    """One line at the top of a canvas that says what the colours of stacked bars mean."""
    x, y = 0.02, canvas.height - 0.12
    for name in names:
        canvas.box(x, y - 0.01, 0.1, 0.1, colours.get(name, OTHER))
        canvas.text(x + 0.15, y, name, 8)
        x += 0.4 + width(name, 8)
    if extra:
        canvas.text(x, y, fit(extra, canvas.width - x, 8), 8, GREY)


def _present(parts: Sequence[Mapping[str, float]], colours: Mapping[str, str]) -> list[str]:
    """Names that any of ``parts`` has, in the order of ``colours``, unknown ones last."""
    names = {name for part in parts for name, value in part.items() if value > 0}
    return [n for n in colours if n in names] + sorted(names - set(colours))


def _stack(
    rows: Rows, row: int, parts: Mapping[str, float], order: Sequence[str], colours: Mapping[str, str],
    *, labels: bool = False, hollow: bool = False,
) -> None:  # fmt: skip
    """One stacked bar, cut at the axis's end; ``labels`` writes shares where they have room."""
    start = 0.0
    for name in order:
        value = parts.get(name, 0.0)
        end = min(start + value, rows.limit)
        if end > start:
            colour = colours.get(name, OTHER)
            rows.axes.barh(
                row, end - start, BAR, left=start, color=colour, alpha=0.45 if hollow else 1.0, linewidth=0
            )
            text = percent(value)
            if labels and rows.x(end) - rows.x(start) > width(text, 7) + 0.06:
                middle = (rows.x(start) + rows.x(end)) / 2
                shade = INK if hollow else on(colour)
                rows.canvas.text(middle, rows.y(row), text, 7, shade, ha="center", va="center_baseline")
        start += value
