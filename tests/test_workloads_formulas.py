"""Are the counts right? Against formulas written here by hand from the configuration alone."""

from __future__ import annotations

from collections import defaultdict
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenfab.models.config import ModelConfig, load_config
from tokenfab.workloads.capture import capture
from tokenfab.workloads.formulas import attended_tokens, attention_flops, num_causal_pairs
from tokenfab.workloads.trace import Trace

FAMILIES = [
    "llama-2-7b", "llama-2-70b", "mistral-7b", "qwen2-7b", "opt-6.7b", "gpt-3-175b", "bloom-176b", "mixtral-8x7b",
    "bitnet-b1.58-3b",
]  # fmt: skip
POINTS = [(1, 512, 0), (8, 1, 1000), (3, 17, 90), (64, 1, 2000), (1, 1, 0)]
PARAMETERS = {
    "llama-2-7b": 6738415616, "llama-2-70b": 68976648192, "mixtral-8x7b": 46702792704, "opt-6.7b": 6658473984,
    "mistral-7b": 7241732096, "llama-2-13b": 13015864320, "qwen2-7b": 7615616512, "llama-3-8b": 8030261248,
    "llama-3-70b": 70553706496, "qwen2-72b": 72706203648, "bloom-176b": 176247271424, "opt-125m": 125239296,
}  # fmt: skip


@cache
def trace_of(name: str) -> Trace:
    return capture(name)


# -- by hand -----------------------------------------------------------------------------------------
def pairs(q: int, c: int, window: int | None) -> int:
    """Keys that each new token sees, counted one by one."""
    return sum(min(c + i + 1, window or c + i + 1) for i in range(q))


def by_hand(m: ModelConfig, b: int, q: int, c: int) -> tuple[dict[str, float], dict[str, float]]:
    """FLOPs and bytes of one pass per kind of operator. Weights are counted where they are read."""
    t, d, hd, f, V, L = b * q, m.hidden, m.head_dim, m.inner, m.vocabulary, m.layers  # noqa: N806
    w = {"fp16": 2, "bf16": 2, "fp32": 4}[m.format]  # bytes of an activation
    wide, narrow = m.heads * hd, m.kv_heads * hd
    weight = (m.weight_bits or 8 * w) / 8  # bytes of a weight of a layer's projections
    flops: dict[str, float] = defaultdict(float)
    moved: dict[str, float] = defaultdict(float)

    def add(kind: str, times: int, work: float, size: float) -> None:
        flops[kind] += times * work
        moved[kind] += times * size

    def linear(k: int, n: int, bias: bool) -> None:
        add("matmul", L, 2 * t * k * n, weight * k * n + w * (n * bias + t * k + t * n))

    def norm(width: int, times: int) -> None:
        layer = m.norm == "layer"
        add("norm", times, (7 if layer else 4) * t * width, w * (2 * t * width + (2 if layer else 1) * width))

    add("embedding", 1, 0, w * t * d * 2 + 8 * t)  # rows read, rows written, ids
    if m.position == "learned":
        add("embedding", 1, 0, w * q * d * 2 + 8 * q)
        add("elementwise", 1, t * d, w * (2 * t * d + q * d))
    norm(d, 2 * L + 1 + m.embedding_norm)
    linear(d, wide + 2 * narrow, m.qkv_bias)
    if m.position == "rope":
        add("rope", L, 3 * t * (wide + narrow), 2 * w * t * (wide + narrow))
    add("kv_append", L, 0, 2 * w * t * 2 * narrow)  # new K and V read, written once
    seen = min(c + q, m.window + q - 1) if m.window else c + q
    add("attention", L, 4 * b * wide * pairs(q, c, m.window), w * (2 * t * wide + b * seen * 2 * narrow))
    linear(wide, d, m.bias)
    add("elementwise", 2 * L, t * d, w * 3 * t * d)
    if m.sub_norms:
        norm(wide, L)
        norm(f, L)
    if m.experts:
        touched = m.experts * (1 - (1 - m.top_k / m.experts) ** t)
        chosen = t * m.top_k * (8 + w)  # which experts, and how much of each
        add("router", L, 2 * t * d * m.experts, w * (t * d + d * m.experts) + chosen)
        add("experts", L, 6 * t * m.top_k * d * f, w * (2 * t * d + touched * 3 * d * f) + chosen)
    else:
        linear(d, (2 if m.gated else 1) * f, m.bias)
        add("activation", L, 5 * t * f, w * t * f * (3 if m.gated else 2))
        linear(f, d, m.bias)
    add("matmul", 1, 2 * b * d * V, w * (d * V + b * d + b * V))
    return flops, moved


@pytest.mark.parametrize("name", FAMILIES)
def test_flops_and_bytes_of_every_kind_of_operator_equal_the_hand_formulas(name):
    trace, config = trace_of(name), load_config(name)
    for b, q, c in POINTS:
        flops, moved = by_hand(config, b, q, c)
        found_flops: dict[str, float] = defaultdict(float)
        found_moved: dict[str, float] = defaultdict(float)
        for op, count in trace.operators():
            found_flops[op.kind] += count * float(op.flops(b, q, c))
            found_moved[op.kind] += count * float(op.moved()(b, q, c))
        assert found_flops == pytest.approx(dict(flops), rel=1e-12), (name, b, q, c)
        assert found_moved == pytest.approx(dict(moved), rel=1e-12), (name, b, q, c)
        assert float(trace.total("flops")(b, q, c)) == pytest.approx(sum(flops.values()), rel=1e-12)
        assert float(trace.total("bytes")(b, q, c)) == pytest.approx(sum(moved.values()), rel=1e-12)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_the_published_number(name):
    assert trace_of(name).parameters == PARAMETERS[name]


def test_stored_bytes_follow_from_parameters_and_format():
    assert trace_of("llama-2-7b").weights_bytes == 2 * PARAMETERS["llama-2-7b"]
    assert trace_of("opt-6.7b").weights_bytes == 2 * PARAMETERS["opt-6.7b"]  # the tied head once
    bitnet, config = trace_of("bitnet-b1.58-3b"), load_config("bitnet-b1.58-3b")
    ternary = config.layers * (4 * config.hidden**2 + 3 * config.hidden * config.inner)
    assert bitnet.weights_bytes == ternary / 4 + (bitnet.parameters - ternary) * 2


# -- mistakes that the field makes -------------------------------------------------------------------
@pytest.mark.parametrize("name", FAMILIES)
def test_the_cache_is_counted_once(name):
    """llm-analysis charges it twice: K and V of every layer are 2·hk·hd elements per token, and no more."""
    trace, m = trace_of(name), load_config(name)
    row = 2 * m.kv_heads * m.head_dim * 2
    assert trace.kv_bytes_per_token == m.layers * row
    b, c = 7, 1500
    assert float(trace.cache_bytes()(b, 1, c)) == m.layers * b * min(c, m.window or c) * row
    assert float(trace.cache_bytes()(b, 1, 9000)) == m.layers * b * min(9000, m.window or 9000) * row
    read = sum(float(op.moved("kv")(b, 1, c)) * n for op, n in trace.operators() if op.kind == "attention")
    assert read == m.layers * b * (c + 1) * row
    written = sum(float(op.moved("kv")(b, 3, c)) * n for op, n in trace.operators() if op.kind == "kv_append")
    assert written == m.layers * b * 3 * row


@pytest.mark.parametrize("name", FAMILIES)
def test_no_operator_moves_a_score_matrix(name):
    """Bytes never hold a product of query and context, nor a square of the query."""
    for op, _ in trace_of(name).operators():
        for monomial, _ in op.moved().terms:
            powers = {atom.name: power for atom, power in monomial}
            assert powers.get("q", 0) + powers.get("c", 0) <= 1, (op.name, str(op.moved()))
        if op.kind == "attention":
            b, q = 5, 300
            config = load_config(name)
            assert float(op.moved("activation")(b, q, 0)) == 2 * (2 * b * q * config.heads * config.head_dim)


def test_grouped_queries_read_the_heads_that_are_cached():
    """llama-2-70b: 64 query heads on 8 cached ones; a decode step reads an eighth of what 64 would be."""
    trace = trace_of("llama-2-70b")
    read = sum(float(op.moved("kv")(1, 1, 4095)) * n for op, n in trace.operators() if op.kind == "attention")
    assert read == 80 * 4096 * 2 * 8 * 128 * 2 == 1342177280
    step = sum(float(op.flops(1, 1, 4095)) * n for op, n in trace.operators() if op.kind == "attention")
    assert step == 80 * 4 * 64 * 128 * 4096  # every query head still works


def test_one_token_touches_k_experts_and_many_touch_all():
    trace = trace_of("mixtral-8x7b")
    experts = next(op for op, _ in trace.operators() if op.kind == "experts")
    each = 3 * 4096 * 14336 * 2
    assert float(experts.moved("weight")(1, 1, 0)) == pytest.approx(2 * each)
    assert float(experts.moved("weight")(8, 1, 500)) == pytest.approx(8 * (1 - 0.75**8) * each)
    assert float(experts.moved("weight")(64, 512, 0)) == pytest.approx(8 * each)
    stored = sum(float(w.stored_bytes(1, 1, 0)) for w in experts.weights)
    assert stored == 8 * each


# -- causal attention --------------------------------------------------------------------------------
@given(st.integers(1, 40), st.integers(0, 60), st.none() | st.integers(1, 50))
def test_causal_pairs_equal_counting_them(q, c, window):
    visible = np.zeros((q, c + q), dtype=bool)
    for i in range(q):
        for j in range(c + q):
            visible[i, j] = j <= c + i and (window is None or j > c + i - window)
    assert float(num_causal_pairs(q, c + q, window)(1, 1, 1)) == visible.sum() == pairs(q, c, window)
    assert float(attended_tokens(q, c + q, window)(1, 1, 1)) == visible.any(axis=0).sum()
    if window is None:
        assert visible.sum() == q * c + q * (q + 1) // 2


@given(
    st.integers(1, 4), st.integers(1, 8), st.integers(1, 9), st.integers(0, 30), st.integers(1, 64), st.integers(1, 64)
)
def test_attention_flops_are_two_products_over_the_pairs(b, heads, q, c, head_dim, value_dim):
    found = float(attention_flops(b, heads, q, c + q, head_dim, value_dim)(1, 1, 1))
    assert found == 2 * b * heads * pairs(q, c, None) * (head_dim + value_dim)


@given(st.integers(1, 9), st.integers(0, 30))
def test_latent_attention_meets_cached_tokens_in_latent_space(q, c):
    found = float(attention_flops(2, 16, q, c + q, 192, 128, latent_dim=576, latent_value=512)(1, 1, 1))
    assert found == 2 * 2 * 16 * (q * (q + 1) // 2 * (192 + 128) + q * c * (576 + 512))
