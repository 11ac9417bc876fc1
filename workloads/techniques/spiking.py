"""Spiking activations: products take 0/1 spikes, so that only spikes cost, and each costs an addition.

Marks products with weights with the rate at which their inputs fire; :mod:`tokenfab.workloads.synapses` counts
what that leaves of the operations. The operators stay as they are: a device that is not event driven gains nothing.
"""

from __future__ import annotations

from ..rewrite import map_operators
from ..trace import Operator, Trace
from . import Parameter, Technique


def apply(trace: Trace, rate: float, head: int) -> Trace:
    """``trace`` whose matmuls with weights take spikes that fire at ``rate``."""
    last = trace.order[-1][0]
    heads = {id(op) for b in trace.blocks if b.name == last for op in b.operators} if not head else set()

    def spike(op: Operator) -> Operator:
        if op.kind not in ("matmul", "experts") or not op.weights or id(op) in heads:
            return op
        return op.model_copy(update={"attrs": op.attrs | {"spike_rate": rate}})

    return map_operators(trace, spike)


TECHNIQUE = Technique(
    name="spiking",
    description="inputs of products are 0/1 spikes at a rate; counted, not timed",
    source="SpikeGPT, arXiv:2302.13939",
    parameters={
        "rate": Parameter(0.15, "share of the inputs that fire", low=0, high=1),
        "head": Parameter(1, "1 = the output head takes spikes too", choices=(0, 1)),
    },
    apply=apply,
)
