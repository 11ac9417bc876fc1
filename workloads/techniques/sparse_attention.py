"""Sparse attention over the cache in two passes: some channels of all keys, then all channels of some tokens.

SparQ (arXiv:2312.04985): approximate scores from the ``channels`` of the query that are largest, then keys and values
of the ``tokens`` with the largest scores. Of 2·S·d cached elements a step reads channels·S·d + 2·tokens·S·d: with
1/8 of the channels and 1/16 of the tokens an eighth. ``key_copies=2`` keeps keys a second time in channel order, so
that the first pass reads whole pages (InstInfer, arXiv:2409.04992); it is written and stored too. ``overfetch`` is
what a store that is read by pages fetches over what is used; only flash models look at it. Prompts stay dense.
"""

from __future__ import annotations

from ..expr import Expr, Q, expr, minimum
from ..rewrite import map_operators
from ..trace import Operator, Tensor, Trace
from . import Parameter, Technique


def apply(trace: Trace, channels: float, tokens: float, key_copies: int, overfetch: float) -> Trace:
    """``trace`` whose attention reads ``channels`` of all keys and ``tokens`` of all keys and values."""

    def sparse(op: Operator) -> Operator:
        if op.kind == "kv_append" and key_copies > 1:
            return _twice(op)
        if op.kind != "attention" or "latent_dim" in op.dims:
            return op
        dense = minimum(Q - 1, 1)
        keys, values = min(channels + tokens, 1.0), tokens
        cached = [t for t in op.reads if t.role == "kv"]

        def fewer(t: Tensor) -> Tensor:
            if t.role != "kv":
                return t
            share = keys if t is cached[0] else values
            whole = t.elements if t.touched is None else t.touched
            return t.model_copy(update={"touched": whole * _mix(share, dense)})

        head, value = (op.dims[x].constant or 1 for x in ("head_dim", "value_dim"))
        of_flops = (keys * head + values * value) / (head + value)
        attrs = op.attrs | {"overfetch": overfetch}
        reads = tuple(fewer(t) for t in op.reads)
        return op.model_copy(update={"reads": reads, "flops": op.flops * _mix(of_flops, dense), "attrs": attrs})

    return map_operators(trace, sparse)


def _mix(share: float, dense: Expr) -> Expr:
    return dense * (1 - share) + share


def _twice(op: Operator) -> Operator:
    """Keys are written a second time, in channel order."""
    cached = [t for t in op.writes if t.role == "kv"]
    row = op.dims["row_elements"].constant or 1
    keys = (cached[0].shape[1].constant or 1) * (cached[0].shape[3].constant or 1)
    again = cached[0].model_copy(update={"name": f"{cached[0].name} by channel"})
    return op.model_copy(update={"writes": (*op.writes, again), "dims": op.dims | {"row_elements": expr(row + keys)}})


TECHNIQUE = Technique(
    name="sparse-attention",
    description="attention reads some channels of all cached keys, then keys and values of some tokens",
    source="SparQ, arXiv:2312.04985; InstInfer (SparF), arXiv:2409.04992",
    parameters={
        "channels": Parameter(0.125, "share of the channels of all keys that the first pass reads", low=0, high=1),
        "tokens": Parameter(0.0625, "share of the tokens whose keys and values are read", low=0.0001, high=1),
        "key_copies": Parameter(1, "2 = keys are stored a second time, by channel", choices=(1, 2)),
        "overfetch": Parameter(1.0, "bytes of fetched pages over bytes used", low=1, high=16),
    },
    apply=apply,
)
