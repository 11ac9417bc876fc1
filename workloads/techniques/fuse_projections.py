"""Projection fusing: linear layers that read the same activations become one.

Serving engines concatenate the Q, K and V weights, and gate and up, so that the activations are
read once and one kernel is launched (vLLM's ``QKVParallelLinear`` and ``MergedColumnParallelLinear``).
Our presets are written fused; a model captured from ``transformers`` is not. Gates of a few columns
(a shared expert's) stay alone, as they do there: they are not divided over devices.
"""

from __future__ import annotations

from collections import defaultdict

from ..expr import expr
from ..formulas import matmul_flops
from ..trace import Block, Operator, Trace
from . import Technique

_NARROWEST = 32


def apply(trace: Trace) -> Trace:
    """``trace`` with sibling matmuls merged along their output dimension."""
    return trace.model_copy(update={"blocks": tuple(_fuse(b) for b in trace.blocks)})


def _fuse(block: Block) -> Block:
    siblings: dict[object, list[Operator]] = defaultdict(list)
    for op in block.operators:
        narrow = (op.dims["n"].constant or 0) < _NARROWEST if op.kind == "matmul" else True
        if not narrow and op.weights and "batch" not in op.dims:
            source = tuple((t.name, t.shape) for t in op.reads if t.role == "activation")
            alike = op.dims["m"], op.dims["k"], op.format, tuple(sorted(op.attrs.items()))
            siblings[(op.deps, source, alike)].append(op)
    renamed: dict[str, str] = {}
    merged: dict[str, Operator] = {}
    for group in siblings.values():
        if len(group) > 1:
            one = _merge(group)
            merged[group[0].name] = one
            renamed |= {op.name: one.name for op in group}
    operators = []
    for op in block.operators:
        if op.name in merged:
            operators.append(merged[op.name])
        elif op.name not in renamed:
            deps = tuple(dict.fromkeys(renamed.get(d, d) for d in op.deps))
            operators.append(op.model_copy(update={"deps": deps}))
    return block.model_copy(update={"operators": tuple(operators), "output": renamed.get(block.output, block.output)})


def _merge(group: list[Operator]) -> Operator:
    """One matmul with the outputs side by side; the shared activations are read once."""
    first = group[0]
    width = expr(0)
    for op in group:
        width = width + op.dims["n"]
    inputs = tuple(t for t in first.reads if t.role != "weight")
    dims = {**first.dims, "n": width}
    return first.model_copy(
        update={
            "name": _name([op.name for op in group]),
            "dims": dims,
            "flops": matmul_flops(dims["m"], width, dims["k"]),
            "reads": (*inputs, *(w for op in group for w in op.weights)),
            "writes": tuple(t for op in group for t in op.writes),
        }
    )


def _name(names: list[str]) -> str:
    whole = "+".join(names)
    return whole if len(whole) <= 120 else f"{names[0][:100]}+{len(names) - 1} more"


TECHNIQUE = Technique(
    name="fuse-projections",
    description="merge linear layers that read the same activations (Q+K+V, gate+up) into one",
    source="vLLM QKVParallelLinear, MergedColumnParallelLinear",
    parameters={},
    apply=apply,
)
