"""Who holds what: one bar per memory of a placement, against its capacity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .bars import key, stack
from .blocks import Canvas
from .format import percent, si
from .plot import LEAST_ROW, ROW, Rows, axis_end, names_width, rows_height
from .schema_placement import Held, Nowhere, Placement
from .style import DEVICES, HELD, INK, PALE, WARN

KEY = 0.25


@dataclass(frozen=True)
class Memory:
    """A memory as a row: ``label`` names its engines and the level of the device file."""

    label: str
    colour: str
    parts: dict[str, float]
    capacity: float

    @property
    def used(self) -> float:
        return sum(self.parts.values())


def memories(placement: Placement) -> list[Memory]:
    """One row per memory, coloured as in the topology."""
    return [
        Memory(name_of(h), DEVICES[i % len(DEVICES)], h.parts, h.capacity_bytes) for i, h in enumerate(placement.memory)
    ]


def name_of(held: Held) -> str:
    """Engines and level: ``instinfer-csd, flash``."""
    return f"{held.device.replace('+', ' + ')}, {'DRAM' if held.tier == 'dram' else held.tier}"


def lacking(nowhere: Nowhere) -> list[Memory]:
    """The memories that even the placement that exceeds least needs more of than there is."""
    return [
        Memory(name, DEVICES[i % len(DEVICES)], {"needed": needed}, allowed)
        for i, (name, (needed, allowed)) in enumerate(nowhere.exceeded.items())
        if name in memory_names(nowhere)
    ]


def memory_names(nowhere: Nowhere) -> set[str]:
    """Names in ``exceeded`` that are memories: whose engines are devices of the node."""
    return {n for n in nowhere.exceeded if set(n.split("+")) <= set(nowhere.devices)}


def heights(rows: Sequence[Memory]) -> tuple[float, float]:
    """Inches asked for, and the least."""
    return rows_height(len(rows), ROW * 1.25) + KEY, rows_height(len(rows), LEAST_ROW) + KEY


def held(canvas: Canvas, rows: Sequence[Memory]) -> None:
    """Stacked bars of weights, caches and activations; a stroke at the capacity."""
    colours = HELD if any(set(r.parts) & set(HELD) for r in rows) else {"needed": WARN}
    key(canvas, colours, extra="black stroke: capacity")
    panel = canvas.part(0, 0, canvas.width, canvas.height - KEY)
    limit = max(axis_end([r.used for r in rows]), axis_end([r.capacity for r in rows]))
    title = "Held by each memory" if HELD is colours else "Needed of each memory by the placement that exceeds least"
    made = Rows(panel, rows, limit, "B", title, names_width(rows, most=3.2), gutter=2.2)
    for i, row in enumerate(rows):
        made.bar(i, 0, row.capacity, PALE)
        stack(made, i, row.parts, colours)
        if row.capacity <= limit:
            made.stroke([row.capacity] * 2, [i - 0.42, i + 0.42], 1.8)
        said = f"{si(row.used, 'B')} of {si(row.capacity, 'B')}"
        short = row.used - row.capacity
        fits = short <= 1e-6 * row.capacity
        said += f" ({percent(row.used / row.capacity)})" if fits else f": {si(short, 'B')} short"
        made.end(i, max(row.used, row.capacity), said, INK if fits else WARN)


def told(rows: Sequence[Memory]) -> str:
    """The bars in words."""
    parts = []
    for row in rows:
        inside = ", ".join(f"{si(v, 'B')} {name}" for name, v in row.parts.items() if v)
        parts.append(f"{row.label}: {inside} of {si(row.capacity, 'B')}")
    return "; ".join(parts)
