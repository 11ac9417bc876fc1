"""One engine's share of an operator, as an operator that the cost models take.

A share f of the columns (N), rows (K), heads, pointwise elements or experts scales the size that is divided, the
FLOPs, and the bytes of the operands that go along with it; the others stay whole. Shares are not padded to tiles
here: the cost models do that.
"""

from __future__ import annotations

import math

from ..workloads.expr import Expr, expr
from ..workloads.trace import Operator, Tensor

SCALED = {"columns": ("n",), "rows": ("k",), "heads": ("heads", "kv_heads"), "experts": ("experts", "top_k")}
WHOLE_READS = {"columns": ("activation",), "experts": ("activation", "index")}
WHOLE_WRITES = {"rows": ("activation",), "experts": ("activation",)}


def share(op: Operator, mode: str, fraction: float, name: str) -> Operator:
    """``fraction`` (0 to 1) of ``op`` divided by ``mode``, without dependencies, named ``name``."""
    if fraction >= 1 or mode in ("whole", "replicated"):
        return op.model_copy(update={"name": name, "deps": ()})
    dims = dict(op.dims)
    for key in SCALED.get(mode, ()):
        if key in dims:
            dims[key] = _part(dims[key], fraction)
    if mode in ("parts", "heads"):
        for key in ("elements", "row_elements"):
            if key in dims:
                dims[key] = dims[key] * fraction
    if mode == "experts":
        # k of E experts each: of e = f·E of them, a token meets f·k on average, and the cost models want k ≤ e, k ≥ 1.
        dims["top_k"] = expr(max(1.0, (op.dims["top_k"].constant or 1) * fraction))
        experts_f = (dims["top_k"].constant or 1) / (op.dims["top_k"].constant or 1)
        if experts_f > fraction:  # fewer tokens instead of fewer experts per token
            dims["tokens"] = dims["tokens"] * (fraction / experts_f)
    whole_reads, whole_writes = WHOLE_READS.get(mode, ()), WHOLE_WRITES.get(mode, ())
    reads = tuple(t if t.role in whole_reads else _cut(t, fraction) for t in op.reads)
    writes = tuple(t if t.role in whole_writes else _cut(t, fraction) for t in op.writes)
    return op.model_copy(
        update={"name": name, "deps": (), "dims": dims, "flops": op.flops * fraction, "reads": reads, "writes": writes}
    )


def _part(size: Expr, fraction: float) -> Expr:
    whole = size.constant
    return size * fraction if whole is None else expr(max(1, math.ceil(whole * fraction - 1e-9)))


def _cut(t: Tensor, fraction: float) -> Tensor:
    """``t`` with its divided axis cut: heads of a cache, the last axis of activations, the first of weights."""
    touched = t.touched if t.touched is None else t.touched * fraction
    constant = [axis for axis, size in enumerate(t.shape) if size.constant is not None]
    if not constant or t.role == "index":
        return t.model_copy(update={"touched": (t.elements if t.touched is None else t.touched) * fraction})
    axis = 1 if t.role == "kv" and len(t.shape) == 4 else constant[-1] if t.role == "activation" else constant[0]
    shape = (*t.shape[:axis], t.shape[axis] * fraction, *t.shape[axis + 1 :])
    return t.model_copy(update={"shape": shape, "touched": touched})
