"""Weights and activations of linear layers in integers of as many bits, multiplied by integer units.

SmoothQuant (arXiv:2211.10438) does it with 8 bits, QuaRot (arXiv:2404.00456) and LLM-FP4's integer rivals with 4.
Linear layers (``matmul`` of stored weights) read both operands at ``bits`` and compute in that format; what they write,
norms, softmax, attention and the rest stay as they are. Scales (one per channel and token) are not counted.
"""

from __future__ import annotations

from ..rewrite import map_operators, map_tensors
from ..trace import Operator, Tensor, Trace
from . import Parameter, Technique


def apply(trace: Trace, bits: int) -> Trace:
    """``trace`` with linear layers of ``bits``-bit weights by ``bits``-bit activations."""
    name = f"int{bits}"

    def store(t: Tensor) -> Tensor:
        linear = t.role == "activation" or (t.role == "weight" and len(t.shape) > 1)
        return t.model_copy(update={"format": name, "bits": float(bits)}) if linear and t.bits > bits else t

    def narrow(op: Operator) -> Operator:
        if op.kind != "matmul" or not op.weights:
            return op
        return map_tensors(op, store).model_copy(update={"format": name, "writes": op.writes})

    return map_operators(trace, narrow)


TECHNIQUE = Technique(
    name="integer-arithmetic",
    description="weights and activations of linear layers as integers, multiplied in them",
    source="SmoothQuant, arXiv:2211.10438; QuaRot, arXiv:2404.00456",
    parameters={"bits": Parameter(8, "bits of weights and activations", choices=(4, 8))},
    apply=apply,
)
