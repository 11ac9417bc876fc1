"""Mixed-precision weights: layers and channels of different widths, known by their average.

Sensitive weights keep ``widest`` bits and others fewer, for ``average`` bits over the model, with a scale per group
as in weight-only quantisation (FlightLLM, arXiv:2401.03868, section 6.1: 3, 4 and 5 bits, 3.5 on average;
LLM-MQ). Only the average is known of a published mix, so every linear weight is stored at it; its format is that of
the widest, which is what the arithmetic must be able to take. Which weights are touched: as ``weight-only``.
"""

from __future__ import annotations

from ...errors import InputError
from ..rewrite import map_operators, map_tensors
from ..trace import Operator, Tensor, Trace
from . import Parameter, Technique
from .weight_only import apply as quantise


def apply(trace: Trace, average: float, widest: int, group: int, scale_bits: int, head: int) -> Trace:
    """``trace`` with linear weights stored at ``average`` bits plus scales. Raises ``InputError`` for an average
    above the widest."""
    if average > widest:
        raise InputError(f"technique mixed-precision: average: {average:g} is above widest = {widest}")
    scales = scale_bits / group if group else 0.0
    before = {id(t) for op, _ in trace.operators() for t in op.reads}

    def store(t: Tensor) -> Tensor:
        return t if t.role != "weight" or id(t) in before else t.model_copy(update={"bits": average + scales})

    def narrow(op: Operator) -> Operator:
        return map_tensors(op, store)

    return map_operators(quantise(trace, "", widest, group, scale_bits, 0, head), narrow)


TECHNIQUE = Technique(
    name="mixed-precision",
    description="store matmul and expert weights in a mix of widths of a given average; arithmetic unchanged",
    source="FlightLLM, arXiv:2401.03868, section 6.1 (3, 4, 5 bits: 3.5 on average)",
    parameters={
        "average": Parameter(3.5, "bits per weight over the model, without scales", low=1, high=8),
        "widest": Parameter(5, "bits of the widest weights", low=1, high=8),
        "group": Parameter(
            128, "weights that share a scale; 0 = one per output channel, not counted", low=0, high=65536
        ),
        "scale_bits": Parameter(16, "bits of a scale", low=0, high=32),
        "head": Parameter(0, "1 = quantise the output head too", choices=(0, 1)),
    },
    apply=apply,
)
