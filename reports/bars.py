"""Figures of bars, one row per device: throughput, where the time goes, memory, energy, price."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .blocks import Canvas
from .format import dollars, interval, number, percent, reason, si
from .plot import LEAST_ROW, ROW, Rows, axis_end, names_width, rows_height
from .sections import Entry, Section
from .style import ENERGY, GREY, INK, MEMORY, PALE, REASONS, WARN, fit, hues, on, width


def heights(entries: Sequence[Entry], panels: int, extra: float) -> tuple[float, float]:
    """Inches that ``panels`` of bars one above another ask for, and the least they can be drawn in."""
    return tuple(panels * rows_height(len(entries), row) + extra for row in (ROW, LEAST_ROW))  # type: ignore[return-value]


def throughput(canvas: Canvas, section: Section, entries: Sequence[Entry]) -> None:
    """Tokens per second with 90 % intervals; devices that do not hold the model are hollow."""
    limit = 1.02 * max(e.throughput_interval[1] for e in section.fitting or section.entries)
    rows = Rows(canvas, entries, limit, "tokens/s", "Output of the whole request", names_width(entries), gutter=3.1)
    for i, entry in enumerate(entries):
        low, high = entry.throughput_interval
        rows.bar(i, 0, entry.throughput, entry.colour, 0.85, None if entry.fits else entry.colour)
        if entry.fits:
            said, tone = f"{number(entry.throughput)} tokens/s", INK
        else:
            short = si(entry.document.memory.missing_bytes, "B")
            said, tone = f"does not fit, {short} short (were it to fit: {number(entry.throughput)})", WARN
        rows.whisker(i, low, high)
        rows.end(i, max(high, entry.throughput), said, tone)


def breakdown(canvas: Canvas, section: Section, entries: Sequence[Entry]) -> None:
    """Seconds of prefill and of a decode step by what bound them, beside the same as shares."""
    both = [(e.document.prefill, e.document.decode) for e in entries]
    every = [(e.document.prefill, e.document.decode) for e in section.entries]
    reasons = _present([p.bound for pair in every for p in pair], REASONS)
    key(canvas, reasons)
    names = names_width(entries)
    each = (canvas.height - 0.45) / 2
    left = names + (canvas.width - names) * 0.55
    steps = (("Prefill (time to first token)", 0), ("One decode step (time per output token)", 1))
    for heading, phase in steps:
        bottom = canvas.height - 0.3 - each if phase == 0 else canvas.height - 0.45 - 2 * each
        panel = canvas.part(0, bottom, left, each)
        limit = axis_end([pair[phase].latency_s for pair in every])
        rows = Rows(panel, entries, limit, "s", heading, names, gutter=1.75)
        beside = canvas.part(left + 0.2, bottom, canvas.width - left - 0.2, each)
        shares = Rows(beside, entries, 1.0, "", "Share of that time", gutter=0.35, scale="percent")
        for i, pair in enumerate(both):
            time = pair[phase].latency_s
            hollow = not entries[i].fits
            stack(rows, i, {k: v * time for k, v in pair[phase].bound.items()}, reasons, hollow=hollow)
            span = interval(pair[phase].interval_s.low, pair[phase].interval_s.high, "s")
            rows.end(i, time, f"{si(time, 's')} ({span})", INK if entries[i].fits else GREY)
            stack(shares, i, pair[phase].bound, reasons, labels=True, hollow=hollow)


def memory(canvas: Canvas, section: Section, entries: Sequence[Entry]) -> None:
    """What must be held on the fullest device, against its capacity."""
    needs = [
        {"weights": m.weights_bytes, "KV cache": m.kv_bytes, "activations": m.activation_bytes}
        for m in (e.document.memory for e in entries)
    ]
    key(canvas, MEMORY, extra="black stroke: capacity per device")
    panel = canvas.part(0, 0, canvas.width, canvas.height - 0.25)
    capacities = [e.document.memory.capacity_bytes for e in entries]
    every = [e.document.memory for e in section.entries]
    limit = max(axis_end([m.needed_bytes for m in every]), axis_end([m.capacity_bytes for m in every]))
    rows = Rows(panel, entries, limit, "B", "Held by the fullest device", names_width(entries), gutter=2.5)
    for i, (entry, need, capacity) in enumerate(zip(entries, needs, capacities, strict=True)):
        rows.bar(i, 0, capacity, PALE)
        stack(rows, i, need, MEMORY)
        if capacity <= limit:
            rows.stroke([capacity] * 2, [i - 0.42, i + 0.42], 1.8)
        total = sum(need.values())
        if entry.fits:
            said, tone = f"{si(total, 'B')} of {si(capacity, 'B')} ({percent(total / capacity)})", INK
        else:
            missing = si(entry.document.memory.missing_bytes, "B")
            said, tone = f"{si(total, 'B')} of {si(capacity, 'B')}: {missing} short", WARN
        rows.end(i, max(total, capacity), said, tone)


def energy_and_price(canvas: Canvas, section: Section, entries: Sequence[Entry]) -> None:
    """Joules per output token by part, and dollars per million output tokens."""
    names = names_width(entries)
    parts = [e.energy_parts for e in entries]
    order = _present([e.energy_parts for e in section.entries], ENERGY)
    key(canvas, order)
    split = names + (canvas.width - names) * 0.56
    panel = canvas.part(0, 0, split, canvas.height - 0.25)
    totals = [e.document.total.energy_per_token_j for e in entries]
    spans = [e.energy_interval for e in entries]
    tops = [e.energy_interval[1] if e.energy_interval else e.document.total.energy_per_token_j for e in section.entries]
    limit = axis_end(tops)
    rows = Rows(panel, entries, limit, "J", "Energy per output token", names, gutter=0.8)
    for i, (entry, joules, span) in enumerate(zip(entries, totals, spans, strict=True)):
        stack(rows, i, parts[i], order, hollow=not entry.fits)
        if span:
            rows.whisker(i, *span)
        rows.end(i, max(joules, span[1]) if span else joules, si(joules, "J"), INK if entry.fits else GREY)
    prices = [e.document.total.cost_usd_per_mtoken for e in entries]
    beside = canvas.part(split + 0.2, 0, canvas.width - split - 0.2, canvas.height - 0.25)
    bases = {e.document.total.cost_basis for e in section.entries if e.document.total.cost_usd_per_mtoken is not None}
    heading = "Price per million output tokens"
    end = axis_end([e.document.total.cost_usd_per_mtoken or 0.0 for e in section.entries])
    rows = Rows(beside, entries, end, "$", heading, gutter=0.85 if len(bases) < 2 else 1.6)
    for i, (entry, price) in enumerate(zip(entries, prices, strict=True)):
        if price is None:
            rows.canvas.text(
                rows.x(0) + 0.06, rows.y(i), "no price in the device file", 7.5, GREY, va="center_baseline"
            )
            continue
        rows.bar(i, 0, price, entry.colour, 0.85, None if entry.fits else entry.colour)
        basis = (entry.document.total.cost_basis or "").partition(",")[0] if len(bases) > 1 else ""
        rows.end(i, price, f"{dollars(price)} {basis}".rstrip(), INK if entry.fits else GREY)


# -- pieces ----------------------------------------------------------------------------------------
def key(canvas: Canvas, colours: Mapping[str, str], extra: str = "") -> None:
    """One line at the top of a canvas that says what the colours of stacked bars mean."""
    x, y = 0.02, canvas.height - 0.12
    for name, colour in colours.items():
        text = fit(reason(name), canvas.width - x - 0.2, 8)
        if text == "…":
            break
        canvas.box(x, y - 0.01, 0.1, 0.1, colour)
        canvas.text(x + 0.15, y, text, 8)
        x += 0.4 + width(text, 8)
    if extra:
        canvas.text(x, y, fit(extra, canvas.width - x, 8), 8, GREY)


def _present(parts: Sequence[Mapping[str, float]], colours: Mapping[str, str]) -> dict[str, str]:
    """Names that any of ``parts`` has and their colours, in the order of ``colours``, unknown ones last."""
    names = {name for part in parts for name, value in part.items() if value > 0}
    return hues([n for n in colours if n in names] + sorted(names - set(colours)), colours)


def stack(
    rows: Rows,
    row: int,
    parts: Mapping[str, float],
    colours: Mapping[str, str],
    *,
    labels: bool = False,
    hollow: bool = False,
) -> None:
    """One stacked bar, cut at the axis's end; ``labels`` writes shares where they have room."""
    start = 0.0
    for name, colour in colours.items():
        value = parts.get(name, 0.0)
        end = min(start + value, rows.limit)
        if end > start:
            rows.bar(row, start, end, colour, 0.45 if hollow else 1.0)
            text = percent(value)
            size = min(7.0, rows.size)
            if labels and rows.x(end) - rows.x(start) > width(text, size) + 0.06:
                middle = (rows.x(start) + rows.x(end)) / 2
                shade = INK if hollow else on(colour)
                rows.canvas.text(middle, rows.y(row), text, size, shade, ha="center", va="center_baseline")
        start += value
