"""A tiling as a loop nest, and what it costs.

Between one memory level and the next stand three loops, one per dimension; together they are a nest, outermost
level first. An operand is brought to a level again at every step of a loop that does not index it, unless no loop
that does index it runs inside that one (down to the level): then it stays where it is.

    visits(X, i)  = product of the counts of loops above level i that do not index X
                    and have a loop that indexes X, of more than one step, inside them
    moved(X, i)   = points(X) · visits · bits(X)                               for inputs
                  = points(X) · ((visits − 1) · 2 · partial bits + bits)       for outputs
    time(i)       = S + max(time(i + 1) + F, D)
    energy        = Σ over levels and operands of moved · (energy per bit outside + inside)
                    + array + static power · time

D and S: seconds over the port of level i − 1 of operands that are buffered doubly and singly at level i; F: those
of the first doubly buffered tiles in and the last one out, which nothing can hide. A doubly buffered operand
occupies two tiles. Innermost: time = max(arithmetic, what passes between the last level and the array).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from ..errors import InputError
from .hierarchy import ROLES, Hierarchy
from .products import Operand, Sizes, Tiled


@dataclass(frozen=True)
class Tile:
    """What one memory level holds: sizes of its tile, ``order`` of the loops over it (dimensions, outermost first),
    roles that are buffered doubly."""

    sizes: Sizes
    order: Sizes
    double: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Mapping:
    """Sizes that the operator is padded to, a tile per level on the chip (outermost first), the array's block."""

    padded: Sizes
    tiles: tuple[Tile, ...]
    block: Sizes


@dataclass(frozen=True)
class Cost:
    """Seconds and joules; ``array_s`` of arithmetic alone; ``moved`` bytes by operand over the boundary into each
    level on the chip; ``array_bytes`` by role between the last level and the array; ``port_s`` seconds that each
    level's port is busy; ``parts`` joules by what draws them."""

    time_s: float
    energy_j: float
    array_s: float
    moved: tuple[dict[str, float], ...]
    array_bytes: dict[str, float]
    port_s: tuple[float, ...]
    parts: dict[str, float]


def visits(operand: Operand, loops: list[tuple[int, int]]) -> int:
    """How often each part of ``operand`` is brought below ``loops``: (dimension, count), outermost first."""
    times, inside = 1, False
    for dim, count in reversed(loops):
        if dim in operand.dims:
            inside = inside or count > 1
        elif inside:
            times *= count
    return times


def occupied_bytes(operator: Tiled, hierarchy: Hierarchy, mapping: Mapping, level: int) -> dict[str, float]:
    """Bytes by role that ``mapping`` occupies at ``level`` (1: the first on the chip)."""
    tile = mapping.tiles[level - 1]
    held = dict.fromkeys(ROLES, 0.0)
    for operand in operator.operands:
        points = prod(tile.sizes[d] for d in operand.dims)
        held[operand.role] += points * operand.held_bits / 8 * (2 if operand.role in tile.double else 1)
    if level == len(mapping.tiles):
        held["output"] += float(operator.scratch_bits(np.array([tile.sizes]), hierarchy.array)[0]) / 8
    return held


def check(operator: Tiled, hierarchy: Hierarchy, mapping: Mapping) -> None:
    """Raises InputError where ``mapping`` is no tiling of ``operator`` or does not fit ``hierarchy``."""
    if len(mapping.tiles) != len(hierarchy.levels) - 1:
        raise InputError(
            f"a tiling of {hierarchy.name} needs {len(hierarchy.levels) - 1} tiles, not {len(mapping.tiles)}"
        )
    if mapping.block not in hierarchy.array.blocks:
        raise InputError(f"the array has no block {mapping.block}; accepted: {hierarchy.array.blocks}")
    outer = mapping.padded
    if any(p < s for p, s in zip(outer, operator.sizes, strict=True)):
        raise InputError(f"padded sizes {outer} are below the operator's {operator.sizes}")
    for level, tile in enumerate(mapping.tiles, start=1):
        name = hierarchy.levels[level].name
        if any(o % t for o, t in zip(outer, tile.sizes, strict=True)) or sorted(tile.order) != [0, 1, 2]:
            raise InputError(f"level {name}: tile {tile.sizes} does not divide {outer}, or {tile.order} is no order")
        held = occupied_bytes(operator, hierarchy, mapping, level)
        for buffer in hierarchy.levels[level].buffers:
            need = sum(held[role] for role in buffer.roles)
            if need > buffer.capacity_bytes:
                raise InputError(f"level {name}: the tile needs {need:.0f} bytes of {buffer.capacity_bytes:.0f}")
        outer = tile.sizes


def evaluate(operator: Tiled, hierarchy: Hierarchy, mapping: Mapping) -> Cost:
    """What ``mapping`` costs by the formulas of the module text. Raises InputError where it does not fit."""
    check(operator, hierarchy, mapping)
    levels, operands = hierarchy.levels, operator.operands
    loops: list[tuple[int, int]] = []
    moved: list[dict[str, float]] = []
    ports: list[float] = []
    stages = []  # (seconds singly buffered, doubly buffered, of the first tiles), outermost first
    parts: dict[str, float] = {}
    outer = mapping.padded
    for level, tile in enumerate(mapping.tiles, start=1):
        loops += [(d, outer[d] // tile.sizes[d]) for d in tile.order]
        port = levels[level - 1].bandwidth_bytes_s * 8
        bits, single, double, first = {}, 0.0, 0.0, 0.0
        for operand in operands:
            points = prod(mapping.padded[d] for d in operand.dims)
            bits[operand.name] = float(operand.moved_bits(points, visits(operand, loops)))
            if operand.role in tile.double:
                double += bits[operand.name] / port
                first += prod(tile.sizes[d] for d in operand.dims) * operand.bits / port
            else:
                single += bits[operand.name] / port
            for place in (levels[level - 1], levels[level]):
                parts[place.name] = parts.get(place.name, 0.0) + bits[operand.name] * place.energy(operand.role)
        stages.append((single, double, first))
        moved.append({name: b / 8 for name, b in bits.items()})
        ports.append(sum(bits.values()) / port)
        outer = tile.sizes
    work = operator.array_work(np.array([outer], np.int64), mapping.padded, hierarchy.array, mapping.block)
    array_bits = {role: float(b[0]) for role, b in work.bits.items()}
    last = levels[-1]
    ports.append(sum(array_bits.values()) / 8 / last.bandwidth_bytes_s)
    for role, b in array_bits.items():
        parts[last.name] += b * last.energy(role)
    time = max(float(work.seconds[0]), ports[-1])
    for single, double, first in reversed(stages):
        time = single + max(time + first, double)
    parts |= {"array": float(work.joules[0]), "static": hierarchy.static_w * time}
    return Cost(
        time, sum(parts.values()), float(work.seconds[0]), tuple(moved),
        {role: b / 8 for role, b in array_bits.items()}, tuple(ports), parts,
    )  # fmt: skip
