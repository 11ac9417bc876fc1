"""Composition of experts: many whole models share a machine, a router picks one per request.

``experts`` models of one size; the running one is in fast memory, the others wait in a slower tier. A request needs
another model with probability ``switch`` (1: always): its weights are read from that tier before the prompt, into
fast memory. ``cached`` of the waiting ones are in fast memory already. The router, itself a model, is not in the trace.
"""

from __future__ import annotations

from ..expr import Q, expr, minimum
from ..trace import Block, Operator, Tensor, Trace
from . import Parameter, Technique

BLOCK = "stem.experts"
"""The block that switches models; by its name no layer of the model."""


def apply(trace: Trace, experts: int, switch: float, cached: float) -> Trace:
    """``trace`` with the weights of ``experts`` − 1 further models, one of which is read before a prompt."""
    if experts == 1:
        return trace
    size = round(trace.weights_bytes)
    weight = Tensor(
        name=f"{BLOCK}.models", shape=(expr(experts - 1), expr(size)), role="weight", format="int8", bits=8,
        touched=minimum(Q - 1, 1) * size,
    )  # fmt: skip
    told = Tensor(name="model", shape=(expr(1),), role="index", format="int32", bits=32)
    op = Operator(
        name="switch", kind="copy", format="int8", dims={"elements": minimum(Q - 1, 1) * size}, flops=expr(0),
        reads=(weight,), writes=(told,),
        attrs={
            "far_weights": switch * (1 - cached), "cached": cached, "chunk": 0.0, "overlap": 0, "copies": 0,
            "divided": True,
        },
    )  # fmt: skip
    block = Block(name=BLOCK, repeat=1, operators=(op,), output="switch")
    return trace.model_copy(update={"blocks": (block, *trace.blocks), "order": ((BLOCK, 1), *trace.order)})


TECHNIQUE = Technique(
    name="composition",
    description="many whole models in a slower tier, one of which is switched to before each request",
    source="Composition of Experts, arXiv:2412.01868; SN40L, arXiv:2405.07518",
    parameters={
        "experts": Parameter(150, "models on the machine, the running one included", low=1, high=100000),
        "switch": Parameter(1.0, "share of the requests that need another model", low=0, high=1),
        "cached": Parameter(0.0, "share of the waiting models that are in fast memory", low=0, high=1),
    },
    apply=apply,
)
