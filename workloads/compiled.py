"""A trace as coefficient matrices: evaluated at a million points by one matrix product.

Every size of a trace is linear in a small set of monomials of (b, q, c): about ten for a
transformer. :func:`compile_trace` collects them once; a quantity of all operators at all points is
then ``coefficients @ basis`` with shapes (operators, monomials) @ (monomials, points).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from .expr import Array, Expr, Monomial, monomial_value
from .trace import Operator, Trace

QUANTITIES = ("flops", "weight_bytes", "kv_bytes", "activation_bytes", "weight_elements")
"""Per operator execution. ``weight_elements`` counts elements stored narrower than the arithmetic."""


@dataclass(frozen=True)
class Row:
    """Operators with identical work, and how often they run in one pass."""

    operator: Operator
    count: int
    names: tuple[str, ...]


@dataclass(frozen=True)
class CompiledTrace:
    """Rows of operators, the basis, and per quantity a (rows, monomials) matrix."""

    trace: Trace
    rows: tuple[Row, ...]
    basis: tuple[Monomial, ...]
    coefficients: dict[str, Array]
    counts: Array

    def basis_at(self, b: npt.ArrayLike, q: npt.ArrayLike, c: npt.ArrayLike) -> Array:
        """Monomials at the points: shape (monomials, points). ``b``, ``q``, ``c`` broadcast to one axis."""
        points = np.broadcast_arrays(*(np.atleast_1d(np.asarray(x, dtype=float)) for x in (b, q, c)))
        env = dict(zip("bqc", points, strict=True))
        out = np.empty((len(self.basis), points[0].size))
        for i, monomial in enumerate(self.basis):
            out[i] = monomial_value(monomial, env)
        return out

    def quantity(self, name: str, basis: Array) -> Array:
        """One of :data:`QUANTITIES` per row and point, for one execution: shape (rows, points)."""
        return self.coefficients[name] @ basis

    def vector(self, size: Expr) -> Array:
        """Coefficients of any further size over this basis. Raises ``KeyError`` for a foreign monomial."""
        out = np.zeros(len(self.basis))
        for monomial, value in size.terms:
            out[self._place[monomial]] = value
        return out

    @cached_property
    def _place(self) -> dict[Monomial, int]:
        return {m: i for i, m in enumerate(self.basis)}


def compile_trace(trace: Trace, sizes: Iterable[Expr] = ()) -> CompiledTrace:
    """Compile ``trace``; ``sizes`` are further expressions whose monomials the basis must hold."""
    merged: dict[object, Row] = {}
    for block in trace.blocks:
        for op in block.operators:
            key = _work(op)
            name = f"{block.name}.{op.name}"
            known = merged.get(key)
            if known is None:
                merged[key] = Row(op, block.repeat, (name,))
            else:
                merged[key] = Row(known.operator, known.count + block.repeat, (*known.names, name))
    rows = tuple(merged.values())
    table = [_quantities(r.operator) for r in rows]
    dims = [d for r in rows for d in r.operator.dims.values()]
    basis: dict[Monomial, int] = {}
    for size in [*(e for line in table for e in line.values()), *dims, *sizes]:
        for monomial, _ in size.terms:
            basis.setdefault(monomial, len(basis))
    coefficients = {}
    for name in QUANTITIES:
        matrix = np.zeros((len(rows), len(basis)))
        for i, line in enumerate(table):
            for monomial, value in line[name].terms:
                matrix[i, basis[monomial]] = value
        coefficients[name] = matrix
    counts = np.array([r.count for r in rows], dtype=float)
    return CompiledTrace(trace, rows, tuple(basis), coefficients, counts)


def _quantities(op: Operator) -> dict[str, Expr]:
    zero = op.flops * 0
    narrow = zero
    for w in op.weights:
        if w.bits < 16 and w.format != op.format:
            narrow = narrow + (w.elements if w.touched is None else w.touched)
    return {
        "flops": op.flops,
        "weight_bytes": op.moved("weight"),
        "kv_bytes": op.moved("kv", "state"),
        "activation_bytes": op.moved("activation", "index"),
        "weight_elements": narrow,
    }


def _work(op: Operator) -> object:
    """Two operators with equal keys cost the same on any device."""
    tensors = tuple((t.role, t.format, t.bits, t.shape, t.touched) for t in (*op.reads, *op.writes))
    return (
        op.kind,
        op.format,
        tuple(sorted(op.dims.items(), key=lambda d: d[0])),
        op.flops,
        tensors,
        tuple(sorted(op.attrs.items())),
    )
