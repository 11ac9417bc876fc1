"""A compiled trace says what the expressions say, for every operator and every quantity, at any points."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenfab.workloads.capture import capture
from tokenfab.workloads.compiled import QUANTITIES, CompiledTrace, compile_trace
from tokenfab.workloads.expr import B, C, Q, minimum
from tokenfab.workloads.parallel import tensor_parallel
from tokenfab.workloads.techniques import apply_techniques
from tokenfab.workloads.trace import Operator, Trace

MODELS = ["llama-2-70b", "mistral-7b", "mixtral-8x7b", "bitnet-b1.58-3b", "bloom-176b"]
VARIANTS = {"plain": ([], 1), "narrow": (["weight-only", "kv-quant:bits=4"], 1), "shared": (["weight-only"], 8)}
many = st.lists(st.tuples(st.integers(1, 512), st.integers(1, 4096), st.integers(0, 30000)), min_size=1, max_size=6)


@cache
def variant(name: str, which: str) -> Trace:
    specs, world = VARIANTS[which]
    return tensor_parallel(apply_techniques(capture(name), specs), world)


@cache
def compiled_of(name: str, which: str) -> CompiledTrace:
    return compile_trace(variant(name, which))


def by_expression(op: Operator, quantity: str, points: np.ndarray) -> np.ndarray:
    """The quantity as its definition says, evaluated term by term."""
    if quantity == "flops":
        parts = [op.flops]
    elif quantity == "weight_elements":
        narrow = [w for w in op.weights if w.bits < 16 and w.format != op.format]
        parts = [w.elements if w.touched is None else w.touched for w in narrow]
    else:
        roles = {"weight_bytes": ("weight",), "kv_bytes": ("kv", "state"), "activation_bytes": ("activation", "index")}
        parts = [t.bytes for t in (*op.reads, *op.writes) if t.role in roles[quantity]]
    return sum((np.broadcast_to(p(*points), points.shape[1]) for p in parts), np.zeros(points.shape[1]))


@pytest.mark.parametrize("which", VARIANTS)
@pytest.mark.parametrize("name", MODELS)
def test_every_quantity_of_every_row_equals_the_expressions(name, which):
    trace, compiled = variant(name, which), compiled_of(name, which)

    @settings(max_examples=12)
    @given(many)
    def holds(drawn):
        points = np.array(drawn, dtype=float).T
        basis = compiled.basis_at(*points)
        assert basis.shape == (len(compiled.basis), len(drawn))
        for quantity in QUANTITIES:
            found = compiled.quantity(quantity, basis)
            for row, values in zip(compiled.rows, found, strict=True):
                expected = by_expression(row.operator, quantity, points)
                assert np.allclose(values, expected, rtol=1e-9, atol=1e-3), (quantity, row.names)
        totals = {q: compiled.counts @ compiled.quantity(q, basis) for q in QUANTITIES}
        assert np.allclose(totals["flops"], trace.total("flops")(*points), rtol=1e-9)
        moved = totals["weight_bytes"] + totals["kv_bytes"] + totals["activation_bytes"]
        assert np.allclose(moved, trace.total("bytes")(*points), rtol=1e-9)

    holds()


@pytest.mark.parametrize("name", MODELS)
def test_rows_are_the_distinct_operators_and_count_every_execution(name):
    trace, compiled = variant(name, "plain"), compiled_of(name, "plain")
    assert compiled.counts.sum() == sum(count for _, count in trace.operators())
    names = [n for row in compiled.rows for n in row.names]
    assert sorted(names) == sorted(f"{b.name}.{op.name}" for b in trace.blocks for op in b.operators)
    assert len(compiled.rows) < len(names)  # two norms of a layer are one row
    assert len(compiled.basis) <= 12


def test_further_sizes_find_their_place_in_the_basis_or_are_told_to_be_foreign():
    size = minimum(C, 77) * B + 3 * Q
    compiled = compile_trace(variant("llama-2-70b", "plain"), [size])
    basis = compiled.basis_at([1, 5], [2, 3], [40, 100])
    assert compiled.vector(size) @ basis == pytest.approx([46, 394])
    with pytest.raises(KeyError):
        compiled_of("llama-2-70b", "plain").vector(size)


def test_points_broadcast():
    compiled = compiled_of("llama-2-70b", "plain")
    assert compiled.basis_at(1, 1, np.arange(5)).shape[1] == 5
    assert (compiled.basis_at(2, 3, 4) == compiled.basis_at([2], [3], [4])).all()
