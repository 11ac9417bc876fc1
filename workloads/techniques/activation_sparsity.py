"""Activation sparsity: a token computes only the neurons of the feed-forward network that fire for it.

A ReLU (or a model trained towards one) leaves most neurons at zero; a predictor tells which ones before their weights
are read (Deja Vu, arXiv:2310.17157). Of N neurons a token has ``active`` · N; n tokens together touch
N·(1 − (1 − active)^n) of them, taken as independent, so that batches lose the saving. Prompts are computed dense,
as kernels for many tokens do. The predictor is a matrix per network with ``predictor`` times its weights, always read.

Bytes and FLOPs of the trace change; GPU kernel models (:mod:`tokenfab.hw.gpu`) go by the products' sizes and stay
dense. With tensor parallelism FLOPs are counted dense again (bytes are not).
"""

from __future__ import annotations

from ..expr import Expr, Q, expr, function, minimum
from ..feed_forward import FeedForward, feed_forward
from ..formulas import matmul_flops
from ..trace import Block, Operator, Tensor, Trace
from . import Parameter, Technique


def apply(trace: Trace, active: float, predictor: float) -> Trace:
    """``trace`` whose feed-forward networks compute ``active`` of their neurons per token."""
    return trace.model_copy(update={"blocks": tuple(_block(b, active, predictor) for b in trace.blocks)})


def _block(block: Block, active: float, predictor: float) -> Block:
    places = feed_forward(block)
    operators: list[Operator] = []
    asked = False
    for op in block.operators:
        place = places.get(op.name)
        if place is None:
            operators.append(op)
            continue
        if predictor and not asked:
            operators.append(_predictor(block, op, places, predictor))
            asked = True
        operators.append(_sparse(op, place, active))
    return block.model_copy(update={"operators": tuple(operators)})


def _tokens(op: Operator) -> Expr:
    return op.dims["tokens"] if op.kind == "experts" else op.dims["m"]


def _sparse(op: Operator, place: FeedForward, active: float) -> Operator:
    share = touched_share(op, place, active)

    def fewer(t: Tensor) -> Tensor:
        if t.role != "weight" or len(t.shape) < (3 if place.part == "experts" else 2):
            return t
        return t.model_copy(update={"touched": share * t.elements})

    dense = minimum(Q - 1, 1)  # a prompt's kernels are dense
    flops = op.flops * (dense * (1 - active) + active)
    reads = tuple(fewer(t) for t in op.reads)
    return op.model_copy(update={"reads": reads, "flops": flops, "attrs": op.attrs | {"active": active}})


def touched_share(op: Operator, place: FeedForward, active: float) -> Expr:
    """Share of the network's neurons that the tokens of a pass touch together."""
    experts, top_k = (op.dims[x].constant or 1 for x in ("experts", "top_k")) if op.kind == "experts" else (1, 1)
    neurons = experts * place.inner
    return function("distinct", neurons, neurons * active * top_k / experts, _tokens(op)) / neurons


def _predictor(block: Block, op: Operator, places: dict[str, FeedForward], share: float) -> Operator:
    """The matrix that tells which neurons fire: (experts ×) inner outputs, as many inputs as make ``share``."""
    place, format = places[op.name], op.format
    hidden = op.dims["hidden" if op.kind == "experts" else "k"].constant or 1
    rank = max(1, round(hidden * place.rows * share))
    inner = round(place.inner)
    tokens, shape, touched = _tokens(op), [inner, rank], None
    if op.kind == "experts":
        experts, top_k = (op.dims[x].constant or 1 for x in ("experts", "top_k"))
        shape = [round(experts) * inner, rank]
        touched = function("distinct", experts, top_k, tokens) * (inner * rank)
        tokens = tokens * top_k
    weight = Tensor(
        name=f"{block.name}.predictor", shape=tuple(map(expr, shape)), role="weight", format=format,
        bits=op.weights[0].bits, touched=touched,
    )  # fmt: skip
    read = Tensor(
        name="hidden", shape=(tokens, expr(rank)), role="activation", format=format, bits=_bits(op),
    )  # fmt: skip
    told = Tensor(name="neurons", shape=(tokens, expr(inner)), role="index", format="int1", bits=1)
    return Operator(
        name=f"{op.name}.predictor", kind="matmul", format=format, deps=op.deps,
        dims={"m": tokens, "n": expr(inner), "k": expr(rank)}, flops=matmul_flops(tokens, inner, rank),
        reads=(read, weight), writes=(told,),
    )  # fmt: skip


def _bits(op: Operator) -> float:
    return next((float(t.bits) for t in op.reads if t.role == "activation"), 16.0)


TECHNIQUE = Technique(
    name="activation-sparsity",
    description="compute only the feed-forward neurons that fire, found by a predictor; prompts stay dense",
    source="Deja Vu, arXiv:2310.17157; LLM in a flash, arXiv:2312.11514, section 3; PowerInfer-2, arXiv:2406.06282",
    parameters={
        "active": Parameter(0.1, "share of the neurons that a token computes", low=0.0001, high=1),
        "predictor": Parameter(0.02, "weights of the predictor over those of the network; 0 = none", low=0, high=1),
    },
    apply=apply,
)
