"""Building blocks of trace rewrites: change operators or tensors, keep everything else."""

from __future__ import annotations

from collections.abc import Callable

from .trace import Operator, Tensor, Trace


def map_operators(trace: Trace, change: Callable[[Operator], Operator]) -> Trace:
    """``trace`` with every operator replaced by ``change(operator)``."""
    blocks = tuple(b.model_copy(update={"operators": tuple(change(op) for op in b.operators)}) for b in trace.blocks)
    return trace.model_copy(update={"blocks": blocks})


def map_tensors(op: Operator, change: Callable[[Tensor], Tensor]) -> Operator:
    """``op`` with every operand replaced by ``change(tensor)``."""
    reads = tuple(change(t) for t in op.reads)
    writes = tuple(change(t) for t in op.writes)
    return op.model_copy(update={"reads": reads, "writes": writes})
