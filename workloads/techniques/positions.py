"""Positions beyond those that a model was trained for: rotations are stretched or go on, nothing else changes.

What answers are worth then is not told here; times and bytes are those of the longer context.
"""

from __future__ import annotations

from ...errors import InputError
from ..trace import Trace
from . import Parameter, Technique


def apply(trace: Trace, longest: int) -> Trace:
    """``trace`` with a context of ``longest`` tokens; 0: without a limit. Raises ``InputError`` where positions are a
    table of weights, which has no further rows."""
    for op, _ in trace.operators():
        rows = [t.shape[0](1.0, 1.0, 0.0) for t in op.reads if op.kind == "embedding" and t.role == "weight"]
        if any(n != trace.vocabulary for n in rows):
            raise InputError(f"technique positions: {trace.model} reads its positions from a table ({op.name}); "
                             "accepted: models with rotary positions, ALiBi or none")  # fmt: skip
    return trace.model_copy(update={"max_context": longest or None})


TECHNIQUE = Technique(
    name="positions",
    description="a longer context than the model was trained for, as rotary positions allow",
    source="Chen et al., arXiv:2306.15595 (positions interpolated); Press et al., arXiv:2108.12409 (ALiBi)",
    parameters={"longest": Parameter(0, "tokens of the longest context; 0 = no limit", low=0, high=10**8)},
    apply=apply,
)
