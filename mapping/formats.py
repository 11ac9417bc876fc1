"""Which matrix in which format, under a budget of bytes: the placement program with formats in place of devices.

Every matrix takes one of the formats; its *error* is the metric called cost, its bytes fill one pool, the budget:

    minimise Σ error[matrix, format] · layers    with    Σ bytes[matrix, format] ≤ budget

which LQ-LoRA (arXiv:2311.12023, section 3.2) and Puzzle (arXiv:2411.19146) solve as an integer program, too. The
error of a matrix is its sensitivity × elements × relative squared error of the format (:mod:`.quality`). Formats and
places together are :func:`.build.build`'s ``formats``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import InputError, unknown_name
from ..workloads.trace import Trace
from .place import Solution, solve
from .problem import Block, Edge, Objective, Operator, Problem
from .quality import gaussian_error


@dataclass(frozen=True)
class Formats:
    """``chosen``: matrix → format (of every layer of its block alike where one entry, else by share of layers);
    ``bytes`` used; ``bits``: mean per element."""

    chosen: dict[str, dict[str, int]]
    error: float
    bytes: float
    bits: float
    solution: Solution


def choose_formats(
    trace: Trace, formats: Sequence[str], budget_bytes: float, *, sensitivity: Mapping[str, float] | None = None,
    error_of: Callable[[str], tuple[float, float]] = gaussian_error, gap: float = 1e-3, time_limit: float = 10.0,
) -> Formats:  # fmt: skip
    """The formats of least error within the budget, for all matrices of ``trace`` (embedding and head included).

    ``sensitivity``: BLOCK.OPERATOR → weight of its error (1 where it is not named). Raises ``InputError`` for unknown
    names and for a budget below what the narrowest formats need.
    """
    if not formats:
        raise InputError("no format; accepted: names as tokenfab.kernels.formats knows them")
    facts = [error_of(name) for name in formats]
    blocks, names = [], []
    first = trace.order[0][0]
    for block in trace.blocks:
        matrices = [(op.name, w) for op in block.operators for w in op.weights if len(w.shape) > 1]
        here, operators = [], []
        for name, w in matrices:
            key = f"{block.name}.{name}"
            elements = float(w.elements.constant or 0)
            weight = (sensitivity or {}).get(key, 1.0)
            operators.append(_matrix(key, formats, [(elements * bits / 8, weight * elements * e) for bits, e in facts]))
            here.append(key)
        names.append(here)
        operators.append(_matrix("end", ["end"], [(0.0, 0.0)]))
        edges = () if block.name == first else (_into(len(operators) - 1),)
        blocks.append(Block(block.name, tuple(operators), edges, len(operators) - 1))
    if unknown := set(sensitivity or {}) - {n for here in names for n in here}:
        raise unknown_name("matrix", sorted(unknown)[0], {n for here in names for n in here})
    index = {b.name: i for i, b in enumerate(trace.blocks)}
    order = tuple(index[name] for name, times in trace.order for _ in range(times))
    problem = Problem(
        ("none",), np.ones(1), ("none",), ("budget",), np.array([float(budget_bytes)]), 0.0, tuple(blocks), order,
        Objective({"cost": 1.0}),
    )  # fmt: skip
    solution = solve(problem, gap=gap, time_limit=time_limit)
    if solution.layers is None:
        least = sum(min(float(op.memory[k, 0]) for k in range(len(op.options)))
                    for b in order for op in blocks[b].operators)  # fmt: skip
        raise InputError(f"a budget of {budget_bytes:.4g} B is below the {least:.4g} B of the narrowest formats")
    chosen: dict[str, dict[str, int]] = {}
    used = elements = 0.0
    for b, choice in zip(order, solution.layers, strict=True):
        for op, k in zip(blocks[b].operators[:-1], choice, strict=False):
            counts = chosen.setdefault(op.name, {})
            counts[op.options[k]] = counts.get(op.options[k], 0) + 1
            used += float(op.memory[k, 0])
            elements += float(op.memory[k, 0]) * 8 / facts[k][0]
    return Formats(chosen, solution.value, used, 8 * used / elements, solution)


def _matrix(name: str, options: Sequence[str], facts: Sequence[tuple[float, float]]) -> Operator:
    k = len(options)
    memory, error = (np.array([f[i] for f in facts]) for i in (0, 1))
    return Operator(
        name, tuple(options), np.zeros((k, 1)), np.zeros((k, 1, 1)), np.zeros(k), error, memory[:, None],
        np.ones(k, dtype=bool),
    )  # fmt: skip


def _into(end: int) -> Edge:
    """Layers follow one another; nothing passes between them."""
    nothing = np.zeros((1, 1))
    return Edge(-1, end, nothing[:, :, None], nothing[:, :, None, None], nothing, nothing, np.ones((1, 1), dtype=bool))
