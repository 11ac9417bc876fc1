"""Order of a mixture's work: by expert (each expert's weights are read once) or by token (once per use).

By expert, tokens are queued per expert and each expert that is routed to is loaded once (M3ViT, arXiv:2210.14793,
section 3.3; what every trace means). By token, the experts of a token are loaded when the token comes, unless all
experts of the layer fit on the chip, which a device model may know: tokens · top_k loads. FLOPs are the same.
"""

from __future__ import annotations

from ..expr import expr
from ..rewrite import map_operators, map_tensors
from ..trace import Operator, Tensor, Trace
from . import Parameter, Technique


def apply(trace: Trace, by: str) -> Trace:
    """``trace`` whose experts are loaded ``by`` "expert" or "token"; noted in the attribute ``order``."""
    if by == "expert":
        return trace

    def reorder(op: Operator) -> Operator:
        if op.kind != "experts":
            return op

        def reload(t: Tensor) -> Tensor:
            if t.role != "weight":
                return t
            each = expr(1)
            for size in t.shape[1:]:
                each = each * size
            return t.model_copy(update={"touched": op.dims["tokens"] * op.dims["top_k"] * each})

        return map_tensors(op.model_copy(update={"attrs": op.attrs | {"order": "token"}}), reload)

    return map_operators(trace, reorder)


TECHNIQUE = Technique(
    name="expert-order",
    description="load the experts of a mixture once per expert (queues of tokens) or once per token",
    source="M3ViT, arXiv:2210.14793, section 3.3; Edge-MoE, arXiv:2305.18691",
    parameters={"by": Parameter("expert", "what is looped over", choices=("expert", "token"))},
    apply=apply,
)
