"""A longest context that is not the one a model was trained for.

Positions that are computed (rotations, slopes, none) go on for ever: what a request costs is told by its length alone,
and published measurements of speed go beyond the trained length. What a model then writes is another matter, and not
modelled. A learned table of positions ends where it ends.
"""

from __future__ import annotations

from ...errors import InputError
from ..trace import Operator, Trace
from . import Parameter, Technique


def apply(trace: Trace, tokens: int) -> Trace:
    """``trace`` for requests of ``tokens`` tokens. Raises ``InputError`` where a learned table has fewer positions."""
    if tokens > (trace.max_context or tokens) and any(_positions(op) for op, _ in trace.operators()):
        raise InputError(
            f"technique context: tokens={tokens}: {trace.model} has a table of positions; accepted: up to "
            f"{trace.max_context}"
        )
    return trace.model_copy(update={"max_context": tokens})


def _positions(op: Operator) -> bool:
    """Whether ``op`` looks up positions: rows for each token of a sequence, not of a batch."""
    return op.kind == "embedding" and bool(op.dims["elements"](1, 1, 0) == op.dims["elements"](2, 1, 0))


TECHNIQUE = Technique(
    name="context",
    description="a longest context other than the trained one: what it costs, not what the model then writes",
    source="tokenfab: lengths are costs; accuracy is not modelled",
    parameters={"tokens": Parameter(32768, "most tokens of prompt and answer", low=1, high=10**7)},
    apply=apply,
)
