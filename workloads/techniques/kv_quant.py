"""KV-cache quantisation: keys and values stored narrow, read back by attention.

Each cached head vector carries one scale (KIVI, arXiv:2402.02750, per-token values). Bits per
element: bits + scale_bits / head_dim.
"""

from __future__ import annotations

from ..rewrite import map_operators, map_tensors
from ..trace import Operator, Tensor, Trace
from . import Parameter, Technique


def apply(trace: Trace, bits: int, scale_bits: int) -> Trace:
    """``trace`` with the KV cache stored at ``bits`` plus one scale per head vector."""

    def narrow(op: Operator) -> Operator:
        def store(t: Tensor) -> Tensor:
            width = t.shape[-1].constant if t.role == "kv" and t.shape else None
            if width is None:
                return t
            stored = bits + scale_bits / width
            return t.model_copy(update={"format": f"int{bits}-g{int(width)}", "bits": stored}) if stored < t.bits else t

        return map_tensors(op, store)

    return map_operators(trace, narrow)


TECHNIQUE = Technique(
    name="kv-quant",
    description="store the KV cache in few bits with one scale per head vector",
    source="KIVI, arXiv:2402.02750",
    parameters={
        "bits": Parameter(8, "bits per cached element, without scales", low=1, high=8),
        "scale_bits": Parameter(16, "bits of the scale of each head vector", low=0, high=32),
    },
    apply=apply,
)
