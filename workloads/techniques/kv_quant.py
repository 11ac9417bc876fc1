"""KV-cache quantisation: keys and values stored narrow, read back by attention.

Each cached head vector carries one scale (KIVI, arXiv:2402.02750, per-token values). Bits per
element: bits + scale_bits / head_dim. Or, with ``format``, any format of :mod:`tokenfab.kernels.formats`
(``value2-g32``, ``fp8-e4m3-tensor``, …), with its own bits for a long cache of such vectors; a format of
keys and one of values with the same bits and groups cost the same.
"""

from __future__ import annotations

from ...kernels.formats import load_format
from ..rewrite import map_operators, map_tensors
from ..trace import Operator, Tensor, Trace
from . import Parameter, Technique

LONG = 1 << 16
"""Cached vectors over which what a tensor has only once is shared out."""


def apply(trace: Trace, format: str, bits: int, scale_bits: int) -> Trace:
    """``trace`` with the KV cache in ``format``, or at ``bits`` plus one scale per head vector."""
    known = load_format(format) if format else None

    def narrow(op: Operator) -> Operator:
        def store(t: Tensor) -> Tensor:
            width = t.shape[-1].constant if t.role == "kv" and t.shape else None
            if width is None:
                return t
            stored = known.bits_per_weight((LONG, int(width))) if known else bits + scale_bits / width
            label = format or f"int{bits}-g{int(width)}"
            return t.model_copy(update={"format": label, "bits": stored}) if stored < t.bits else t

        return map_tensors(op, store)

    return map_operators(trace, narrow)


TECHNIQUE = Technique(
    name="kv-quant",
    description="store the KV cache in few bits with one scale per head vector",
    source="KIVI, arXiv:2402.02750; of a format: its own",
    parameters={
        "format": Parameter("", "a number format, such as value2-g32, in place of the numbers below"),
        "bits": Parameter(8, "bits per cached element, without scales", low=1, high=8, unless="format"),
        "scale_bits": Parameter(16, "bits of the scale of each head vector", low=0, high=32, unless="format"),
    },
    apply=apply,
)
