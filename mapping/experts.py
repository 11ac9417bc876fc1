"""Which expert on which device, so that tokens stay where they are: the placement program with experts as operators.

``affinity[l][i, j]`` is the share of tokens that go from expert i of layer l to expert j of layer l + 1 (ExFlow,
arXiv:2401.08383, section 4.2). Each device holds equally many experts of every layer; what is least is the mass that
changes device between layers:

    minimise Σ affinity[l][i, j] · [device(l, i) ≠ device(l + 1, j)]

Experts are operators, devices options, the mass is the metric called cost, and one pool per (layer, device) counts.
Devices are alike, so any renaming is as good: the first layer's first expert is put on the first device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from .place import Solution, solve
from .problem import Array, Block, Edge, Objective, Operator, Problem


@dataclass(frozen=True)
class Experts:
    """``devices[l][e]`` holds expert e of layer l; ``crossing``: mass that changes device, summed over layers;
    ``consecutive``: that of experts placed in order of their numbers; ``bound`` proven."""

    devices: list[list[int]]
    crossing: float
    consecutive: float
    bound: float
    solution: Solution


def place_experts(affinity: Sequence[Array], devices: int, *, time_limit: float = 10.0, gap: float = 1e-3) -> Experts:
    """Equal numbers of experts per device and layer, so that least mass crosses.

    ``affinity``: (experts, experts) per pair of neighbouring layers, at least 0. Raises ``InputError`` for shapes that
    do not fit and experts that the devices do not divide.
    """
    tables = [np.asarray(a, dtype=float) for a in affinity]
    if not tables or any(t.shape != tables[0].shape or t.ndim != 2 or t.shape[0] != t.shape[1] for t in tables):
        raise InputError("affinity: accepted: one square table per pair of neighbouring layers, all of one size")
    experts, layers = tables[0].shape[0], len(tables) + 1
    if devices < 1 or experts % devices:
        raise InputError(f"{experts} experts on {devices} devices; accepted: a divisor of the experts")
    if any((t < 0).any() or not np.isfinite(t).all() for t in tables):
        raise InputError("affinity: accepted: numbers of at least 0")
    each = experts // devices
    pools = layers * devices
    operators, edges = [], []
    for layer in range(layers):
        for e in range(experts):
            memory = np.zeros((devices, pools))
            memory[np.arange(devices), layer * devices + np.arange(devices)] = 1.0
            allowed = np.ones(devices, dtype=bool)
            if layer == e == 0:
                allowed[1:] = False
            zero = np.zeros(devices)
            operators.append(
                Operator(f"{layer}.{e}", tuple(map(str, range(devices))), zero[:, None], zero[:, None, None], zero,
                         zero, memory, allowed)
            )  # fmt: skip
    apart = 1.0 - np.eye(devices)
    none = np.zeros((devices, devices))
    free = np.ones((devices, devices), dtype=bool)
    for layer, table in enumerate(tables):
        for i, j in zip(*np.nonzero(table), strict=True):
            edges.append(
                Edge(layer * experts + int(i), (layer + 1) * experts + int(j), none[:, :, None],
                     none[:, :, None, None], none, apart * table[i, j], free)
            )  # fmt: skip
    block = Block("experts", tuple(operators), tuple(edges), len(operators) - 1)
    problem = Problem(
        ("none",), np.ones(1), ("none",), tuple(f"layer {p // devices} device {p % devices}" for p in range(pools)),
        np.full(pools, float(each)), 0.0, (block,), (0,), Objective({"cost": 1.0}),
    )  # fmt: skip
    solution = solve(problem, time_limit=time_limit, gap=gap)
    assert solution.layers is not None  # experts in order always fit
    (choice,) = solution.layers
    placed = [list(choice[layer * experts : (layer + 1) * experts]) for layer in range(layers)]
    in_order = [[e // each for e in range(experts)] for _ in range(layers)]
    return Experts(placed, crossing(tables, placed), crossing(tables, in_order), max(0.0, solution.bound), solution)


def crossing(affinity: Sequence[Array], devices: Sequence[Sequence[int]]) -> float:
    """Mass that changes device between layers."""
    total = 0.0
    for table, here, after in zip(affinity, devices, devices[1:], strict=False):
        total += float(table[np.not_equal.outer(np.asarray(here), np.asarray(after))].sum())
    return total
