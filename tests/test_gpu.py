"""GPUs: an estimate is the sum of its kernels' models, and its interval that of their composed errors."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenfab.errors import InputError
from tokenfab.hw.attention import attention_kernels, decode_time, write_time
from tokenfab.hw.card import card_of
from tokenfab.hw.cost import Errors, cost, prepare
from tokenfab.hw.devices import device_names, load_device
from tokenfab.hw.elementwise import elementwise_constants, elementwise_time
from tokenfab.hw.gemm import gemm_kernels, gemm_time
from tokenfab.hw.gemm_table import EXACT, gemm_table
from tokenfab.hw.gpu import REASONS
from tokenfab.hw.moe import MARLIN, NAIVE_OVERHEAD, moe_bound, moe_kernels, moe_time
from tokenfab.hw.spec import Device
from tokenfab.workloads.expr import parse
from tokenfab.workloads.load import load_trace
from tokenfab.workloads.techniques import apply_techniques

A100 = load_device("a100-80g-sxm")
CARD = card_of(A100)
GEMM = gemm_kernels(A100)


@functools.cache
def trace(model: str = "llama-2-70b"):
    return load_trace(model)


def linear(m: float, n: float, k: float) -> float:
    return float(gemm_time(m, n, k, CARD, *GEMM)[0])


def test_a_decode_step_is_the_sum_of_its_kernels() -> None:
    """Llama-2-70B, batch 16, context 1023: every kernel by its own model."""
    b, d, inner, kv_heads, head = 16, 8192, 28672, 8, 128
    attention, flash = attention_kernels(A100)
    flat = elementwise_constants(A100)

    def vector(kind: str, rows: int, row_bytes: float) -> float:
        return float(elementwise_time(kind, rows, row_bytes, CARD, flat))

    expected = 80 * (
        linear(b, d + 2 * kv_heads * head, d) + linear(b, d, d) + linear(b, 2 * inner, d) + linear(b, d, inner)
        + decode_time(b, 1024, 64, kv_heads, head, head, CARD, attention, flash)
        + vector("rope", b, 2 * 2 * (64 + 8) * 128) + vector("activation", b, 2 * 3 * inner)
        + 2 * vector("elementwise", b, 2 * 3 * d)
    )  # fmt: skip
    expected += 161 * vector("norm", b, 2 * 2 * d + 2 * d / b)  # the weights once
    expected += linear(b, 32000, d) + vector("embedding", b, 2 * 2 * d + 8)
    costs = cost(trace(), A100, b, 1, 1023, detail=True)
    assert costs.latency_s[0] == pytest.approx(float(expected), rel=1e-6)
    assert costs.operator_time_s is not None


def test_the_cache_write_is_charged_once() -> None:
    compiled, model = prepare(trace(), A100)
    rows = model.rows(compiled.basis_at(64, 1, 500))
    at = next(i for i, r in enumerate(compiled.rows) if r.operator.kind == "kv_append")
    constants, _ = attention_kernels(A100)
    assert rows.time_s[at, 0] == pytest.approx(float(write_time(64, 2 * 8 * 128, CARD, constants)))
    assert rows.launch_s[at, 0] == 0


def test_narrow_weights_move_fewer_bytes_and_cost_their_dequantisation() -> None:
    narrow = apply_techniques(trace(), ["weight-only:bits=4,group=128"])
    wide, thin = (cost(t, A100, 1, 1, 100).latency_s[0] for t in (trace(), narrow))
    assert 0.25 < thin / wide < 0.5
    compiled, model = prepare(narrow, A100)
    slow = A100.model_copy(update={"engines": A100.engines | {"vector": {
        name: rate.model_copy(update={"value": rate.value / 1000}) for name, rate in A100.engines["vector"].items()
    }}})  # fmt: skip
    bound = cost(narrow, slow, 1, 1, 100).bound
    assert bound["dequantisation"][0] > 0.9
    assert compiled.rows
    assert model.reasons == REASONS


def test_an_unknown_library_and_a_missing_constant_are_named() -> None:
    for entry, text in (
        (A100.kernels["gemm"] | {"library": "cublas-abacus"}, r"cublas-abacus.*cublas-ampere"),
        ({k: v for k, v in A100.kernels["gemm"].items() if k != "split"}, r"kernels\.gemm\.split is missing"),
    ):
        odd = A100.model_copy(update={"kernels": A100.kernels | {"gemm": entry}})
        with pytest.raises(InputError, match=text):
            cost(trace(), odd, 1, 1, 0)


def test_products_whose_shape_grows_are_costed_by_shape() -> None:
    """A matmul over the cached tokens, n = c + q: no table, each shape by itself, points in any order."""
    compiled, _ = prepare(trace("opt-125m"), A100)
    at, row = next((i, r) for i, r in enumerate(compiled.rows) if r.operator.kind == "matmul")
    grown = row.operator.model_copy(update={"dims": row.operator.dims | {"n": parse("c + q")}})
    rows = tuple(replace(r, operator=grown) if i == at else r for i, r in enumerate(compiled.rows))
    compiled = replace(compiled, rows=rows)
    contexts = np.array([700.0, 50.0, 700.0, 3000.0])
    _, model = prepare(compiled, A100)
    found = model.rows(compiled.basis_at(2, 3, contexts)).time_s[at]
    assert found == pytest.approx([linear(6, c + 3, 768) for c in contexts], rel=1e-6)


# -- experts -------------------------------------------------------------------------------------------
EXPERTS = (4096, 14336, 8, 2)


def experts_row(device: Device, tokens: int, weights: str | None = None) -> tuple[float, float, str]:
    """Seconds and launch of Mixtral's fused experts at ``tokens`` of one request, and what bound them."""
    narrow = apply_techniques(trace("mixtral-8x7b"), [weights] if weights else [])
    compiled, model = prepare(narrow, device)
    rows = model.rows(compiled.basis_at(1, tokens, 0))
    at = next(i for i, r in enumerate(compiled.rows) if r.operator.kind == "experts")
    return float(rows.time_s[at, 0]), float(rows.launch_s[at, 0]), model.reasons[rows.bound[at, 0]]


@pytest.mark.parametrize("name", ["a100-80g-sxm", "h100-sxm"])
@pytest.mark.parametrize("tokens", [1, 37, 8192, 20000])
def test_experts_take_what_their_kernels_take(name: str, tokens: int) -> None:
    device = load_device(name)
    constants, kernels = moe_kernels(device)
    alone = moe_time(tokens, *EXPERTS, card_of(device), gemm_kernels(device)[0], constants, kernels=kernels)
    seconds, launch, reason = experts_row(device, tokens)
    assert seconds == pytest.approx(float(alone), rel=1e-9 if tokens <= EXACT else 1e-2)
    assert launch == pytest.approx(NAIVE_OVERHEAD * constants.overhead_s)
    assert reason == ("dram" if tokens < 100 else "compute")


def test_experts_of_narrow_weights_have_kernels_and_intervals_of_their_own() -> None:
    """Marlin's on the H100, whose file has them; the A100 reads the same bytes with its 16-bit ones."""
    h100, weights = load_device("h100-sxm"), "weight-only:bits=4,group=128"
    constants, kernels = moe_kernels(h100, 16, 4)
    assert kernels is MARLIN
    dense = gemm_kernels(h100)[0]
    alone = moe_time(512, *EXPERTS, card_of(h100), dense, constants, kernels=kernels, weight_bits=4)
    assert experts_row(h100, 512, weights)[0] == pytest.approx(float(alone), rel=0.01)
    assert moe_kernels(A100, 16, 4) == moe_kernels(A100)
    assert experts_row(A100, 1, weights)[0] < 0.5 * experts_row(A100, 1)[0]
    compiled, model = prepare(apply_techniques(trace("mixtral-8x7b"), [weights]), h100)
    at = next(i for i, r in enumerate(compiled.rows) if r.operator.kind == "experts")
    for ends, side in ((model.low, "low"), (model.high, "high")):
        assert set(ends[:, at]) == {getattr(h100.intervals["experts_4bit"], side).value}
    # Kernels for narrow weights that nobody measured: the A100's experts, and the H100's linear layers.
    for device, kind in ((A100, "experts"), (h100, "matmul")):
        compiled, model = prepare(apply_techniques(trace("mixtral-8x7b"), [weights]), device)
        at = next(i for i, r in enumerate(compiled.rows) if r.operator.kind == kind)
        assert set(model.high[:, at]) == {device.intervals["narrow"].high.value}
        assert device.intervals["narrow"].high.value > device.intervals["experts"].high.value


def test_popular_experts_and_long_sequences_take_longer() -> None:
    """Each kernel as its model has it for that load; a batch of two has no sequence of more than twice the mean."""
    device = load_device("h100-sxm")
    constants, kernels = moe_kernels(device)
    alone = moe_time(
        2048, *EXPERTS, card_of(device), gemm_kernels(device)[0], constants, kernels=kernels, imbalance=1.2
    )
    assert experts_row(device, 2048, "load:imbalance=1.2")[0] == pytest.approx(float(alone), rel=1e-9)
    assert experts_row(device, 2048, "load:imbalance=1.2")[0] > 1.02 * experts_row(device, 2048)[0]
    attention, flash = attention_kernels(device)

    def decode(batch: int, setting: str) -> float:
        compiled, model = prepare(apply_techniques(trace(), [setting]), device)
        at = next(i for i, r in enumerate(compiled.rows) if r.operator.kind == "attention")
        return float(model.rows(compiled.basis_at(batch, 1, 4095)).time_s[at, 0])

    def expected(batch: int, skew: float) -> float:
        whole = decode_time(
            batch, 4096, 64, 8, 128, 128, card_of(device), attention, flash, kv_max=skew * 4096
        )  # the write is the append's
        return float(whole) - float(write_time(batch, 2 * 8 * 128, card_of(device), attention))

    assert decode(64, "load:skew=30") == pytest.approx(expected(64, 30))
    assert decode(64, "load:skew=30") > 1.2 * decode(64, "load")
    assert decode(2, "load:skew=30") == pytest.approx(expected(2, 2))


@pytest.mark.parametrize(("tokens", "arithmetic", "stream"), [(1, 1, 2), (2, 2, 4), (1000, 1000, 8)])
def test_the_floor_of_experts_by_hand(tokens: int, arithmetic: float, stream: float) -> None:
    """Eight experts, two per token, each 3 · 10 · 20 weights of 4 bits; 2400 FLOP/s; 300 byte/s."""
    card = replace(CARD, dram_bytes_s=300.0)
    found = moe_bound(np.array([float(tokens)]), 10, 20, 8, 2, card, rate=2400, weight_bits=4, gated=True)
    assert [float(x[0]) for x in found] == pytest.approx([arithmetic, stream])


# -- the table -----------------------------------------------------------------------------------------
@given(st.integers(1, EXACT), st.sampled_from([(512, 1024), (8192, 8192), (32000, 4096)]))
def test_a_table_is_exact_at_whole_rows(m: int, weights: tuple[int, int]) -> None:
    table = gemm_table(*weights, CARD, *GEMM, rate=CARD.matrix_flops)
    seconds, limit = table(np.array([float(m), m - 0.5 if m > 1 else 1.0]))
    exact, why = gemm_time(m, *weights, CARD, *GEMM, rate=CARD.matrix_flops)
    assert seconds == pytest.approx([float(exact)] * 2, rel=1e-6)
    assert limit[0] == why


def test_beyond_its_entries_a_table_is_off_only_where_a_wave_begins() -> None:
    """The step of one more wave is spread over a hundredth of m."""
    m = np.round(np.geomspace(EXACT + 1, 1e8, 500))
    for weights in ((512, 1024), (8192, 8192), (32000, 4096)):
        seconds, _ = gemm_table(*weights, CARD, *GEMM, rate=CARD.matrix_flops)(m)
        exact, _ = gemm_time(m, *weights, CARD, *GEMM, rate=CARD.matrix_flops)
        off = np.abs(seconds / exact - 1)
        assert off.max() < 0.08
        assert off.mean() < 0.002
    far, _ = gemm_table(512, 1024, CARD, *GEMM, rate=CARD.matrix_flops)(np.array([1e30]))
    assert np.isfinite(far).all()


def test_threads_share_a_table() -> None:
    table = gemm_table(768, 3072, CARD, *GEMM, rate=CARD.matrix_flops)
    rng = np.random.default_rng(0)
    parts = [rng.integers(1, 40_000, 500).astype(float) for _ in range(16)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda m: table(m)[0], parts))
    for m, seconds in zip(parts, found, strict=True):
        assert np.isfinite(seconds).all()
        np.testing.assert_array_equal(seconds, table(m)[0])


# -- composition ---------------------------------------------------------------------------------------
def test_composed_half_widths_by_hand() -> None:
    """3 and 4 in one family, 12 in another."""
    half = np.array([[3.0], [4.0], [12.0]])
    families = ("a", "a", "b")
    assert Errors(families).compose(half) == pytest.approx([19])
    assert Errors(families, 0, 0).compose(half) == pytest.approx([13])
    assert Errors(families, 1, 0).compose(half) == pytest.approx([np.hypot(7, 12)])
    by_hand = 9 + 16 + 144 + 2 * (0.5 * 12 + 0.1 * 36 + 0.1 * 48)
    assert Errors(families, 0.5, 0.1).compose(half) == pytest.approx([np.sqrt(by_hand)])


@given(
    st.lists(st.floats(0, 100), min_size=1, max_size=8), st.floats(0, 1), st.floats(0, 1),
    st.lists(st.sampled_from("abc"), min_size=8, max_size=8),
)  # fmt: skip
def test_a_composed_half_width_lies_between_independence_and_the_sum(half, one, other, families) -> None:
    within, across = max(one, other), min(one, other)
    h = np.array(half)[:, None]
    found = Errors(tuple(families[: len(half)]), within, across).compose(h)[0]
    assert np.sqrt((h**2).sum()) * (1 - 1e-9) <= found <= h.sum() * (1 + 1e-9)


def test_a_measured_card_has_the_narrower_interval() -> None:
    """A100 and A100 40 GB run the same kernels; only the one was measured."""
    mine, other = (cost(trace(), load_device(name), 8, 1, 1000) for name in ("a100-80g-sxm", "a100-40g-sxm"))
    assert mine.high_s[0] / mine.latency_s[0] < 1.2 < other.high_s[0] / other.latency_s[0]


@pytest.mark.parametrize("name", [n for n in device_names() if load_device(n).kind == "gpu"])
def test_every_gpu_lies_between_its_roofline_and_three_times_that(name: str) -> None:
    """Large work comes near the datasheet's limits: prefill its rate, decoding its bandwidth."""
    card, t = load_device(name), trace("llama-2-7b")
    prefill, decode = cost(t, card, [4, 1], [2048, 1], [0, 2000]).latency_s
    ideal = float(t.total("flops")(4, 2048, 0)) / card.rate("fp16")[1].value
    assert ideal < prefill < 3 * ideal
    stream = float(t.total("bytes")(1, 1, 2000)) / card.dram.bandwidth.value
    assert stream < decode < 3 * stream
