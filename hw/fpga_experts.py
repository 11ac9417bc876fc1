"""On-chip memory of a layer of experts: all of them held, or two at a time while the next is loaded.

    all held          weights of every expert + tokens
    double-buffered   weights of two experts + tokens
    tokens            inputs, outputs and hidden values of every token, at 8 bits

Held, no expert is ever loaded twice whatever the order of tokens; with per-expert queues (M3ViT, arXiv:2210.14793)
two buffers do the same. Left out: queues of tokens (a few bytes per token), the other layers' buffers.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InputError
from ..workloads.trace import Operator, Trace
from .estimate import Estimate
from .fpga_design import ACTIVATION_BITS


@dataclass(frozen=True)
class ExpertMemory:
    """Bytes on the chip of the largest layer of experts."""

    all_held: float
    double_buffered: float

    @property
    def saving(self) -> float:
        return self.all_held / self.double_buffered


def expert_memory(trace: Trace, batch: float, query: float) -> ExpertMemory:
    """On-chip bytes of the largest layer of experts in ``trace`` for ``batch`` sequences of ``query`` tokens.

    Raises ``InputError`` for a model without experts.
    """
    found = [_memory(op, batch, query) for op, _ in trace.operators() if op.kind == "experts"]
    if not found:
        raise InputError(f"{trace.model} has no experts; accepted: a mixture of experts")
    return max(found, key=lambda x: x.all_held)


def expert_memory_saving(estimate: Estimate, trace: Trace) -> float:
    """on-chip bytes of the largest layer of experts, all of them held over two at a time, for a prompt"""
    return expert_memory(trace, estimate.request.batch, estimate.request.prompt).saving


METRICS = {"expert_memory_saving": expert_memory_saving}


def _memory(op: Operator, batch: float, query: float) -> ExpertMemory:
    experts = op.dims["experts"].constant or 1
    weights = sum(float(w.stored_bytes(batch, query, 0)) for w in op.weights)
    tokens = float(op.dims["tokens"](batch, query, 0))
    hidden, inner = (op.dims[name].constant or 0 for name in ("hidden", "inner"))
    held = tokens * (2 * hidden + inner) * ACTIVATION_BITS / 8
    return ExpertMemory(weights + held, weights / experts * min(2, experts) + held)
