"""Attention spelled out as two batched matmuls, read back as one operator.

Models that do not go through an attention function compute Q·Kᵀ, add a mask, take a softmax and
multiply by V. No engine stores that score matrix; what lies between the two products, and the mask
arithmetic that nothing else reads, becomes part of one attention operator. A sliding window in such a
mask is not seen: the operator is marked ``folded``, and :mod:`.hf_capture` refuses models that have one.
"""

from __future__ import annotations

from dataclasses import replace

from .raw import POINTWISE, RawBlock, RawOp, RawTensor


def fold_attention(block: RawBlock) -> None:
    """Replace each Q·Kᵀ … P·V of ``block`` by an attention operator, in place."""
    while (found := _find(block)) is not None:
        scores, between, product = found
        attention = _attention(scores, product)
        for t in attention.writes:
            t.root.producer = attention
        gone = {id(scores), id(product), *map(id, between)}
        block.operators = [
            attention if op is product else op for op in block.operators if op is product or id(op) not in gone
        ]
        if block.output is product:
            block.output = attention


def drop_unread(blocks: list[RawBlock]) -> None:
    """Remove pointwise operators whose results nobody reads (masks, once attention is folded)."""
    while True:
        read = {id(r.root) for block in blocks for op in block.operators for r in op.reads}
        dead = [
            (block, op)
            for block in blocks
            for op in block.operators
            if op.kind in POINTWISE and op is not block.output and not any(id(t.root) in read for t in op.writes)
        ]
        if not dead:
            return
        for block, op in dead:
            block.operators.remove(op)


def _find(block: RawBlock) -> tuple[RawOp, list[RawOp], RawOp] | None:
    """The first (scores, pointwise between, product) over cached K and V."""
    batched = [op for op in block.operators if op.kind == "matmul" and "batch" in op.sizes]
    for product in batched:
        if _cached(product) is None:
            continue
        between, scores = _pointwise_above(product)
        for s in scores:
            if s in batched and _cached(s) is not None and s is not product:
                return s, between, product
    return None


def _pointwise_above(op: RawOp) -> tuple[list[RawOp], list[RawOp]]:
    """Pointwise operators that lead to ``op``, and the other operators those read from."""
    between: list[RawOp] = []
    sources: list[RawOp] = []
    pending = [r.root.producer for r in op.reads if r.root.role != "kv"]
    while pending:
        above = pending.pop()
        if above is None or above in between or above in sources:
            continue
        if above.kind in POINTWISE and above.scope == op.scope:
            between.append(above)
            pending += [r.root.producer for r in above.reads]
        else:
            sources.append(above)
    return between, sources


def _cached(op: RawOp) -> RawTensor | None:
    return next((r for r in op.reads if r.root.role == "kv"), None)


def _attention(scores: RawOp, product: RawOp) -> RawOp:
    key, value = _cached(scores), _cached(product)
    assert key is not None
    assert value is not None
    assert key.root.producer is not None
    cached = key.root.producer.writes
    (batch, kv_heads, kv, head_dim), value_dim = cached[0].shape, cached[-1].shape[3]
    query = scores.sizes["m"]
    heads = scores.sizes["batch"] // batch
    sizes = {
        "batch": batch, "query": query, "kv": kv, "heads": heads, "kv_heads": kv_heads,
        "head_dim": head_dim, "value_dim": value_dim,
    }  # fmt: skip
    queries = [r for r in scores.reads[-2:] if r.root.role != "kv"]  # a baddbmm reads a bias before its factors
    name = f"{product.scope}.attention" if product.scope else "attention"
    reads = [*queries, *(replace(t, touched=None) for t in (cached[0], cached[-1]))]  # all of it, not what was appended
    return RawOp(
        name, "attention", product.scope, product.format, sizes, reads, product.writes, attrs={"folded": True}
    )  # fmt: skip
