"""Offload: weights or cache kept in a slow tier (flash, host memory), read when they are needed.

Marks operators; a device model with a slow tier (:mod:`tokenfab.hw.storage`) times the reads, others ignore the marks,
and memory is checked tier by tier (:mod:`tokenfab.hw.tiers`). Of the weights an operator touches (all of them, or the
neurons of ``activation-sparsity``, which goes before) the share ``miss`` comes from the slow tier in each pass, in
reads of a neuron's vectors side by side (``bundle=1``), of one vector of a neuron that fires, or of whole matrices
where all are read; ``cached`` of the far weights have room in fast memory.

    whole model on demand (naive)   offload:what=weights
    LLM in a flash                  activation-sparsity:…  offload:what=ffn,miss=…,cached=…,bundle=1,managed=1
    PowerInfer-2                    activation-sparsity:…  offload:what=ffn,miss=0.035,cached=…,bundle=1,overlap=1
    FlexGen                         offload:what=weights|none,kv=1,overlap=1

``bundle`` of a network with up and down projection is 2 vectors of the hidden size, 3 with a gate: row–column
bundling. ``overlap=1``: reads run beside the arithmetic of the same operator. ``managed=1``: every byte that comes in
is copied into the cache, and one that leaves is overwritten by the last (two copies, four passes over fast memory).

``ahead``: layers by which reads run ahead of the layer that needs them, where what is read does not depend on the
input: whole matrices and the cache, not neurons that fire or experts that are chosen. A layer's reads have a buffer in
fast memory, and there are ``ahead`` + 1 of them (:mod:`tokenfab.hw.tiers` counts them). The discrete-event level
schedules them so (:mod:`tokenfab.hw.ahead`); the closed form hides no more than ``overlap`` says.

``deep`` and ``kv_deep``: the share of what is far that lies in the second of the levels that hold it (a drive behind
the host's memory).
"""

from __future__ import annotations

from ..feed_forward import FeedForward, feed_forward
from ..trace import Block, Operator, Trace
from . import Parameter, Technique

MOST_AHEAD = 8
COPIES = 4
"""Passes over fast memory of a byte that a cache takes in: read and write, for it and for the one that leaves."""


def apply(
    trace: Trace, what: str, miss: float, cached: float, bundle: int, overlap: int, managed: int, kv: float,
    ahead: int, deep: float, kv_deep: float,
) -> Trace:  # fmt: skip
    """``trace`` with marks on the operators whose weights or cache are far."""

    def block_of(block: Block) -> Block:
        places = feed_forward(block)

        def mark(op: Operator) -> Operator:
            attrs: dict[str, str | int | float | bool] = {}
            if kv and op.kind in ("attention", "kv_append"):
                attrs = {"far_kv": kv, "overlap": overlap, "ahead": ahead, "kv_deep": kv_deep}
            elif what != "none" and op.kind in ("matmul", "experts") and (what == "weights" or op.name in places):
                chunk = _chunk(op, places.get(op.name), bundle)
                copies = COPIES if managed else 0
                attrs = {"far_weights": miss, "cached": cached, "chunk": chunk, "overlap": overlap, "copies": copies}
                known = op.kind != "experts" and "active" not in op.attrs
                attrs |= {"ahead": ahead if known else 0, "deep": deep}
            return op.model_copy(update={"attrs": op.attrs | attrs}) if attrs else op

        return block.model_copy(update={"operators": tuple(mark(op) for op in block.operators)})

    return trace.model_copy(update={"blocks": tuple(block_of(b) for b in trace.blocks)})


def _chunk(op: Operator, place: FeedForward | None, bundle: int) -> float:
    """Bytes of one read: a neuron's vectors side by side, or one of them; 0 (a whole matrix) where all are read."""
    if place is None or not (bundle or "active" in op.attrs):
        return 0.0
    name = {"up": "k", "down": "n", "experts": "hidden"}[place.part]
    return (place.rows if bundle else 1) * (op.dims[name].constant or 1) * op.weights[0].bits / 8


TECHNIQUE = Technique(
    name="offload",
    description="weights or KV cache in a slow tier, read when needed; shares, chunks and overlap as given",
    source="LLM in a flash, arXiv:2312.11514; PowerInfer-2, arXiv:2406.06282; FlexGen, arXiv:2303.06865",
    parameters={
        "what": Parameter(
            "weights", "which weights are far: all matrices, those of feed-forward networks, none",
            choices=("weights", "ffn", "none"),
        ),
        "miss": Parameter(1.0, "share of the touched weights that is read from the slow tier in a pass", low=0, high=1),
        "cached": Parameter(0.0, "share of the far weights that has room in fast memory", low=0, high=1),
        "bundle": Parameter(
            0, "1 = a read is a neuron's vectors side by side; 0 = one vector, or whole matrices", choices=(0, 1)
        ),
        "overlap": Parameter(0, "1 = reads overlap with the operator's arithmetic", choices=(0, 1)),
        "managed": Parameter(0, "1 = what comes in is copied into a cache in fast memory", choices=(0, 1)),
        "kv": Parameter(0.0, "share of the KV cache that is kept in the slow tier", low=0, high=1),
        "ahead": Parameter(
            1, "layers by which reads run ahead at the event level; 0 = none", choices=tuple(range(MOST_AHEAD + 1))
        ),
        "deep": Parameter(0.0, "share of the far weights in the second level that holds them", low=0, high=1),
        "kv_deep": Parameter(0.0, "share of the far cache in the second level that holds it", low=0, high=1),
    },
    apply=apply,
)  # fmt: skip
