"""FLOP counts of the operators, as expressions. One multiply–accumulate is 2 FLOPs.

torch's own ``FlopCounterMode`` is not used: it counts the full score matrix of causal attention,
misses flash attention on ``meta`` and counts every expert of a mixture.
"""

from __future__ import annotations

from .expr import Expr, ExprLike, expr, minimum

SCAN_FLOPS_PER_STATE = 8
"""Per token, channel and state element of a selective scan (arXiv:2312.00752, equation 2): exp(ΔA)
and its product (2), ΔB·u (2), state update (2), readout C·h (2)."""

DELTA_RULE_FLOPS_PER_STATE = 7
"""Per token, value channel and state element of a gated delta rule (arXiv:2412.06464, equation 10), as
a recurrence: decay (1), what the state holds for the key (2), outer product added (2), readout (2).
Engines run prefill in chunks, at more FLOPs on faster units; that is left out."""


def matmul_flops(m: ExprLike, n: ExprLike, k: ExprLike, batch: ExprLike = 1) -> Expr:
    """2·batch·m·n·k for an (m, k) × (k, n) product."""
    return expr(m) * n * k * batch * 2


def num_causal_pairs(query: ExprLike, kv: ExprLike, window: ExprLike | None = None) -> Expr:
    """Query–key pairs that causal attention evaluates for one head of one sequence.

    The last of ``query`` new tokens sees all ``kv`` keys, the one before it one less, and so on:
    S(kv) − S(kv − query) with S(n) = n(n+1)/2. A sliding window of W keys caps each row at W:
    S(n) = m(m+1)/2 + (n − m)·W with m = min(n, W).
    """
    kv, earlier = expr(kv), expr(kv) - query

    def triangle(n: Expr) -> Expr:
        if window is None:
            return n * (n + 1) / 2
        m = minimum(n, window)
        return m * (m + 1) / 2 + (n - m) * window

    return triangle(kv) - triangle(earlier)


def attention_flops(
    batch: ExprLike, heads: ExprLike, query: ExprLike, kv: ExprLike, head_dim: ExprLike, value_dim: ExprLike,
    window: ExprLike | None = None, latent_dim: ExprLike | None = None, latent_value: ExprLike = 0, **others: ExprLike,
) -> Expr:  # fmt: skip
    """The two products of attention, Q·Kᵀ and P·V, over the causal pairs; softmax is not counted.

    With ``latent_dim`` (multi-head latent attention) a cached token is met in latent space, with
    latent_dim + latent_value multiply–accumulates per pair instead of head_dim + value_dim; the new
    tokens among themselves are not. ``others``: further sizes of the operator, which do not count.

    Left out: about 5 operations per pair for the softmax, 1–4 % of the products at head_dim 128.
    """
    width = expr(head_dim) + value_dim
    if latent_dim is None:
        return num_causal_pairs(query, kv, window) * batch * heads * width * 2
    cached = (expr(kv) - query) * query * (expr(latent_dim) + latent_value)
    return (num_causal_pairs(query, query) * width + cached) * batch * heads * 2


def experts_flops(tokens: ExprLike, top_k: ExprLike, hidden: ExprLike, inner: ExprLike, gated: bool) -> Expr:
    """``top_k`` feed-forward experts per token: two products, three when gated."""
    return expr(tokens) * top_k * hidden * inner * (6 if gated else 4)


def attended_tokens(query: ExprLike, kv: ExprLike, window: ExprLike | None = None) -> Expr:
    """Cached tokens one head must read: all ``kv``, or the union of the queries' windows."""
    return expr(kv) if window is None else minimum(kv, expr(window) + query - 1)
