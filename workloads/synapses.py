"""Synaptic operations of a spiking model against those of the same model with real activations.

A multiply–accumulate whose input is a spike is an accumulate, and is not done at all where there is no spike
(Merolla et al., Science 345, 2014; the counting of SpikeGPT, arXiv:2302.13939, section 4):

    accumulates = Σ rate · MACs over products marked by ``techniques/spiking.py``
    MACs        = Σ MACs of all other products; attention's two products among them
    energy      = accumulates · e(AC) + MACs · e(MAC)

with e(AC) = 0.9 pJ, an FP32 addition, and e(MAC) = 4.6 pJ, an FP32 multiplication (3.7 pJ) and addition, at 45 nm
(Horowitz, ISSCC 2014). Left out on both sides: element-wise work, the neurons' own updates (one or two operations per
neuron against thousands of synapses), memory traffic.
"""

from __future__ import annotations

from dataclasses import dataclass

from .trace import Trace

ACCUMULATE_J = 0.9e-12
MULTIPLY_J = 3.7e-12
PRODUCTS = ("matmul", "router", "experts", "attention")


@dataclass(frozen=True)
class Synapses:
    """Operations of one pass; ``dense_macs`` is what the model with real activations does."""

    accumulates: float
    macs: float
    dense_macs: float

    @property
    def operations(self) -> float:
        """Accumulates and multiply–accumulates, each one operation."""
        return self.accumulates + self.macs

    @property
    def operations_ratio(self) -> float:
        """Dense operations over those left, one multiply–accumulate being one operation."""
        return self.dense_macs / self.operations

    def energy_j(self, accumulate_j: float = ACCUMULATE_J, multiply_j: float = MULTIPLY_J) -> float:
        """Joules of the arithmetic; a multiply–accumulate is a multiplication and an accumulate."""
        return self.accumulates * accumulate_j + self.macs * (accumulate_j + multiply_j)

    def energy_ratio(self, accumulate_j: float = ACCUMULATE_J, multiply_j: float = MULTIPLY_J) -> float:
        """Joules of the dense model over those of the spiking one."""
        return self.dense_macs * (accumulate_j + multiply_j) / self.energy_j(accumulate_j, multiply_j)


def count_synapses(trace: Trace, batch: float = 1, query: float = 1, context: float = 0) -> Synapses:
    """Operations of one pass of ``trace`` at (batch, query, context)."""
    accumulates = macs = dense = 0.0
    for op, count in trace.operators():
        if op.kind not in PRODUCTS:
            continue
        each = float(op.flops(batch, query, context)) / 2 * count
        dense += each
        if "spike_rate" in op.attrs:
            accumulates += each * float(op.attrs["spike_rate"])
        else:
            macs += each
    return Synapses(accumulates, macs, dense)
